package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/keys"
	"halogenos.internal/builder/rootfs/rootfstest"
)

func TestKeysCommand(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("plinth oversee cobalt drizzle yearbook\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, exitUsage, "want generate, or check"},
		{[]string{"generate"}, exitUsage, "wants --out and --name"},
		{[]string{"check"}, exitUsage, "want generate, or check"},
		{[]string{"check", "--out", "x", "y"}, exitUsage, "do not go with it"},
		{[]string{"check", filepath.Join(dir, "none")}, exitFailure, "no such file"},
		{[]string{"generate", "--out", dir, "--name", "x", "--password-file", filepath.Join(dir, "none")}, exitFailure, "no such file"},
		{[]string{"generate", "--out", dir, "--name", "Example", "--password-file", password, "--allow-unencrypted-storage"}, exitOK, "ReleaseKey="},
		{[]string{"generate", "--out", dir, "--name", "Example", "--password-file", password, "--allow-unencrypted-storage"}, exitFailure, "already"},
		{[]string{"check", filepath.Join(dir, keys.ReleaseSecret), "--password-file", password, "--allow-unencrypted-storage"}, exitOK, "strength     good    key and password are strong"},
		{[]string{"check", filepath.Join(dir, keys.ModuleSecret), "--json", "--allow-unencrypted-storage"}, exitOK, `"kind": "PKCS#8"`},
		{[]string{"check", filepath.Join(dir, keys.ReleasePublic), "--allow-unencrypted-storage"}, exitFailure, "is a public key"},
	} {
		code, stdout, stderr := run(t, nil, append([]string{"keys"}, c.args...)...)
		if code != c.code || !strings.Contains(stdout+stderr, c.want) {
			t.Errorf("keys %q: exit code %d, %s%s; want %d, %q", c.args, code, stdout, stderr, c.code, c.want)
		}
		if strings.Contains(stdout+stderr, "plinth") {
			t.Errorf("keys %q shows the password", c.args)
		}
	}
	// Without leave, it is as the kernel says.
	code, stdout, stderr := run(t, nil, "keys", "check", filepath.Join(dir, keys.ReleaseSecret))
	if _, err := keys.Storage(dir); (err == nil) != (code == exitOK) || err != nil && !strings.Contains(stdout, "storage      BROKEN") {
		t.Errorf("exit code %d, %s%s; storage: %v", code, stdout, stderr, err)
	}
}

// TestDistributorsModules builds an image with a module that only the
// distributor's key signs.
func TestDistributorsModules(t *testing.T) {
	testkit.Need(t, "mkfs.erofs")
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	password, other := write("password", "plinth oversee cobalt drizzle yearbook\n"), write("other", "yearbook drizzle cobalt oversee plinth\n")
	if code, _, stderr := run(t, nil, "keys", "generate", "--out", dir+"/keys", "--name", "Example", "--password-file", password, "--allow-unencrypted-storage"); code != exitOK {
		t.Fatal(stderr)
	}
	conf := write("uki.conf", "[UKI]\nCmdline=quiet\n[Image]\nImageID=test-os\nSlotSize=16M\nReleaseKey=none\nModuleKey=keys/module-key.crt\nModuleTrust=db\n[Initramfs]\nModules=one\n")
	files := rootfstest.Minimal()
	files["usr/lib/modules/"+rootfstest.Release+"/extra/own.ko"] = rootfstest.UnsignedModule("vermagic="+rootfstest.Release+rootfstest.Config, "license=GPL", "name=own")
	files.TakeVerifying(true)
	rootfs := files.Write(t, false)
	key := []string{"--module-key", dir + "/keys/module-key.pem"}
	for _, c := range []struct {
		args []string
		say  string // empty: it is built
	}{
		{nil, "own.ko: is not signed"},
		{append(key, "--module-key-password-file", other, "--allow-unencrypted-storage"), "does not open it"},
		{append(key, "--module-key-password-file", dir+"/none", "--allow-unencrypted-storage"), "no such file"},
		{append(key, "--module-key-password-file", password, "--allow-unencrypted-storage"), ""},
	} {
		args := append([]string{"build", "--config", conf, "--rootfs", rootfs, "--version", "7", "--out", dir + "/out"}, c.args...)
		code, _, stderr := run(t, nil, args...)
		if c.say == "" && (code != exitOK || !strings.Contains(stderr, "1 modules are signed with ModuleKey")) || c.say != "" && (code != exitFailure || !strings.Contains(stderr, c.say)) {
			t.Errorf("%q: exit code %d, %s; want %q", c.args, code, stderr, c.say)
		}
	}
}
