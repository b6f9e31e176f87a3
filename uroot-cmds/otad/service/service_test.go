package service_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"halogenos.internal/uroot-cmds/otad/otadtest"
)

// However many ask at once, one check is made at a time, and what it finds is given to all
// who ask meanwhile. FAULTS 114
func TestChecksAreFew(t *testing.T) {
	w := otadtest.New(t, `cd "$(dirname "$0")"; [ ! -e busy ] || echo two >>at-once; : >busy; echo run >>runs; sleep 0.1; rm busy; exit 1`)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := w.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "worker ended") {
				t.Errorf("check: %v", err)
			}
		})
	}
	all.Wait()
	if _, err := os.Stat(filepath.Join(w.Dir, "at-once")); err == nil {
		t.Error("two checks were made at once")
	}
	if runs, err := os.ReadFile(filepath.Join(w.Dir, "runs")); err != nil || string(runs) != "run\n" {
		t.Errorf("eight who ask get %q, %v", runs, err)
	}
	if err := w.SetChannel("beta"); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Check(t.Context()) // of another channel
	if runs, err := os.ReadFile(filepath.Join(w.Dir, "runs")); err != nil || string(runs) != "run\nrun\n" {
		t.Errorf("once the channel has changed: %q, %v", runs, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Check(ctx); err == nil {
		t.Error("a check whose caller has gone is made")
	}
}

// One fetch at a time, and one after it is another.
func TestOneFetch(t *testing.T) {
	w := otadtest.New(t, "read request; cat >/dev/null")
	j, begun := w.Fetch(false)
	if !begun || w.Job() != j {
		t.Fatal("no fetch")
	}
	if again, begun := w.Fetch(true); begun || again != j {
		t.Error("a second one begins")
	}
	j.Cancel()
	<-j.Done
	if _, err := j.Outcome(); err == nil || !strings.Contains(err.Error(), "it was cancelled") {
		t.Errorf("cancelled: %v", err)
	}
	if w.Job() != nil {
		t.Error("it is still under way")
	}
	next, begun := w.Fetch(false)
	if !begun || next.ID == j.ID {
		t.Errorf("job %d after %d", next.ID, j.ID)
	}
	next.Cancel()
	<-next.Done
}
