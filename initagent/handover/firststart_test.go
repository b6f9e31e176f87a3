package handover_test

import (
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
)

// The running system learns that a root partition is new, or that nobody's account was
// kept: that is when it may ask the person in front of it. It is told once.
func TestFirstStartNoted(t *testing.T) {
	const note = rootpart.Shared + "/" + bootinfo.FirstStart
	want := contract.Version(1).String() + "\n"
	m := machinetest.Lived(t)
	if have := string(m.RootFiles()[note]); have != want {
		t.Errorf("a new root partition: %q, want %q", have, want)
	}
	delete(m.RootFiles(), note) // setup(8) has asked
	m.Ends("system")
	m.AsksToKeepHome()
	m.Typed = []string{"test"}
	m.Ends("system")
	if have, there := m.RootFiles()[note]; there {
		t.Errorf("anna was kept: %q", have)
	}
	m.NotesKeepHome(keephome.Note{Stage: keephome.Deleting})
	m.Ends("system")
	if have := string(m.RootFiles()[note]); have != want {
		t.Errorf("nobody was kept: %q, want %q", have, want)
	}
}
