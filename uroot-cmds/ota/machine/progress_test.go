package machine

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/worker"
)

func TestMeter(t *testing.T) {
	at := time.Unix(0, 0)
	m := NewMeter(func() time.Time { return at })
	m.of(3)
	m.Take(worker.Event{Measured: &fetch.Measured{Bytes: 100 << 20}})
	var p Progress
	for i := range 11 {
		p = m.Take(worker.Event{Progress: &fetch.Progress{Phase: fetch.Fetching, File: "system.erofs", Done: int64(i), Total: 7, Fetched: int64(i) << 20}})
		at = at.Add(time.Second)
	}
	if p.Version != 3 || *p.FetchTotal != 100<<20 || p.Rate != 1<<20 || p.Left != 90 || p.Fetched != 10<<20 {
		t.Errorf("%+v", p)
	}
	if p = m.Take(worker.Event{Note: "the server is slow"}); p.Note != "the server is slow" || p.Fetched != 10<<20 {
		t.Errorf("%+v", p)
	}
	// As fast as ever, and more than was said: nothing is left.
	if p = m.Take(worker.Event{Progress: &fetch.Progress{Fetched: 200 << 20}}); p.Left != 0 {
		t.Errorf("%+v", p)
	}
}

// A worker that says very much is told of in short, and not each time; what it said last
// is told of, too.
func TestTellsLittle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fetch.json")
	told := &teller{meter: NewMeter(time.Now), path: path}
	for i := range 2000 {
		told.tell(worker.Event{Note: strings.Repeat("x", 1<<20) + strconv.Itoa(i)})
	}
	told.tell(worker.Event{Progress: &fetch.Progress{Phase: fetch.Phase("a\x1b[2J" + strings.Repeat("y", 1000)), File: strings.Repeat("z", 1000)}})
	told.tell(worker.Event{Note: "a\x00b\u009bc\xff"})
	read := func() (p Progress) {
		text, err := os.ReadFile(path)
		if err != nil || len(text) > 2000 || json.Unmarshal(text, &p) != nil {
			t.Fatalf("%d bytes, %v", len(text), err)
		}
		return p
	}
	if p := read(); len(p.Note) > maxText+3 {
		t.Errorf("a note of %d bytes", len(p.Note))
	}
	for range 100 {
		if read().Note == "a?b?c?" {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if p := read(); p.Note != "a?b?c?" || strings.Contains(string(p.Phase), "\x1b") || len(p.Phase) > maxText+3 || len(p.File) > maxText+3 {
		t.Errorf("%+v", p)
	}
	told.end()
	if _, err := os.Stat(path); err == nil {
		t.Error("the file is still there")
	}
}

// Those who follow take no lock that a fetch needs, and see it as long as it is under way.
func TestFollowersTakeNoLock(t *testing.T) {
	w := newWorld(t)
	w.write(aliveFile, nil)
	if busy, err := w.m.busy(); busy || err != nil {
		t.Errorf("nobody fetches: %v, %v", busy, err)
	}
	const readers = 3
	for range readers {
		f, err := os.Open(w.path(aliveFile))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH); err != nil {
			t.Fatal(err)
		}
	}
	alive := live(w.path(aliveFile))
	if alive == nil {
		t.Fatal("a fetch cannot tell of itself while others have its file open and locked")
	}
	if live(w.path(aliveFile)) != nil {
		t.Error("two fetches tell of themselves")
	}
	if busy, err := w.m.busy(); !busy || err != nil {
		t.Errorf("a fetch is under way: %v, %v", busy, err)
	}
	must(t, alive.Close())
	if busy, err := w.m.busy(); busy || err != nil {
		t.Errorf("it has ended: %v, %v", busy, err)
	}
}

// No matter who has begun a fetch, it can be followed.
func TestFollow(t *testing.T) {
	w := newWorld(t)
	if err := w.m.Follow(t.Context(), func(Progress) {}); !errors.Is(err, ErrIdle) {
		t.Errorf("no fetch: %v", err)
	}
	begun := make(chan bool, 1000)
	w.onArchive = func(out http.ResponseWriter, r *http.Request) http.ResponseWriter {
		begun <- true
		time.Sleep(50 * time.Millisecond)
		return out
	}
	done := make(chan *Outcome, 1)
	go func() {
		out, err := w.m.Fetch(t.Context(), Options{Measure: true})
		if err != nil {
			t.Error(err)
		}
		done <- out
	}()
	<-begun
	var last Progress
	n := 0
	if err := w.m.Follow(t.Context(), func(p Progress) { last = p; n++ }); err != nil || n == 0 {
		t.Errorf("%v, told %d times", err, n)
	}
	out := <-done
	if out.Fetch == nil || *out.Fetch != out.Result.Fetched || last.Version != 3 || last.FetchTotal == nil || *last.FetchTotal != *out.Fetch {
		t.Errorf("%+v %+v, last told %+v", out, out.Result, last)
	}
	if _, err := os.Stat(w.path(progressFile)); err == nil {
		t.Error("the file is still there")
	}
	// What a fetch that was killed has left is none that is under way.
	w.write(progressFile, []byte(`{"format":1,"phase":"fetching"}`))
	if err := w.m.Follow(t.Context(), func(Progress) {}); !errors.Is(err, ErrIdle) {
		t.Errorf("left by one that was killed: %v", err)
	}
}
