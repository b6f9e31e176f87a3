package agent

import (
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// asksForReset is root of the running system.
func (m *machine) asksForReset() {
	m.t.Helper()
	r := &recovery.Machine{Host: host.Host{Machine: m.agent.Machine, Variables: m.agent.Variables, Root: m.t.TempDir()}}
	m.must(r.AskForReset())
}

// What the running system asks for is done when somebody types the machine's name; cut
// anywhere, the machine ends in the recovery console until its reset is complete, or
// nothing was done. Then it makes itself new.
func TestResetAsked(t *testing.T) {
	m := provisionedMachine(t, nil)
	old := m.recoveryKey()
	m.asksForReset()
	m.printed.Reset()
	m.typed = nil
	m.types("test")
	var cuts []*world
	m.snapshot = func() { cuts = append(cuts, m.world(false, nil), m.world(true, nil)) }
	m.ends("recovery", "the root partition is wiped, as was asked for")
	m.snapshot = nil
	for _, want := range []string{"asked for from the running system", "If it was not you", "There is no way back", "The root partition is wiped"} {
		if !strings.Contains(m.printed.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, m.printed.String())
		}
	}
	if indexes, err := tpm.OpenTransport(m.emulator).Indexes(); err != nil || len(indexes) > 0 || m.requested() != nil {
		t.Errorf("NV indexes %v, %v; request %q", indexes, err, m.requested())
	}
	done := m.world(false, nil)
	t.Logf("%d cuts", len(cuts))
	for i, w := range cuts {
		if i%20 != 0 {
			continue
		}
		m.powerOn(w)
		m.typed = []string{""} // nobody wants it now, where it is asked again
		if end := m.boot(); end != "recovery" && end != "system" {
			t.Fatalf("cut %d: ends in %s:\n%s", i, end, m.said.String())
		} else if end == "recovery" {
			r, c := m.console()
			m.typed = []string{"test"}
			m.works(r.Reset(c), "The root partition is wiped")
		}
	}
	m.powerOn(done)
	m.vars = newVariables() // by the owner, in the firmware's setup
	m.shown = nil
	m.opensAnew(old)
}

// A person who declines, is not there, or types something else gets the system as usual, with
// everything as it was; and nobody is asked again.
func TestResetDeclined(t *testing.T) {
	for name, typed := range map[string][]string{"nobody": nil, "Enter": {""}, "yes": {"y"}, "another name": {"tests", "test"}} {
		t.Run(name, func(t *testing.T) {
			m := provisionedMachine(t, nil)
			old := m.machineSecret()
			files := maps.Clone(m.rootFiles())
			m.asksForReset()
			m.printed.Reset()
			m.typed = typed
			m.ops, m.waits = nil, nil
			m.ends("system", "reset FAILED")
			if n := strings.Count(m.printed.String(), "Type the machine's name"); n != 1 {
				t.Errorf("it asks %d times:\n%s", n, m.printed.String())
			}
			if len(m.waits) != 1 || m.waits[0] <= 0 || m.waits[0] > 2*time.Minute {
				t.Errorf("it waits %v", m.waits)
			}
			if written := m.written("variable"); !slices.Equal(written, []string{"variable " + nextboot.Variable}) {
				t.Errorf("it writes %q", written)
			}
			if string(m.rootFiles()[rootpart.ListFile]) != string(files[rootpart.ListFile]) || !old.Equal(m.machineSecret()) || m.requested() != nil {
				t.Error("something was changed, or the request stays")
			}
			m.opensByItself()
		})
	}
}

// A reset that somebody has confirmed and that fails after it has begun ends the boot in the
// console, which says so: nobody is asked for a key, and no system starts as if it had been
// declined. Its reset does the rest.
func TestResetFailsHalfWay(t *testing.T) {
	m := provisionedMachine(t, nil)
	m.asksForReset()
	good := m.world(true, nil)
	table, _, err := m.table()
	m.must(err)
	root, _ := table.ByNumber(layout.RootNumber)
	start, size := table.Bytes(root)
	for _, c := range []struct {
		name     string
		from, to int64
		says     string
	}{
		{"the first keyslot", start + 32<<10, start + size, "overwrite the keyslots"},
		{"a later one", start + 2<<20, start + size, "overwrite the keyslots"},
		{"the header", start, start + 16<<10, "zero the root partition's header"},
		{"the ESP", 0, 0, "the root partition is wiped; the ESP still knows of it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.t = t
			m.powerOn(good)
			m.printed.Reset()
			m.typed = []string{"test"}
			if m.worn.from, m.worn.to = c.from, c.to; c.to == 0 {
				m.esp.fails = syscall.EROFS
			}
			m.ends("recovery", "failed half-way, and the data may be lost already", c.says, "`reset` does all of it once more")
			m.worn.from, m.worn.to, m.esp.fails = 0, 0, nil
			if strings.Contains(m.said.String(), "nothing was lost") {
				t.Error("it says that nothing was lost")
			}
			if n := strings.Count(m.printed.String(), "Type the machine's name"); n != 1 || strings.Contains(m.printed.String(), "ecovery key (") {
				t.Errorf("it asks:\n%s", m.printed.String())
			}
			r, console := m.console()
			m.typed = []string{"test"}
			m.works(r.Reset(console), "The root partition is wiped")
		})
	}
}

// A request that is forged, torn or stuck is no question.
func TestForgedResetRequest(t *testing.T) {
	good, err := nextboot.Request{Reset: &nextboot.Reset{}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, says string
		change     func(m *machine)
	}{
		{"torn", "it is ignored", func(m *machine) {
			m.vars[nextboot.Variable] = efiVariable{nextboot.Attributes, good[:len(good)-1]}
		}},
		{"with an answer in it", "it is ignored", func(m *machine) {
			m.vars[nextboot.Variable] = efiVariable{nextboot.Attributes, []byte(`{"format":3,"reset":{"name":"test"}}`)}
		}},
		{"that only its writer takes away", "and is ignored", func(m *machine) {
			m.vars[nextboot.Variable] = efiVariable{nextboot.Attributes | secureboot.TimeBasedAuthenticated, good}
		}},
		{"that the firmware does not let go", "stays in the firmware's variable", func(m *machine) {
			m.vars[nextboot.Variable] = efiVariable{nextboot.Attributes, good}
			m.refuseRequest = syscall.EROFS
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := provisionedMachine(t, nil)
			c.change(m)
			m.typed = []string{"test"}
			m.printed.Reset()
			m.ends("system", c.says)
			if m.printed.Len() > 0 {
				t.Errorf("it asks:\n%s", m.printed.String())
			}
			m.ends("system")
		})
	}
}
