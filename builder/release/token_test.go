package release

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/testkit"
)

// softHSM is the PKCS#11 module of the token that these tests use.
const softHSM = "/usr/lib/softhsm/libsofthsm2.so"

// pinentry answers what the file beside it holds, and cancels where it holds
// nothing. It notes each question, and the terminal to ask at.
const pinentry = `#!/bin/sh
dir=${0%/*}
echo OK
while read -r command rest; do
	case $command,$rest in
	OPTION,ttyname=*) echo "${rest#*=}" >"$dir/terminal"; echo OK ;;
	GETPIN,*)
		echo asked >>"$dir/questions"
		if [ -s "$dir/pin" ]; then
			echo "D $(cat "$dir/pin")"
			echo OK
		else
			echo 'ERR 83886179 Operation cancelled'
		fi ;;
	BYE,*) echo OK; exit ;;
	*) echo OK ;;
	esac
done
`

const pin = "493817"

// token is a PKCS#11 token with an RSA key and its certificate, which gpg
// reaches by way of gpg-agent and gnupg-pkcs11-scd.
type token struct {
	*world
	grip     string // of the key, as gpg names it
	terminal string // where the one who releases sits
}

func newToken(t *testing.T) *token {
	t.Helper()
	w := newWorld(t)
	scd := testkit.Need(t, "gnupg-pkcs11-scd")
	if _, err := os.Stat(softHSM); err != nil {
		testkit.Skip(t, softHSM+" is not installed: run `make tools`")
	}
	k := &token{world: w, terminal: testkit.AtTerminal(t)}
	t.Setenv("LC_ALL", "C") // what gpg says is compared
	t.Setenv("GPG_TTY", "")
	t.Setenv("GNUPGHOME", w.home)
	t.Setenv("GNUPG_PKCS11_SOCKETDIR", w.home)
	t.Setenv("SOFTHSM2_CONF", w.write("softhsm2.conf", "directories.tokendir = "+k.storage()+"\nobjectstore.backend = file\nlog.level = ERROR\n"))
	t.Setenv("GNUTLS_PIN", pin)
	w.write("pin", pin)
	if err := os.Chmod(w.write("pinentry", pinentry), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"gpg-agent.conf":        "scdaemon-program " + scd + "\npinentry-program " + filepath.Join(w.dir, "pinentry") + "\n",
		"gnupg-pkcs11-scd.conf": "providers token\nprovider-token-library " + softHSM + "\npin-cache 600\n",
	} {
		if err := os.WriteFile(filepath.Join(w.home, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	k.fill()
	k.learn()
	return k
}

// storage is the directory in which the token keeps what it holds.
func (k *token) storage() string { return filepath.Join(k.dir, "tokens") }

// fill has the token make a key, and gives it the certificate without which
// gnupg-pkcs11-scd does not see the key.
func (k *token) fill() {
	k.t.Helper()
	if err := os.Mkdir(k.storage(), 0o700); err != nil {
		k.t.Fatal(err)
	}
	const key = "pkcs11:token=release;id=%01"
	public, certificate := filepath.Join(k.dir, "token.pub"), filepath.Join(k.dir, "token.crt")
	template := k.write("template", "cn = release\nserial = 1\nexpiration_days = 3650\nsigning_key\n")
	p11tool := func(args ...string) string {
		return testkit.Run(k.t, "p11tool", append([]string{"--provider", softHSM, "--login"}, args...)...)
	}
	testkit.Run(k.t, "softhsm2-util", "--init-token", "--free", "--label", "release", "--so-pin", "so-"+pin, "--pin", pin)
	p11tool("--generate-privkey", "RSA", "--bits", "3072", "--id", "01", "--label", "release", "--outfile", public, "pkcs11:token=release")
	testkit.Run(k.t, "certtool", "--provider", softHSM, "--generate-self-signed", "--template", template,
		"--load-privkey", key+";type=private", "--load-pubkey", public, "--outfile", certificate)
	p11tool("--write", "--load-certificate", certificate, "--id", "01", "--label", "release", "pkcs11:token=release")
	if all := p11tool("--list-privkeys", "pkcs11:token=release"); !strings.Contains(all, "CKA_NEVER_EXTRACTABLE") || !strings.Contains(all, "CKA_SENSITIVE") {
		k.t.Fatalf("the token gives its key away: %s", all)
	}
}

// learn makes the token's key known to gpg-agent.
func (k *token) learn() {
	k.t.Helper()
	k.run("", "--card-status")
	said := testkit.Run(k.t, "gpg-connect-agent", "--quiet", "SCD LEARN --force", "/bye")
	found := regexp.MustCompile(`(?m)^S KEYPAIRINFO ([0-9A-F]{40}) `).FindAllStringSubmatch(said, -1)
	if len(found) != 1 {
		k.t.Fatalf("gpg-agent sees %d keys on the token: %s", len(found), said)
	}
	k.grip = found[0][1]
}

// run executes gpg at the machine's own time, with that input.
func (k *token) run(input string, args ...string) string {
	k.t.Helper()
	var stdout, stderr bytes.Buffer
	c := exec.Command("gpg", append([]string{"--batch", "--quiet", "--no-tty"}, args...)...)
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := c.Run(); err != nil {
		k.t.Fatalf("gpg %q: %v\n%s", args, err, stderr.Bytes())
	}
	return stdout.String()
}

// pinned exports a public key as the one to pin, and returns its fingerprint.
func (k *token) pinned(name string) string {
	k.t.Helper()
	k.write(name+".pub", k.run("", "--export", name+"@example.org"))
	return k.load(name).Fingerprint().String()
}

// load returns the key as machines have pinned it.
func (k *token) load(name string) *pgp.Key {
	k.t.Helper()
	key, err := pgp.ParseKey(mustRead(k.t, filepath.Join(k.dir, name+".pub")))
	if err != nil {
		k.t.Fatal(err)
	}
	return key
}

// onlyShadows fails where gpg keeps a secret, and not just the word that the
// token has it.
func (k *token) onlyShadows() {
	k.t.Helper()
	files, err := filepath.Glob(filepath.Join(k.home, "private-keys-v1.d", "*"))
	if err != nil || len(files) != 1 || filepath.Base(files[0]) != k.grip+".key" {
		k.t.Fatalf("gpg keeps %q, %v, want the token's key alone", files, err)
	}
	text := mustRead(k.t, files[0])
	if !bytes.Contains(text, []byte("shadowed-private-key")) || regexp.MustCompile(`[(:](protected-|openpgp-)?private-key`).Match(text) {
		k.t.Errorf("gpg keeps the secret itself: %.300q", text)
	}
	if said := testkit.Run(k.t, "gpg-connect-agent", "--quiet", "KEYINFO "+k.grip, "/bye"); !strings.HasPrefix(said, "S KEYINFO "+k.grip+" T ") {
		k.t.Errorf("gpg-agent has the key as %q, want it on a token", said)
	}
}

// forget ends gpg-agent, and with it what the PIN opened.
func (k *token) forget() {
	k.t.Helper()
	testkit.Run(k.t, "gpgconf", "--kill", "gpg-agent")
	// It answers before it ends: the next gpg must not reach it any more.
	socket := strings.TrimSpace(testkit.Run(k.t, "gpgconf", "--list-dirs", "agent-socket"))
	for gone := false; !gone; time.Sleep(time.Millisecond) {
		_, err := os.Stat(socket)
		gone = errors.Is(err, fs.ErrNotExist)
	}
	if err := os.RemoveAll(filepath.Join(k.dir, "questions")); err != nil {
		k.t.Fatal(err)
	}
}

// release publishes a build that has the key pinned, and sees it as a machine
// does.
func (k *token) release(name, fingerprint string) Options {
	k.t.Helper()
	o := Options{
		Build: k.build(1, name, fingerprint), Server: filepath.Join(k.dir, name+"-server"), Channel: manifest.Stable,
		Now: time.Now(), Note: k.t.Logf, Key: KeyFile{GPG: true}, SignManifest: true,
	}
	k.forget()
	r := k.publish(o)
	if asked := strings.Count(string(mustRead(k.t, filepath.Join(k.dir, "questions"))), "\n"); asked != 1 {
		k.t.Errorf("asked for the PIN %d times, want once for a release", asked)
	}
	if at := strings.TrimSpace(string(mustRead(k.t, filepath.Join(k.dir, "terminal")))); at != k.terminal {
		k.t.Errorf("asked for the PIN at %q, want %q", at, k.terminal)
	}
	key := k.load(name)
	if err := key.Verify(bytes.NewReader(mustRead(k.t, r.Archive)), mustRead(k.t, r.Archive+".pgp"), time.Now()); err != nil {
		k.t.Error(err)
	}
	directories, err := Directories(o.Server)
	if err != nil || len(directories) != 1 {
		k.t.Fatalf("%v, %v", directories, err)
	}
	if err := Verify(k.t.Context(), directories[0], VerifyOptions{Now: time.Now(), Key: key, Note: k.t.Logf}); err != nil {
		k.t.Error(err)
	}
	k.onlyShadows()
	return o
}

// TestTokenSigns publishes with a key that a PKCS#11 token has made and does not
// give away: with the whole release key on it, and with the subkey that signs.
func TestTokenSigns(t *testing.T) {
	k := newToken(t)
	k.onlyShadows()
	k.run("Key-Type: RSA\nKey-Grip: "+k.grip+"\nKey-Usage: cert,sign\nName-Email: whole@example.org\nExpire-Date: 5y\n%commit\n", "--gen-key")
	o := k.release("whole", k.pinned("whole"))

	o.Server = filepath.Join(k.dir, "refused")
	k.write("pin", "000000")
	k.forget()
	k.refused("a PIN that is wrong", o, "Bad PIN")
	// The pinentry gives up: with a PIN it would be asked for the token for ever.
	k.write("pin", "")
	k.forget()
	k.refused("nobody gives the PIN", o, "cancelled")
	k.move(k.storage(), k.storage()+".away")
	k.forget()
	k.refused("the token is pulled out", o, "sign with gpg")
	k.move(k.storage()+".away", k.storage())
	k.write("pin", pin)
	k.forget()

	// The primary key, made elsewhere, takes the token's key for its subkey and
	// goes away.
	k.run("", "--pinentry-mode", "loopback", "--passphrase", "", "--quick-generate-key", "subkey@example.org", "ed25519", "cert", "5y")
	k.run("13\n"+k.grip+"\nE\nQ\n5y\n", "--expert", "--command-fd", "0", "--edit-key", "subkey@example.org", "addkey", "save") // 13: existing key; E: not to encrypt
	fingerprint := k.pinned("subkey")
	grip := regexp.MustCompile(`(?m)^grp:+([0-9A-F]{40}):`).FindStringSubmatch(k.run("", "--with-colons", "--with-keygrip", "--list-keys", fingerprint))
	if err := os.Remove(filepath.Join(k.home, "private-keys-v1.d", grip[1]+".key")); err != nil {
		t.Fatal(err)
	}
	k.release("subkey", fingerprint)
}

func (k *token) move(from, to string) {
	k.t.Helper()
	if err := os.Rename(from, to); err != nil {
		k.t.Fatal(err)
	}
}
