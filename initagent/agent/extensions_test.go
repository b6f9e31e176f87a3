package agent_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/extension"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/modindex"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/machinetest"
)

// The extensions of the tests' releases.
func vpn(t *testing.T) *machinetest.Extension {
	return machinetest.NewExtension(t, "vpn", 1, false, map[string]string{"usr/bin/vpn": "vpn", "usr/share/both": "vpn", "etc/passwd": "mine", "root/x": "x"})
}

func disk(t *testing.T, seed byte) *machinetest.Extension {
	return machinetest.NewExtension(t, "disk", seed, true, map[string]string{"usr/bin/disk": string('0' + rune(seed)), "usr/share/both": "disk", "opt/disk/x": "x"})
}

// reported is what the boot report says of a machine's extensions.
func reported(m *machinetest.Machine) *bootinfo.Report {
	m.T.Helper()
	r, err := bootinfo.Place{Report: filepath.Join(m.Root, "run/halogen", bootinfo.ReportName)}.Boot()
	m.Must(err)
	if r == nil {
		m.T.Fatal("no report")
	}
	return r
}

func stateOf(m *machinetest.Machine, name string) extension.State {
	m.T.Helper()
	for _, s := range reported(m).Extensions {
		if s.Name == name {
			return s
		}
	}
	m.T.Fatalf("the report has no extension %s", name)
	return extension.State{}
}

// What is enabled is part of the running system, with a name that comes later above one that
// comes before; of its files those in /usr and /opt alone. PCR 13 and the report tell of it.
func TestExtensionsAreUsed(t *testing.T) {
	t.Parallel()
	m := machinetest.Extended(t, vpn(t), disk(t, 2), machinetest.NewExtension(t, "off", 3, true, nil))
	m.Runs(1)
	if len(m.Overlaid) > 0 || m.PCR13() != (pcr.Digest{}) || stateOf(m, "vpn").Enabled {
		t.Errorf("nothing is enabled: %v, PCR 13 %s", m.Overlaid, m.PCR13())
	}
	wrote := m.Ops
	m.Enable("vpn", "disk")
	m.Ops = nil
	m.Runs(1, "extension vpn, root hash", "add-extensions", "/opt is read-only as long as extension disk is enabled")
	if !slices.Equal(m.Ops, wrote) {
		t.Errorf("the boot does %q, and without extensions %q", m.Ops, wrote)
	}
	want := map[string]map[string]string{"usr": {"bin/vpn": "vpn", "bin/disk": "2", "share/both": "vpn"}, "opt": {"disk/x": "x"}}
	if !maps.EqualFunc(m.Overlaid, want, maps.Equal) {
		t.Errorf("the system sees %v, want %v", m.Overlaid, want)
	}
	measured := []extension.Measured{{Name: "disk", RootHash: m.Releases[1].Extensions[1].RootHash}, {Name: "vpn", RootHash: m.Releases[1].Extensions[0].RootHash}}
	if got := m.PCR13(); got != extension.Register(measured) {
		t.Errorf("PCR 13 is %s, want %s", got, extension.Register(measured))
	}
	for name, opened := range map[string]bool{"vpn": true, "disk": true, "off": false} {
		if s := stateOf(m, name); s.Opened != opened || s.Enabled != opened || s.Measured != opened || s.LeftOut != "" {
			t.Errorf("the report says %+v", s)
		}
	}
	if m.JournalHas(journal.LeftOut, "") {
		t.Error("the journal says that something is left out")
	}
	m.Runs(1, "unlock") // what was measured is gone with the restart, and keeps nothing locked
}

