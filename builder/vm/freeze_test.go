package vm

import (
	"context"
	"regexp"
	"testing"
	"time"
)

// TestFreeze: what is frozen answers no more, and starts again after a reset.
func TestFreeze(t *testing.T) {
	need(t)
	ctx := deadline(t)
	m := start(t, Options{State: newState(t, 0), NoDisk: true, TPM: NoTPM})
	prompt := regexp.MustCompile(`Shell> `)
	if _, err := m.WaitFor(ctx, prompt); err != nil {
		t.Fatal(err)
	}
	echo := func(ctx context.Context) error {
		if err := m.SendLine("echo alive"); err != nil {
			t.Fatal(err)
		}
		_, err := m.WaitFor(ctx, regexp.MustCompile(`\nalive`))
		return err
	}
	if err := echo(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if echo(short) == nil {
		t.Error("the machine goes on")
	}
	if err := m.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := m.WaitFor(ctx, prompt); err != nil {
		t.Error(err)
	}
	if m := start(t, Options{State: newState(t, 0), NoDisk: true, CPUs: 2}); m.Freeze(ctx) == nil {
		t.Error("a machine of two CPUs was frozen")
	}
}
