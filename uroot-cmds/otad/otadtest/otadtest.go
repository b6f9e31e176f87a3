// Package otadtest is a machine that otad runs on, for tests. It is imported by tests
// only.
package otadtest

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/notes"
	"halogenos.internal/boot/release"
	"halogenos.internal/initagent/changes"
	"halogenos.internal/initagent/inventory/inventorytest"
	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/health"
	"halogenos.internal/uroot-cmds/ota/machine"
	"halogenos.internal/uroot-cmds/ota/otatest"
	"halogenos.internal/uroot-cmds/ota/when"
	"halogenos.internal/uroot-cmds/ota/worker"
	"halogenos.internal/uroot-cmds/otad/polkit"
	"halogenos.internal/uroot-cmds/otad/service"
)

// A World is a machine that runs version 7 of image os, a service on it, and a guard.
type World struct {
	*service.Service
	Dir string

	mu        sync.Mutex
	asked     []string
	deny      map[polkit.Action]bool
	obstacles when.Obstacles
	meanwhile map[polkit.Action]when.Obstacles
	metered   bool
	restarts  []when.Order
}

// New makes one. work is the text of a shell script that is run as the worker.
func New(t testing.TB, work string) *World {
	t.Helper()
	w := &World{Dir: t.TempDir(), deny: map[polkit.Action]bool{}}
	m := inventorytest.New(t)
	c := m.Install(layout.SlotA, "os_7.efi")
	report, err := json.Marshal(map[string]any{"slot": "a", "contract": c})
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(w.Dir, "work")
	for name, content := range map[string]string{"run/halogen/boot.json": string(report), "var/lib/halogen/x": "", "etc/halogen/ota.conf": "Server=https://me:secret@updates.example.org/os\n", "work": "#!/bin/sh\n" + work + "\n"} {
		name = filepath.Join(w.Dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	open := func() *machine.Machine {
		return &machine.Machine{
			Hardware: m.Hardware(), Root: w.Dir, Worker: worker.Starter{Program: script}, Now: time.Now,
			Corrupt:  func() (bool, error) { return false, nil },
			Services: func() (health.Manager, string) { return nil, "" },
			Waiting:  func() (changes.Waiting, error) { return changes.Waiting{Conflicts: []string{"/etc/hosts"}}, nil },
			Waits:    machine.Waits{Online: func() bool { return true }, Surroundings: w.around, Obstacles: w.standing, Reboot: w.reboot},
		}
	}
	w.Service = service.New(open)
	return w
}

// Offering is a machine whose server offers version 8, with notes. fetching is the text of a
// shell script that is run in the place of all that a worker does while the file "fetching" is
// there.
func Offering(t testing.TB, fetching string) *World {
	t.Helper()
	const slot = 8 << 20 // that the machine has
	r := otatest.Make(t, otatest.Spec{ImageID: "os", Version: 8, Image: otatest.Image(50, 1, 0, 0), Change: func(r *release.Release) { r.SlotSize = slot }})
	said := &notes.Notes{ImageID: "os", Releases: []notes.Release{{Version: 8, Urgency: "high", URL: "https://example.org/8", Text: []notes.Part{{Paragraph: "It is faster."}}}}}
	text, err := said.Encode()
	if err != nil {
		t.Fatal(err)
	}
	list, err := (&manifest.Manifest{Stable: manifest.Entry{Version: 8}}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	found, err := json.Marshal(worker.Event{Found: &fetch.Found{Manifest: list, Archive: manifest.ArchiveName(8), Head: r.Archive, Notes: text}})
	if err != nil {
		t.Fatal(err)
	}
	w := New(t, `cd "$(dirname "$0")"; read request; if [ -e fetching ]; then `+fetching+`; fi; cat found`)
	for name, content := range map[string]string{"found": string(found) + "\n", "etc/os-release": "NAME=os\nPRETTY_NAME=\"An OS & more\"\n"} {
		if err := os.WriteFile(filepath.Join(w.Dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// Begin has what the worker does be a fetch from now on.
func (w *World) Begin(t testing.TB) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.Dir, "fetching"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (w *World) reboot(_ context.Context, o when.Order) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.restarts = append(w.restarts, o)
	return nil
}

// Metered has the machine's network be metered.
func (w *World) Metered(is bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.metered = is
}

func (w *World) around(context.Context) when.Conditions {
	w.mu.Lock()
	defer w.mu.Unlock()
	return when.Conditions{Battery: -1, Metered: w.metered}
}

// Stage has version 8 wait for a restart, which something stands against.
func (w *World) Stage(t testing.TB, o when.Obstacles) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.obstacles = o
	if err := os.WriteFile(filepath.Join(w.Dir, "var/lib/halogen/staged.json"), []byte(`{"format":1,"version":"8","slot":"b"}`), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (w *World) standing(context.Context, uint32) (when.Obstacles, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.obstacles, nil
}

// Deny has the guard let nobody do something.
func (w *World) Deny(all ...polkit.Action) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range all {
		w.deny[a] = true
	}
}

// Allow takes that back.
func (w *World) Allow(a polkit.Action) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.deny, a)
}

// Allowed implements face.Guard: what is not denied is allowed.
func (w *World) Allowed(_ context.Context, _ polkit.Caller, a polkit.Action, asking bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	said := string(a)
	if asking {
		said += ", asking"
	}
	w.asked = append(w.asked, said)
	if o, ok := w.meanwhile[a]; ok {
		w.obstacles = o
	}
	if w.deny[a] {
		return polkit.ErrDenied
	}
	return nil
}

// Meanwhile has other obstacles be there once the guard was asked about an action.
func (w *World) Meanwhile(a polkit.Action, o when.Obstacles) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.meanwhile = map[polkit.Action]when.Obstacles{a: o}
}

// Asked returns what the guard was asked since the last time.
func (w *World) Asked() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.asked
	w.asked = nil
	return out
}

// Restarts returns which restarts were asked for.
func (w *World) Restarts() []when.Order {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.restarts
}
