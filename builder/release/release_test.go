package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	description "halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	reader "halogenos.internal/uroot-cmds/ota/server"
)

func TestPublish(t *testing.T) {
	w := newWorld(t)
	fpr := w.key("release", "ed25519", password)
	first := w.options(w.build(1, "release", fpr), "release")
	r := w.publish(first)
	dir := filepath.Join(first.Server, "x86_64", "test-os")
	if r.Directory != dir || !r.New || r.Archive != filepath.Join(dir, "1", "1.tar.gz") {
		t.Errorf("published %+v", r)
	}
	if text := mustRead(t, filepath.Join(dir, "manifest.env")); string(text) != "STABLE=1\nPUBKEY=release-key.pgp\nIMAGE=x86_64/test-os\n" {
		t.Errorf("manifest %q", text)
	}
	if link, err := os.Readlink(filepath.Join(dir, "stable")); err != nil || link != "1" {
		t.Errorf("stable leads to %q, %v", link, err)
	}
	// gpg and tar take what was published.
	w.gpg("--verify", r.Archive+".pgp", r.Archive)
	unpacked := t.TempDir()
	testkit.Run(t, "tar", "xzf", r.Archive, "-C", unpacked)
	w.gpg("--verify", filepath.Join(unpacked, "release.json.pgp"), filepath.Join(unpacked, "release.json"))
	published, err := description.Parse(mustRead(t, filepath.Join(unpacked, "release.json")))
	if err != nil || !published.Published() {
		t.Fatalf("published %+v, %v", published, err)
	}
	if text, err := published.Build().Encode(); err != nil || !bytes.Equal(text, mustRead(t, filepath.Join(first.Build, "release.json"))) {
		t.Errorf("release.json describes another build: %s, %v", text, err)
	}
	for _, name := range []string{"uki.efi", "bootx64.efi", "system.erofs"} {
		if !bytes.Equal(mustRead(t, filepath.Join(unpacked, name)), mustRead(t, filepath.Join(first.Build, name))) {
			t.Errorf("%s differs from what was built", name)
		}
	}
	if err := w.verify(first); err != nil {
		t.Error(err)
	}

	// The same again says nothing new, in the same bytes elsewhere.
	elsewhere := first
	elsewhere.Server = filepath.Join(w.dir, "elsewhere")
	if again := w.publish(elsewhere); !bytes.Equal(mustRead(t, again.Archive), mustRead(t, r.Archive)) {
		t.Error("the archive is another the second time")
	}
	w.refused("the same version", first, "version 1 is not newer than 1")

	// Version 3 for a share of beta, then for stable; version 2 comes too late.
	third := w.options(w.build(3, "release", fpr), "release")
	third.Channel, third.Rollout = manifest.Beta, Rollout{Limited: true, Percent: 10}
	third.SignManifest, third.Lifetime = true, 48*time.Hour
	w.publish(third)
	third.Rollout = Rollout{}
	if again := w.publish(third); again.New || again.Size == 0 {
		t.Errorf("published %+v, want the release that is there", again)
	}
	if text, want := string(mustRead(t, filepath.Join(dir, "manifest.env"))), "STABLE=1\nBETA=3\nPUBKEY=release-key.pgp\nIMAGE=x86_64/test-os\nEXPIRES=2027-01-17T08:00:00Z\nSEQUENCE=20270115080001\n"; text != want {
		t.Errorf("manifest %q, want %q", text, want)
	}
	w.gpg("--verify", filepath.Join(dir, "manifest.env.pgp"), filepath.Join(dir, "manifest.env"))
	second := w.options(w.build(2, "release", fpr), "release")
	second.Lifetime = -1
	second.Channel = manifest.Beta
	w.refused("older than beta", second, "not newer than 3")
	second.Channel = manifest.Alpha
	w.refused("older than a more tried one", second, "not newer than 3")
	third.Channel = manifest.Stable
	w.publish(third)
	if err := w.verify(third); err != nil {
		t.Error(err)
	}
	third.Lifetime = 0
	w.refused("expiry forgotten", third, "expires")
}

func (w *world) with(o Options, change func(o *Options)) Options {
	change(&o)
	return o
}

