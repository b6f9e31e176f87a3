package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/vm"
)

func TestRunUsage(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no state", nil, exitUsage, "--state is missing"},
		{"two beginnings", []string{"--state", "s", "--image", "i", "--installer", "s"}, exitUsage, "two ways"},
		{"no such display", []string{"--state", "s", "--display", "wall"}, exitUsage, `--display "wall": want window, vnc or none`},
		{"sound of nothing", []string{"--state", "s", "--sound"}, exitUsage, "--sound wants a --display"},
		{"nothing to begin with", []string{"--state", filepath.Join(t.TempDir(), "s")}, exitFailure, "name the --image or the --installer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if code, _, stderr := run(t, nil, append([]string{"run"}, c.args...)...); code != c.code || !strings.Contains(stderr, c.want) {
				t.Errorf("exit code %d, %s; want %d, %q", code, stderr, c.code, c.want)
			}
		})
	}
}

// A machine that is there keeps its disk, unless it is to be forgotten.
func TestMachineForInstaller(t *testing.T) {
	if _, err := vm.FindFirmware(); err != nil {
		testkit.Skip(t, err.Error())
	}
	var c command
	dir := filepath.Join(t.TempDir(), "machine")
	for _, step := range []struct {
		fresh bool
		want  int64
	}{{false, emptySize}, {false, 5}, {true, emptySize}} {
		s, err := c.machineState(dir, "", true, step.fresh)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(s.Disk()); err != nil || info.Size() != step.want {
			t.Errorf("fresh %v: disk %v, %v; want %d bytes", step.fresh, info, err, step.want)
		}
		// What a start leaves.
		for _, path := range []string{s.Disk(), filepath.Join(dir, ".lock"), filepath.Join(dir, "console.log"), filepath.Join(dir, "qemu.log")} {
			if err := os.WriteFile(path, []byte("used\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A window opens where there is a display server and QEMU has one for it. Everywhere else
// the screen is shown by VNC, with the reason.
func TestChooseScreen(t *testing.T) {
	gtk := vm.Abilities{Displays: []string{"none", "gtk", "curses"}}
	for _, c := range []struct {
		name, display string
		pictures      bool
		environment   string
		can           vm.Abilities
		want          vm.Screen
		why           string
	}{
		{"as before", "none", false, "DISPLAY", gtk, vm.NoScreen, ""},
		{"pictures alone", "none", true, "", gtk, vm.HiddenScreen, ""},
		{"VNC", "vnc", false, "DISPLAY", gtk, vm.VNCScreen, ""},
		{"X11", "window", false, "DISPLAY", gtk, vm.WindowScreen, ""},
		{"Wayland", "window", true, "WAYLAND_DISPLAY", vm.Abilities{Displays: []string{"sdl"}}, vm.WindowScreen, ""},
		{"a server", "window", false, "", gtk, vm.VNCScreen, "no display server here"},
		{"QEMU without windows", "window", false, "DISPLAY", vm.Abilities{Displays: []string{"none", "curses"}}, vm.VNCScreen, "qemu-system-gui"},
	} {
		t.Run(c.name, func(t *testing.T) {
			getenv := func(name string) string {
				if name == c.environment {
					return ":0"
				}
				return ""
			}
			if s, why := chooseScreen(c.display, c.pictures, getenv, c.can); s != c.want || !strings.Contains(why, c.why) || (why == "") != (c.why == "") {
				t.Errorf("%q, %q; want %q, %q", s, why, c.want, c.why)
			}
		})
	}
}

// A machine's picture is there from its start on, is replaced as a whole, and the last one
// is of the end. Where none can be written, that is said before anybody waits for one.
func TestPicture(t *testing.T) {
	if err := vm.Check(); err != nil {
		testkit.Skip(t, err.Error())
	}
	dir := t.TempDir()
	s, err := vm.NewState(filepath.Join(dir, "machine"), "")
	if err != nil {
		t.Fatal(err)
	}
	m, err := vm.Start(t.Context(), vm.Options{State: s, NoDisk: true, TPM: vm.NoTPM, Screen: vm.HiddenScreen, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	picture := filepath.Join(dir, "screen, 1.png")
	isPicture := func() {
		t.Helper()
		if b, err := os.ReadFile(picture); err != nil || !strings.HasPrefix(string(b), "\x89PNG") {
			t.Errorf("%v, %d bytes that are not a PNG", err, len(b))
		}
	}
	if err := takePicture(t.Context(), m, picture); err != nil {
		t.Fatal(err)
	}
	isPicture()
	last := command{stderr: t.Output()}.takePictures(t.Context(), m, picture)
	if err := os.Remove(picture); err != nil {
		t.Fatal(err)
	}
	if err := last(); err != nil {
		t.Fatal(err)
	}
	isPicture()
	if err := takePicture(t.Context(), m, filepath.Join(dir, "absent", "screen.png")); err == nil || !strings.Contains(err.Error(), "picture of the screen") {
		t.Errorf("a picture in no directory: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*.new")); err != nil || len(left) > 0 {
		t.Errorf("left %q, %v", left, err)
	}
}
