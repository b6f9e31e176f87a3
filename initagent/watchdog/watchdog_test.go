package watchdog

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/watchdog"
)

// timer is a watchdog device that keeps what it was told.
type timer struct {
	mu       sync.Mutex
	timeout  time.Duration
	fixed    bool
	fed      int
	stopped  bool
	closed   bool
	fedAfter bool // fed after it was closed
	status   watchdog.Status
	statusOK bool // it tells
}

func (t *timer) BootStatus() (watchdog.Status, error) {
	if !t.statusOK {
		return watchdog.StatusUnknown, errors.New("not supported")
	}
	return t.status, nil
}

func (t *timer) SetTimeout(d time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fixed {
		return errors.New("fixed")
	}
	t.timeout = d
	return nil
}

func (t *timer) Timeout() (time.Duration, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.timeout, nil
}

func (t *timer) KeepAlive() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fed++
	t.fedAfter = t.fedAfter || t.closed
	return nil
}

func (t *timer) MagicClose() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped, t.closed = true, true
	return nil
}

func (t *timer) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	return nil
}

func (t *timer) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fed
}

// waitFor gives a goroutine time; it says no before its patience ends.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal(what)
}

func TestFedWhileTheBootGetsOn(t *testing.T) {
	device := &timer{timeout: 40 * time.Millisecond, fixed: true}
	var mu sync.Mutex
	clock := time.Unix(1000, 0)
	d, err := Start("watchdog0", device, func() time.Time { mu.Lock(); defer mu.Unlock(); return clock })
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "it is not fed", func() bool { return device.count() > 2 })
	d.Allow(time.Minute)
	mu.Lock()
	clock = clock.Add(2 * time.Minute)
	mu.Unlock()
	waitFor(t, "a boot that hangs is fed for ever", func() bool {
		before := device.count()
		time.Sleep(60 * time.Millisecond)
		return device.count() == before
	})
	d.Allow(0)
	before := device.count()
	waitFor(t, "it is not fed while a person is asked", func() bool { return device.count() > before })
	if err := d.Hand(90 * time.Second); err != nil {
		t.Fatal(err)
	}
	if !device.closed || device.stopped || device.fedAfter {
		t.Errorf("handed over: closed %v, stopped %v, fed afterwards %v", device.closed, device.stopped, device.fedAfter)
	}
}

func TestHand(t *testing.T) {
	device := &timer{}
	d, err := Start("watchdog0", device, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if device.timeout != feedTimeout {
		t.Errorf("timeout %s", device.timeout)
	}
	if err := d.Hand(90 * time.Second); err != nil || device.timeout != 90*time.Second || device.fed == 0 {
		t.Errorf("handed over with %s, fed %d times, %v", device.timeout, device.fed, err)
	}
	device = &timer{}
	if d, err = Start("watchdog0", device, time.Now); err != nil {
		t.Fatal(err)
	}
	if err := d.Hand(0); err != nil || !device.stopped {
		t.Errorf("not stopped for a system that feeds none: %v", err)
	}
}

func TestFind(t *testing.T) {
	sys, dev := t.TempDir(), t.TempDir()
	if _, _, err := Find(sys, dev); !errors.Is(err, ErrNone) {
		t.Errorf("none: %v", err)
	}
	for node, identity := range map[string]string{"watchdog0": "Software Watchdog\n", "watchdog1": "i6300ESB timer\n"} {
		directory := filepath.Join(sys, "class/watchdog", node)
		if err := os.MkdirAll(directory, 0o755); err != nil {
			t.Fatal(err)
		}
		for path, text := range map[string]string{filepath.Join(directory, "identity"): identity, filepath.Join(dev, node): ""} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	name, timer, err := Find(sys, dev)
	if err != nil || name != "watchdog1 (i6300ESB timer)" {
		t.Fatalf("found %q, %v", name, err)
	}
	_ = timer.Close()
	for text, want := range map[string]watchdog.Status{"32\n": watchdog.StatusCardReset, "0x20": watchdog.StatusCardReset, "0": 0, "-1": 0, "x": 0, "": 0, "99999999999": 0} {
		if err := os.WriteFile(filepath.Join(sys, "class/watchdog/watchdog0/bootstatus"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		// The one that is chosen cannot be asked here: it is not a device.
		_, timer, err := Find(sys, dev)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := timer.BootStatus(); err != nil || got != want {
			t.Errorf("another one's status %q: %#x, %v", text, got, err)
		}
		_ = timer.Close()
	}
	if err := os.Remove(filepath.Join(dev, "watchdog1")); err != nil {
		t.Fatal(err)
	}
	if name, timer, err = Find(sys, dev); err != nil || name != "watchdog0 (Software Watchdog)" {
		t.Fatalf("found %q, %v", name, err)
	}
	_ = timer.Close()
}

// What ended the boot before is asked of the device, which may not say.
func TestWatchdogReset(t *testing.T) {
	for _, c := range []struct {
		name   string
		device *timer
		want   bool
	}{
		{"it did", &timer{status: watchdog.StatusCardReset | watchdog.StatusMagicClose, statusOK: true}, true},
		{"it did not", &timer{status: watchdog.StatusMagicClose, statusOK: true}, false},
		{"nothing is known", &timer{}, false},
		{"the device knows nothing", &timer{status: watchdog.StatusUnknown, statusOK: true}, false},
	} {
		d, err := Start("watchdog0", c.device, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		if d.CausedReset != c.want {
			t.Errorf("%s: the watchdog ended the boot before: %v", c.name, d.CausedReset)
		}
		if err := d.Hand(0); err != nil {
			t.Error(err)
		}
	}
}
