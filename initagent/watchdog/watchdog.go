// Package watchdog keeps the machine's hardware watchdog fed while the boot gets
// on, and hands it on running, so that a hang at any moment ends in a restart,
// which the boot manager counts.
//
// It refuses to feed for its own sake: a boot that stands still, and is not
// waiting for a person, is no longer fed.
package watchdog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/u-root/u-root/pkg/watchdog"
	"golang.org/x/sys/unix"
)

// Timer is a watchdog device (kernel documentation, watchdog/watchdog-api.rst).
type Timer interface {
	// SetTimeout sets how long the device waits to be fed. A device may choose
	// another time.
	SetTimeout(time.Duration) error
	Timeout() (time.Duration, error)
	KeepAlive() error
	// BootStatus says, among other things, whether the device ended the boot
	// before (WDIOC_GETBOOTSTATUS).
	BootStatus() (watchdog.Status, error)
	// MagicClose stops the device and closes it; Close leaves it running.
	MagicClose() error
	Close() error
}

// feedTimeout is what the device is set to during the boot.
const feedTimeout = 60 * time.Second

// A Feeder feeds a device for as long as the boot gets on.
type Feeder struct {
	Name string // of the device, for the console
	// CausedReset: the device ended the boot before this one, as far as it tells.
	CausedReset bool

	timer Timer
	now   func() time.Time

	mu       sync.Mutex
	deadline time.Time // feeding ends then; zero: never
	stop     chan struct{}
	stopped  sync.WaitGroup
}

// Start takes a device and feeds it from then on. Allow says for how long.
func Start(name string, timer Timer, now func() time.Time) (*Feeder, error) {
	// Read first: some devices forget when they are set.
	status, err := timer.BootStatus()
	watchdogReset := err == nil && status != watchdog.StatusUnknown && status&watchdog.StatusCardReset != 0
	if err := timer.SetTimeout(feedTimeout); err != nil {
		// Some have a fixed time, which has to do.
		if _, terr := timer.Timeout(); terr != nil {
			return nil, errors.Join(err, terr, timer.Close())
		}
	}
	every, err := timer.Timeout()
	if err != nil || every <= 0 {
		every = feedTimeout
	}
	d := &Feeder{Name: name, CausedReset: watchdogReset, timer: timer, now: now, stop: make(chan struct{})}
	d.stopped.Add(1)
	go d.feed(every / 4)
	return d, nil
}

func (d *Feeder) feed(every time.Duration) {
	defer d.stopped.Done()
	tick := time.NewTicker(max(every, 10*time.Millisecond))
	defer tick.Stop()
	for {
		if d.due() {
			_ = d.timer.KeepAlive() // the device restarts the machine if this goes on failing
		}
		select {
		case <-d.stop:
			return
		case <-tick.C:
		}
	}
}

func (d *Feeder) due() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.deadline.IsZero() || d.now().Before(d.deadline)
}

// Allow lets the boot take that much longer before it counts as hanging; zero
// is for ever, while a person is asked.
func (d *Feeder) Allow(more time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deadline = time.Time{}
	if more > 0 {
		d.deadline = d.now().Add(more)
	}
}

// Hand gives the device on, running and freshly fed, to a system that takes it
// over within that time. Zero stops the device: the system has nothing that
// feeds it.
func (d *Feeder) Hand(within time.Duration) error {
	close(d.stop)
	d.stopped.Wait()
	if within == 0 {
		if err := d.timer.MagicClose(); err != nil {
			return fmt.Errorf("stop watchdog %s: %w", d.Name, err)
		}
		return nil
	}
	// A device that cannot wait so long keeps its own time.
	_ = d.timer.SetTimeout(within)
	err := errors.Join(d.timer.KeepAlive(), d.timer.Close())
	if err != nil {
		return fmt.Errorf("hand watchdog %s over: %w", d.Name, err)
	}
	return nil
}

// ErrNone says that the machine has no watchdog.
var ErrNone = errors.New("no watchdog was found")

// Find opens the machine's watchdog: hardware before the kernel's own timer,
// which a hanging kernel stops as well.
func Find(sys, dev string) (name string, t Timer, err error) {
	entries, err := os.ReadDir(filepath.Join(sys, "class/watchdog"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil, ErrNone
	}
	if err != nil {
		return "", nil, fmt.Errorf("look for watchdogs: %w", err)
	}
	type candidate struct {
		node, identity string
		soft           bool
	}
	var all []candidate
	var status watchdog.Status
	for _, e := range entries {
		status |= bootStatus(filepath.Join(sys, "class/watchdog", e.Name(), "bootstatus"))
		text, _ := os.ReadFile(filepath.Join(sys, "class/watchdog", e.Name(), "identity"))
		identity := strings.TrimSpace(string(text))
		all = append(all, candidate{e.Name(), identity, strings.HasPrefix(identity, "Software Watchdog")})
	}
	sort.SliceStable(all, func(i, j int) bool { return !all[i].soft && all[j].soft })
	var errs []error
	for _, c := range all {
		w, err := watchdog.Open(filepath.Join(dev, c.node))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		return fmt.Sprintf("%s (%s)", c.node, c.identity), device{w, status}, nil
	}
	if len(errs) > 0 {
		return "", nil, fmt.Errorf("open a watchdog: %w", errors.Join(errs...))
	}
	return "", nil, ErrNone
}

// device is the one that was chosen. What it says about the boot before, it says
// for all: the one that was fed then may have had another number.
type device struct {
	*watchdog.Watchdog
	others watchdog.Status
}

// SetTimeout implements Timer. The device is told whole seconds, as a C int
// (WDIOC_SETTIMEOUT); u-root's method hands it nanoseconds, which it refuses.
func (d device) SetTimeout(wait time.Duration) error {
	return unix.IoctlSetPointerInt(int(d.File.Fd()), unix.WDIOC_SETTIMEOUT, int(wait.Seconds()))
}

// BootStatus implements Timer.
func (d device) BootStatus() (watchdog.Status, error) {
	own, err := d.Watchdog.BootStatus()
	if err != nil {
		own = 0
	}
	return own | d.others, nil
}

// bootStatus reads what the kernel has of a device's last restart (kernel
// documentation, ABI/testing/sysfs-class-watchdog); 0 where it has nothing.
func bootStatus(file string) watchdog.Status {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 0, 32)
	if err != nil || n < 0 {
		return 0
	}
	return watchdog.Status(n)
}
