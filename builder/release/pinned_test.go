package release

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/image"
	"halogenos.internal/builder/keys"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// try makes a build whose configuration has these lines, and returns the error.
func (w *world) try(version contract.Version, previous, lines string) error {
	w.t.Helper()
	c, err := config.Parse("[UKI]\nCmdline=quiet\n[Image]\nImageID=test-os\nSlotSize=16M\n"+lines+"\n[Initramfs]\nModules=one\n", w.dir)
	if err != nil {
		return err
	}
	_, err = image.Build(w.t.Context(), image.Options{
		Config: c, RootFS: rootfstest.Minimal().Write(w.t, false), Version: version, Out: filepath.Join(w.t.TempDir(), "build"),
		Machine: rootfstest.Machine(w.t), Progress: image.NewProgress(w.t.Output()), Previous: previous, Now: now,
	})
	return err
}

// subkeyOf returns the fingerprint of a key's first subkey.
func (w *world) subkeyOf(name string) string {
	w.t.Helper()
	sub := false
	for line := range strings.Lines(w.gpg("--with-colons", "--list-keys", name+"@example.org")) {
		f := strings.Split(line, ":")
		if sub = sub || f[0] == "sub"; sub && f[0] == "fpr" {
			return f[9]
		}
	}
	w.t.Fatalf("%s has no subkey", name)
	return ""
}

// graft returns a public key with the subkeys of another.
func graft(t *testing.T, onto, from []byte) []byte {
	t.Helper()
	out := bytes.NewBuffer(bytes.Clone(onto))
	r := packet.NewOpaqueReader(bytes.NewReader(from))
	for subkeys := false; ; {
		p, err := r.Next()
		if err != nil {
			break
		}
		if subkeys = subkeys || p.Tag == 14; subkeys {
			if err := p.Serialize(out); err != nil {
				t.Fatal(err)
			}
		}
	}
	if out.Len() == len(onto) {
		t.Fatal("there are no subkeys")
	}
	return out.Bytes()
}

// TestWaysRoundThePinnedKey tries to get an image or a release past the key that
// machines have pinned.
func TestWaysRoundThePinnedKey(t *testing.T) {
	w := newWorld(t)
	ours, theirs := w.key("ours", "ed25519", password), w.key("theirs", "ed25519", password)
	for _, fpr := range []string{ours, theirs} {
		w.gpg("--passphrase", password, "--quick-add-key", fpr, "ed25519", "sign", "never")
	}
	w.export("ours", password)
	w.export("theirs", password)
	our, their := mustRead(t, filepath.Join(w.dir, "ours.pub")), mustRead(t, filepath.Join(w.dir, "theirs.pub"))
	w.write("grafted.pub", string(graft(t, our, their)))
	w.write("both.pub", string(our)+string(their))
	first := w.build(1, "ours", ours)
	unsigned := w.build(1, "", "")
	pinned := "ReleaseKeyFile=ours.pub\nReleaseKey=" + ours
	w.gpg("--passphrase", password, "--quick-generate-key", "short@example.org", "ed25519", "sign", "30d")
	w.gpg("--passphrase", password, "--quick-generate-key", "mute@example.org", "ed25519", "cert", "never")
	of := func(name string) string {
		w.export(name, password)
		k, err := pgp.ParseKey(mustRead(t, filepath.Join(w.dir, name+".pub")))
		if err != nil {
			t.Fatal(err)
		}
		return "ReleaseKeyFile=" + name + ".pub\nReleaseKey=" + k.Fingerprint().String()
	}

	for _, c := range []struct {
		name, previous, lines, say string // say is empty where it is built
	}{
		{"nothing, as a control", "", pinned, ""},
		{"the same key after it", first, pinned, ""},
		{"another fingerprint", "", "ReleaseKeyFile=ours.pub\nReleaseKey=" + theirs, "has the fingerprint " + ours},
		{"another file", "", "ReleaseKeyFile=theirs.pub\nReleaseKey=" + ours, "has the fingerprint " + theirs},
		{"a subkey's fingerprint", "", "ReleaseKeyFile=ours.pub\nReleaseKey=" + w.subkeyOf("ours"), "has the fingerprint " + ours},
		{"the fingerprint's end", "", "ReleaseKeyFile=ours.pub\nReleaseKey=" + ours[24:], "not a whole OpenPGP fingerprint"},
		{"two keys in the file", "", "ReleaseKeyFile=both.pub\nReleaseKey=" + ours, "one public key"},
		{"the secret key", "", "ReleaseKeyFile=ours.sec\nReleaseKey=" + ours, "private one"},
		{"another key than the previous build's", first, "ReleaseKeyFile=theirs.pub\nReleaseKey=" + theirs, "have pinned " + ours},
		{"a key that ends soon", "", of("short"), "--allow-expiring-key"},
		{"a key that signs nothing", "", of("mute"), "--quick-add-key"},
		{"no key after one", first, "ReleaseKey=none", "have pinned " + ours},
		{"a key after none", unsigned, pinned, "have pinned none"},
		{"a previous build that is not there", t.TempDir(), pinned, "no such file"},
	} {
		if err := w.try(2, c.previous, c.lines); c.say == "" && err != nil || c.say != "" && (err == nil || !strings.Contains(err.Error(), c.say)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.say)
		}
	}
	if err := w.try(1, first, pinned); err == nil || !strings.Contains(err.Error(), "not newer") {
		t.Errorf("the previous version again: %v", err)
	}

	// A subkey of theirs in the file of ours signs nothing.
	if grafted, err := pgp.ParseKey(mustRead(t, filepath.Join(w.dir, "grafted.pub"))); err == nil {
		w.write("message", "a release")
		w.gpg("--passphrase", password, "--local-user", w.subkeyOf("theirs")+"!", "--output", filepath.Join(w.dir, "forged"), "--detach-sign", filepath.Join(w.dir, "message"))
		if err := grafted.Verify(strings.NewReader("a release"), mustRead(t, filepath.Join(w.dir, "forged")), now); err == nil {
			t.Error("a subkey of another key signed for the pinned one")
		}
	}

	good := w.options(first, "ours")
	w.refused("their key", w.with(good, func(o *Options) { o.Key.Path = filepath.Join(w.dir, "theirs.sec") }), "has pinned "+ours)
	both := w.write("both.sec", w.gpg("--passphrase", password, "--export-secret-keys", "theirs@example.org", "ours@example.org"))
	w.refused("both keys in one file", w.with(good, func(o *Options) { o.Key.Path = both }), "holds 2 keys")
	w.publish(good)

	// Their release, in the place of ours, and the server's key with it.
	forged := w.with(w.options(w.build(2, "theirs", theirs), "theirs"), func(o *Options) { o.Server = filepath.Join(w.dir, "forged-server") })
	w.publish(forged)
	key, err := pgp.ParseKey(our)
	if err != nil {
		t.Fatal(err)
	}
	directories, err := Directories(forged.Server)
	if err != nil || len(directories) != 1 {
		t.Fatalf("%v, %v", directories, err)
	}
	if err := Verify(t.Context(), directories[0], VerifyOptions{Now: now, Key: key, Note: t.Logf}); err == nil || !strings.Contains(err.Error(), theirs) {
		t.Errorf("a server that offers another key: %v", err)
	}
	// The same, but with our key shown.
	if err := os.WriteFile(filepath.Join(forged.Server, "x86_64/test-os/release-key.pgp"), our, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Verify(t.Context(), directories[0], VerifyOptions{Now: now, Key: key, Note: t.Logf}); err == nil {
		t.Error("a server with our key and their release passed")
	}
	w.refused("their build onto our server", w.with(forged, func(o *Options) { o.Server = good.Server }), "are signed by "+ours)
}

