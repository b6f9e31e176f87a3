// Package testkit holds what the unit tests of every package share. It is
// imported by tests only.
package testkit

import (
	"os"
	"os/exec"
	"testing"
)

// Need returns the path of a foreign tool that judges our output. Without it
// the test is skipped on a developer's machine and fails in CI, where a
// missing judge would otherwise look like a pass.
func Need(t testing.TB, tool string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err == nil {
		return path
	}
	Skip(t, tool+" is not installed: run `make tools`")
	return ""
}

// Skip leaves a test out for want of something that this machine lacks. In CI,
// which must have it all, the test fails.
func Skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI skips nothing: %s", why)
	}
	t.Skip(why)
}

// Root is for tests of what only root can do, such as why.
func Root(t testing.TB, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "only root can "+why)
	}
}

// Run executes a tool and returns its combined output; a non-zero exit fails
// the test with that output.
func Run(t testing.TB, tool string, args ...string) string {
	t.Helper()
	out, err := exec.Command(Need(t, tool), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", tool, args, err, out)
	}
	return string(out)
}

// Debian returns the directory with the files of a whole Debian, which `make unit`
// makes. Without it the test is skipped on a developer's machine and fails in CI.
func Debian(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("HALOGEN_DEBIAN")
	if dir != "" {
		return dir
	}
	Skip(t, "HALOGEN_DEBIAN names no root file system: `make unit` has one")
	return ""
}
