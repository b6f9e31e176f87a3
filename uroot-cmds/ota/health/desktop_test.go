package health

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/testkit"
)

// block is what `systemctl show` of systemd 257 prints of a unit.
func block(names, load, active, file string) string {
	return fmt.Sprintf("Names=%s\nLoadState=%s\nActiveState=%s\nUnitFileState=%s\nConditionResult=yes\nConditionTimestampMonotonic=9\n", names, load, active, file)
}

// socket listens, and says something to anyone who says hello first; with an empty hello it
// never does.
func socket(t *testing.T, root, name, hello string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			got := make([]byte, 64)
			if n, err := conn.Read(got); err == nil && hello != "" && string(got[:n]) == hello {
				_, _ = conn.Write([]byte{0})
			}
		}
	}()
}

// short makes a directory whose path is as short as sockets want.
func short(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

const (
	nm     = "NetworkManager.service"
	status = "sys/class/drm/card0-HDMI-A-1/status"
)

// desktopOf asks systemd and the sockets below a root once.
func desktopOf(t *testing.T, root string, units ...string) Look {
	t.Helper()
	ask := systemd(func(_ context.Context, _ string, args ...string) ([]byte, error) {
		if args[0] != "show" {
			return nil, nil
		}
		return []byte(strings.Join(units, "\n")), nil
	}, root)
	look, err := ask(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return *look
}

// A desktop whose login does not answer, or whose network service does not run, is told
// from one where all is well, and from a system that has no login on the screen.
func TestDesktop(t *testing.T) {
	manager := func(load, active string) string {
		return block("lightdm.service display-manager.service", load, active, "static")
	}
	absent := block(displayManager, "not-found", "inactive", "")
	target := block("graphical.target", "loaded", "active", "static")
	network := block(nm, "loaded", "active", "enabled")
	never := strings.NewReplacer("ConditionResult=yes", "ConditionResult=no", "Monotonic=9", "Monotonic=0")
	unmet := strings.NewReplacer("ConditionResult=yes", "ConditionResult=no")
	x11, wayland := displays[0].hello, displays[1].hello
	both, alone := Look{Present: []string{displayManager, nm}}, Look{Present: []string{nm}}
	ended := Look{Present: []string{nm}, Missed: []string{displayManager}}
	for _, c := range []struct {
		name  string
		units []string
		make  func(root string)
		want  Look
	}{
		{"X11 answers", []string{manager("loaded", "active"), target, network}, func(root string) { socket(t, root, "tmp/.X11-unix/X0", x11) }, both},
		{"Wayland answers", []string{manager("loaded", "active"), target, network}, func(root string) {
			put(t, root, "run/user/111/wayland-0.lock", "")
			socket(t, root, "run/user/111/wayland-0", wayland)
		}, both},
		{"nothing listens", []string{manager("loaded", "active"), target, network}, nil, Look{Present: []string{nm}, Silent: true}},
		{"what listens is silent", []string{manager("loaded", "active"), target, network}, func(root string) { socket(t, root, "tmp/.X11-unix/X0", "") }, Look{Present: []string{nm}, Silent: true}},
		{"nobody's socket has such a name", []string{manager("loaded", "active"), target, network}, func(root string) { socket(t, root, "tmp/.X11-unix/Xa", x11) }, Look{Present: []string{nm}, Silent: true}},
		{"the machine is overloaded", []string{manager("loaded", "active"), target, network}, func(root string) {
			put(t, root, "proc/pressure/io", "some avg10=12.00 avg60=71.33 avg300=20.10 total=123\nfull avg10=1.00 avg60=2.00 avg300=1.00 total=12\n")
		}, Look{Present: []string{nm}, Silent: true, Busy: true}},
		{"it is not", []string{manager("loaded", "active"), target, network}, func(root string) {
			put(t, root, "proc/pressure/cpu", "some avg10=99.00 avg60=49.99 avg300=80.10 total=123\n")
		}, Look{Present: []string{nm}, Silent: true}},
		{"a link to another's socket", []string{manager("loaded", "active"), target, network}, func(root string) {
			socket(t, root, "other", x11)
			put(t, root, "tmp/.X11-unix/", "")
			if err := os.Symlink("../../other", filepath.Join(root, "tmp/.X11-unix/X0")); err != nil {
				t.Fatal(err)
			}
		}, Look{Present: []string{nm}, Silent: true}},
		{"a login on a text console", []string{block("greetd.service display-manager.service", "loaded", "active", "enabled"), target, network}, nil, both},
		{"which has ended", []string{block("greetd.service display-manager.service", "loaded", "inactive", "enabled"), target, network}, nil, ended},
		{"it has ended", []string{manager("loaded", "inactive"), target, network}, nil, ended},
		{"it was never started", []string{never.Replace(manager("loaded", "inactive")), target, network}, nil, ended},
		{"its condition is not met", []string{unmet.Replace(manager("loaded", "inactive")), target, network}, nil, alone},
		{"it has failed, which systemd says", []string{manager("loaded", "failed"), target, network}, nil, alone},
		{"it is about to start", []string{manager("loaded", "activating"), target, network}, nil, alone},
		{"it is switched off", []string{absent, target, network}, nil, Look{}},
		{"its owner has masked it", []string{manager("masked", "inactive"), target, network}, nil, Look{}},
		{"masked while it runs", []string{manager("masked", "active"), target, network}, nil, Look{}},
		{"a system that starts to text", []string{manager("loaded", "inactive"), block("graphical.target", "loaded", "inactive", "static"), network}, nil, Look{}},
		{"no screen is plugged in", []string{manager("loaded", "active"), target, network}, func(root string) { put(t, root, status, "disconnected\n") }, alone},
		{"no screen, and it has given up", []string{manager("loaded", "inactive"), target, network}, func(root string) { put(t, root, status, "disconnected\n") }, alone},
		{"no network service", []string{manager("loaded", "active"), target, block(nm, "loaded", "inactive", "enabled"), block("systemd-networkd.service", "loaded", "inactive", "disabled")},
			func(root string) { socket(t, root, "tmp/.X11-unix/X0", x11) }, Look{Present: []string{displayManager}, Missed: []string{nm}}},
		{"its owner wants none", []string{manager("loaded", "active"), target, block(nm, "loaded", "inactive", "disabled"), block("connman.service", "masked", "inactive", "masked")},
			func(root string) { socket(t, root, "tmp/.X11-unix/X0", x11) }, Look{Present: []string{displayManager}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := short(t)
			put(t, root, status, "connected\n")
			if c.make != nil {
				c.make(root)
			}
			if look := desktopOf(t, root, c.units...); !reflect.DeepEqual(look, c.want) {
				t.Errorf("%+v; want %+v", look, c.want)
			}
		})
	}
}

// More silent sockets than are asked, which anybody may make, hide no display server of
// the system's, and take no longer than one.
func TestSilentSockets(t *testing.T) {
	t.Parallel() // it waits
	testkit.Root(t, "give sockets to others")
	root := short(t)
	for i := range 2 * maxDisplays {
		name := fmt.Sprintf("tmp/.X11-unix/X0%d", i)
		socket(t, root, name, "")
		if err := os.Chown(filepath.Join(root, name), 1000, 1000); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	if displayAnswers(t.Context(), root) {
		t.Error("silent ones count")
	}
	if took := time.Since(began); took > 3*oneDisplay {
		t.Errorf("they have taken %v", took)
	}
	socket(t, root, "tmp/.X11-unix/X9", displays[0].hello)
	if !displayAnswers(t.Context(), root) {
		t.Error("the system's is hidden")
	}
}

// Where nobody could see a picture, nobody misses one.
func TestScreen(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		want  bool
	}{
		{"no graphics at all", map[string]string{"sys/bus/pci/devices/0000:00:1f.2/class": "0x010601\n"}, false},
		{"a server's chip without a driver", map[string]string{"sys/bus/pci/devices/0000:03:00.0/class": "0x030000\n"}, true},
		{"a driver that does not know of connectors", map[string]string{"sys/class/drm/card0/dev": "226:0\n"}, true},
		{"what the firmware set up", map[string]string{"sys/class/graphics/fb0/dev": "29:0\n"}, true},
		{"nothing is plugged in", map[string]string{"sys/class/drm/card0-DP-1/status": "disconnected\n", "sys/class/drm/card0-Writeback-1/status": "unknown\n", "sys/bus/pci/devices/0000:00:02.0/class": "0x030000\n"}, false},
		{"one of two is plugged in", map[string]string{"sys/class/drm/card0-DP-1/status": "disconnected\n", "sys/class/drm/card1-eDP-1/status": "connected\n"}, true},
		{"it is not known", map[string]string{"sys/class/drm/card0-VGA-1/status": "unknown\n"}, true},
	} {
		root := t.TempDir()
		for name, text := range c.files {
			put(t, root, name, text)
		}
		if have := hasScreen(root); have != c.want {
			t.Errorf("%s: %v", c.name, have)
		}
	}
}

// A login that needs a while is waited for; one that never answers counts, if it answered
// before the update and the machine is not overloaded.
func TestDesktopCounts(t *testing.T) {
	dm := []string{displayManager}
	start, took, _, err := follow(t, moment{look: Look{Silent: true}}, moment{at: 90 * time.Second, look: Look{Present: dm}})
	if err != nil || len(start.Failed) > 0 || !slices.Equal(start.Present, dm) || took > 2*time.Minute {
		t.Errorf("it answers after 90 s: %+v, %v after %v", start, err, took)
	}
	start, _, _, err = follow(t, moment{look: Look{Silent: true}}, moment{at: bound - time.Second, look: Look{Present: dm}})
	if err != nil || len(start.Failed) > 0 || !slices.Equal(start.Present, dm) {
		t.Errorf("it answers at the last moment: %+v, %v", start, err)
	}
	start, _, _, err = follow(t, moment{look: Look{Silent: true}}, moment{at: time.Minute, look: Look{Silent: true, Busy: true}})
	if err != nil || len(start.Failed) > 0 || !slices.Equal(start.Starting, dm) || len(start.Present) > 0 {
		t.Errorf("it is slow, as all is: %+v, %v", start, err)
	}
	start, took, _, err = follow(t, moment{look: Look{Missed: []string{nm}}})
	if err != nil || !slices.Equal(start.Failed, []string{nm}) || took != quiet {
		t.Errorf("what does not run is not waited for: %+v, %v after %v", start, err, took)
	}
	start, _, _, err = follow(t, moment{look: Look{Silent: true}})
	if err != nil || !slices.Equal(start.Failed, dm) || !slices.Equal(start.Missed, dm) || len(start.Missing()) != 1 {
		t.Fatalf("it never answers: %+v, %v", start, err)
	}
	for _, c := range []struct {
		name   string
		before *Record
		want   Verdict
	}{
		{"it answered before", NewRecord(1, "systemd", nil, dm), Verdict{Counted: dm}},
		{"nor did it before", NewRecord(1, "systemd", dm, nil), Verdict{Before: dm}},
		{"nobody looked before, or had a screen", NewRecord(1, "systemd", nil, nil), Verdict{Unknown: dm}},
		{"nothing is known of before", nil, Verdict{Unknown: dm}},
	} {
		if v := Judge(start, c.before, nil); !reflect.DeepEqual(v, c.want) {
			t.Errorf("%s: %+v, want %+v", c.name, v, c.want)
		}
	}
}
