package unlock_test

import (
	"maps"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
)

// What the running system asks for is asked of the person at the machine, who has the
// recovery key; it is carried out, and the machine starts again. FAULTS 100
func TestSecretAsked(t *testing.T) {
	for _, keys := range []bool{false, true} {
		m := machinetest.ProvisionedMachine(t, nil)
		first, err := m.EnrolledSet()
		m.Must(err)
		old := m.MachineSecret()
		m.AsksForSecret(keys)
		m.Printed.Reset()
		m.Typed = nil
		m.Types("nonsense", m.RecoveryKey())
		m.Said.Reset()
		if end := m.Boot(); end != "reboot" {
			t.Fatalf("ends in %s:\n%s", end, m.Said.String())
		}
		for _, want := range []string{"asked for from the running system", "If it was not you", "Nothing is lost: try again", "The machine has a new secret."} {
			if !strings.Contains(m.Printed.String(), want) {
				t.Errorf("it does not say %q:\n%s", want, m.Printed.String())
			}
		}
		if strings.Contains(m.Printed.String(), "SECURE BOOT KEYS") != keys {
			t.Errorf("new keys %v, and it says:\n%s", keys, m.Printed.String())
		}
		m.OpensByItself()
		if keys {
			m.Must(m.Replaced(first))
		}
		m.Must(m.OneSecret())
		if old.Equal(m.MachineSecret()) {
			t.Error("the secret is the old one")
		}
		m.OpensByItself()
	}
}

// Anyone who declines, is not there, or does not have the key, gets the system as usual, with
// everything as it was; and nobody is asked again. FAULTS 85, 100
func TestSecretDeclined(t *testing.T) {
	for _, c := range []struct {
		name  string
		typed []string
		asks  int
	}{{"nobody", nil, 1}, {"Enter", []string{""}, 1}, {"three wrong keys", []string{"x", "y", "z", "never asked"}, 3}} {
		t.Run(c.name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, nil)
			old := m.MachineSecret()
			files := maps.Clone(m.RootFiles())
			m.AsksForSecret(true)
			m.Printed.Reset()
			m.Typed = c.typed
			m.Ops, m.Waits = nil, nil
			m.Ends("system", "new-secret")
			if n := strings.Count(m.Printed.String(), "Recovery key for the new secret"); n != c.asks {
				t.Errorf("it asks %d times:\n%s", n, m.Printed.String())
			}
			if len(m.Waits) != c.asks || slices.Min(m.Waits) <= 0 || slices.Max(m.Waits) > 2*time.Minute {
				t.Errorf("it waits %v", m.Waits)
			}
			if written := m.Written("variable"); !slices.Equal(written, []string{"variable " + nextboot.Variable}) {
				t.Errorf("it writes %q", written)
			}
			for _, name := range []string{rootpart.ListFile, rootpart.GuaranteesFile, rootpart.NextFile, rootpart.NextKeysFile} {
				if string(m.RootFiles()[name]) != string(files[name]) {
					t.Errorf("%s was changed", name)
				}
			}
			m.Must(m.OneSecret())
			if !old.Equal(m.MachineSecret()) || m.Requested() != nil {
				t.Error("the secret was replaced, or the request stays")
			}
			m.OpensByItself()
		})
	}
}

