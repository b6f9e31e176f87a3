package machine

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"halogenos.internal/uroot-cmds/ota/when"
)

func TestRestart(t *testing.T) {
	w := newWorld(t)
	var restarts []string
	w.m.Use = func(context.Context) when.Use { return when.Use{Now: w.m.Now(), Up: time.Hour, Idle: time.Hour} }
	w.m.Reboot = func(_ context.Context, at time.Time, text string) error {
		restarts = append(restarts, strings.TrimSpace(at.Sub(w.m.Now()).Round(time.Minute).String()+" "+text))
		return nil
	}
	set := func(restart string) { w.write("etc/halogen/ota.conf", []byte("Restart="+restart+"\n")) }
	set("idle")
	if r, err := w.m.RestartWhenDue(t.Context()); err != nil || r.Due || !strings.Contains(r.Reason, "no release waits") {
		t.Errorf("nothing waits: %+v, %v", r, err)
	}
	if _, err := w.m.RestartNow(t.Context()); !errors.Is(err, errNoRelease) {
		t.Errorf("nothing waits: %v", err)
	}
	w.write(stateDirectory+"/"+stagedFile, []byte(`{"format":1,"version":"3","slot":"b"}`))
	set("ask")
	if r, err := w.m.RestartWhenDue(t.Context()); err != nil || r.Due || r.Version != 3 || !strings.Contains(r.Reason, "Restart=ask") {
		t.Errorf("ask: %+v, %v", r, err)
	}
	w.write("etc/halogen/ota.conf", nil)
	if r, err := w.m.RestartWhenDue(t.Context()); err != nil || r.Due {
		t.Errorf("nothing is set: %+v, %v", r, err)
	}
	if len(restarts) > 0 {
		t.Fatalf("it restarts: %q", restarts)
	}
	set("idle")
	if r, err := w.m.RestartWhenDue(t.Context()); err != nil || !r.Due || r.At == nil {
		t.Errorf("idle: %+v, %v", r, err)
	}
	if _, err := w.m.RestartNow(t.Context()); err != nil {
		t.Error(err)
	}
	if len(restarts) != 2 || restarts[0] != "1m0s The machine restarts into version 3 of its system." {
		t.Errorf("restarts %q", restarts)
	}
	set("always")
	if _, err := w.m.RestartWhenDue(t.Context()); err == nil || !strings.Contains(err.Error(), "want ask, idle or night") {
		t.Errorf("always: %v", err)
	}
}