// Each way in which the file of an extension is not what the release names: it is left out,
// and the system starts; one that is essential stops the boot, and the console says what to do.
// FAULTS 111
func TestExtensionThatDoesNotFit(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(m *machinetest.Machine, e *machinetest.Extension)
		says  string
	}{
		"missing": {func(m *machinetest.Machine, e *machinetest.Extension) {
			delete(m.RootFiles(), machinetest.ExtensionFile(e))
		}, "its file is missing (/var/lib/halogen/extensions/"},
		"short": {func(m *machinetest.Machine, e *machinetest.Extension) {
			m.RootFiles()[machinetest.ExtensionFile(e)] = e.File[:len(e.File)-1]
		}, "bytes, want"},
		"long": {func(m *machinetest.Machine, e *machinetest.Extension) {
			m.RootFiles()[machinetest.ExtensionFile(e)] = append(slices.Clone(e.File), 0)
		}, "bytes, want"},
		"empty": {func(m *machinetest.Machine, e *machinetest.Extension) {
			m.RootFiles()[machinetest.ExtensionFile(e)] = nil
		}, "bytes, want"},
		"a link": {func(m *machinetest.Machine, e *machinetest.Extension) { m.UnfitFile = machinetest.ExtensionFile(e) }, "open"},
		"the disk fails": {func(m *machinetest.Machine, e *machinetest.Extension) {
			m.UnreadableFile = machinetest.ExtensionFile(e)
		}, "input/output error"},
		"of another release": {func(m *machinetest.Machine, e *machinetest.Extension) {
			m.RootFiles()[machinetest.ExtensionFile(e)] = machinetest.NewExtension(m.T, e.Name, 9, e.Essential, e.Tree).File
		}, "its file is not what the release names"},
		"a bit at the front": {func(m *machinetest.Machine, e *machinetest.Extension) {
			m.RootFiles()[machinetest.ExtensionFile(e)][1024] ^= 1
		}, "first read through dm-verity"},
		"a bit of the tree": {func(m *machinetest.Machine, e *machinetest.Extension) {
			m.RootFiles()[machinetest.ExtensionFile(e)][e.ImageSize+verity.BlockSize] ^= 1
		}, "its file is not what the release names"},
		"no loop device": {func(m *machinetest.Machine, _ *machinetest.Extension) { m.NoLoop = true }, "loop-control"},
		"no overlay": {func(m *machinetest.Machine, _ *machinetest.Extension) {
			m.NoOverlay = filepath.Join(m.Root, "sysroot/usr")
		}, "could not be laid over"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := machinetest.Extended(t, vpn(t), disk(t, 2))
			m.Enable("vpn")
			c.spoil(m, m.Releases[1].Extensions[0])
			m.Runs(1, "extension", "left out", c.says)
			if s := stateOf(m, "vpn"); s.Opened || !strings.Contains(s.LeftOut, c.says) || len(m.Overlaid) > 0 {
				t.Errorf("the report says %+v; %v", s, m.Overlaid)
			}
			measured := stateOf(m, "vpn").Measured
			if none := m.PCR13() == (pcr.Digest{}); none == measured {
				t.Errorf("PCR 13 is %s, and the report says that it has it: %v", m.PCR13(), measured)
			}
			m.UnfitFile, m.UnreadableFile = "", ""
			m.Enable("disk")
			c.spoil(m, m.Releases[1].Extensions[1])
			m.Ends("recovery", "STOPPED:", "extension disk is essential, and is left out: ", c.says, "RECOVERY", "`rollback` starts the other system")
			m.UnfitFile, m.UnreadableFile = "", ""
			if m.PCR13() != (pcr.Digest{}) {
				t.Error("something is measured in a boot that opens the console")
			}
			delete(m.RootFiles(), machinetest.ChoiceFile)
			m.NoLoop, m.NoOverlay = false, ""
			m.Runs(1)
		})
	}
}

// Where /opt alone cannot be laid, the reason says that /usr was.
func TestExtensionWithoutItsOpt(t *testing.T) {
	t.Parallel()
	m := machinetest.Extended(t, machinetest.NewExtension(t, "vpn", 1, false, map[string]string{"usr/bin/vpn": "vpn", "opt/vpn/x": "x"}))
	m.Enable("vpn")
	m.NoOverlay = filepath.Join(m.Root, "sysroot/opt")
	m.Runs(1, "extension vpn is left out: /opt could not be laid over the system's, and what it has in /usr is part of the system: ")
	if s := stateOf(m, "vpn"); s.Opened || len(m.Overlaid) != 1 {
		t.Errorf("the report says %+v; %v", s, m.Overlaid)
	}
}