// TestKeptKeys breaks the rules for how a key and its password are kept.
func TestKeptKeys(t *testing.T) {
	w := newWorld(t)
	fpr := w.key("release", "ed25519", password)
	weak := w.key("weak", "ed25519", "letmein1")
	good := w.options(w.build(1, "release", fpr), "release")
	secret := string(mustRead(t, good.Key.Path))
	open := func(name, text string) string {
		path := w.write(name, text)
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	w.refused("a key that others read", w.with(good, func(o *Options) { o.Key.Path = open("open.sec", secret) }), "permissions: others may read it")
	w.refused("a password that others read", w.with(good, func(o *Options) { o.Key.Password = open("open", password) }), "permissions: others may read it")
	w.refused("a password that can be guessed", w.with(w.options(w.build(1, "weak", weak), "weak"), func(o *Options) {
		o.Key.Password = w.write("weak-password", "letmein1\n")
	}), "too weak")
	// Where the tests' directory is encrypted, there is nothing to refuse.
	o := w.with(good, func(o *Options) { o.Key.UnencryptedStorage = false })
	_, kept := keys.Storage(o.Key.Path)
	if _, err := Publish(t.Context(), o); (kept == nil) != (err == nil) || err != nil && !strings.Contains(err.Error(), "storage: ") {
		t.Errorf("storage: %v, publish: %v", kept, err)
	}
}

// TestGPGSigns has gpg sign, as it does with a smart card's key.
func TestGPGSigns(t *testing.T) {
	w := newWorld(t)
	t.Setenv("GNUPGHOME", w.home)
	gpg := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("gpg", append([]string{"--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...).Output()
		if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
			t.Fatalf("gpg %q: %s", args, failed.Stderr)
		} else if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	load := func(name string) *pgp.Key {
		t.Helper()
		key, err := pgp.ParseKey([]byte(gpg("--export", name)))
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	for _, name := range []string{"pinned", "other"} {
		gpg("--quick-generate-key", name, "ed25519", "sign", "never")
	}
	pinned := load("pinned")
	s, err := LoadSigner(KeyFile{GPG: true}, pinned, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	signature, err := s.Sign(strings.NewReader("a release"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := pinned.Verify(strings.NewReader("a release"), signature, time.Now()); err != nil {
		t.Error(err)
	}
	// Without the secret of the pinned key nobody signs, no matter who else could.
	gpg("--yes", "--delete-secret-keys", pinned.Fingerprint().String())
	if _, err := s.Sign(strings.NewReader("a release"), time.Now()); err == nil || !strings.Contains(err.Error(), "sign with gpg") {
		t.Errorf("without its secret: %v", err)
	}
}

// TestPapers sees what a release is made of beside it, signed.
func TestPapers(t *testing.T) {
	w := newWorld(t)
	fpr := w.key("release", "ed25519", password)
	o := w.options(w.build(3, "release", fpr), "release")
	w.publish(o)
	key, err := pgp.ParseKey(mustRead(t, filepath.Join(w.dir, "release.pub")))
	if err != nil {
		t.Fatal(err)
	}
	directory := filepath.Join(o.Server, "x86_64/test-os/3")
	for suffix, file := range map[string]string{".cdx.json": image.BillFile, ".intoto.json": image.ProvenanceFile} {
		text := mustRead(t, filepath.Join(directory, "3"+suffix))
		if !bytes.Equal(text, mustRead(t, filepath.Join(o.Build, file))) {
			t.Errorf("3%s is not the build's %s", suffix, file)
		}
		if err := key.Verify(bytes.NewReader(text), mustRead(t, filepath.Join(directory, "3"+suffix+".pgp")), now); err != nil {
			t.Errorf("3%s: %v", suffix, err)
		}
	}
}
