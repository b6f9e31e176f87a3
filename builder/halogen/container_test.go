package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/builder/keys"
)

// Whatever is wrong is said before a container is made.
func TestContainerRefusals(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	unsigned := file("uki.conf", "[Image]\nImageID=x\nReleaseKey=none\n", 0o644)
	password := file("password", "correct horse battery staple of the day", 0o600)
	module, loose := generated(t, dir, password)
	build := []string{"build", "--container", "--version", "1", "--out", filepath.Join(dir, "out"), "--config", unsigned}
	t.Setenv("PATH", dir) // with no engine in it
	_, encrypted := keys.Storage(dir)
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"an option of the host's way", []string{"--rootfs", "r"}, exitUsage, "--rootfs does not go with --container"},
		{"recipe", []string{"--recipe", "../x"}, exitUsage, "want debian or gentoo"},
		{"environment", []string{"--set", "x"}, exitUsage, "want NAME=VALUE"},
		{"key that is not pinned", []string{"--release-key", module}, exitUsage, "ReleaseKey="},
		{"no password", []string{"--module-key", module}, exitUsage, "go together"},
		{"no engine", nil, exitFailure, "neither podman nor docker"},
		{"other engine", []string{"--engine", "lxc"}, exitFailure, `"lxc"`},
		{"key on a plain disk", []string{"--module-key", module, "--module-key-password-file", password}, exitFailure, "storage"},
		{"key that others read", []string{"--module-key", loose, "--module-key-password-file", password, "--allow-unencrypted-storage"}, exitFailure, "others may read it"},
		{"key that is kept well enough", []string{"--module-key", module, "--module-key-password-file", password, "--allow-unencrypted-storage"}, exitFailure, "neither podman nor docker"},
	} {
		if c.want == "storage" && encrypted == nil {
			continue // this machine's disks are good
		}
		code, _, stderr := run(t, nil, append(build, c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: exit code %d, want %d, and %q in\n%s", c.name, code, c.code, c.want, stderr)
		}
	}
	for _, option := range []string{"--engine", "--network"} {
		code, _, stderr := run(t, nil, "build", "--rootfs", "r", "--version", "1", "--out", "o", option, "host")
		if code != exitUsage || !strings.Contains(stderr, option+" is for --container") {
			t.Errorf("an option of the container without one: %d, %s", code, stderr)
		}
	}
}

// generated makes a module key on a disk, and a copy that others may read.
func generated(t *testing.T, dir, password string) (good, loose string) {
	t.Helper()
	directory := filepath.Join(dir, "keys")
	code, _, stderr := run(t, nil, "keys", "generate", "--out", directory, "--name", "N", "--password-file", password, "--allow-unencrypted-storage")
	if code != exitOK {
		t.Fatalf("make keys: %s", stderr)
	}
	good, loose = filepath.Join(directory, "module-key.pem"), filepath.Join(dir, "loose.pem")
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(loose, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return good, loose
}

// What a build takes all the same, it takes in the container.
func TestContainerArguments(t *testing.T) {
	plain := strings.Join(containerArguments(buildFlags{version: "7"}), " ")
	for option, b := range map[string]buildFlags{
		"--allow-expiring-key": {expiringKey: true}, "--allow-moved-accounts": {movedAccounts: true}, "--installer": {installer: true}, "--disk --disk-size 8G": {disk: true, diskSize: "8G"},
	} {
		b.version = "7"
		if got := strings.Join(containerArguments(b), " "); got != plain+" "+option {
			t.Errorf("%q, want it to end with %s", got, option)
		}
	}
}