// Root of the running system can write what it likes in the place of the choice: none is
// opened then, and where one is essential, which may be enabled, the boot stops.
func TestHostileChoice(t *testing.T) {
	t.Parallel()
	many := `{"format":1,"enabled":["vpn"` + strings.Repeat(`,"x"`, 10000) + `]}`
	for name, c := range map[string]struct{ text, says string }{
		"huge":           {many, "more than"},
		"twice":          {`{"format":1,"enabled":["vpn","vpn"]}`, "twice"},
		"a path":         {`{"format":1,"enabled":["../vpn"]}`, "want a name"},
		"of later":       {`{"format":2,"enabled":["vpn"]}`, "format 2"},
		"empty":          {``, "no JSON value"},
		"the disk fails": {"EIO", "input/output error"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := machinetest.Extended(t, vpn(t))
			m.RootFiles()[machinetest.ChoiceFile] = []byte(c.text)
			if c.text == "EIO" {
				m.UnreadableFile = machinetest.ChoiceFile
			}
			m.Runs(1, "extension vpn is left out: whether it is enabled is not known", c.says)
			if !m.JournalHas(journal.LeftOut, "whether it is enabled is not known") || len(m.Overlaid) > 0 {
				t.Errorf("the journal does not tell, or there is %v", m.Overlaid)
			}
		})
	}
	m := machinetest.Extended(t, vpn(t), disk(t, 2))
	m.RootFiles()[machinetest.ChoiceFile] = []byte(many)
	m.Ends("recovery", "STOPPED:", "extension disk is essential", "enabled.json")
	m.Enable("vpn", "unknown")
	m.Runs(1, "extension unknown is enabled, and this release has none of this name", "extension vpn, root hash")
	if got := reported(m).UnknownExtensions; !slices.Equal(got, []string{"unknown"}) {
		t.Errorf("the report has unknown %q", got)
	}
}

// twoReleases is a machine that runs version 2, with another extension of the same name than
// version 1.
func twoReleases(t *testing.T) *machinetest.Machine {
	m := machinetest.Extended(t, disk(t, 2))
	m.Enable("disk")
	m.Runs(1)
	next := machinetest.NewRelease(t, 2, 5, machinetest.Pinned).Extend(t, disk(t, 5))
	m.PutExtension(next.Extensions[0])
	m.Fetch(next)
	if end := m.Boot(); end != "reboot" {
		t.Fatalf("staging ends in %s:\n%s", end, m.Said.String())
	}
	return m
}

// Each slot has its own set: a rollback takes the other's, by the same choice. The other
// release's file in the place of this one's does not open. FAULTS 111
func TestEachSlotHasItsExtensions(t *testing.T) {
	t.Parallel()
	m := twoReleases(t)
	m.Runs(2)
	if got := m.Overlaid["usr"]["bin/disk"]; got != "5" {
		t.Errorf("version 2 has the extension of %q", got)
	}
	m.Bless()
	m.Runs(2)
	m.ByHand = 1
	m.Runs(1)
	if got := m.Overlaid["usr"]["bin/disk"]; got != "2" {
		t.Errorf("version 1 has the extension of %q", got)
	}
	m.ByHand = 0
	old, own := m.Releases[1].Extensions[0], m.Releases[2].Extensions[0]
	m.RootFiles()[machinetest.ExtensionFile(own)] = slices.Clone(old.File)
	m.Ends("recovery", "STOPPED:", "its file is not what the release names", "`rollback`")
	m.ByHand = 1
	m.Runs(1)
}

// A trial whose essential extension is missing is given up by its tries: it never runs, so
// that it is never blessed.
func TestTrialWithoutAnEssentialExtension(t *testing.T) {
	t.Parallel()
	m := twoReleases(t)
	delete(m.RootFiles(), machinetest.ExtensionFile(m.Releases[2].Extensions[0]))
	for tries := 0; ; tries++ {
		end := m.Boot()
		if end == "system" {
			if m.Agent.Contract.Version != 1 || tries == 0 {
				t.Errorf("version %s runs after %d tries", m.Agent.Contract.Version, tries)
			}
			break
		}
		if end != "reboot" || tries > 5 {
			t.Fatalf("try %d ends in %s:\n%s", tries, end, m.Said.String())
		}
	}
	if _, failed := m.Failed()[2]; !failed || m.Overlaid["usr"]["bin/disk"] != "2" {
		t.Errorf("version 2 is not held for failed (%v), or version 1 shows %v", m.Failed(), m.Overlaid)
	}
}

// That the system's init cannot be read is not the slot's fault for certain where an extension
// lies over it: a version that has proven itself is not given up, and is not held for failed.
// Without extensions it is the image's. FAULTS 111
func TestInitBehindExtensions(t *testing.T) {
	t.Parallel()
	m := twoReleases(t)
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	m.NoInit = true
	m.Ends("recovery", "STOPPED:", "with its extensions, the system cannot be started", "`rollback` starts the other system", "enabled.json")
	if m.JournalHas(journal.Condemned, "") {
		t.Error("the slot is given up")
	}
	m.NoInit = false
	m.Runs(2)
	m.Enable()
	m.NoInit = true
	if end := m.Boot(); end != "reboot" || !m.JournalHas(journal.Condemned, "the system cannot be started") {
		t.Errorf("without extensions the boot ends in %s:\n%s", end, m.Said.String())
	}
	m.NoInit = false
	m.Runs(1)
}

