package agent

import (
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/rootpart"
)

// The running system learns that a root partition is new, or that nobody's account was
// kept: that is when it may ask whoever is in front of it. It is told once.
func TestFirstStartNoted(t *testing.T) {
	const note = rootpart.Shared + "/" + bootinfo.FirstStart
	want := contract.Version(1).String() + "\n"
	m := lived(t)
	if have := string(m.rootFiles()[note]); have != want {
		t.Errorf("a new root partition: %q, want %q", have, want)
	}
	delete(m.rootFiles(), note) // setup(8) has asked
	m.ends("system")
	m.asksToKeepHome()
	m.typed = []string{"test"}
	m.ends("system")
	if have, there := m.rootFiles()[note]; there {
		t.Errorf("anna was kept: %q", have)
	}
	m.notesKeepHome(keephome.Note{Stage: keephome.Deleting})
	m.ends("system")
	if have := string(m.rootFiles()[note]); have != want {
		t.Errorf("nobody was kept: %q, want %q", have, want)
	}
}
