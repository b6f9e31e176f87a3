package pgp

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What gpg makes and no machine could use is refused before it is pinned, each with
// its own way out; and the way out is one.
func TestGPGKeysNotToPin(t *testing.T) {
	for name, c := range map[string]struct {
		make    func(g gnupg, fpr string)
		how     []string // of --quick-generate-key
		say     string
		ends    bool // it can be renewed
		cure    string
		perform func(g gnupg, fpr string) // nil: there is no cure
	}{
		"ends in 20 days": {how: []string{"ed25519", "sign", "20d"}, say: "ends on 2027-02-04, in 19 days", ends: true, cure: "--quick-set-expire",
			perform: func(g gnupg, fpr string) { g.later("--quick-set-expire", fpr, "5y") }},
		"has ended": {how: []string{"ed25519", "sign", "seconds=30"}, say: "has expired on 2027-01-15", ends: true, cure: "--quick-set-expire",
			perform: func(g gnupg, fpr string) { g.later("--quick-set-expire", fpr, "5y") }},
		"its subkey has ended": {how: []string{"ed25519", "cert", "never"}, make: func(g gnupg, fpr string) { g.run("--quick-add-key", fpr, "ed25519", "sign", "seconds=30") },
			say: "has expired on 2027-01-15", ends: true, cure: "subkeys", perform: func(g gnupg, fpr string) { g.later("--quick-set-expire", fpr, "5y", g.subkey(fpr)) }},
		"signs no data": {how: []string{"ed25519", "cert", "never"}, say: "no subkey that may", cure: "--quick-add-key",
			perform: func(g gnupg, fpr string) { g.later("--quick-add-key", fpr, "ed25519", "sign", "5y") }},
		"only encrypts": {how: []string{"ed25519", "cert", "never"}, make: func(g gnupg, fpr string) { g.run("--quick-add-key", fpr, "cv25519", "encr", "never") },
			say: "key is of the kind ECDH", cure: "--quick-add-key",
			perform: func(g gnupg, fpr string) { g.later("--quick-add-key", fpr, "ed25519", "sign", "5y") }},
		"SHA-1": {how: []string{"ed25519", "sign", "never", "--cert-digest-algo", "SHA1"}, say: "its own name with SHA-1", cure: "--cert-digest-algo SHA256",
			perform: func(g gnupg, fpr string) { g.later("--cert-digest-algo", "SHA256", "--quick-set-expire", fpr, "5y") }},
		"revoked": {how: []string{"ed25519", "sign", "never"}, make: func(g gnupg, fpr string) { g.importRevocation(fpr) }, say: "is revoked", cure: "make another key"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGnuPG(t)
			const id = "pinned@example.org"
			at := epoch.Add(time.Minute)
			var options []string
			if len(c.how) > 3 {
				options, c.how = c.how[3:], c.how[:3]
			}
			g.run(append(append(options, "--quick-generate-key", id), c.how...)...)
			fpr := mustParse(t, g.run("--export", id)).Fingerprint().String()
			if c.make != nil {
				c.make(g, fpr)
			}
			if c.cure == "subkeys" {
				c.cure = "--quick-set-expire " + fpr + " 5y " + g.subkey(fpr)
			}
			k := mustParse(t, g.run("--export", id))
			err := k.Pinnable(at)
			if err == nil || !strings.Contains(err.Error(), c.say) || !strings.Contains(err.Error(), c.cure) {
				t.Fatalf("%v, want %q and %q", err, c.say, c.cure)
			}
			if _, ends := errors.AsType[*EndsError](err); ends != c.ends {
				t.Errorf("can be renewed: %v, want %v", ends, c.ends)
			}
			if c.cure != "--quick-set-expire" && !c.ends && strings.Contains(err.Error(), "renew it") {
				t.Errorf("%v: nothing is to be renewed", err)
			}
			if text := k.Warning(at); !strings.Contains(text, c.cure) {
				t.Errorf("warning %q, want %q", text, c.cure)
			}
			if c.perform == nil {
				return
			}
			c.perform(g, fpr)
			if err := mustParse(t, g.run("--export", id)).Pinnable(at); err != nil {
				t.Errorf("after its cure: %v", err)
			}
		})
	}
}

// subkey returns the fingerprint of a key's one subkey.
func (g gnupg) subkey(fpr string) string {
	g.t.Helper()
	var all []string
	for line := range strings.Lines(string(g.run("--with-colons", "--list-keys", fpr))) {
		if f := strings.Split(line, ":"); f[0] == "fpr" {
			all = append(all, f[9])
		}
	}
	if len(all) != 2 {
		g.t.Fatalf("the key has the fingerprints %q, want one subkey", all)
	}
	return all[1]
}

// later executes gpg a minute after epoch.
func (g gnupg) later(args ...string) []byte {
	return g.run(append([]string{"--faked-system-time", epoch.Add(time.Minute).Format("20060102T150405!")}, args...)...)
}

// importRevocation takes the revocation that gpg writes with every new key, with a colon
// before the dashes.
func (g gnupg) importRevocation(fpr string) {
	g.t.Helper()
	text, err := os.ReadFile(filepath.Join(g.home, "openpgp-revocs.d", fpr+".rev"))
	if err != nil {
		g.t.Fatal(err)
	}
	g.run("--import", g.file("revocation", bytes.Replace(text, []byte(":-----BEGIN"), []byte("-----BEGIN"), 1)))
}

// What lasts for a year and a day may be pinned, as may gpg's default of two years.
func TestGPGKeysToPin(t *testing.T) {
	g := newGnuPG(t)
	for id, end := range map[string]string{"a@example.org": "366d", "b@example.org": "2y", "c@example.org": "never"} {
		g.run("--quick-generate-key", id, "ed25519", "sign", end)
		if err := mustParse(t, g.run("--export", id)).Pinnable(epoch); err != nil {
			t.Errorf("%s: %v", end, err)
		}
	}
}
