package keys

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/testkit"
)

// words are a password as users shall have it; it protects nothing but tests.
const words = "plinth oversee cobalt drizzle yearbook amnesty"

func passwordOf(t testing.TB, text string) *Password {
	t.Helper()
	p, err := PasswordOf([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Wipe(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// private is a directory that nobody else may write to, on storage that the host
// of encrypted says is encrypted.
func private(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// encrypted is a host whose files are all encrypted.
func encrypted() host {
	h := thisHost()
	h.policy = func(string) (bool, error) { return true, nil }
	return h
}

// gnupg runs gpg with a home of its own, whose path must be short.
func gnupg(t testing.TB) func(args ...string) string {
	t.Helper()
	testkit.Need(t, "gpg")
	home, err := os.MkdirTemp("", "gpg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		testkit.Run(t, "gpgconf", "--homedir", home, "--kill", "all")
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	return func(args ...string) string {
		t.Helper()
		return testkit.Run(t, "gpg", append([]string{"--homedir", home, "--batch", "--yes", "--no-tty", "--pinentry-mode", "loopback"}, args...)...)
	}
}

// made makes keys once for all tests, since that takes seconds.
var made = sync.OnceValues(func() (map[string][]byte, error) {
	dir, err := os.MkdirTemp("", "keys")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	p, err := PasswordOf([]byte(words))
	if err != nil {
		return nil, err
	}
	defer p.Wipe()
	m, err := encrypted().generate(Wanted{Dir: dir, Name: "Example OS", Email: "releases@example.org", Password: p, Now: time.Now()})
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{"fingerprint": []byte(m.Fingerprint)}
	for _, path := range m.Files {
		if files[filepath.Base(path)], err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	return files, nil
})

// generated returns a directory with keys, and the release key's fingerprint.
func generated(t testing.TB) (string, string) {
	t.Helper()
	files, err := made()
	if err != nil {
		t.Fatal(err)
	}
	dir := private(t)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, string(files["fingerprint"])
}

// TestReleaseKey has gpg judge the key, and the machines' own code.
func TestReleaseKey(t *testing.T) {
	dir, fingerprint := generated(t)
	gpg := gnupg(t)
	gpg("--passphrase", words, "--import", filepath.Join(dir, ReleaseSecret))
	listing := gpg("--with-colons", "--fingerprint", "--list-secret-keys")
	var uses []string
	for line := range strings.Lines(listing) {
		f := strings.Split(line, ":")
		if f[0] == "sec" || f[0] == "ssb" {
			uses = append(uses, f[0]+" "+f[11]+" "+f[16]+" "+f[6])
		}
	}
	// Capitals are what the key as a whole can do.
	if have := strings.Join(uses, ", "); have != "sec cSC ed25519 , ssb s ed25519 " {
		t.Errorf("gpg lists %q in\n%s", have, listing)
	}
	if !strings.Contains(listing, "fpr:::::::::"+fingerprint+":") || !strings.Contains(listing, "Example OS <releases@example.org>") {
		t.Errorf("fingerprint %s is not in\n%s", fingerprint, listing)
	}
	checked := gpg("--with-colons", "--check-signatures")
	if strings.Count(checked, "\nsig:!:") < 2 || strings.Contains(checked, "sig:-") || strings.Contains(checked, "sig:%") {
		t.Errorf("gpg checks the key's signatures: %s", checked)
	}
	message := filepath.Join(dir, "message")
	if err := os.WriteFile(message, []byte("a release"), 0o600); err != nil {
		t.Fatal(err)
	}
	gpg("--passphrase", words, "--detach-sign", message)
	text, err := os.ReadFile(filepath.Join(dir, ReleasePublic))
	if err != nil {
		t.Fatal(err)
	}
	key, err := pgp.ParseKey(text)
	if err != nil || key.Fingerprint().String() != fingerprint {
		t.Fatalf("machines read %v, %v", key, err)
	}
	signature, err := os.ReadFile(message + ".sig")
	if err != nil {
		t.Fatal(err)
	}
	if err := key.Verify(strings.NewReader("a release"), signature, time.Now()); err != nil {
		t.Errorf("machines verify gpg's signature: %v", err)
	}
}

// TestModuleKey has openssl judge the key and its certificate.
func TestModuleKey(t *testing.T) {
	testkit.Need(t, "openssl")
	dir, _ := generated(t)
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte(words+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	public := testkit.Run(t, "openssl", "pkey", "-in", filepath.Join(dir, ModuleSecret), "-passin", "file:"+password, "-pubout")
	if have := testkit.Run(t, "openssl", "x509", "-in", filepath.Join(dir, ModulePublic), "-noout", "-pubkey"); have != public || !strings.Contains(public, "BEGIN PUBLIC KEY") {
		t.Errorf("the certificate is of %s, the key is %s", have, public)
	}
	if said := testkit.Run(t, "openssl", "verify", "-check_ss_sig", "-CAfile", filepath.Join(dir, ModulePublic), filepath.Join(dir, ModulePublic)); !strings.Contains(said, ": OK") {
		t.Error(said)
	}
	if said := testkit.Run(t, "openssl", "x509", "-in", filepath.Join(dir, ModulePublic), "-noout", "-ext", "extendedKeyUsage"); !strings.Contains(said, "1.3.6.1.4.1.2312.16.1.2") {
		t.Errorf("shim would start programs by it: %s", said)
	}
	key, wiped, err := LoadModuleKey(filepath.Join(dir, ModuleSecret), passwordOf(t, words))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, ModulePublic))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if public, ok := key.Public().(interface{ Equal(x any) bool }); ok && !public.Equal(cert.PublicKey) {
		t.Error("the key read is not the certificate's")
	}
	wiped()
	if _, _, err := LoadModuleKey(filepath.Join(dir, ModuleSecret), passwordOf(t, "other")); err == nil || !strings.Contains(err.Error(), "does not open") {
		t.Errorf("with another password: %v", err)
	}
	if _, _, err := LoadModuleKey(filepath.Join(dir, ModuleSecret), nil); err == nil || !strings.Contains(err.Error(), "is encrypted") {
		t.Errorf("without a password: %v", err)
	}
}

func TestGenerateRefuses(t *testing.T) {
	dir, _ := generated(t)
	open := host{sys: t.TempDir(), proc: "/proc", file: fileOf, device: deviceOf, sync: syncDirectory, policy: func(string) (bool, error) { return false, nil }}
	w := Wanted{Name: "x", Password: passwordOf(t, words), Now: time.Now()}
	weak := passwordOf(t, "Password123!")
	for _, c := range []struct {
		name, say string
		host      host
		change    func(w *Wanted)
	}{
		{"over keys that are there", "already", encrypted(), func(w *Wanted) { w.Dir = dir }},
		{"without a password", "no password", encrypted(), func(w *Wanted) { w.Password = nil }},
		{"with a password that can be guessed", "too weak", encrypted(), func(w *Wanted) { w.Password = weak }},
		{"on storage that is not encrypted", "generate keys in", open, func(*Wanted) {}},
	} {
		w := w
		w.Dir = filepath.Join(t.TempDir(), "new")
		c.change(&w)
		if _, err := c.host.generate(w); err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.say)
		}
		if left, err := os.ReadDir(w.Dir); w.Dir != dir && err == nil && len(left) > 0 {
			t.Errorf("%s: left %v", c.name, left)
		}
	}
	w.Dir, w.UnencryptedStorage = filepath.Join(t.TempDir(), "new"), true
	if _, err := open.generate(w); err != nil {
		t.Errorf("on unencrypted storage, as asked for: %v", err)
	}
}

// Nobody is told of keys that a power cut may still take away: what says that they are made
// comes after the names are on the disk, and not at all where they are not.
func TestGenerateSyncs(t *testing.T) {
	h, w := encrypted(), Wanted{Dir: filepath.Join(t.TempDir(), "some", "where"), Name: "x", Password: passwordOf(t, words), Now: time.Now()}
	failed, synced := errors.New("disk is gone"), 0
	h.sync = func(dir string) error {
		for _, name := range []string{ReleaseSecret, ReleasePublic, ModuleSecret, ModulePublic} {
			if _, err := os.Stat(filepath.Join(dir, name)); err != nil || dir != w.Dir {
				t.Errorf("%s is synced too early: %v", dir, err)
			}
		}
		synced++
		return errors.Join(syncDirectory(dir), failed)
	}
	if made, err := h.generate(w); !errors.Is(err, failed) || made != nil || synced != 1 {
		t.Errorf("%v, %v, synced %d times", made, err, synced)
	}
}

// TestCheck breaks each rule for a key, and keeps each.
func TestCheck(t *testing.T) {
	dir, _ := generated(t)
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	gpg := gnupg(t)
	gpg("--passphrase", "", "--quick-generate-key", "bare", "ed25519", "sign", "never")
	gpg("--passphrase", "letmein1", "--quick-generate-key", "weak", "ed25519", "sign", "never")
	gpg("--passphrase", words, "--quick-generate-key", "short", "rsa2048", "sign", "never")
	export := func(name, password string) string {
		return write(name, gpg("--passphrase", password, "--armor", "--export-secret-keys", name), 0o600)
	}
	testkit.Need(t, "openssl")
	plain := testkit.Run(t, "openssl", "genpkey", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:3072")
	open := encrypted()
	open.policy = func(string) (bool, error) { return false, nil }
	open.sys = t.TempDir()
	good := passwordOf(t, words)
	shared := filepath.Join(private(t), "shared")
	if err := errors.Join(os.Mkdir(shared, 0o700), os.Chmod(shared, 0o777), os.WriteFile(shared+"/key", []byte(read(ReleaseSecret)), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		host     host
		path     string
		password *Password
		rule     string // that is broken; empty: none
	}{
		{"the release key", encrypted(), filepath.Join(dir, ReleaseSecret), good, ""},
		{"the release key, its password not given", encrypted(), filepath.Join(dir, ReleaseSecret), nil, ""},
		{"the module key", encrypted(), filepath.Join(dir, ModuleSecret), good, ""},
		{"the module key, its password not given", encrypted(), filepath.Join(dir, ModuleSecret), nil, ""},
		{"a key without a password", encrypted(), export("bare", ""), nil, RulePassword},
		{"a key with a weak password", encrypted(), export("weak", "letmein1"), passwordOf(t, "letmein1"), RuleStrength},
		{"a short key", encrypted(), export("short", words), good, RuleStrength},
		{"a key with another password", encrypted(), filepath.Join(dir, ReleaseSecret), passwordOf(t, words+"!"), RulePassword},
		{"a module key with another password", encrypted(), filepath.Join(dir, ModuleSecret), passwordOf(t, words+"!"), RulePassword},
		{"a module key without a password", encrypted(), write("plain", plain, 0o600), nil, RulePassword},
		{"unencrypted storage", open, filepath.Join(dir, ReleaseSecret), good, RuleStorage},
		{"a file that others read", encrypted(), write("readable", read(ReleaseSecret), 0o640), good, RulePermissions},
		{"a directory that others write to", encrypted(), shared + "/key", good, RulePermissions},
	} {
		r, err := c.host.check(c.path, c.password, time.Now())
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for _, v := range r.Verdicts {
			if v.OK != (v.Rule != c.rule) {
				t.Errorf("%s: by the rule %s it is %v: %s", c.name, v.Rule, v.OK, v.Says)
			}
		}
		if err := r.Err(); (err == nil) != (c.rule == "") || r.Err(RuleStorage) != nil && c.rule == RuleStorage {
			t.Errorf("%s: error %v", c.name, err)
		}
	}
	for name, text := range map[string]string{"nothing": "", "text": "text", "public": read(ReleasePublic)} {
		if _, err := encrypted().check(write(name, text, 0o600), nil, time.Now()); err == nil {
			t.Errorf("%s was taken for a key", name)
		}
	}
}

func TestPassword(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "password")
	for text, want := range map[string]string{"one\n": "one", "two words": "two words", "three\r\nmore\n": "three"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := ReadPassword(file)
		if err != nil || string(p.Bytes()) != want {
			t.Errorf("%q: %v", text, err)
			continue
		}
		page := p.page
		if err := p.Wipe(); err != nil || p.Bytes() != nil || len(page) != 4096 {
			t.Errorf("wipe: %v", err)
		}
	}
	for _, text := range []string{"", "\n", strings.Repeat("x", maxPassword+1)} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if p, err := ReadPassword(file); err == nil {
			t.Errorf("%.10q gives %d bytes", text, len(p.Bytes()))
		}
	}
	text := []byte("secret")
	p, err := PasswordOf(text)
	if err != nil || string(text) != "\x00\x00\x00\x00\x00\x00" || string(p.Bytes()) != "secret" {
		t.Errorf("the text given is %q now, %v", text, err)
	}
	if err := errors.Join(p.Wipe(), p.Wipe()); err != nil {
		t.Error(err)
	}
	terminal, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	if _, err := AskPassword(terminal, os.Stderr, "Password"); err == nil {
		t.Error("asked where there is no terminal")
	}
}

// TestMemoryIsLocked asks the kernel.
func TestMemoryIsLocked(t *testing.T) {
	locked := func() string {
		text, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), "VmLck:")
		line, _, _ := strings.Cut(rest, "\n")
		return strings.TrimSpace(line)
	}
	before := locked()
	p := passwordOf(t, "x")
	if during := locked(); during == before {
		t.Errorf("%s locked with a password as without", during)
	}
	if err := p.Wipe(); err != nil || locked() != before {
		t.Errorf("%s locked after, %v", locked(), err)
	}
}

func TestStrength(t *testing.T) {
	for text, strong := range map[string]bool{
		"password": false, "correct horse": false, "Tr0ub4dor&3": false, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaa": false, "qwertyuiopasdfghjkl": false,
		"20260101": false, words: true, "kX9#vLq2@pZr7!wT": true,
	} {
		if err := passwordOf(t, text).Strong(); (err == nil) != strong {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// agentHome makes a home for GnuPG, whose agent asks with that program.
func agentHome(t *testing.T, pinentry string) {
	t.Helper()
	testkit.Need(t, "gpg-connect-agent")
	home, err := os.MkdirTemp("", "gpg")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GNUPGHOME", home)
	t.Cleanup(func() {
		testkit.Run(t, "gpgconf", "--homedir", home, "--kill", "all")
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(home, "gpg-agent.conf"), []byte("allow-preset-passphrase\npinentry-program "+pinentry+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestAgentAsksAtTheTerminal has the agent ask where the user sits, although the
// standard input of what asks it is another.
func TestAgentAsksAtTheTerminal(t *testing.T) {
	pinentry := filepath.Join(t.TempDir(), "pinentry")
	script := `#!/bin/sh
echo OK
while read -r command rest; do
	case $command,$rest in
	OPTION,ttyname=*) terminal=${rest#*=} ;;
	GETPIN,*) echo "D $terminal" ;;
	BYE,*) exit ;;
	esac
	echo OK
done
`
	if err := os.WriteFile(pinentry, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	agentHome(t, pinentry)
	terminal := testkit.AtTerminal(t)
	for _, named := range []string{"", "/dev/pts/named"} {
		t.Setenv("GPG_TTY", named)
		p, err := AgentPassword(t.Context(), "halogen:test"+strings.ReplaceAll(named, "/", "-"), "The password")
		if err != nil {
			t.Fatal(err)
		}
		if want := cmp.Or(named, terminal); string(p.Bytes()) != want {
			t.Errorf("the agent asked at %q, want %q", p.Bytes(), want)
		}
		if err := p.Wipe(); err != nil {
			t.Error(err)
		}
	}
}

func TestAgent(t *testing.T) {
	agentHome(t, "/bin/false")
	if _, err := AgentPassword(t.Context(), "halogen:test", "The password"); err == nil {
		t.Error("the agent gave a password that it has not")
	}
	testkit.Run(t, "gpg-connect-agent", "PRESET_PASSPHRASE halogen:test -1 612025620a", "/bye") // "a %b\n" in hexadecimal
	p, err := AgentPassword(t.Context(), "halogen:test", "The password")
	if err != nil {
		t.Fatal(err)
	}
	if string(p.Bytes()) != "a %b" {
		t.Errorf("the agent gave %q", p.Bytes())
	}
	if err := p.Wipe(); err != nil {
		t.Error(err)
	}
}
