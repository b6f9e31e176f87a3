package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/builder/keys"
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
