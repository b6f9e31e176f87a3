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
