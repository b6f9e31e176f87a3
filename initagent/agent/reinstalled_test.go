package agent

import (
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/staging"
	"halogenos.internal/initagent/tpm"
)

const marker = "home/photo"

// inUse is a machine with something on its root partition that nobody has twice.
func inUse(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t, nil)
	m.releases[2] = newRelease(t, 2, 5, nil)
	for range 2 {
		m.ends("system")
	}
	m.rootFiles()[marker] = []byte("the only copy")
	// What the fetcher has left, for a slot that will be gone.
	m.rootFiles()[staging.NoteFile] = []byte(`{"format":1,"version":"3","slot":"b"}`)
	return m
}

// reinstalled is what installing a release beside the machine's root partition leaves,
// with its firmware in Setup Mode again.
func (m *machine) reinstalled(v contract.Version) *world {
	m.t.Helper()
	w := m.world(true, nil)
	old, _, err := m.table()
	m.must(err)
	root, ok := old.ByNumber(layout.RootNumber)
	if !ok {
		m.t.Fatal("there is no root partition")
	}
	fresh := m.installed(diskSize)
	esp, _ := old.ByNumber(layout.ESPNumber)
	esp.UUID = gpt.MustGUID("77777777-2222-4333-8444-555555555555")
	system, _ := old.ByNumber(layout.SlotA.SystemNumber())
	system.UUID = layout.SystemUUID(m.releases[v].contract.Root())
	table := &gpt.Table{Disk: old.Disk, SectorSize: old.SectorSize, Sectors: old.Sectors, Partitions: []gpt.Partition{esp, system, root}}
	m.must(table.Write(w.disk))
	_, err = w.disk.WriteAt(m.releases[v].image, int64(system.First)*sectorSize)
	m.must(err)
	m.espUUID = esp.UUID.String()
	w.esp, w.vars = fresh.esp, fresh.vars
	delete(w.esp, path.Join(bls.Directory, "test_1.efi"))
	w.esp[path.Join(bls.Directory, fmt.Sprintf("test_%s.efi", v))] = remains{data: m.releases[v].uki}
	return w
}

// kept reports what has become of the root partition.
func (m *machine) kept() error {
	s, err := m.partition(layout.RootNumber)
	if err != nil {
		return err
	}
	if condition, _, err := rootlock.Look(s, s.Size()); condition != bootflow.RootLocked || err != nil {
		return fmt.Errorf("the root partition is in condition %v (%w)", condition, err)
	}
	if len(m.shown) != 1 || len(m.volumes) != 1 || string(m.rootFiles()[marker]) != "the only copy" {
		return fmt.Errorf("%d recovery keys were shown, and %d volumes hold %q", len(m.shown), len(m.volumes), slices.Sorted(maps.Keys(m.rootFiles())))
	}
	return nil
}

// A system installed beside a root partition that was kept asks for its recovery key
// once, has the firmware get the keys that lie on it, and from the next start on all
// is as it was: whichever version it is, and where the TPM was cleared too.
func TestInstalledAgain(t *testing.T) {
	for _, c := range []struct {
		name    string
		version contract.Version
		cleared bool
		says    string
	}{
		{"the same version", 1, false, "Accepted."},
		{"another version", 2, false, "Accepted."},
		{"another machine", 2, true, "Bound to this TPM."},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := inUse(t)
			w := m.reinstalled(c.version)
			if c.cleared {
				w.chip = nil
			}
			m.powerOn(w)
			m.printed.Reset()
			m.owner = true
			if c.cleared {
				m.types("weaker") // nobody else can say which systems were replaced for good
			}
			m.ends("system", "the system was installed again", "gives the firmware this machine's own Secure Boot keys again")
			if text := m.printed.String(); strings.Count(text, "Recovery key") != 1 || !strings.Contains(text, c.says) {
				t.Errorf("asks:\n%s", text)
			}
			if c.version == 1 {
				m.must(m.provisioned())
			}
			m.must(m.kept())
			if note, there := m.rootFiles()[staging.NoteFile]; there {
				t.Errorf("%s is still to be staged", note)
			}
			m.owner = false
			m.printed.Reset()
			m.ends("system")
			if m.openVolume == nil || m.printed.Len() > 0 || m.agent.Contract.Version != c.version {
				t.Errorf("version %s, volume %v, asks:\n%s", m.agent.Contract.Version, m.openVolume, m.printed.String())
			}
			m.must(m.kept())
		})
	}
}

