package unmeasured_test

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
	"halogenos.internal/initagent/machinetest"
)

// What somebody has stored in the firmware for the kernel to trust is taken away, and
// neither a secret nor a shell is beside a kernel that has obeyed it. FAULTS 85
func TestPlantedKernelKeys(t *testing.T) {
	for _, v := range secureboot.UnmeasuredVariables {
		m := machinetest.ProvisionedMachine(t, nil)
		m.Vars[v.Name] = machinetest.EFIVariable{Attributes: machinetest.Planted, Data: []byte("a certificate")}
		m.Presses, m.Looks = 1, 0 // somebody wants the console, too
		end := m.Run()
		again := strings.Contains(m.Said.String(), "reboot: the kernel has obeyed "+v.Name)
		if end != "recovery" || again != v.Early {
			t.Errorf("%s: ends in %s, started again %v:\n%s", v.Name, end, again, m.Said.String())
		}
		if _, there := m.Vars[v.Name]; there || !strings.Contains(m.Said.String(), v.Does) {
			t.Errorf("%s: there %v, said:\n%s", v.Name, there, m.Said.String())
		}
		m.Presses = 0
		m.Runs(1)
		if strings.Contains(m.Said.String(), v.Name) {
			t.Errorf("the boot after that says:\n%s", m.Said.String())
		}
	}
}

// Firmware that has it again at each start gets one restart, and then somebody learns why
// the machine stops. Once it is gone the machine is as before. FAULTS 85
func TestPlantedAgain(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.Restores = map[string]machinetest.EFIVariable{"MokListRT": {Attributes: machinetest.Planted, Data: []byte("a certificate")}}
	for _, want := range []string{"reboot", "recovery", "recovery"} {
		m.Said.Reset()
		end := m.Boot()
		if end != want || want == "recovery" && (!m.NoModules || !strings.Contains(m.Said.String(), "If it comes back, the firmware restores it")) {
			t.Fatalf("ends in %s, want %s, modules refused %v:\n%s", end, want, m.NoModules, m.Said.String())
		}
	}
	m.Restores = nil
	m.Runs(1)
	if m.OnESP(firstboot.DeletionMark) {
		t.Error("the mark is still there")
	}
}

// A mark that somebody has put there, or an ESP that cannot keep one.
func TestPlantedMark(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.PutESP(firstboot.DeletionMark, nil)
	m.Runs(1)
	if m.OnESP(firstboot.DeletionMark) {
		t.Error("the mark is still there")
	}
	m.PutESP(firstboot.DeletionMark, nil)
	m.Vars["MokListRT"] = machinetest.EFIVariable{Attributes: machinetest.Planted, Data: []byte("a certificate")}
	if end := m.Boot(); end != "recovery" || !m.NoModules || m.Agent.Released {
		t.Errorf("ends in %s, modules refused %v:\n%s", end, m.NoModules, m.Said.String())
	}
	if said := m.Said.String(); strings.Contains(said, "the firmware brings") || !strings.Contains(said, "`exit` restarts without it") {
		t.Errorf("the mark is an old one, and the firmware has brought nothing back:\n%s", said)
	}
	m.Runs(1)
	m.Vars["MokListRT"] = machinetest.EFIVariable{Attributes: machinetest.Planted, Data: []byte("a certificate")}
	m.ESP.Fails = errors.New("read-only file system")
	if end := m.Boot(); end != "recovery" || !m.NoModules || !strings.Contains(m.Said.String(), "cannot be noted on the ESP (read-only file system)") {
		t.Errorf("ends in %s, modules refused %v:\n%s", end, m.NoModules, m.Said.String())
	}
	m.ESP.Fails = nil
	m.Runs(1)
}

// The power is cut at every write: the machine ends in its system without anybody, where
// the firmware keeps what it was told, and in the console where it does not. FAULTS 42
func TestPlantedCut(t *testing.T) {
	for _, want := range []string{"system", "recovery"} {
		m := machinetest.ProvisionedMachine(t, nil)
		stored := map[string]machinetest.EFIVariable{"MokListRT": {Attributes: machinetest.Planted, Data: []byte("a certificate")}}
		m.Vars["MokListRT"] = stored["MokListRT"]
		if want == "recovery" {
			m.Restores = stored
		}
		states, end := m.Record(m.World(true, nil), mrand.New(mrand.NewPCG(71, 72)), "")
		if end != want {
			t.Fatalf("ends in %s:\n%s", end, m.Said.String())
		}
		for _, s := range states {
			m.PowerOn(s.World)
			m.Said.Reset()
			if end := m.Run(); end != want || strings.Count(m.Said.String(), "RECOVERY") > 1 {
				t.Errorf("%s: ends in %s:\n%s", s.How, end, m.Said.String())
			}
		}
		t.Logf("%d states", len(states))
	}
}

