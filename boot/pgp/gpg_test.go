package pgp

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/testkit"
)

// gnupg is a home directory of gpg with its agent.
type gnupg struct {
	t    testing.TB
	home string
}

func newGnuPG(t testing.TB) gnupg {
	t.Helper()
	testkit.Need(t, "gpg")
	// The agent's socket lies in it, and may have 107 characters.
	home, err := os.MkdirTemp("", "g")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	return gnupg{t, home}
}

// run executes gpg, by default at epoch.
func (g gnupg) run(args ...string) []byte {
	g.t.Helper()
	return g.runWith("", args...)
}

// runWith executes gpg with an input.
func (g gnupg) runWith(input string, args ...string) []byte {
	g.t.Helper()
	args = append([]string{"--homedir", g.home, "--batch", "--yes", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "",
		"--faked-system-time", epoch.Format("20060102T150405!")}, args...)
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("gpg", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		g.t.Fatalf("gpg %q: %v\n%s", args, err, stderr.Bytes())
	}
	return stdout.Bytes()
}

func (g gnupg) file(name string, content []byte) string {
	g.t.Helper()
	path := filepath.Join(g.home, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		g.t.Fatal(err)
	}
	return path
}

func TestGPGKeysAndSignatures(t *testing.T) {
	g := newGnuPG(t)
	doc := g.file("doc", document)
	digests := map[string][]string{ // what gpg will take for the curve
		"ed25519": {"SHA256", "SHA384", "SHA512"}, "rsa3072": {"SHA256", "SHA384", "SHA512"},
		"nistp256": {"SHA256", "SHA512"}, "nistp384": {"SHA384", "SHA512"}, "nistp521": {"SHA512"},
	}
	for algorithm := range digests {
		t.Run(algorithm, func(t *testing.T) {
			g.t = t
			id := algorithm + "@example.org"
			g.run("--quick-generate-key", id, algorithm, "sign", "1y")
			k := mustParse(t, g.run("--armor", "--export", id))
			if binary := g.run("--export", id); !bytes.Equal(k.Bytes(), binary) {
				t.Error("the armored key differs from the binary one")
			}
			if list := g.run("--with-colons", "--list-keys", id); !bytes.Contains(list, []byte("\nfpr:::::::::"+k.Fingerprint().String()+":")) {
				t.Errorf("gpg has another fingerprint than %s:\n%s", k.Fingerprint(), list)
			}
			if err := k.Check(epoch); err != nil {
				t.Error(err)
			}
			if err := k.Check(epoch.AddDate(1, 0, 1)); err == nil || !strings.Contains(err.Error(), "expired") {
				t.Errorf("a year later: %v", err)
			}
			for _, form := range []string{"--no-armor", "--armor"} {
				for _, digest := range digests[algorithm] {
					sig := g.run(form, "--digest-algo", digest, "-u", id, "-o", "-", "--detach-sign", doc)
					if err := k.Verify(bytes.NewReader(document), sig, epoch); err != nil {
						t.Errorf("%s %s: %v", form, digest, err)
					}
				}
			}
			if !slices.Contains(digests[algorithm], "SHA384") || algorithm == "nistp384" {
				return
			}
			for want, args := range map[string][]string{
				"type 0x01":        {"--textmode", "--detach-sign"},
				"uses SHA-224":     {"--digest-algo", "SHA224", "--detach-sign"},
				"starts with":      {"--clearsign"},
				"packet of type 8": {"--sign"}, // compressed
				"packet of type 4": {"--compress-algo", "none", "--sign"},
			} {
				sig := g.run(append(append([]string{"-u", id, "-o", "-"}, args...), doc)...)
				if err := k.Verify(bytes.NewReader(document), sig, epoch); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%q: %v, want %q", args, err, want)
				}
			}
		})
	}
}

// FAULTS 16
func TestGPGKeysTooWeak(t *testing.T) {
	g := newGnuPG(t)
	for algorithm, want := range map[string]string{
		"rsa2048": "RSA key of 2048 bits", "dsa2048": "kind DSA", "secp256k1": "SecP256k1", "brainpoolP256r1": "Brainpool",
	} {
		id := algorithm + "@example.org"
		g.run("--quick-generate-key", id, algorithm, "sign", "never")
		if _, err := ParseKey(g.run("--export", id)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", algorithm, err, want)
		}
	}
}

