package agent

import (
	"bytes"
	"errors"
	mrand "math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/firstboot"
)

const planted = secureboot.NonVolatile | secureboot.BootServiceAccess | secureboot.RuntimeAccess

// What somebody has stored in the firmware for the kernel to trust is taken away, and
// neither a secret nor a shell is beside a kernel that has obeyed it. FAULTS 85
func TestPlantedKernelKeys(t *testing.T) {
	for _, v := range secureboot.UnmeasuredVariables {
		m := provisionedMachine(t, nil)
		m.vars[v.Name] = efiVariable{planted, []byte("a certificate")}
		m.presses, m.looks = 1, 0 // somebody wants the console, too
		end := m.run()
		again := strings.Contains(m.said.String(), "reboot: the kernel has obeyed "+v.Name)
		if end != "recovery" || again != v.Early {
			t.Errorf("%s: ends in %s, started again %v:\n%s", v.Name, end, again, m.said.String())
		}
		if _, there := m.vars[v.Name]; there || !strings.Contains(m.said.String(), v.Does) {
			t.Errorf("%s: there %v, said:\n%s", v.Name, there, m.said.String())
		}
		m.presses = 0
		m.runs(1)
		if strings.Contains(m.said.String(), v.Name) {
			t.Errorf("the boot after that says:\n%s", m.said.String())
		}
	}
}

// Firmware that has it again at each start gets one restart, and then somebody learns why
// the machine stops. Once it is gone the machine is as before. FAULTS 85
func TestPlantedAgain(t *testing.T) {
	m := provisionedMachine(t, nil)
	m.restores = map[string]efiVariable{"MokListRT": {planted, []byte("a certificate")}}
	for _, want := range []string{"reboot", "recovery", "recovery"} {
		m.said.Reset()
		end := m.boot()
		if end != want || want == "recovery" && (!m.noModules || !strings.Contains(m.said.String(), "If it comes back, the firmware restores it")) {
			t.Fatalf("ends in %s, want %s, modules refused %v:\n%s", end, want, m.noModules, m.said.String())
		}
	}
	m.restores = nil
	m.runs(1)
	if m.onESP(firstboot.DeletionMark) {
		t.Error("the mark is still there")
	}
}

// A mark that somebody has put there, or an ESP that cannot keep one.
func TestPlantedMark(t *testing.T) {
	m := provisionedMachine(t, nil)
	m.putESP(firstboot.DeletionMark, nil)
	m.runs(1)
	if m.onESP(firstboot.DeletionMark) {
		t.Error("the mark is still there")
	}
	m.putESP(firstboot.DeletionMark, nil)
	m.vars["MokListRT"] = efiVariable{planted, []byte("a certificate")}
	if end := m.boot(); end != "recovery" || !m.noModules || m.agent.Released {
		t.Errorf("ends in %s, modules refused %v:\n%s", end, m.noModules, m.said.String())
	}
	if said := m.said.String(); strings.Contains(said, "the firmware brings") || !strings.Contains(said, "`exit` restarts without it") {
		t.Errorf("the mark is an old one, and the firmware has brought nothing back:\n%s", said)
	}
	m.runs(1)
	m.vars["MokListRT"] = efiVariable{planted, []byte("a certificate")}
	m.esp.fails = errors.New("read-only file system")
	if end := m.boot(); end != "recovery" || !m.noModules || !strings.Contains(m.said.String(), "cannot be noted on the ESP (read-only file system)") {
		t.Errorf("ends in %s, modules refused %v:\n%s", end, m.noModules, m.said.String())
	}
	m.esp.fails = nil
	m.runs(1)
}

// The power is cut at every write: the machine ends in its system without anybody, where
// the firmware keeps what it was told, and in the console where it does not. FAULTS 42
func TestPlantedCut(t *testing.T) {
	for _, want := range []string{"system", "recovery"} {
		m := provisionedMachine(t, nil)
		stored := map[string]efiVariable{"MokListRT": {planted, []byte("a certificate")}}
		m.vars["MokListRT"] = stored["MokListRT"]
		if want == "recovery" {
			m.restores = stored
		}
		states, end := m.record(m.world(true, nil), mrand.New(mrand.NewPCG(71, 72)), "")
		if end != want {
			t.Fatalf("ends in %s:\n%s", end, m.said.String())
		}
		for _, s := range states {
			m.powerOn(s.world)
			m.said.Reset()
			if end := m.run(); end != want || strings.Count(m.said.String(), "RECOVERY") > 1 {
				t.Errorf("%s: ends in %s:\n%s", s.how, end, m.said.String())
			}
		}
		t.Logf("%d states", len(states))
	}
}

// One that its own signature alone deletes, or firmware that says yes and does nothing:
// the TPM releases nothing, and the console loads no further module.
func TestPlantedForGood(t *testing.T) {
	for name, attributes := range map[string]uint32{"authenticated": planted | secureboot.TimeBasedAuthenticated, "unreadable": 0} {
		m := provisionedMachine(t, nil)
		m.vars["MokListRT"] = efiVariable{attributes, []byte("a certificate")}
		m.keepsAll = true
		if end := m.run(); end != "recovery" || !m.noModules || !strings.Contains(m.said.String(), "reset the firmware to its factory settings") {
			t.Errorf("%s: ends in %s, modules refused %v:\n%s", name, end, m.noModules, m.said.String())
		}
		delete(m.vars, "MokListRT")
		m.keepsAll = false
		m.runs(1)
	}
}

