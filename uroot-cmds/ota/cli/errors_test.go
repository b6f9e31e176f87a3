package cli

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/initagent/inventory/inventorytest"
)

// box is a machine with a server to fetch from, its files and a worker.
func box(t *testing.T, work string) (m *inventorytest.Machine, worksBy, dir string) {
	t.Helper()
	dir = t.TempDir()
	ota(t, dir) // which writes the files
	m = inventorytest.New(t)
	m.Install(layout.SlotA, "os_7.efi")
	worksBy = filepath.Join(dir, "worker")
	for name, text := range map[string]string{"etc/halogen/ota.conf": "Server=http://127.0.0.1:1\n", "worker": "#!/bin/sh\n" + work} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return m, worksBy, dir
}

// FAULTS 112: anyone who ends a command, as by Ctrl-C, is told what comes of it
func TestTellsInterrupted(t *testing.T) {
	for name, cure := range map[string]string{"fetch": "goes on where it was. The system that runs is as before", "check": "run it again"} {
		m, worksBy, dir := box(t, "kill -INT $PPID; cat >/dev/null\n")
		code, _, errs := otaBy(m, worksBy, dir, name)
		if code != exitFailed {
			t.Errorf("%s: exit code %d", name, code)
		}
		testkit.Tells(t, testkit.Error{What: name + ": interrupted", Thing: "ota " + name + ": interrupted", Cure: cure}, errs)
	}
}

// FAULTS 112: without root
func TestTellsNotRoot(t *testing.T) {
	m, worksBy, dir := box(t, "")
	if err := os.Chmod(filepath.Join(dir, "var/lib/halogen"), 0); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Seteuid(65534); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := syscall.Seteuid(0); err != nil {
				panic(err) // all other tests would fail
			}
		}()
	}
	for _, name := range []string{"fetch", "check", "rollback"} {
		code, _, errs := otaBy(m, worksBy, dir, name)
		if code != exitFailed {
			t.Errorf("%s: exit code %d", name, code)
		}
		testkit.Tells(t, testkit.Error{What: name + ": without root", Thing: "/var/lib/halogen/", Cure: "run this as root"}, strings.ReplaceAll(errs, dir, ""))
	}
}
