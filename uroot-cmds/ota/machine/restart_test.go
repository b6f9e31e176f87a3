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
	w.m.Reboot = func(_ context.Context, o when.Order) error {
		restarts = append(restarts, strings.TrimSpace(o.At.Sub(w.m.Now()).Round(time.Minute).String()+" "+o.Message))
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
	w.m.Obstacles = func(context.Context, uint32) (when.Obstacles, error) { return when.Obstacles{Others: true}, nil }
	if _, err := w.m.RestartObstacles(t.Context(), 1000); !errors.Is(err, errNoRelease) {
		t.Errorf("nothing waits, for a user: %v", err)
	}
	if err := w.m.RestartBy(t.Context(), when.Order{}); !errors.Is(err, errNoRelease) {
		t.Errorf("nothing waits, for a user: %v", err)
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
	if o, err := w.m.RestartObstacles(t.Context(), 1000); err != nil || !o.Others {
		t.Errorf("%+v, %v", o, err)
	}
	if err := w.m.RestartBy(t.Context(), when.Order{At: w.m.Now().Add(time.Hour)}); err != nil || len(restarts) != 3 || restarts[2] != "1h0m0s The machine restarts into version 3 of its system." {
		t.Errorf("%q, %v", restarts, err)
	}
	set("always")
	if _, err := w.m.RestartWhenDue(t.Context()); err == nil || !strings.Contains(err.Error(), "want ask, idle or night") {
		t.Errorf("always: %v", err)
	}
}