// One that its own signature alone deletes, or firmware that says yes and does nothing:
// the TPM releases nothing, and the console loads no further module.
func TestPlantedForGood(t *testing.T) {
	for name, attributes := range map[string]uint32{"authenticated": machinetest.Planted | secureboot.TimeBasedAuthenticated, "unreadable": 0} {
		m := machinetest.ProvisionedMachine(t, nil)
		m.Vars["MokListRT"] = machinetest.EFIVariable{Attributes: attributes, Data: []byte("a certificate")}
		m.KeepsAll = true
		if end := m.Run(); end != "recovery" || !m.NoModules || !strings.Contains(m.Said.String(), "reset the firmware to its factory settings") {
			t.Errorf("%s: ends in %s, modules refused %v:\n%s", name, end, m.NoModules, m.Said.String())
		}
		delete(m.Vars, "MokListRT")
		m.KeepsAll = false
		m.Runs(1)
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
		"a trial's name": {machinetest.Planted, `\EFI\Linux\test_1+2-1.efi`, false},
		"large":          {machinetest.Planted, large, false},
		"that stays":     {machinetest.Planted | secureboot.TimeBasedAuthenticated, large, true},
	} {
		t.Run(name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
			m.Fetch(machinetest.NewRelease(t, 2, 6, machinetest.Pinned))
			m.StoreLoaderVariables(c.attributes, c.text)
			m.KeepsAll = c.keepsAll
			m.Runs(2, "LoaderBootCountPath, which says that a system is on trial")
			for _, v := range machinetest.LoaderVariables {
				if _, there := m.Vars[v]; there != c.keepsAll {
					t.Errorf("%s: there %v", v, there)
				}
			}
			m.Bless()
			m.Runs(2)
			m.Holds(6, 2)
		})
	}
}

// A machine that somebody has stored them on can be installed again, on an empty disk.
func TestInstallBesideLoaderVariables(t *testing.T) {
	m := machinetest.New(t, nil)
	m.StoreLoaderVariables(machinetest.Planted, `\EFI\Linux\test_1+2-1.efi`)
	m.Ends("system")
	m.Must(m.Provisioned())
}

// What shim or the boot manager sets at each start is gone with it, and was measured with
// them.
func TestVolatileVariablesStay(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	for _, name := range append(slices.Clone(machinetest.LoaderVariables), "MokListRT") {
		m.Vars[name] = machinetest.EFIVariable{Attributes: secureboot.BootServiceAccess | secureboot.RuntimeAccess, Data: nil}
	}
	m.Runs(1)
	for _, name := range append(slices.Clone(machinetest.LoaderVariables), "MokListRT") {
		if _, there := m.Vars[name]; !there {
			t.Errorf("%s was deleted", name)
		}
	}
}

// The UKI is started from a path that nobody expects, and a file of our name, which is
// not it, tells what is our own in PCR 12: nobody is asked for a key, and nothing is
// handed over. FAULTS 92
func TestForeignCommandLine(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.Extra = "a firmware update, so that the key is asked for"
	text := []byte("systemd.debug_shell=1")
	for _, c := range append(bytes.Clone(text), 0) {
		m.Extra12 += string([]byte{c, 0}) // as the stub measures it
	}
	initrd, err := contract.ArchiveWith(m.Releases[1].Contract, contract.Own())
	m.Must(err)
	other, err := uki.Build(ukitest.Stub("257.13-1"), uki.Payload{OSRelease: []byte("ID=test\n"), Cmdline: text, Linux: ukitest.Stub("kernel"), Initrd: initrd}.Sections())
	m.Must(err)
	name := path.Join(bls.Directory, "test_1.efi")
	m.StartFile = path.Join(bls.Directory, "other.efi")
	m.ESP.Files[m.StartFile] = m.ESP.Files[name]
	r := machinetest.Remains{Data: other}
	m.ESP.Files[name] = &machinetest.ESPFile{Now: r, Disk: []machinetest.Remains{r}}
	m.Typed = []string{m.RecoveryKey(), "y", "y"}
	if end := m.Run(); end == "system" || len(m.Typed) != 3 {
		t.Errorf("ends in %s, not typed: %q\n%s", end, m.Typed, m.Said.String())
	}
}

// A disk without the root partition starts no system where Secure Boot or a TPM is
// required, whatever the UKI's name says. FAULTS 92
func TestNoRootPartition(t *testing.T) {
	for _, name := range []string{"test_1.efi", "test_1+3.efi"} {
		m := machinetest.ProvisionedMachine(t, nil)
		table, _, err := m.Table()
		m.Must(err)
		for i := range table.Partitions {
			if p := &table.Partitions[i]; layout.RoleOf(*p) == layout.Root {
				p.Number, p.Type, p.Label = 7, layout.TypeData, "data"
			}
		}
		m.Must(table.Write(m.Disk))
		m.Must(m.Disk.Sync())
		if name != "test_1.efi" {
			m.Rename("test_1.efi", name)
		}
		m.Ends("recovery")
	}
}
