package config

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

// The file of the release key as gpg, key servers, mailers and editors leave it, and
// what is found in its place.
func TestReleaseKeyFiles(t *testing.T) {
	testkit.Need(t, "gpg")
	home, err := os.MkdirTemp("", "g") // short: a socket lies in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	gpg := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("gpg", append([]string{"--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...).Output()
		if err != nil {
			t.Fatalf("gpg %q: %v", args, err)
		}
		return string(out)
	}
	gpg("--quick-generate-key", "keys@example.org", "ed25519", "sign", "never")
	fpr := ""
	for line := range strings.Lines(gpg("--with-colons", "--list-keys")) {
		if f := strings.Split(line, ":"); f[0] == "fpr" && fpr == "" {
			fpr = f[9]
		}
	}
	armored, dir := gpg("--armor", "--export"), t.TempDir()
	load := func(text string) (*Config, error) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "key"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return Parse("[Image]\nImageID=x\nReleaseKey="+fpr+"\nReleaseKeyFile=key\n", dir)
	}
	want := gpg("--export")
	for name, text := range map[string]string{
		"binary": want, "armored": armored,
		"comment":           gpg("--armor", "--comment", "Schlüssel für Veröffentlichungen", "--export"),
		"blank first line":  "\n" + armored,
		"text before":       "This is our key.\n\n" + armored,
		"byte order mark":   "\ufeff\n" + armored,
		"trailing blanks":   strings.ReplaceAll(armored, "\n", "  \n"),
		"blank lines after": armored + "\n \n",
		"lines of Windows":  strings.ReplaceAll(armored, "\n", "\r\n"),
	} {
		if c, err := load(text); err != nil || string(c.ReleaseKey) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	for say, text := range map[string]string{
		"is empty": "\n", "holds a fingerprint": fpr + "\n", "holds an SSH key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA me@here\n",
		"minisign":  "untrusted comment: minisign public key 1234\nRWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n",
		"two armor": armored + armored, "private one": gpg("--armor", "--export-secret-keys"), "armor ends with": armored + "text behind\n", "certificate": "-----BEGIN CERTIFICATE-----\n",
	} {
		if _, err := load(text); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%v, want %q", err, say)
		}
	}
}
