package agent

import (
	"maps"
	"strings"
	"testing"

	"halogenos.internal/boot/nextboot"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/upper"
)

// openConsole is the recovery console of a machine in use, where the root partition was opened.
func (m *machine) openConsole() (*recovery.Machine, hw.Console) {
	m.t.Helper()
	text, err := nextboot.Request{Console: &nextboot.Console{Person: true, Reason: "asked for"}}.Encode()
	m.must(err)
	m.vars[nextboot.Variable] = efiVariable{nextboot.Attributes, text}
	m.ends("recovery")
	r, c := m.console()
	m.typed = []string{m.recoveryKey()}
	m.works(r.Unlock(c))
	return r, c
}

// A reset that keeps /home leaves that, and what is the machine's own; cut at any write, the
// machine starts, and the same command deletes the rest.
func TestResetKeepingHome(t *testing.T) {
	m := provisionedMachine(t, nil)
	const etc, mine = "/etc/upper/passwd", "bind/home/me/letter"
	own := upper.Directory + "/" + ownstate.Own(&m.agent.Host) + etc
	goes := []string{own, upper.Directory + "/" + strings.Repeat("ab", 32) + etc, "overlay/etc/upper/passwd", "bind/var/lib/x", "bind/srv/y"}
	for _, name := range goes {
		m.rootFiles()[name] = []byte("x")
	}
	m.rootFiles()[mine] = []byte("dear")
	secret := m.machineSecret()
	check := func(when string) {
		t.Helper()
		if string(m.rootFiles()[mine]) != "dear" || m.rootFiles()[rootpart.ListFile] == nil || !secret.Equal(m.machineSecret()) {
			t.Errorf("%s: /home or the machine's own is gone", when)
		}
		for name := range m.rootFiles() {
			for _, was := range goes {
				if name == was {
					t.Errorf("%s: %s stays", when, name)
				}
			}
		}
	}
	for _, typed := range []string{"", "y", "tests"} {
		r, c := m.openConsole()
		m.typed = []string{typed}
		m.refuses(r.ResetKeepingHome(c), "nothing was changed")
		m.must(r.Lock())
		for _, name := range append(goes, mine) {
			if m.rootFiles()[name] == nil {
				t.Errorf("%q: %s is gone", typed, name)
			}
		}
	}
	r, c := m.openConsole()
	m.typed = []string{"test"}
	var cuts []*world
	m.snapshot = func() { cuts = append(cuts, m.world(false, nil), m.world(true, nil)) }
	m.works(r.ResetKeepingHome(c), "users and their passwords", "All but /home is deleted")
	m.snapshot = nil
	m.must(r.Lock())
	check("done")
	m.runs(1)
	check("started")
	if len(cuts) < 8 {
		t.Fatalf("only %d cuts", len(cuts))
	}
	for _, w := range cuts {
		m.powerOn(w)
		m.ends("system")
		r, c := m.openConsole()
		m.typed = []string{"test"}
		m.works(r.ResetKeepingHome(c), "All but /home is deleted")
		m.must(r.Lock())
		check("cut")
	}
	m.runs(1)
}

// Without a /home that could be kept, or without the recovery key, nothing is deleted.
func TestResetKeepingHomeRefused(t *testing.T) {
	m := provisionedMachine(t, nil)
	maps.DeleteFunc(m.rootFiles(), func(name string, _ []byte) bool { return strings.HasPrefix(name, "bind/home") })
	m.rootFiles()["bind/var/x"] = []byte("x")
	r, c := m.openConsole()
	m.typed = []string{"test"}
	m.refuses(r.ResetKeepingHome(c), "has no /home to keep")
	if m.rootFiles()["bind/var/x"] == nil {
		t.Error("something is deleted")
	}
	m.must(r.Lock())
	m.refuses(r.ResetKeepingHome(c), "type `unlock` first")
	if len(m.typed) != 1 {
		t.Errorf("it asks: %q", m.printed.String())
	}
}
