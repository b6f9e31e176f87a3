package agent

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
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/rootpart"
)

// asksForSecret is root of the running system.
func (m *machine) asksForSecret(keys bool) {
	m.t.Helper()
	r := &recovery.Machine{Host: host.Host{Machine: m.agent.Machine, Variables: m.agent.Variables, Root: m.t.TempDir()}}
	if r.AtConsole() {
		m.t.Error("the running system is taken for the recovery console")
	}
	m.must(r.AskForSecret(keys))
}

// request is the content of the variable.
func (m *machine) requested() []byte { return m.vars[nextboot.Variable].data }

// What the running system asks for is asked of the person at the machine, who has the
// recovery key; it is carried out, and the machine starts again. FAULTS 100
func TestSecretAsked(t *testing.T) {
	for _, keys := range []bool{false, true} {
		m := provisionedMachine(t, nil)
		first, err := m.enrolledSet()
		m.must(err)
		old := m.machineSecret()
		m.asksForSecret(keys)
		m.printed.Reset()
		m.typed = nil
		m.types("nonsense", m.recoveryKey())
		m.said.Reset()
		if end := m.boot(); end != "reboot" {
			t.Fatalf("ends in %s:\n%s", end, m.said.String())
		}
		for _, want := range []string{"asked for from the running system", "If it was not you", "Nothing is lost: try again", "The machine has a new secret."} {
			if !strings.Contains(m.printed.String(), want) {
				t.Errorf("it does not say %q:\n%s", want, m.printed.String())
			}
		}
		if strings.Contains(m.printed.String(), "SECURE BOOT KEYS") != keys {
			t.Errorf("new keys %v, and it says:\n%s", keys, m.printed.String())
		}
		m.opensByItself()
		if keys {
			m.must(m.replaced(first))
		}
		m.must(m.oneSecret())
		if old.Equal(m.machineSecret()) {
			t.Error("the secret is the old one")
		}
		m.opensByItself()
	}
}

// Whoever declines, is not there, or does not have the key, gets the system as usual, with
// everything as it was; and nobody is asked again. FAULTS 85, 100
func TestSecretDeclined(t *testing.T) {
	for _, c := range []struct {
		name  string
		typed []string
		asks  int
	}{{"nobody", nil, 1}, {"Enter", []string{""}, 1}, {"three wrong keys", []string{"x", "y", "z", "never asked"}, 3}} {
		t.Run(c.name, func(t *testing.T) {
			m := provisionedMachine(t, nil)
			old := m.machineSecret()
			files := maps.Clone(m.rootFiles())
			m.asksForSecret(true)
			m.printed.Reset()
			m.typed = c.typed
			m.ops, m.waits = nil, nil
			m.ends("system", "new-secret")
			if n := strings.Count(m.printed.String(), "Recovery key for the new secret"); n != c.asks {
				t.Errorf("it asks %d times:\n%s", n, m.printed.String())
			}
			if len(m.waits) != c.asks || slices.Min(m.waits) <= 0 || slices.Max(m.waits) > 2*time.Minute {
				t.Errorf("it waits %v", m.waits)
			}
			if written := m.written("variable"); !slices.Equal(written, []string{"variable " + nextboot.Variable}) {
				t.Errorf("it writes %q", written)
			}
			for _, name := range []string{rootpart.ListFile, rootpart.GuaranteesFile, rootpart.NextFile, rootpart.NextKeysFile} {
				if string(m.rootFiles()[name]) != string(files[name]) {
					t.Errorf("%s was changed", name)
				}
			}
			m.must(m.oneSecret())
			if !old.Equal(m.machineSecret()) || m.requested() != nil {
				t.Error("the secret was replaced, or the request stays")
			}
			m.opensByItself()
		})
	}
}

