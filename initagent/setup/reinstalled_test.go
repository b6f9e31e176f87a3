package setup_test

import (
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/staging"
	"halogenos.internal/initagent/tpm"
)

// inUse is a machine with something on its root partition that nobody has twice.
func inUse(t *testing.T) *machinetest.Machine {
	t.Helper()
	m := machinetest.New(t, nil)
	m.Releases[2] = machinetest.NewRelease(t, 2, 5, nil)
	for range 2 {
		m.Ends("system")
	}
	m.RootFiles()[machinetest.Marker] = []byte("the only copy")
	// What the fetcher has left, for a slot that will be gone.
	m.RootFiles()[staging.NoteFile] = []byte(`{"format":1,"version":"3","slot":"b"}`)
	return m
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
			w := m.Reinstalled(c.version)
			if c.cleared {
				w.Chip = nil
			}
			m.PowerOn(w)
			m.Printed.Reset()
			m.Owner = true
			if c.cleared {
				m.Types("weaker") // nobody else can say which systems were replaced for good
			}
			m.Ends("system", "the system was installed again", "gives the firmware this machine's own Secure Boot keys again")
			if text := m.Printed.String(); strings.Count(text, "Recovery key") != 1 || !strings.Contains(text, c.says) {
				t.Errorf("asks:\n%s", text)
			}
			if c.version == 1 {
				m.Must(m.Provisioned())
			}
			m.Must(m.Kept())
			if note, there := m.RootFiles()[staging.NoteFile]; there {
				t.Errorf("%s is still to be staged", note)
			}
			m.Owner = false
			m.Printed.Reset()
			m.Ends("system")
			if m.OpenVolume == nil || m.Printed.Len() > 0 || m.Agent.Contract.Version != c.version {
				t.Errorf("version %s, volume %v, asks:\n%s", m.Agent.Contract.Version, m.OpenVolume, m.Printed.String())
			}
			m.Must(m.Kept())
		})
	}
}

// The keys that the firmware gets again are those on the root partition, whatever
// somebody has written to the ESP.
func TestInstalledAgainForged(t *testing.T) { // FAULTS 63
	m := inUse(t)
	forged := m.ForgedPending()
	m.PowerOn(m.Reinstalled(1))
	m.PlantPending(forged)
	m.Printed.Reset()
	m.Owner = true
	m.Ends("system", "gives the firmware this machine's own Secure Boot keys again")
	if n := strings.Count(m.Printed.String(), "Recovery key"); n != 1 {
		t.Errorf("asks %d times for the recovery key:\n%s", n, m.Printed.String())
	}
	m.Must(m.Provisioned())
	m.Must(m.Kept())
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
			m.PowerOn(m.Reinstalled(2))
			if c.ends == "system" {
				c.typed[0] = m.Shown[0]
			}
			m.Ops, m.Typed = nil, c.typed
			m.Ends(c.ends)
			request := "variable " + nextboot.Variable
			if written := slices.DeleteFunc(m.Written("variable"), func(op string) bool { return op == request }); len(written) > 0 {
				t.Errorf("the firmware was written to: %q", written)
			}
			m.Must(m.Kept())
		})
	}
}

// An older system than the TPM's floor does not get at the root partition, and the
// root partition stays.
func TestInstalledAgainUnderTheFloor(t *testing.T) {
	m := inUse(t)
	m.Releases[2] = machinetest.NewRelease(t, 2, 4, nil)
	m.PowerOn(m.Reinstalled(2))
	m.Owner = true
	m.Ends("recovery", "epoch is 4 and the TPM's floor is 5")
	m.Must(m.Kept())
}

// The power is cut at every write and every flush of the first start after a root
// partition was kept. Whatever is left, the next starts finish it, and the root
// partition is what it was: it is never made again. FAULTS 42, 43
func TestCutInstalledAgain(t *testing.T) {
	m := inUse(t)
	m.Owner = true
	states, end := m.Record(m.Reinstalled(1), mrand.New(mrand.NewPCG(11, 12)), "")
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	t.Logf("%d operations, %d states after a cut", len(m.Ops), len(states))
	for _, s := range states {
		m.PowerOn(s.World)
		m.Said.Reset()
		m.Printed.Reset()
		if end := m.Run(); end != "system" || m.OpenVolume == nil {
			t.Errorf("%s: it ends in %s:\n%s", s.How, end, m.Said.String())
		}
		if err := m.Kept(); err != nil {
			t.Errorf("%s: %v\n%s", s.How, err, m.Said.String())
		}
	}
}

// A machine that was bound to its TPM before it had keys has no owner signature, and keys that are
// made without that TPM would not be believed: none are offered, and it goes on as it was.
func TestNoFirstKeysBesideTheTPMs(t *testing.T) {
	m := machinetest.New(t, machinetest.With(func(c *contract.Contract) { c.TPM, c.SecureBoot = contract.Optional, contract.Optional }))
	m.NoSecureBoot = true
	m.Ends("system")
	m.Runs(1)
	m.NoTPM, m.NoSecureBoot = tpm.ErrAbsent, false
	m.Vars = machinetest.NewVariables() // Setup Mode
	for range 2 {
		m.Typed = []string{m.RecoveryKey(), "y", "y"}
		m.Printed.Reset()
		if end := m.Run(); end != "system" || m.Vars["PK"].Data != nil {
			t.Fatalf("ends in %s with PK %v:\n%s\n%s", end, m.Vars["PK"].Data != nil, m.Printed.String(), m.Said.String())
		}
	}
}