// A release that would not start here waits until its essential extension is there.
func TestStagingWaitsForAnEssentialExtension(t *testing.T) {
	t.Parallel()
	m := machinetest.Extended(t, disk(t, 2))
	m.Enable("disk")
	next := machinetest.NewRelease(t, 2, 5, machinetest.Pinned).Extend(t, disk(t, 5))
	m.Fetch(next)
	m.Runs(1, "version 2 would not start here: extension disk is essential, and is left out: its file is missing")
	m.PutExtension(next.Extensions[0])
	if end := m.Boot(); end != "reboot" {
		t.Fatalf("staging ends in %s:\n%s", end, m.Said.String())
	}
	m.Runs(2)
}

// What an extension may not hide, and what the image has no place for. FAULTS 111
func TestExtensionThatHides(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		tree map[string]string
		says string
	}{
		"os-release":      {map[string]string{"usr/lib/os-release": "ID=other"}, "it has /usr/lib/os-release"},
		"state.conf":      {map[string]string{"usr/lib/halogen/state.conf": "bind /etc"}, "it has /usr/lib/halogen"},
		"fwupd's program": {map[string]string{"usr/libexec/fwupd/efi/fwupdx64.efi": "x"}, "it has /usr/libexec/fwupd/efi"},
		"the machine's":   {map[string]string{"usr/local/bin/x": "x"}, "it has /usr/local"},
		"a link in usr":   {map[string]string{"usr/lib": "->../etc"}, "it has a /usr/lib that hides what the system has there"},
		"modules":         {map[string]string{"usr/lib/modules": "->/etc"}, "it has a /usr/lib/modules that hides"},
		"a file in usr":   {map[string]string{"usr/libexec": "x"}, "it has a /usr/libexec that hides"},
		"usr is a link":   {map[string]string{"usr": "->/"}, "its /usr is no directory"},
		"opt is a file":   {map[string]string{"opt": "x"}, "its /opt is no directory"},
		"neither":         {map[string]string{"etc/passwd": "x"}, "it has neither /usr nor /opt"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := machinetest.Extended(t, machinetest.NewExtension(t, "bad", 1, false, c.tree), vpn(t))
			m.Enable("bad", "vpn")
			m.Runs(1, "extension bad is left out: "+c.says, "extension vpn, root hash")
			if s := stateOf(m, "bad"); s.Opened || s.Measured {
				t.Errorf("the report says %+v", s)
			}
		})
	}
	m := machinetest.Extended(t, disk(t, 2))
	m.Must(os.Remove(filepath.Join(m.Root, "sysroot/opt")))
	m.Enable("disk")
	m.Ends("recovery", "it has /opt, for which the image has no directory")
}