// A request that is forged, torn or stuck is not a question; and one that comes in a boot
// that the TPM does not open, or that is for the console, is none either. FAULTS 85
func TestForgedSecretRequest(t *testing.T) {
	good, err := nextboot.Request{Secret: &nextboot.NewSecret{Keys: true}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(good) {
		if _, err := nextboot.Parse(good[:cut]); err == nil {
			t.Errorf("%q is taken", good[:cut])
		}
	}
	for _, c := range []struct {
		name, says string
		change     func(m *machinetest.Machine)
	}{
		{"torn", "it is ignored", func(m *machinetest.Machine) {
			m.Vars[nextboot.Variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes, Data: good[:len(good)-4]}
		}},
		{"with more in it", "it is ignored", func(m *machinetest.Machine) {
			m.Vars[nextboot.Variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes, Data: []byte(`{"format":2,"secret":{"recovery_key":"x"}}`)}
		}},
		{"of the first format", "it is ignored", func(m *machinetest.Machine) {
			m.Vars[nextboot.Variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes, Data: []byte(`{"format":1,"secret":{}}`)}
		}},
		{"that only its writer takes away", "and is ignored", func(m *machinetest.Machine) {
			m.Vars[nextboot.Variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes | secureboot.TimeBasedAuthenticated, Data: good}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, nil)
			c.change(m)
			m.Typed = nil
			m.Printed.Reset()
			m.Ends("system", c.says)
			if m.Printed.Len() > 0 {
				t.Errorf("it asks:\n%s", m.Printed.String())
			}
			m.Ends("system")
		})
	}
	// The firmware does not let it be taken away: it is not carried out, or it would be
	// asked about at each start.
	m := machinetest.ProvisionedMachine(t, nil)
	m.Vars[nextboot.Variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes, Data: good}
	m.RefuseRequest = syscall.EROFS
	m.Typed = nil
	m.Printed.Reset()
	m.Ends("system", "stays in the firmware's variable")
	if m.Printed.Len() > 0 {
		t.Errorf("it asks:\n%s", m.Printed.String())
	}
	// Where the TPM does not open the root partition the recovery key is asked for
	// something else.
	m = machinetest.ProvisionedMachine(t, nil)
	m.AsksForSecret(false)
	m.Extra = "new firmware"
	m.Typed = nil
	m.Types(m.RecoveryKey(), "n")
	m.Printed.Reset()
	m.Ends("system")
	if strings.Contains(m.Printed.String(), "new secret") || m.Requested() != nil {
		t.Errorf("it asks, or the request stays:\n%s", m.Printed.String())
	}
	// A shell opens beside no secret: somebody presses the key while the question waits.
	m = machinetest.ProvisionedMachine(t, nil)
	m.AsksForSecret(false)
	m.Presses, m.Looks = 1, 0
	m.Ends("recovery")
	m.Presses = 0
	if m.Requested() != nil {
		t.Error("the request stays")
	}
	m.OpensByItself()
}

// A TPM that has no room for a second record keeps the one that it has.
func TestSecretAskedInVain(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.AsksForSecret(true)
	m.FillRest()
	m.Typed = nil
	m.Types(m.RecoveryKey())
	old := m.MachineSecret()
	m.Ends("system", "this TPM cannot hold the policy record")
	m.Must(m.OneSecret())
	if !old.Equal(m.MachineSecret()) {
		t.Error("the secret was replaced")
	}
	m.OpensByItself()
}

// The power is cut at every write of a boot that makes a new secret and new keys because
// it was asked to: both come into force at one instant. FAULTS 42, 100
func TestSecretAskedCut(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	old := m.MachineSecret()
	first, err := m.EnrolledSet()
	m.Must(err)
	m.AsksForSecret(true)
	m.Typed = nil
	m.Types(m.RecoveryKey())
	states, end := m.RecordOnce(mrand.New(mrand.NewPCG(51, 52)))
	if end != "reboot" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	t.Logf("%d operations, %d states after a cut", len(m.Ops), len(states))
	secrets, keys := 0, 0
	for _, s := range states {
		m.PowerOn(s.World)
		m.Typed = nil
		m.Printed.Reset()
		m.Said.Reset()
		end := m.Run()
		asks := strings.Contains(m.Printed.String(), "asked for from the running system")
		if end != "system" || m.OpenVolume == nil || !asks && m.Printed.Len() > 0 {
			t.Fatalf("%s: ends in %s, asks %q:\n%s", s.How, end, m.Printed.String(), m.Said.String())
		}
		if err := m.OneSecret(); err != nil {
			t.Fatalf("%s: %v\n%s", s.How, err, m.Said.String())
		}
		now, err := m.EnrolledSet()
		m.Must(err)
		if !now.DB.Certificate.Equal(first.DB.Certificate) {
			keys++
			m.Must(m.Replaced(first))
		}
		if !old.Equal(m.MachineSecret()) {
			secrets++
		}
		if m.Requested() != nil {
			t.Errorf("%s: the request stays", s.How)
		}
	}
	if keys == 0 || keys != secrets || secrets == len(states) {
		t.Errorf("of %d cuts %d leave a new secret, and %d new keys", len(states), secrets, keys)
	}
}
