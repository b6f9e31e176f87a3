package inspect

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

// Files of other tools that somebody may take for one of these are named.
func TestFilesOfOtherTools(t *testing.T) {
	testkit.Need(t, "openssl")
	testkit.Need(t, "mkfs.vfat")
	testkit.Need(t, "cryptsetup")
	testkit.Need(t, "gpg")
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	put := func(name string, content []byte) {
		t.Helper()
		if err := os.WriteFile(at(name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Run(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=other", "-keyout", at("key.pem"), "-out", at("cert.pem"))
	testkit.Run(t, "openssl", "x509", "-in", at("cert.pem"), "-outform", "DER", "-out", at("cert.der"))
	testkit.Run(t, "openssl", "pkcs12", "-export", "-in", at("cert.pem"), "-inkey", at("key.pem"), "-passout", "pass:x", "-out", at("key.p12"))
	testkit.Run(t, "openssl", "ecparam", "-name", "prime256v1", "-genkey", "-out", at("ec.pem"))
	testkit.Run(t, "openssl", "ec", "-in", at("ec.pem"), "-aes256", "-passout", "pass:word", "-out", at("ec.enc.pem"))
	testkit.Run(t, "mkfs.vfat", "-C", "-F", "12", at("fat12"), "1440")
	testkit.Run(t, "mkfs.vfat", "-C", "-F", "16", at("fat16"), "16384")
	put("luks1", make([]byte, 4<<20))
	put("word", []byte("word"))
	testkit.Run(t, "cryptsetup", "luksFormat", "--batch-mode", "--type", "luks1", "--pbkdf-force-iterations", "1000", "--key-file", at("word"), at("luks1"))

	// As ipxe.lkrn: code, and what looks like a partition by chance.
	lkrn := make([]byte, 4096)
	copy(lkrn[0x202:], "HdrS")
	copy(lkrn[510:], "\x55\xaa")
	lkrn[446+4], lkrn[446+12] = 0x0c, 1
	put("ipxe.lkrn", lkrn)

	home, err := os.MkdirTemp("", "g") // short: a socket lies in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	gpg := []string{"--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""}
	testkit.Run(t, "gpg", append(gpg, "--quick-generate-key", "r@example.org", "ed25519", "sign", "never")...)
	testkit.Run(t, "gpg", append(gpg, "--output", at("sig"), "--detach-sign", at("word"))...)
	testkit.Run(t, "gpg", append(gpg, "--armor", "--output", at("sig.asc"), "--detach-sign", at("word"))...)

	for name, say := range map[string]string{
		"key.p12": "PKCS#12", "fat12": "FAT12", "fat16": "FAT16", "luks1": "LUKS1", "ipxe.lkrn": "not one for EFI",
		"sig": "detached OpenPGP signature, by the key ", "sig.asc": "detached OpenPGP signature, by the key ",
	} {
		if _, err := File(at(name)); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %v, want %q", name, err, say)
		}
	}
	for name, want := range map[string][]string{
		"cert.der": {"certificate ECDSA, P-256", "name CN=other"}, "ec.pem": {"SEC 1", "IN THE CLEAR"}, "ec.enc.pem": {"SEC 1", "secret part encrypted"},
	} {
		content, err := os.ReadFile(at(name))
		if err != nil {
			t.Fatal(err)
		}
		_, text := shown(t, content)
		says(t, name, text, want...)
	}
}