// The running system finds the image's modules and the extensions', by indexes that are
// merged; without them it would find the extension's alone.
func TestModulesOfExtensions(t *testing.T) {
	t.Parallel()
	const in = "usr/lib/modules/6.12.0-test/"
	dep := func(module string) string {
		raw, err := modindex.Index{module: {{Priority: 1, Text: module + ".ko:"}}}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	driver := machinetest.NewExtension(t, "driver", 1, false, map[string]string{
		in + "modules.dep": "updates/gpu.ko:\n", in + "modules.dep.bin": dep("gpu"), in + "updates/gpu.ko": "gpu", in + "modules.builtin": "", "usr/bin/gpu": "gpu",
	})
	driver.Modules = true
	plain := machinetest.NewExtension(t, "plain", 2, false, map[string]string{in + "modules.dep": "updates/net.ko:\n", "usr/bin/net": "net"})
	broken := machinetest.NewExtension(t, "broken", 3, false, map[string]string{strings.TrimSuffix(in, "/"): "no directory", "usr/bin/broken": "x"})
	m := machinetest.Extended(t, driver, plain, broken)
	for name, text := range map[string]string{"modules.dep": "kernel/ext4.ko:\n", "modules.dep.bin": dep("ext4"), "modules.builtin": "kernel/loop.ko\n", "modules.symbols": "alias symbol:x ext4\n"} {
		at := filepath.Join(m.Root, "sysroot", in, name)
		m.Must(os.MkdirAll(filepath.Dir(at), 0o755))
		m.Must(os.WriteFile(at, []byte(text), 0o644))
	}
	m.Enable("driver", "plain")
	m.Runs(1, "its kernel modules cannot be had beside the image's")
	if len(m.Overlaid) > 0 || stateOf(m, "driver").Opened {
		t.Errorf("which kernel runs is not known, and the system sees %v", m.Overlaid)
	}
	proc := filepath.Join(m.Root, "proc/sys/kernel")
	m.Must(os.MkdirAll(proc, 0o755))
	m.Must(os.WriteFile(filepath.Join(proc, "osrelease"), []byte("6.12.0-test\n"), 0o644))
	m.Enable("driver", "plain", "broken") // whose damage is its own
	m.Runs(1, "extension driver, root hash", "extension broken is left out: its kernel modules' indexes cannot be read")
	have := m.Overlaid["usr"]
	if _, there := have["bin/broken"]; there || stateOf(m, "broken").Opened || !stateOf(m, "driver").Opened {
		t.Errorf("one whose modules cannot be read is part of the system, or another one is not: %v", have)
	}
	m.Enable("driver", "plain")
	for name, want := range map[string]string{
		"modules.dep": "kernel/ext4.ko:\nupdates/gpu.ko:\nupdates/net.ko:\n", "modules.builtin": "kernel/loop.ko\n", "modules.symbols": "alias symbol:x ext4\n", "updates/gpu.ko": "gpu",
	} {
		if got := have[strings.TrimPrefix(in, "usr/")+name]; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	x, err := modindex.Parse([]byte(have[strings.TrimPrefix(in, "usr/")+"modules.dep.bin"]))
	if err != nil || len(x["gpu"]) != 1 || len(x["ext4"]) != 1 {
		t.Errorf("modules.dep.bin has %v, %v", x, err)
	}
	driver.Tree[in+"modules.dep.bin"] = "no index"
	m.Runs(1, "its kernel modules cannot be had beside the image's")
	if len(m.Overlaid) > 0 {
		t.Errorf("an index that cannot be merged hides the kernel's: %v", m.Overlaid)
	}
}

// What the machine has of its own below /opt is mounted over the extensions' /opt: an overlay
// shows no mount of its layers. /opt as a whole lies below it.
func TestOwnDirectoriesInOpt(t *testing.T) {
	t.Parallel()
	for own, above := range map[string]bool{"/opt/own": true, "/opt": false} {
		m := machinetest.Extended(t, disk(t, 2))
		m.Must(os.MkdirAll(filepath.Join(m.Root, "sysroot/opt/own"), 0o755))
		conf := filepath.Join(m.Root, "sysroot", stateconf.Path)
		m.Must(os.MkdirAll(filepath.Dir(conf), 0o755))
		m.Must(os.WriteFile(conf, []byte("bind /var\nbind "+own+"\n"), 0o644))
		m.Enable("disk")
		m.Runs(1)
		at, overlay := filepath.Join(m.Root, "sysroot", own), filepath.Join(m.Root, "sysroot/opt")
		var order []string
		for _, target := range m.Mounted {
			if target == at || target == overlay {
				order = append(order, target)
			}
		}
		want := []string{overlay, at}
		if got := m.Overlaid["opt"]["disk/x"]; got != "x" || !slices.Equal(order, want) {
			t.Errorf("%s: /opt/disk/x is %q, and mounted are %q, want %q", own, got, order, want)
		}
		if m.Said.String() != "" && strings.Contains(m.Said.String(), "/opt is read-only") == above {
			t.Errorf("%s: %s", own, m.Said.String())
		}
	}
}

// A list in the initramfs that cannot be read is the release's fault, as a contract is.
func TestListThatIsRefused(t *testing.T) {
	t.Parallel()
	m := machinetest.Extended(t, vpn(t))
	for _, text := range []string{`{}`, `{"format":1,"extensions":[]}`, strings.Repeat(" ", 1<<17)} {
		m.ListText = text
		m.Ends("recovery", "list of extensions")
	}
}

// What the report says is read by the running system: the list as the UKI has it.
func TestReportOfExtensions(t *testing.T) {
	t.Parallel()
	m := machinetest.Extended(t, vpn(t))
	m.Enable("vpn")
	m.Runs(1)
	r := reported(m)
	want := m.Releases[1].Extensions[0].Extension
	if len(r.Extensions) != 1 || r.Extensions[0].Root() != want.Root() || r.Extensions[0].ImageSize != want.ImageSize {
		t.Errorf("the report has %+v", r.Extensions)
	}
	text, err := json.Marshal(r.Extensions[0])
	m.Must(err)
	var again contract.Extension
	m.Must(json.Unmarshal(text, &again))
	m.Must(again.Validate())
}
