package qemutests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// holders are the tests that have a slot, so that a second machine of the same test
// needs no second one: two tests that each hold one and wait for another would wait
// for ever.
var holders sync.Map // testing.TB: struct{}

// takeSlot waits until fewer machines run than there are cores, counting other test
// processes, and holds a place until the test ends. Of the tests of one process that
// wait, the one that takes longest goes first: a long one that goes last leaves the
// other cores idle.
func takeSlot(t testing.TB) {
	t.Helper()
	t.Cleanup(borrowSlot(t, expected(t.Name())))
}

// A turn is a test's place among those that wait for a slot.
type turn struct {
	cost int // seconds, see expected
	at   int // when it came: of two with the same cost the first is first
}

var (
	turnsMutex sync.Mutex
	turns      = map[*turn]struct{}{}
	turnsCount int
)

// queue takes a place among the waiting; leave gives it up.
func queue(cost int) *turn {
	turnsMutex.Lock()
	defer turnsMutex.Unlock()
	turnsCount++
	w := &turn{cost: cost, at: turnsCount}
	turns[w] = struct{}{}
	return w
}

func (w *turn) leave() {
	turnsMutex.Lock()
	defer turnsMutex.Unlock()
	delete(turns, w)
}

// isFirst tells whether nobody who waits comes before w.
func (w *turn) isFirst() bool {
	turnsMutex.Lock()
	defer turnsMutex.Unlock()
	for other := range turns {
		if other.cost > w.cost || other.cost == w.cost && other.at < w.at {
			return false
		}
	}
	return true
}

// borrowSlot is takeSlot for a while, with a cost of the caller's: a test whose parallel
// subtests start machines ends after them, and they wait for others.
func borrowSlot(t testing.TB, cost int) (giveBack func()) {
	t.Helper()
	if _, held := holders.LoadOrStore(t, struct{}{}); held {
		return func() {}
	}
	count := runtime.NumCPU()
	if s := os.Getenv("HALOGEN_MACHINES"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			t.Fatalf("HALOGEN_MACHINES=%q is not a number of machines", s)
		}
		count = n
	}
	began := time.Now()
	release, err := acquire(t.Context(), filepath.Join(os.TempDir(), fmt.Sprintf("halogen-machines-%d", os.Getuid())), count, cost)
	if err != nil {
		holders.Delete(t)
		t.Fatal(err)
	}
	if waited := time.Since(began); waited > time.Second {
		t.Logf("waited %v for one of %d machines", waited.Round(time.Second), count)
	}
	return func() { holders.Delete(t); release() }
}

// acquire takes one of count locks in a directory, when it is the turn of a test of that
// cost. A lock ends with its process.
func acquire(ctx context.Context, dir string, count, cost int) (release func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("machine slots: %w", err)
	}
	place := queue(cost)
	defer place.leave()
	for {
		for i := range count {
			if !place.isFirst() {
				break
			}
			f, err := tryLock(filepath.Join(dir, strconv.Itoa(i)), unix.LOCK_NB)
			if err == nil {
				return func() { _ = f.Close() }, nil
			}
			if !errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("machine slots: %w", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for one of %d machine slots: %w", count, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// tryLock locks a file exclusively until it is closed.
func tryLock(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|flags)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, err
	}
	return f, nil
}
