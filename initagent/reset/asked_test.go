package reset_test

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
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// asksForReset is root of the running system.
func asksForReset(m *machinetest.Machine) {
	m.T.Helper()
	r := &recovery.Machine{Host: host.Host{Given: host.Given{Machine: m.Agent.Machine, Variables: m.Agent.Variables, Root: m.T.TempDir()}}}
	m.Must(r.AskForReset())
}

// What the running system asks for is done when somebody types the machine's name; cut
// anywhere, the machine ends in the recovery console until its reset is complete, or
// nothing was done. Then it makes itself new.
func TestResetAsked(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	old := m.RecoveryKey()
	asksForReset(m)
	m.Printed.Reset()
	m.Typed = nil
	m.Types("test")
	var cuts []*machinetest.World
	m.Snapshot = func() { cuts = append(cuts, m.World(false, nil), m.World(true, nil)) }
	m.Ends("recovery", "the root partition is wiped, as was asked for")
	m.Snapshot = nil
	for _, want := range []string{"asked for from the running system", "If it was not you", "There is no way back", "The root partition is wiped"} {
		if !strings.Contains(m.Printed.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, m.Printed.String())
		}
	}
	if indexes, err := tpm.OpenTransport(m.Emulator).Indexes(); err != nil || len(indexes) > 0 || m.Requested() != nil {
		t.Errorf("NV indexes %v, %v; request %q", indexes, err, m.Requested())
	}
	done := m.World(false, nil)
	t.Logf("%d cuts", len(cuts))
	for i, w := range cuts {
		if i%20 != 0 {
			continue
		}
		m.PowerOn(w)
		m.Typed = []string{""} // nobody wants it now, where it is asked again
		if end := m.Boot(); end != "recovery" && end != "system" {
			t.Fatalf("cut %d: ends in %s:\n%s", i, end, m.Said.String())
		} else if end == "recovery" {
			r, c := m.Console()
			m.Typed = []string{"test"}
			m.Works(r.Reset(c), "The root partition is wiped")
		}
	}
	m.PowerOn(done)
	m.Vars = machinetest.NewVariables() // by the owner, in the firmware's setup
	m.Shown = nil
	m.OpensAnew(old)
}

// A person who declines, is not there, or types something else gets the system as usual, with
// everything as it was; and nobody is asked again.
func TestResetDeclined(t *testing.T) {
	for name, typed := range map[string][]string{"nobody": nil, "Enter": {""}, "yes": {"y"}, "another name": {"tests", "test"}} {
		t.Run(name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, nil)
			old := m.MachineSecret()
			files := maps.Clone(m.RootFiles())
			asksForReset(m)
			m.Printed.Reset()
			m.Typed = typed
			m.Ops, m.Waits = nil, nil
			m.Ends("system", "reset FAILED")
			if n := strings.Count(m.Printed.String(), "Type the machine's name"); n != 1 {
				t.Errorf("it asks %d times:\n%s", n, m.Printed.String())
			}
			if len(m.Waits) != 1 || m.Waits[0] <= 0 || m.Waits[0] > 2*time.Minute {
				t.Errorf("it waits %v", m.Waits)
			}
			if written := m.Written("variable"); !slices.Equal(written, []string{"variable " + nextboot.Variable}) {
				t.Errorf("it writes %q", written)
			}
			if string(m.RootFiles()[rootpart.ListFile]) != string(files[rootpart.ListFile]) || !old.Equal(m.MachineSecret()) || m.Requested() != nil {
				t.Error("something was changed, or the request stays")
			}
			m.OpensByItself()
		})
	}
}

// A reset that somebody has confirmed and that fails after it has begun ends the boot in the
// console, which says so: nobody is asked for a key, and no system starts as if it had been
// declined. Its reset does the rest.
func TestResetFailsHalfWay(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	asksForReset(m)
	good := m.World(true, nil)
	table, _, err := m.Table()
	m.Must(err)
	root, err := layout.Find(table, layout.Root)
	m.Must(err)
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
			m.T = t
			m.PowerOn(good)
			m.Printed.Reset()
			m.Typed = []string{"test"}
			if m.Worn.From, m.Worn.To = c.from, c.to; c.to == 0 {
				m.ESP.Fails = syscall.EROFS
			}
			m.Ends("recovery", "failed half-way, and the data may be lost already", c.says, "`reset` does all of it once more")
			m.Worn.From, m.Worn.To, m.ESP.Fails = 0, 0, nil
			if strings.Contains(m.Said.String(), "nothing was lost") {
				t.Error("it says that nothing was lost")
			}
			if n := strings.Count(m.Printed.String(), "Type the machine's name"); n != 1 || strings.Contains(m.Printed.String(), "ecovery key (") {
				t.Errorf("it asks:\n%s", m.Printed.String())
			}
			r, console := m.Console()
			m.Typed = []string{"test"}
			m.Works(r.Reset(console), "The root partition is wiped")
		})
	}
}

// A request that is forged, torn or stuck is not a question.
func TestForgedResetRequest(t *testing.T) {
	good, err := nextboot.Request{Reset: &nextboot.Reset{}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, says string
		change     func(m *machinetest.Machine)
	}{
		{"torn", "it is ignored", func(m *machinetest.Machine) {
			m.Vars[nextboot.Variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes, Data: good[:len(good)-1]}
		}},
		{"with an answer in it", "it is ignored", func(m *machinetest.Machine) {
			m.Vars[nextboot.Variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes, Data: []byte(`{"format":3,"reset":{"name":"test"}}`)}
		}},
		{"that only its writer takes away", "and is ignored", func(m *machinetest.Machine) {
			m.Vars[nextboot.Variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes | secureboot.TimeBasedAuthenticated, Data: good}
		}},
		{"that the firmware does not let go", "stays in the firmware's variable", func(m *machinetest.Machine) {
			m.Vars[nextboot.Variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes, Data: good}
			m.RefuseRequest = syscall.EROFS
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, nil)
			c.change(m)
			m.Typed = []string{"test"}
			m.Printed.Reset()
			m.Ends("system", c.says)
			if m.Printed.Len() > 0 {
				t.Errorf("it asks:\n%s", m.Printed.String())
			}
			m.Ends("system")
		})
	}
}