// A request that is forged, torn or stuck is no question; and one that comes in a boot
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
		change     func(m *machine)
	}{
		{"torn", "it is ignored", func(m *machine) {
			m.vars[nextboot.Variable] = efiVariable{nextboot.Attributes, good[:len(good)-4]}
		}},
		{"with more in it", "it is ignored", func(m *machine) {
			m.vars[nextboot.Variable] = efiVariable{nextboot.Attributes, []byte(`{"format":2,"secret":{"recovery_key":"x"}}`)}
		}},
		{"of the first format", "it is ignored", func(m *machine) {
			m.vars[nextboot.Variable] = efiVariable{nextboot.Attributes, []byte(`{"format":1,"secret":{}}`)}
		}},
		{"that only its writer takes away", "and is ignored", func(m *machine) {
			m.vars[nextboot.Variable] = efiVariable{nextboot.Attributes | secureboot.TimeBasedAuthenticated, good}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := provisionedMachine(t, nil)
			c.change(m)
			m.typed = nil
			m.printed.Reset()
			m.ends("system", c.says)
			if m.printed.Len() > 0 {
				t.Errorf("it asks:\n%s", m.printed.String())
			}
			m.ends("system")
		})
	}
	// The firmware does not let it be taken away: it is not carried out, or it would be
	// asked about at each start.
	m := provisionedMachine(t, nil)
	m.vars[nextboot.Variable] = efiVariable{nextboot.Attributes, good}
	m.refuseRequest = syscall.EROFS
	m.typed = nil
	m.printed.Reset()
	m.ends("system", "stays in the firmware's variable")
	if m.printed.Len() > 0 {
		t.Errorf("it asks:\n%s", m.printed.String())
	}
	// Where the TPM does not open the root partition the recovery key is asked for
	// something else.
	m = provisionedMachine(t, nil)
	m.asksForSecret(false)
	m.extra = "new firmware"
	m.typed = nil
	m.types(m.recoveryKey(), "n")
	m.printed.Reset()
	m.ends("system")
	if strings.Contains(m.printed.String(), "new secret") || m.requested() != nil {
		t.Errorf("it asks, or the request stays:\n%s", m.printed.String())
	}
	// A shell opens beside no secret: somebody presses the key while the question waits.
	m = provisionedMachine(t, nil)
	m.asksForSecret(false)
	m.presses, m.looks = 1, 0
	m.ends("recovery")
	m.presses = 0
	if m.requested() != nil {
		t.Error("the request stays")
	}
	m.opensByItself()
}

// A TPM that has no room for a second record keeps the one that it has.
func TestSecretAskedInVain(t *testing.T) {
	m := provisionedMachine(t, nil)
	m.asksForSecret(true)
	m.fillRest()
	m.typed = nil
	m.types(m.recoveryKey())
	old := m.machineSecret()
	m.ends("system", "this TPM cannot hold the policy record")
	m.must(m.oneSecret())
	if !old.Equal(m.machineSecret()) {
		t.Error("the secret was replaced")
	}
	m.opensByItself()
}

// The power is cut at every write of a boot that makes a new secret and new keys because
// it was asked to: both come into force at one instant. FAULTS 42, 100
func TestSecretAskedCut(t *testing.T) {
	m := provisionedMachine(t, nil)
	old := m.machineSecret()
	first, err := m.enrolledSet()
	m.must(err)
	m.asksForSecret(true)
	m.typed = nil
	m.types(m.recoveryKey())
	states, end := m.recordOnce(mrand.New(mrand.NewPCG(51, 52)))
	if end != "reboot" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	t.Logf("%d operations, %d states after a cut", len(m.ops), len(states))
	secrets, keys := 0, 0
	for _, s := range states {
		m.powerOn(s.world)
		m.typed = nil
		m.printed.Reset()
		m.said.Reset()
		end := m.run()
		asks := strings.Contains(m.printed.String(), "asked for from the running system")
		if end != "system" || m.openVolume == nil || !asks && m.printed.Len() > 0 {
			t.Fatalf("%s: ends in %s, asks %q:\n%s", s.how, end, m.printed.String(), m.said.String())
		}
		if err := m.oneSecret(); err != nil {
			t.Fatalf("%s: %v\n%s", s.how, err, m.said.String())
		}
		now, err := m.enrolledSet()
		m.must(err)
		if !now.DB.Certificate.Equal(first.DB.Certificate) {
			keys++
			m.must(m.replaced(first))
		}
		if !old.Equal(m.machineSecret()) {
			secrets++
		}
		if m.requested() != nil {
			t.Errorf("%s: the request stays", s.how)
		}
	}
	if keys == 0 || keys != secrets || secrets == len(states) {
		t.Errorf("of %d cuts %d leave a new secret, and %d new keys", len(states), secrets, keys)
	}
}