// loaderVariables are those of the boot loader interface that this program goes by.
var loaderVariables = []string{"LoaderBootCountPath", "LoaderDevicePartUUID", "StubImageIdentifier"}

// storeLoaderVariables puts something under the names that boot manager and stub use.
func (m *machine) storeLoaderVariables(attributes uint32, text string) {
	for _, name := range loaderVariables {
		var data []byte
		for _, c := range []byte(text + "\x00") {
			data = append(data, c, 0)
		}
		m.vars[name] = efiVariable{attributes, data}
	}
}

// Somebody has stored what boot manager and stub set in each start, of any size and
// also for good: a system that has proven itself is none on trial by it, and takes the
// release that was fetched. FAULTS 85
func TestPlantedLoaderVariables(t *testing.T) {
	large := strings.Repeat("x", 1<<17)
	for name, c := range map[string]struct {
		attributes uint32
		text       string
		keepsAll   bool
	}{
		"a trial's name": {planted, `\EFI\Linux\test_1+2-1.efi`, false},
		"large":          {planted, large, false},
		"that stays":     {planted | secureboot.TimeBasedAuthenticated, large, true},
	} {
		t.Run(name, func(t *testing.T) {
			m := provisionedMachine(t, pinned)
			m.fetch(newRelease(t, 2, 6, pinned))
			m.storeLoaderVariables(c.attributes, c.text)
			m.keepsAll = c.keepsAll
			m.runs(2, "LoaderBootCountPath, which says that a system is on trial")
			for _, v := range loaderVariables {
				if _, there := m.vars[v]; there != c.keepsAll {
					t.Errorf("%s: there %v", v, there)
				}
			}
			m.bless()
			m.runs(2)
			m.holds(6, 2)
		})
	}
}

// A machine that somebody has stored them on can be installed again, on an empty disk.
func TestInstallBesideLoaderVariables(t *testing.T) {
	m := newMachine(t, nil)
	m.storeLoaderVariables(planted, `\EFI\Linux\test_1+2-1.efi`)
	m.ends("system")
	m.must(m.provisioned())
}

// What shim or the boot manager sets at each start is gone with it, and was measured with
// them.
func TestVolatileVariablesStay(t *testing.T) {
	m := provisionedMachine(t, nil)
	for _, name := range append(slices.Clone(loaderVariables), "MokListRT") {
		m.vars[name] = efiVariable{secureboot.BootServiceAccess | secureboot.RuntimeAccess, nil}
	}
	m.runs(1)
	for _, name := range append(slices.Clone(loaderVariables), "MokListRT") {
		if _, there := m.vars[name]; !there {
			t.Errorf("%s was deleted", name)
		}
	}
}

// The UKI is started from a path that nobody expects, and a file of our name, which is
// not it, tells what is our own in PCR 12: nobody is asked for a key, and nothing is
// handed over. FAULTS 92
func TestForeignCommandLine(t *testing.T) {
	m := provisionedMachine(t, nil)
	m.extra = "a firmware update, so that the key is asked for"
	text := []byte("systemd.debug_shell=1")
	for _, c := range append(bytes.Clone(text), 0) {
		m.extra12 += string([]byte{c, 0}) // as the stub measures it
	}
	initrd, err := contract.ArchiveWith(m.releases[1].contract, contract.Own())
	m.must(err)
	other, err := uki.Build(ukitest.Stub("257.13-1"), uki.Payload{OSRelease: []byte("ID=test\n"), Cmdline: text, Linux: ukitest.Stub("kernel"), Initrd: initrd}.Sections())
	m.must(err)
	name := path.Join(bls.Directory, "test_1.efi")
	m.startFile = path.Join(bls.Directory, "other.efi")
	m.esp.files[m.startFile] = m.esp.files[name]
	r := remains{data: other}
	m.esp.files[name] = &espFile{r, []remains{r}}
	m.typed = []string{m.recoveryKey(), "y", "y"}
	if end := m.run(); end == "system" || len(m.typed) != 3 {
		t.Errorf("ends in %s, not typed: %q\n%s", end, m.typed, m.said.String())
	}
}

// A disk without the root partition starts no system where Secure Boot or a TPM is
// required, whatever the UKI's name says. FAULTS 92
func TestNoRootPartition(t *testing.T) {
	for _, name := range []string{"test_1.efi", "test_1+3.efi"} {
		m := provisionedMachine(t, nil)
		table, _, err := m.table()
		m.must(err)
		for i := range table.Partitions {
			if p := &table.Partitions[i]; p.Number == layout.RootNumber {
				p.Number, p.Type, p.Label = 7, layout.TypeData, "data"
			}
		}
		m.must(table.Write(m.disk))
		m.must(m.disk.Sync())
		if name != "test_1.efi" {
			m.rename("test_1.efi", name)
		}
		m.ends("recovery")
	}
}
