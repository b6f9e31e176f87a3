package testkit

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// skips are the files with tests that are left out elsewhere than by [Skip], and what
// for: what the machine's kernel or file system cannot do, which is not a tool that CI
// could install, and what was not asked for.
var skips = map[string]string{
	"builder/diff/diff_test.go":              "input of a fuzz test that is none",
	"builder/initramfs/initramfs_test.go":    "go test -short",
	"builder/install/disks_test.go":          "/dev/shm",
	"builder/install/mounted_test.go":        "loop devices",
	"builder/keys/storage_test.go":           "what the disk is made of",
	"builder/scan/quiet_test.go":             "go test -short, make scan-debian",
	"builder/scan/scan_test.go":              "extended attributes",
	"initagent/enroll/linux_test.go":         "the immutable flag",
	"initagent/hw/report_test.go":            "/sys",
	"initagent/recovery/linux_test.go":       "keyrings",
	"initagent/tpm/limits_test.go":           "what the TPM has room for",
	"qemu-tests/harness.go":                  "as Skip does, and fails in CI",
	"uroot-cmds/ota/machine/console_test.go": "device nodes",
	"uroot-cmds/ota/machine/take_test.go":    "mounts",
}

// Tests for want of a tool go through Skip or Need, so that they fail in CI.
func TestSkips(t *testing.T) {
	skip := regexp.MustCompile(`\b[a-z]\.Skip(f|Now)?\(`)
	root := filepath.Join("..", "..")
	seen := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		name, relErr := filepath.Rel(root, path)
		switch {
		case err != nil || relErr != nil:
			return fmt.Errorf("%w, %w", err, relErr)
		case d.IsDir() && (d.Name() == "out" || d.Name() == ".git"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || filepath.Dir(name) == "boot/testkit":
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !skip.Match(text) {
			return nil
		}
		if seen[name] = true; skips[name] == "" {
			t.Errorf("%s leaves a test out by itself: use testkit.Skip or testkit.Need, which fail in CI", name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range skips {
		if !seen[name] {
			t.Errorf("%s leaves no test out any more", name)
		}
	}
}

// In CI a tool that is missing fails the test.
func TestSkipFailsInCI(t *testing.T) {
	for value, want := range map[string]string{"true": "failed", "": "skipped"} {
		t.Setenv("CI", value)
		r := &recorder{TB: t}
		func() {
			defer func() { _ = recover() }()
			Need(r, "a-tool-that-is-nowhere")
		}()
		if r.was != want {
			t.Errorf("CI=%s: %q, want %q", value, r.was, want)
		}
	}
}

// recorder notes how a test ends.
type recorder struct {
	testing.TB
	was string
}

func (r *recorder) Helper()               {}
func (r *recorder) Fatalf(string, ...any) { r.was = "failed"; panic("end") }
func (r *recorder) Skip(...any)           { r.was = "skipped"; panic("end") }
