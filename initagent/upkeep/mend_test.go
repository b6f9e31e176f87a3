package upkeep_test

import (
	"bytes"
	mrand "math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
)

func uki1() string { return path.Join(bls.Directory, "test_1.efi") }

func flipped(data []byte) []byte {
	out := bytes.Clone(data)
	out[len(out)/2] ^= 1
	return out
}

// What the ESP loses is put back at the next boot. FAULTS 47, 48
func TestMend(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.BootEntry = true
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	m.Runs(2, "mend", "test_2.efi is copied")
	good := m.Files()
	for _, c := range []struct {
		name, file string
		damage     func([]byte) []byte
		says       string
	}{
		{"the fallback is gone", uki1(), nil, "test_1.efi was gone, and is put back"},
		{"the fallback is damaged", uki1(), func(b []byte) []byte { return b[:len(b)-1000] }, "test_1.efi was damaged"},
		{"the boot manager is gone", machinetest.Removable, nil, "BOOTX64.EFI was gone"},
		{"the boot manager's other path is gone", machinetest.ManagerCopy, nil, "systemd-bootx64.efi was gone"},
		{"the boot manager is damaged", machinetest.Removable, func(b []byte) []byte { return b[:len(b)-1] }, "BOOTX64.EFI was damaged"},
		{"the boot manager is empty", machinetest.Removable, func(b []byte) []byte { return []byte{} }, "BOOTX64.EFI was damaged"},
		{"its settings are gone", "loader/loader.conf", nil, "loader.conf was gone"},
		{"half a file was left", uki1() + ".part", func([]byte) []byte { return []byte("MZ") }, "left behind"},
		{"a note was left", machinetest.Removable + ".signing", func([]byte) []byte { return []byte("x") }, "left behind"},
		{"two names of a version", path.Join(bls.Directory, "test_1+2-1.efi"), func([]byte) []byte { return good[uki1()] }, "besides the one that counts"},
		{"two names, and the wrong one is damaged", path.Join(bls.Directory, "test_1+0-3.efi"), func([]byte) []byte { return []byte("x") }, "besides the one that counts"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.T = t
			var data []byte
			if c.damage != nil {
				data = c.damage(m.Files()[c.file])
			}
			m.SetFile(c.file, data)
			m.Ends("system", c.says)
			if have := m.Files(); !same(have, good) {
				t.Errorf("files are %q, want %q", names(have), names(good))
			}
			if kinds := m.Kinds(); !slices.Contains(kinds[len(kinds)-3:], journal.Healed) {
				t.Errorf("the journal ends in %q", kinds[len(kinds)-3:])
			}
			m.Ops = nil
			m.Ends("system")
			if !slices.Equal(m.Ops, []string{"root keep " + bootjournal.File}) {
				t.Errorf("the next boot writes %q", m.Ops)
			}
		})
	}
	m.T = t
	onceAWeek(m, good)
}

// onceAWeek: what has the length it had is found when all is read.
func onceAWeek(m *machinetest.Machine, good map[string][]byte) {
	m.T.Helper()
	m.SetFile(uki1(), flipped(good[uki1()]))
	m.Ends("system")
	if same(m.Files(), good) {
		m.T.Error("an ordinary boot reads everything")
	}
	m.Clock = m.Clock.Add(8 * 24 * time.Hour)
	m.Ends("system", "it was not read for a week", "test_1.efi was damaged")
	if !same(m.Files(), good) {
		m.T.Error("it was not put back")
	}
	// Files of others are nobody's business but theirs.
	m.SetFile("EFI/Linux/other.part", []byte("x"))
	m.SetFile("EFI/Linux/other.efi.part.txt", []byte("x"))
	m.SetFile("EFI/vendor/tool.part", []byte("x"))
	m.Ends("system")
	if have := m.Files(); have["EFI/vendor/tool.part"] == nil || have["EFI/Linux/other.efi.part.txt"] == nil {
		m.T.Errorf("files are %q", names(have))
	}
}

func same(a, b map[string][]byte) bool {
	return slices.Equal(names(a), names(b)) && !slices.ContainsFunc(names(a), func(n string) bool { return !bytes.Equal(a[n], b[n]) })
}

