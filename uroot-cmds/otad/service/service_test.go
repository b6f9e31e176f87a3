package service_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/uroot-cmds/ota/machine"
	"halogenos.internal/uroot-cmds/otad/otadtest"
	"halogenos.internal/uroot-cmds/otad/service"
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
	w := otadtest.New(t, slow)
	j, err := w.Fetch(service.Wish{})
	if err != nil || w.Job() != j {
		t.Fatalf("no fetch: %v", err)
	}
	for _, wish := range []service.Wish{{}, {Now: true, Version: 9}} {
		if _, err := w.Fetch(wish); !errors.Is(err, machine.ErrBusy) {
			t.Errorf("%+v, a second one: %v", wish, err)
		}
	}
	if w.Idle() != 0 || w.End() {
		t.Error("the service ends under a fetch")
	}
	j.Cancel()
	<-j.Done
	if _, err := j.Outcome(); err == nil || !strings.Contains(err.Error(), "it was cancelled") {
		t.Errorf("cancelled: %v", err)
	}
	if w.Job() != nil {
		t.Error("it is still under way")
	}
	next, err := w.Fetch(service.Wish{})
	if err != nil || next.ID == j.ID {
		t.Fatalf("job %+v after %d, %v", next, j.ID, err)
	}
	next.Cancel()
	<-next.Done
}

const slow = "read request; cat >/dev/null"

// A service that ends for lack of callers begins nothing, and does not end under a call.
func TestEnds(t *testing.T) {
	w := otadtest.New(t, slow)
	leave := w.Enter()
	if w.Idle() != 0 || w.End() {
		t.Error("it ends under a call")
	}
	leave()
	time.Sleep(time.Millisecond)
	if w.Idle() <= 0 || !w.End() {
		t.Error("it does not end")
	}
	if _, err := w.Fetch(service.Wish{}); !errors.Is(err, machine.ErrBusy) || w.Job() != nil {
		t.Errorf("a fetch begins: %v", err)
	}
}

// A fetch does not wait for a check, which somebody may repeat for ever, and does not fail
// because of one.
func TestFetchEndsCheck(t *testing.T) {
	// The first to run is a check, which ends with its input.
	w := otadtest.New(t, `cd "$(dirname "$0")"; read request; echo run >>runs; cat >/dev/null`)
	checked := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_, err := w.Check(ctx)
		checked <- err
	}()
	runs := func(n int) {
		t.Helper()
		for range 1000 {
			if text, err := os.ReadFile(filepath.Join(w.Dir, "runs")); err == nil && strings.Count(string(text), "run") == n {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("the worker does not run %d times", n)
	}
	runs(1)
	j, err := w.Fetch(service.Wish{Now: true})
	if err != nil {
		t.Fatal(err)
	}
	runs(2)
	select {
	case <-j.Done:
		_, err := j.Outcome()
		t.Fatalf("the fetch has ended: %v", err)
	case err := <-checked:
		t.Fatalf("the check has ended, and is not made again: %v", err)
	default:
	}
	j.Cancel()
	<-j.Done
	cancel()
	<-checked // its worker writes as long as it runs
}

// Somebody who does not want to wait has a fetch go on that waits.
func TestHurry(t *testing.T) {
	w := otadtest.New(t, slow)
	w.Metered(true)
	j, err := w.Fetch(service.Wish{})
	if err != nil {
		t.Fatal(err)
	}
	waits := func() bool { return strings.Contains(j.Progress().Note, "metered") }
	for range 1000 {
		if waits() {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !waits() {
		t.Fatalf("it does not wait: %+v", j.Progress())
	}
	if now, err := w.Fetch(service.Wish{Now: true}); err != nil || now != j {
		t.Fatalf("%v, %v", now, err)
	}
	if _, err := w.Fetch(service.Wish{Now: true}); !errors.Is(err, machine.ErrBusy) {
		t.Errorf("twice: %v", err)
	}
	for range 1000 {
		if _, err := os.Stat(filepath.Join(w.Dir, "var/lib/halogen/ota.lock")); err == nil {
			j.Cancel()
			<-j.Done
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("it does not go on")
}

// A job goes along with a fetch that a timer has begun, and then has what that fetched.
func TestGoesAlong(t *testing.T) {
	w := otadtest.New(t, `cd "$(dirname "$0")"; echo run >>runs; exit 1`)
	var locks []*os.File
	for name, lock := range map[string]func(*os.File) error{
		"var/lib/halogen/ota.lock": func(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX) },
		"run/halogen/fetch.lock": func(f *os.File) error {
			return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		},
	} {
		f, err := os.Create(filepath.Join(w.Dir, name))
		if err == nil {
			err = lock(f)
		}
		if err != nil {
			t.Fatal(err)
		}
		locks = append(locks, f)
	}
	if err := os.WriteFile(filepath.Join(w.Dir, "run/halogen/fetch.json"), []byte(`{"format":1,"phase":"fetching","fetched":4711}`), 0o644); err != nil {
		t.Fatal(err)
	}
	j, err := w.Fetch(service.Wish{Now: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if j.Progress().Fetched == 4711 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if p := j.Progress(); p.Fetched != 4711 {
		t.Errorf("it does not follow: %+v", p)
	}
	select {
	case <-j.Done:
		t.Error("it has ended before the fetch has")
	default:
	}
	for _, f := range locks {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	<-j.Done
	if runs, err := os.ReadFile(filepath.Join(w.Dir, "runs")); err != nil || string(runs) != "run\n" {
		t.Errorf("it does not look what is there now: %q, %v", runs, err)
	}
}

// However many ask for the state, it is looked at now and then, and again when something
// has changed.
func TestStatusIsShared(t *testing.T) {
	w := otadtest.New(t, "exit 1")
	first, err := w.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := w.Status(t.Context()); err != nil || again != first {
		t.Errorf("it is looked at each time: %v", err)
	}
	if err := w.SetChannel("beta"); err != nil {
		t.Fatal(err)
	}
	if now, err := w.Status(t.Context()); err != nil || now.Channel != "beta" {
		t.Errorf("%+v, %v", now, err)
	}
}
