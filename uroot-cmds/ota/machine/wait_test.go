package machine

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// is makes things so.
func (b *box) is(metered bool, battery int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.around.Metered, b.around.Battery = metered, battery
}

// Nothing is fetched at a time that does not suit, unless somebody says so.
func TestFetchWaits(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		set    func()
		reason string
	}{
		{func() { w.is(true, -1) }, "the network is metered"},
		{func() { w.is(false, 20) }, "on battery, which has 20 %"},
		{func() {
			w.is(false, -1)
			w.write("etc/halogen/ota.conf", []byte("Server="+w.server.URL+"\nQuietHours=00:00-12:00,12:00-24:00\n"))
		}, "quiet hours are 00:00-12:00, 12:00-00:00"},
	} {
		c.set()
		out, err := w.m.FetchWhenFit(t.Context(), Options{})
		if err != nil || out.Verdict != offer.Later || !strings.Contains(out.Reason, c.reason) || !strings.Contains(out.Reason, "--now") || len(w.archiveRequested) > 0 || len(w.log) > 0 {
			t.Errorf("want %s: %+v, %v, %v, %v", c.reason, out, err, w.archiveRequested, w.log)
		}
		if s, err := w.m.Status(t.Context()); err != nil || !strings.Contains(s.Waits, c.reason) {
			t.Errorf("the status says %q, %v; want %s", s.Waits, err, c.reason)
		}
	}
	if out, err := w.m.FetchWhenFit(t.Context(), Options{Impatient: true}); err != nil || !out.Staged {
		t.Errorf("at once: %+v, %v", out, err)
	}
}

// A fetch that is under way ends when the time does not suit any more, keeps what has
// arrived, and goes on when it does.
func TestFetchGoesOn(t *testing.T) {
	w := newWorld(t)
	requests := 0
	w.onArchive = func(out http.ResponseWriter, r *http.Request) http.ResponseWriter {
		w.mu.Lock()
		defer w.mu.Unlock()
		if requests++; requests == 6 {
			w.is(true, -1)
		}
		if requests >= 6 && requests < 12 {
			time.Sleep(100 * time.Millisecond) // until it is seen
		}
		return out
	}
	waits := make(chan string, 100)
	done := make(chan *Outcome)
	go func() {
		out, err := w.m.FetchWhenFit(t.Context(), Options{Patient: true, Tell: func(e worker.Event) {
			if strings.Contains(e.Note, "waiting") {
				waits <- e.Note
			}
		}})
		if err != nil {
			t.Error(err)
		}
		done <- out
	}()
	select {
	case note := <-waits:
		if !strings.Contains(note, "the network is metered") {
			t.Errorf("it says %s", note)
		}
	case out := <-done:
		t.Fatalf("it did not wait: %+v", out)
	}
	if s, err := w.m.Status(t.Context()); err != nil || s.Fetching != 3 || s.Staged != nil {
		t.Errorf("while it waits: fetching %s, %+v, %v", s.Fetching, s.Staged, err)
	}
	// Another ota is not kept away meanwhile.
	r, err := w.m.Running()
	must(t, err)
	lock, err := w.m.lock(r)
	must(t, err)
	must(t, lock.Close())
	w.is(false, -1)
	out := <-done
	if out == nil || !out.Staged || len(waits) > 0 {
		t.Fatalf("%+v, and it said %d more times that it waits", out, len(waits))
	}
	w.complete()
}

// Without patience it ends, and the next one goes on.
func TestFetchEndsWhenUnfit(t *testing.T) {
	w := newWorld(t)
	w.onArchive = func(out http.ResponseWriter, r *http.Request) http.ResponseWriter {
		w.is(false, 5)
		time.Sleep(200 * time.Millisecond)
		return out
	}
	out, err := w.m.FetchWhenFit(t.Context(), Options{})
	if err != nil || out.Verdict != offer.Later || out.Staged {
		t.Fatalf("%+v, %v", out, err)
	}
	w.mu.Lock()
	w.onArchive = nil
	w.mu.Unlock()
	w.is(false, -1)
	if out, err = w.m.FetchWhenFit(t.Context(), Options{}); err != nil || !out.Staged {
		t.Errorf("%+v, %v", out, err)
	}
	w.complete()
}

// What has all arrived is brought to its end, which takes some minutes that would be spent
// again.
func TestFetchEndsVerified(t *testing.T) {
	w := newWorld(t)
	verified := false
	out, err := w.m.FetchWhenFit(t.Context(), Options{Tell: func(e worker.Event) {
		if e.Progress != nil && e.Progress.Phase == fetch.Verifying && !verified {
			verified = true
			w.is(true, -1)
			time.Sleep(200 * time.Millisecond)
		}
	}})
	if err != nil || !out.Staged || !verified {
		t.Errorf("%+v, %v, verified: %v", out, err, verified)
	}
}

// Settings that cannot be read end no fetch: they may be half saved.
func TestFetchWhileSettingsAreSaved(t *testing.T) {
	w := newWorld(t)
	w.onArchive = func(out http.ResponseWriter, r *http.Request) http.ResponseWriter {
		w.write("etc/halogen/ota.conf", []byte("Server="+w.server.URL+"\nFetchMet"))
		time.Sleep(200 * time.Millisecond)
		return out
	}
	out, err := w.m.FetchWhenFit(t.Context(), Options{})
	if err != nil || !out.Staged {
		t.Errorf("%+v, %v", out, err)
	}
}

// A timer's fetch waits for another ota, which may only be checking; a person is told.
func TestFetchWaitsForAnother(t *testing.T) {
	w := newWorld(t)
	r, err := w.m.Running()
	must(t, err)
	lock, err := w.m.lock(r)
	must(t, err)
	if _, err := w.m.FetchWhenFit(t.Context(), Options{}); !errors.Is(err, ErrBusy) {
		t.Errorf("a person's: %v", err)
	}
	done := make(chan *Outcome)
	go func() {
		out, err := w.m.FetchWhenFit(t.Context(), Options{Patient: true})
		if err != nil {
			t.Error(err)
		}
		done <- out
	}()
	select {
	case <-done:
		t.Fatal("it does not wait")
	case <-time.After(100 * time.Millisecond):
	}
	must(t, lock.Close())
	if out := <-done; out == nil || !out.Staged {
		t.Errorf("%+v", out)
	}
	w.complete()
}

// Who asks for a version gets that, and not what is offered meanwhile.
func TestFetchVersion(t *testing.T) {
	w := newWorld(t)
	if out, err := w.m.FetchWhenFit(t.Context(), Options{Version: 2}); !errors.Is(err, ErrNotOffered) || !strings.Contains(err.Error(), "version 2 is not what is offered now, but version 3") || out.Staged || len(w.log) > 0 {
		t.Errorf("another version: %+v, %v", out, err)
	}
	if out, err := w.m.FetchWhenFit(t.Context(), Options{Version: 3}); err != nil || !out.Staged {
		t.Errorf("the one that is offered: %+v, %v", out, err)
	}
}