// FAULTS 2, 6
func TestPublishRefused(t *testing.T) {
	w := newWorld(t)
	fpr, other := w.key("release", "ed25519", password), w.key("other", "ed25519", password)
	built := w.build(5, "release", fpr, "ImageID=test-os\n", "ImageID=test-os\nEpoch=3\n")
	good := w.options(built, "release")
	w.refused("not stable first", w.with(good, func(o *Options) { o.Channel = manifest.Beta }), "stable first")
	w.refused("no channel", w.with(good, func(o *Options) { o.Channel = "nightly" }), "channel")
	w.refused("no key", w.with(good, func(o *Options) { o.Key = KeyFile{} }), "name the key")
	w.refused("another key", w.with(good, func(o *Options) { o.Key.Path = filepath.Join(w.dir, "other.sec") }), "has pinned "+fpr)
	w.refused("public key", w.with(good, func(o *Options) { o.Key.Path = filepath.Join(w.dir, "release.pub") }), "public key")
	w.refused("no password", w.with(good, func(o *Options) { o.Key.Password = "" }), "is encrypted")
	w.refused("wrong password", w.with(good, func(o *Options) { o.Key.Password = w.write("wrong", "x") }), "does not open it")
	w.refused("percentage", w.with(good, func(o *Options) { o.Rollout = Rollout{true, 101} }), "101 percent")
	unsigned := w.build(6, "", "")
	w.refused("key for an unsigned image", w.options(unsigned, "release"), "pinned no release key")
	w.publish(good)

	later := func(change ...string) string { return w.build(6, "release", fpr, change...) }
	w.refused("lower epoch", w.options(later("ImageID=test-os\n", "ImageID=test-os\nEpoch=2\n"), "release"), "epoch 2 is lower than 3")
	w.refused("other key on the server", w.options(w.build(6, "other", other), "other"), "are signed by "+fpr)
	w.refused("unsigned after signed", w.options(unsigned, ""), "which is not")
	w.refused("other previous image", w.with(w.options(later("ImageID=test-os", "ImageID=other-os"), "release"), func(o *Options) { o.Previous = built }), "previous build is test-os")
	w.refused("previous version", w.with(good, func(o *Options) { o.Previous = built }), "not newer than 5, the previous")
	w.refused("previous key", w.with(w.options(w.build(6, "other", other, "ImageID=test-os\n", "ImageID=test-os\nEpoch=3\n"), "other"), func(o *Options) { o.Previous = built }), "have not pinned the same release key")

	// A build whose parts do not belong together.
	next := later("ImageID=test-os\n", "ImageID=test-os\nEpoch=3\n")
	for name, want := range map[string]string{"uki.efi": "is not the one", "bootx64.efi": "is not the one", "system.erofs": "root hash", "release.json": "parse release.json"} {
		broken := filepath.Join(t.TempDir(), "broken")
		if err := os.CopyFS(broken, os.DirFS(next)); err != nil {
			t.Fatal(err)
		}
		content := mustRead(t, filepath.Join(broken, name))
		content[len(content)/2] ^= 0x80
		if err := os.WriteFile(filepath.Join(broken, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
		w.refused("damaged "+name, w.options(broken, "release"), want)
	}
}

// Keys that gpg makes sign, whatever their kind.
func TestSigners(t *testing.T) {
	w := newWorld(t)
	for _, algorithm := range []string{"ed25519", "nistp256", "nistp384", "nistp521", "rsa3072"} {
		w.key(algorithm, algorithm, "")
		pinned, err := pgp.ParseKey(mustRead(t, filepath.Join(w.dir, algorithm+".pub")))
		if err != nil {
			t.Fatal(err)
		}
		file := KeyFile{Path: filepath.Join(w.dir, algorithm+".sec"), UnencryptedStorage: true}
		if _, err := LoadSigner(file, pinned, now); err == nil || !strings.Contains(err.Error(), "has no password") {
			t.Errorf("%s without a password: %v", algorithm, err)
		}
		file.Unprotected = true
		s, err := LoadSigner(file, pinned, now)
		if err != nil {
			t.Fatal(err)
		}
		doc := w.write("doc", "a document")
		sig, err := s.Sign(strings.NewReader("a document"), now)
		if err != nil {
			t.Fatal(err)
		}
		w.gpg("--verify", w.write("sig", string(sig)), doc)
		s.Close()
		if _, err := s.Sign(strings.NewReader("a document"), now); err == nil {
			t.Errorf("%s: a closed signer still signs", algorithm)
		}
	}
}

// A signing subkey signs for a primary key that is kept elsewhere.
func TestSubkeySigns(t *testing.T) {
	w := newWorld(t)
	w.gpg("--passphrase", "", "--quick-generate-key", "sub@example.org", "ed25519", "cert", "never")
	w.export("sub", "")
	primary, err := pgp.ParseKey(mustRead(t, filepath.Join(w.dir, "sub.pub")))
	if err != nil {
		t.Fatal(err)
	}
	file := KeyFile{Path: filepath.Join(w.dir, "sub.sec"), Unprotected: true, UnencryptedStorage: true}
	if _, err := LoadSigner(file, primary, now); err == nil || !strings.Contains(err.Error(), "only keys") {
		t.Errorf("a key that only certifies: %v", err)
	}
	w.gpg("--passphrase", "", "--quick-add-key", primary.Fingerprint().String(), "ed25519", "sign", "never")
	w.export("sub", "")
	w.write("sub.sec", w.gpg("--passphrase", "", "--export-secret-subkeys", "sub@example.org"))
	pinned, err := pgp.ParseKey(mustRead(t, filepath.Join(w.dir, "sub.pub")))
	if err != nil {
		t.Fatal(err)
	}
	s, err := LoadSigner(file, pinned, now)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	sig, err := s.Sign(strings.NewReader("x"), now)
	if err != nil {
		t.Fatal(err)
	}
	if hex.EncodeToString(s.key.Fingerprint) == strings.ToLower(pinned.Fingerprint().String()) {
		t.Error("the primary key signed")
	}
	w.gpg("--verify", w.write("sig", string(sig)), w.write("doc", "x"))
}

// FAULTS 1, 2, 5, 6
func TestVerifyFindsFaults(t *testing.T) {
	w := newWorld(t)
	fpr, _ := w.key("release", "ed25519", password), w.key("other", "ed25519", password)
	o := w.with(w.options(w.build(1, "release", fpr), "release"), func(o *Options) { o.SignManifest, o.Lifetime = true, time.Hour })
	w.publish(o)
	o.Build = w.build(2, "release", fpr)
	w.publish(o)
	dir := filepath.Join(o.Server, "x86_64", "test-os")
	pinned := func(name string) *pgp.Key {
		k, err := pgp.ParseKey(mustRead(t, filepath.Join(w.dir, name+".pub")))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	copyOf := func() string {
		fresh := filepath.Join(t.TempDir(), "x86_64", "test-os")
		if err := os.CopyFS(fresh, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		return fresh
	}
	edit := func(name string, change func(b []byte) []byte) func(dir string) {
		return func(dir string) {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, change(mustRead(t, path)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	rename := func(from, to string) func(dir string) {
		return func(dir string) {
			if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name, want string
		change     func(dir string)
	}{
		{"nothing", "", func(string) {}},
		{"archive damaged", "release 2, in stable", edit("2/2.tar.gz", flip)},
		{"archive cut", "unexpected EOF", edit("2/2.tar.gz", func(b []byte) []byte { return b[:len(b)*3/4] })},
		{"archive longer", "data follows", edit("2/2.tar.gz", func(b []byte) []byte { return append(b, 0) })},
		{"archive missing", "no such file", rename("2/2.tar.gz", "2/x")},
		{"signature missing", "no such file", rename("2/2.tar.gz.pgp", "2/x")},
		{"signature damaged", "2.tar.gz.pgp", edit("2/2.tar.gz.pgp", flip)},
		{"signature of another release", "does not fit", edit("2/2.tar.gz.pgp", func([]byte) []byte { return mustRead(t, filepath.Join(dir, "1/1.tar.gz.pgp")) })},
		{"another release in its place", "is test-os 1 for x86_64, in the place of", func(dir string) {
			edit("2/2.tar.gz", func([]byte) []byte { return mustRead(t, filepath.Join(dir, "1/1.tar.gz")) })(dir)
			edit("2/2.tar.gz.pgp", func([]byte) []byte { return mustRead(t, filepath.Join(dir, "1/1.tar.gz.pgp")) })(dir)
		}},
		{"another key", "want " + fpr, edit("release-key.pgp", func([]byte) []byte { return mustRead(t, filepath.Join(w.dir, "other.pub")) })},
		{"key missing", "no such file", rename("release-key.pgp", "x")},
		{"manifest changed", "manifest.env.pgp", edit("manifest.env", func(b []byte) []byte { return append(b, "# x\n"...) })},
		{"manifest without a key", "not signed", edit("manifest.env", func([]byte) []byte { return []byte("STABLE=2\n") })},
		{"manifest names nothing", "9/9.tar.gz", edit("manifest.env", func(b []byte) []byte { return bytes.Replace(b, []byte("STABLE=2"), []byte("STABLE=9"), 1) })},
		{"link elsewhere", "leads to 1", func(dir string) {
			if err := writeLink(dir, "stable", 1); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		fresh := copyOf()
		c.change(fresh)
		err := Verify(t.Context(), Directory(fresh), VerifyOptions{Key: pinned("release"), Now: now, Note: t.Logf})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if err := Verify(t.Context(), Directory(dir), VerifyOptions{Key: pinned("other"), Now: now, Note: t.Logf}); err == nil || !strings.Contains(err.Error(), "want "+pinned("other").Fingerprint().String()) {
		t.Errorf("another key pinned: %v", err)
	}
	if err := Verify(t.Context(), Directory(dir), VerifyOptions{Now: now.Add(time.Hour), Note: t.Logf}); err == nil || !strings.Contains(err.Error(), "expired on") {
		t.Errorf("an hour later: %v", err)
	}
	moved := filepath.Join(t.TempDir(), "x86_64", "other-os")
	if err := os.CopyFS(moved, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := Verify(t.Context(), Directory(moved), VerifyOptions{Now: now, Note: t.Logf}); err == nil || !strings.Contains(err.Error(), "in the place of x86_64/other-os") {
		t.Errorf("in another image's directory: %v", err)
	}
	w.overHTTP(o.Server, pinned("release"))
}

// overHTTP checks the same server as a machine would.
func (w *world) overHTTP(root string, key *pgp.Key) {
	w.t.Helper()
	server := httptest.NewServer(http.FileServer(http.Dir(root)))
	defer server.Close()
	web, err := NewWeb(server.URL+"/x86_64/test-os/", reader.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := Verify(w.t.Context(), web, VerifyOptions{Key: key, Now: now, Note: w.t.Logf}); err != nil {
		w.t.Error(err)
	}
	for _, bad := range []string{"ftp://x/y", "/x", "file:///x", "http:///x", "http://x/?a"} {
		if _, err := NewWeb(bad, reader.Options{}); err == nil {
			w.t.Errorf("NewWeb(%q) succeeded", bad)
		}
	}
}

func TestUnsigned(t *testing.T) {
	w := newWorld(t)
	fpr := w.key("release", "ed25519", password)
	o := w.options(w.build(1, "", ""), "")
	var said []string
	o.Note = func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	r := w.publish(o)
	if all := strings.Join(said, "\n"); !strings.Contains(all, "WARNING") {
		t.Errorf("said only %q", all)
	}
	if _, err := os.Stat(r.Archive + ".pgp"); !os.IsNotExist(err) {
		t.Errorf("a signature by nobody: %v", err)
	}
	if err := w.verify(o); err != nil {
		t.Error(err)
	}
	w.refused("signed after unsigned", w.options(w.build(2, "release", fpr), "release"), "not signed")
}

// A publisher that was interrupted leaves nothing that the next one minds.
func TestInterrupted(t *testing.T) {
	w := newWorld(t)
	o := w.options(w.build(1, "", ""), "")
	w.publish(o)
	dir := filepath.Join(o.Server, "x86_64", "test-os")
	// Power cut: a directory half written; a release in place that nothing names.
	half := filepath.Join(dir, unfinished+"123")
	if err := os.MkdirAll(half, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "manifest.env")); err != nil {
		t.Fatal(err)
	}
	if r := w.publish(o); r.New {
		t.Error("the release was written again")
	}
	if _, err := os.Stat(half); !os.IsNotExist(err) {
		t.Errorf("what was half written is still there: %v", err)
	}
	unlock, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	w.refused("two at once", w.options(w.build(2, "", ""), ""), "another publisher")
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	// The same version with other content.
	if err := os.Remove(filepath.Join(dir, "manifest.env")); err != nil {
		t.Fatal(err)
	}
	w.refused("other content", w.options(w.build(1, "", "", "Cmdline=quiet", "Cmdline=loud"), ""), "with other content")
}

func sum(b []byte) []byte { h := sha256.Sum256(b); return h[:4] }
