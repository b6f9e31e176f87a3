package testkit

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Tools13Env names the environment variable that holds the path of the
// Debian 13 tree (`make tools` builds it under out/tools13).
const Tools13Env = "HALOGEN_TOOLS13"

// Tree runs the tools of a Debian 13 root file system in a chroot. The judges
// of the UKI format (ukify, systemd-measure) must be of the release whose stub
// they judge, which the machine running the tests need not be.
type Tree struct {
	t         testing.TB
	root      string
	directory string // scratch directory, as seen inside the tree
}

// Tools13 opens the Debian 13 tree named by HALOGEN_TOOLS13 with an empty
// scratch directory that goes away with the test. Without the variable the test
// is skipped, and fails in CI.
func Tools13(t testing.TB) *Tree {
	t.Helper()
	root := os.Getenv(Tools13Env)
	if root == "" {
		Skip(t, Tools13Env+" is not set: `make unit` sets it")
	}
	root, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	directory, err := os.MkdirTemp(filepath.Join(root, "tmp"), "test-")
	if err != nil {
		t.Fatalf("make a scratch directory in %s: %v", Tools13Env, err)
	}
	t.Cleanup(func() { os.RemoveAll(directory) })
	return &Tree{t: t, root: root, directory: "/tmp/" + filepath.Base(directory)}
}

// Put writes data into the scratch directory and returns the file's path as the
// tools see it.
func (tree *Tree) Put(name string, data []byte) string {
	tree.t.Helper()
	inside := tree.Path(name)
	if err := os.WriteFile(tree.Host(inside), data, 0o644); err != nil {
		tree.t.Fatal(err)
	}
	return inside
}

// Path returns the path that the tools see for a file of the scratch directory.
func (tree *Tree) Path(name string) string {
	return filepath.Join(tree.directory, name)
}

// Host returns the path on this machine of a path inside the tree.
func (tree *Tree) Host(inside string) string {
	return filepath.Join(tree.root, inside)
}

// Read returns the content of a file given by its path inside the tree.
func (tree *Tree) Read(inside string) []byte {
	tree.t.Helper()
	data, err := os.ReadFile(tree.Host(inside))
	if err != nil {
		tree.t.Fatal(err)
	}
	return data
}

// Run executes a tool of the tree and returns its standard output; a non-zero
// exit fails the test with what the tool said. Without root the chroot happens
// in a user namespace.
func (tree *Tree) Run(tool string, args ...string) []byte {
	tree.t.Helper()
	argv := append([]string{"chroot", tree.root, tool}, args...)
	if os.Geteuid() != 0 {
		argv = append([]string{"unshare", "--map-root-user"}, argv...)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1"}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		tree.t.Fatalf("%s %q: %v\n%s%s", tool, args, err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.Bytes()
}