// A key whose expiry was moved and that has got another subkey is still the one
// that is pinned; another key of the same name is not. FAULTS 22
func TestGPGSamePinned(t *testing.T) {
	g := newGnuPG(t)
	const id = "pinned@example.org"
	g.run("--quick-generate-key", id, "ed25519", "sign", "30d")
	before := g.run("--export", id)
	primary := mustParse(t, before).Fingerprint().String()
	g.run("--faked-system-time", epoch.Add(time.Minute).Format("20060102T150405!"), "--quick-set-expire", primary, "90d")
	g.run("--quick-add-key", primary, "ed25519", "sign", "30d")
	after := g.run("--export", id)
	if bytes.Equal(before, after) {
		t.Fatal("gpg has not renewed the key")
	}
	other := newGnuPG(t)
	other.run("--quick-generate-key", id, "ed25519", "sign", "30d")
	stranger := other.run("--export", id)
	for _, c := range []struct {
		was, is []byte
		same    bool
	}{{before, after, true}, {after, before, true}, {nil, nil, true}, {before, stranger, false}, {before, nil, false}, {nil, before, false}, {before, []byte("x"), false}} {
		if err := SamePinned(c.was, c.is); (err == nil) != c.same {
			t.Errorf("keys of %d and %d bytes: %v", len(c.was), len(c.is), err)
		}
	}
}

// FAULTS 17, 18
func TestGPGSubkeys(t *testing.T) {
	g := newGnuPG(t)
	doc := g.file("doc", document)
	const id = "subkeys@example.org"
	g.run("--quick-generate-key", id, "ed25519", "cert", "never")
	primary := mustParse(t, g.run("--export", id)).Fingerprint().String()
	if err := mustParse(t, g.run("--export", id)).Check(epoch); err == nil || !strings.Contains(err.Error(), "no subkey") {
		t.Errorf("a key that only certifies: %v", err)
	}
	for _, algorithm := range []string{"ed25519", "rsa2048"} {
		g.run("--quick-add-key", primary, algorithm, "sign", "30d")
	}
	g.run("--quick-add-key", primary, "cv25519", "encr", "never")
	public := g.run("--export", id)
	k := mustParse(t, public)
	if err := k.Check(epoch); err != nil {
		t.Error(err)
	}
	var subkeys []string
	for line := range strings.Lines(string(g.run("--with-colons", "--list-keys", id))) {
		if f := strings.Split(line, ":"); f[0] == "fpr" && f[9] != primary {
			subkeys = append(subkeys, f[9])
		}
	}
	strong := g.run("-u", subkeys[0]+"!", "-o", "-", "--detach-sign", doc)
	if err := k.Verify(bytes.NewReader(document), strong, epoch); err != nil {
		t.Error(err)
	}
	if err := k.Verify(bytes.NewReader(document), strong, epoch.AddDate(0, 0, 31)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("a month later: %v", err)
	}
	if err := k.Verify(bytes.NewReader(document), strong, epoch.Add(-25*time.Hour)); err == nil || !strings.Contains(err.Error(), "clock") {
		t.Errorf("a day before: %v", err)
	}
	weak := g.run("-u", subkeys[1]+"!", "-o", "-", "--detach-sign", doc)
	if err := k.Verify(bytes.NewReader(document), weak, epoch); err == nil || !strings.Contains(err.Error(), "2048 bits") {
		t.Errorf("RSA-2048 subkey: %v", err)
	}
	// The extended key takes the old signature, the old key does not know.
	g.run("--faked-system-time", epoch.Add(time.Minute).Format("20060102T150405!"), "--quick-set-expire", primary, "90d", subkeys[0])
	if err := mustParse(t, g.run("--export", id)).Verify(bytes.NewReader(document), strong, epoch.AddDate(0, 0, 31)); err != nil {
		t.Errorf("extended: %v", err)
	}
	// gpg writes a revocation with every new key, with a colon before the dashes.
	text, err := os.ReadFile(filepath.Join(g.home, "openpgp-revocs.d", primary+".rev"))
	if err != nil {
		t.Fatal(err)
	}
	g.run("--import", g.file("revocation", bytes.Replace(text, []byte(":-----BEGIN"), []byte("-----BEGIN"), 1)))
	if err := mustParse(t, g.run("--export", id)).Verify(bytes.NewReader(document), strong, epoch); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("revoked: %v", err)
	}
}

// What the tests forge is what gpg takes for right.
func TestGPGAcceptsForged(t *testing.T) {
	g := newGnuPG(t)
	secret := newForgedKey(1, epoch.Add(-time.Hour))
	child := newForgedKey(3, epoch.Add(-time.Hour))
	cert := certificate(secret, forgedSig{hashed: mayCertifyAndSign()}, signingSubkey(secret, child, forgedSig{hashed: sub(27, 2)}, &forgedSig{}))
	g.run("--import", g.file("key", cert))
	doc := g.file("doc", document)
	for name, sig := range map[string][]byte{
		"primary": forgedSig{}.packet(secret, document),
		"subkey":  forgedSig{}.packet(child, document),
		"armored": enarmor("SIGNATURE", forgedSig{hash: 10}.packet(secret, document)),
	} {
		g.run("--verify", g.file("sig", sig), doc)
		if err := mustParse(t, cert).Verify(bytes.NewReader(document), sig, epoch); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