func names(files map[string][]byte) (names []string) {
	for name := range files {
		// What a boot keeps for later is compared elsewhere.
		if !strings.HasPrefix(path.Base(name), "eventlog-") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// What was given up is not put back. FAULTS 45, 47
func TestMendGivesUp(t *testing.T) {
	name1 := path.Join(bls.Directory, "test_1.efi")
	for _, c := range []struct {
		name string
		set  func(m *machinetest.Machine)
		want []string
	}{
		{"a trial that is lost", func(m *machinetest.Machine) {
			m.Fetch(machinetest.NewRelease(m.T, 2, 5, machinetest.Pinned))
			m.Boot()
			m.Rename("test_2+3.efi", "")
		}, []string{"test_1.efi"}},
		{"a system that was given up", func(m *machinetest.Machine) {
			blessSecond(m)
			m.SetFile(path.Join(bls.Directory, "test_1+0.efi"), m.Files()[name1])
			m.SetFile(name1, nil)
		}, []string{"test_1+0.efi", "test_2.efi"}},
		{"a slot that the fetcher has emptied", func(m *machinetest.Machine) {
			blessSecond(m)
			m.SetFile(name1, nil)
			table, _, err := m.Table()
			m.Must(err)
			m.Must(layout.Rename(table, layout.SlotA, gpt.MustGUID("12345678-1234-4234-8234-123456789abc"), gpt.MustGUID("12345678-1234-4234-8234-123456789abd")).Write(m.Disk))
		}, []string{"test_2.efi"}},
		{"a copy that was changed", func(m *machinetest.Machine) {
			blessSecond(m)
			m.SetFile(name1, nil)
			files := m.Volumes[*m.OpenVolume]
			files[rootpart.Copies+"/test_1.efi"] = flipped(files[rootpart.Copies+"/test_1.efi"])
		}, []string{"test_2.efi"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
			c.set(m)
			m.Ends("system")
			for range 2 {
				m.Ops = nil
				m.Ends("system")
				var have []string
				for _, name := range names(m.Files()) {
					if n, err := bls.Parse(path.Base(name)); err == nil && n.ImageID == "test" {
						have = append(have, n.String())
					}
				}
				if !slices.Equal(have, c.want) {
					t.Errorf("UKIs %q, want %q:\n%s", have, c.want, m.Said.String())
				}
			}
			if !slices.Equal(m.Ops, []string{"root keep " + bootjournal.File}) {
				t.Errorf("the boot after writes %q", m.Ops)
			}
		})
	}
}

// blessSecond has version 2 fetched, blessed and copied.
func blessSecond(m *machinetest.Machine) {
	m.T.Helper()
	m.Fetch(machinetest.NewRelease(m.T, 2, 5, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	m.Runs(2)
}

// The power is cut at every write of mending. The next boot comes up, and the
// ESP is whole in the end. A flush that is not made is noticed. FAULTS 47, 48
func TestCutMend(t *testing.T) {
	base := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	base.BootEntry = true
	blessSecond(base)
	good := base.Files()
	cases := 0
	for name, damage := range map[string]func(m *machinetest.Machine){
		"fallback gone":        func(m *machinetest.Machine) { m.SetFile(uki1(), nil) },
		"fallback damaged":     func(m *machinetest.Machine) { m.SetFile(uki1(), []byte("MZ")) },
		"boot manager damaged": func(m *machinetest.Machine) { m.SetFile(machinetest.Removable, []byte("MZ")) },
		"everything else is gone": func(m *machinetest.Machine) {
			m.SetFile(uki1(), nil)
			m.SetFile(machinetest.ManagerCopy, nil)
			m.SetFile("loader/loader.conf", nil)
		},
		"no copies": func(m *machinetest.Machine) {
			files := m.Volumes[*m.OpenVolume]
			for name := range files {
				if strings.HasPrefix(name, rootpart.Copies) {
					delete(files, name)
				}
			}
		},
	} {
		start := func() {
			base.PowerOn(base.World(true, nil))
			for name := range base.ESP.Files {
				base.SetFile(name, good[name])
			}
			damage(base)
		}
		start()
		states, end := base.RecordOnce(mrand.New(mrand.NewPCG(7, 8)))
		if end != "system" {
			t.Fatalf("%s: ends in %s:\n%s", name, end, base.Said.String())
		}
		for _, s := range states {
			cases++
			base.PowerOn(s.World)
			base.Said.Reset()
			if end := base.Run(); end != "system" {
				t.Fatalf("%s: %s: ends in %s:\n%s", name, s.How, end, base.Said.String())
			}
			if have := base.Files(); !same(have, good) {
				t.Fatalf("%s: %s: files %q, want %q:\n%s", name, s.How, names(have), names(good), base.Said.String())
			}
		}
	}
	t.Logf("%d states after a cut", cases)
}

// An ESP that reports flushes which it has not made does not survive the same:
// the cuts look at what they say they do.
func TestCutMendNeedsFlushes(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	blessSecond(m)
	m.SetFile(uki1(), []byte("MZ"))
	damaged, tried := m.World(true, nil), 0
	for seed := range uint64(20) {
		m.PowerOn(damaged)
		m.ESP.Lying = true
		states, end := m.RecordOnce(mrand.New(mrand.NewPCG(11, seed)))
		if end != "system" {
			t.Fatalf("ends in %s", end)
		}
		tried += len(states)
		for _, s := range states {
			m.PowerOn(s.World)
			// Whole again by its length, and perhaps not by content, which nobody reads
			// for a week.
			if end := m.Run(); end != "system" || !bytes.Equal(m.Files()[uki1()], m.Volumes[*m.OpenVolume][rootpart.Copies+"/test_1.efi"]) {
				return
			}
		}
	}
	t.Errorf("all of %d states are well", tried)
}