// The keys that the firmware gets again are those on the root partition, whatever
// somebody has written to the ESP.
func TestInstalledAgainForged(t *testing.T) { // FAULTS 63
	m := inUse(t)
	forged := m.forgedPending()
	m.powerOn(m.reinstalled(1))
	m.plantPending(forged)
	m.printed.Reset()
	m.owner = true
	m.ends("system", "gives the firmware this machine's own Secure Boot keys again")
	if n := strings.Count(m.printed.String(), "Recovery key"); n != 1 {
		t.Errorf("asks %d times for the recovery key:\n%s", n, m.printed.String())
	}
	m.must(m.provisioned())
	m.must(m.kept())
}

// Nobody is asked to enroll twice, nothing is enrolled for somebody without the key,
// and without a word from the owner the system runs all the same.
func TestInstalledAgainUnenrolled(t *testing.T) {
	for _, c := range []struct {
		name, ends string
		typed      []string
	}{{"nobody is there", "recovery", nil}, {"not a key", "recovery", []string{"not a key", ""}}, {"no", "system", []string{"", "n"}}} {
		t.Run(c.name, func(t *testing.T) {
			m := inUse(t)
			m.powerOn(m.reinstalled(2))
			if c.ends == "system" {
				c.typed[0] = m.shown[0]
			}
			m.ops, m.typed = nil, c.typed
			m.ends(c.ends)
			request := "variable " + nextboot.Variable
			if written := slices.DeleteFunc(m.written("variable"), func(op string) bool { return op == request }); len(written) > 0 {
				t.Errorf("the firmware was written to: %q", written)
			}
			m.must(m.kept())
		})
	}
}

// An older system than the TPM's floor does not get at the root partition, and the
// root partition stays.
func TestInstalledAgainUnderTheFloor(t *testing.T) {
	m := inUse(t)
	m.releases[2] = newRelease(t, 2, 4, nil)
	m.powerOn(m.reinstalled(2))
	m.owner = true
	m.ends("recovery", "epoch is 4 and the TPM's floor is 5")
	m.must(m.kept())
}

// The power is cut at every write and every flush of the first start after a root
// partition was kept. Whatever is left, the next starts finish it, and the root
// partition is what it was: it is never made again. FAULTS 42, 43
func TestCutInstalledAgain(t *testing.T) {
	m := inUse(t)
	m.owner = true
	states, end := m.record(m.reinstalled(1), mrand.New(mrand.NewPCG(11, 12)), "")
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	t.Logf("%d operations, %d states after a cut", len(m.ops), len(states))
	for _, s := range states {
		m.powerOn(s.world)
		m.said.Reset()
		m.printed.Reset()
		if end := m.run(); end != "system" || m.openVolume == nil {
			t.Errorf("%s: it ends in %s:\n%s", s.how, end, m.said.String())
		}
		if err := m.kept(); err != nil {
			t.Errorf("%s: %v\n%s", s.how, err, m.said.String())
		}
	}
}

// A machine that was bound to its TPM before it had keys has no owner signature, and keys that are
// made without that TPM would not be believed: none are offered, and it goes on as it was.
func TestNoFirstKeysBesideTheTPMs(t *testing.T) {
	m := newMachine(t, with(func(c *contract.Contract) { c.TPM, c.SecureBoot = contract.Optional, contract.Optional }))
	m.noSecureBoot = true
	m.ends("system")
	m.runs(1)
	m.noTPM, m.noSecureBoot = tpm.ErrAbsent, false
	m.vars = newVariables() // Setup Mode
	for range 2 {
		m.typed = []string{m.recoveryKey(), "y", "y"}
		m.printed.Reset()
		if end := m.run(); end != "system" || m.vars["PK"].data != nil {
			t.Fatalf("ends in %s with PK %v:\n%s\n%s", end, m.vars["PK"].data != nil, m.printed.String(), m.said.String())
		}
	}
}
