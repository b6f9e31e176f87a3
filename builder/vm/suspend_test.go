package vm

import (
	"context"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// where is the guest's next instruction, which says when it stands still.
func where(ctx context.Context, t *testing.T, m *Machine) string {
	t.Helper()
	var text string
	if err := m.qmp.Do(ctx, "human-monitor-command", map[string]any{"command-line": "info registers"}, &text); err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`RIP=\S+`).FindString(text)
}

// TestSuspend: a machine that hangs still hangs at the same place after it was suspended,
// in each clone; started again it was switched on, and so it is with a new TPM.
func TestSuspend(t *testing.T) {
	need(t)
	ctx := deadline(t)
	s := newState(t, 64<<20)
	o := Options{State: s, Memory: 256}
	m := start(t, o)
	if _, err := m.WaitFor(ctx, firmwareUp); err != nil {
		t.Fatal(err)
	}
	if err := m.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	was := where(ctx, t, m)
	if err := m.Suspend(ctx); err != nil || was == "" {
		t.Fatalf("at %q: %v", was, err)
	}
	fresh, err := s.Clone(filepath.Join(t.TempDir(), "fresh"))
	if err != nil {
		t.Fatal(err)
	}
	if err := fresh.ResetTPM(); err != nil {
		t.Fatal(err)
	}
	o.State, err = s.Clone(filepath.Join(t.TempDir(), "it's"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Start(ctx, o); err == nil || !strings.Contains(err.Error(), "holds a quote") {
		t.Errorf("a path with a quote: %v", err)
	}
	o.State, o.Memory = s, 512
	if _, err := Start(ctx, o); err == nil || !strings.Contains(err.Error(), "with other options") {
		t.Errorf("a suspended machine was started with other options: %v", err)
	}
	if o.State, err = s.Clone(filepath.Join(t.TempDir(), "clone")); err != nil {
		t.Fatal(err)
	}
	o.Memory = 256
	m = start(t, o)
	if status, err := m.QMP().Status(ctx); err != nil || status != "running" {
		t.Errorf("status %q, %v; want running", status, err)
	}
	if is := where(ctx, t, m); is != was {
		t.Errorf("it goes on at %s; it was suspended at %s", is, was)
	}
	m.Kill()
	if left, err := filepath.Glob(filepath.Join(o.State.Dir, "memory*")); err != nil || len(left) > 0 {
		t.Errorf("a machine that went on still has %q, %v", left, err)
	}
	for _, o.State = range []State{o.State, fresh} {
		m = start(t, o)
		if is := where(ctx, t, m); is == was {
			t.Errorf("switched on, it is at %s", is)
		}
		m.Kill()
	}
}
