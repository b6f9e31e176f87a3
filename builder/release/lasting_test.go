package release

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/pgp"
)

// A signature that ends is taken today and refused later. With --gpg what gpg.conf says
// of that, of the digest and of text is set aside; by hand it is refused, and found on a
// server.
func TestSignaturesLast(t *testing.T) {
	w := newWorld(t)
	t.Setenv("GNUPGHOME", w.home)
	conf := filepath.Join(w.home, "gpg.conf")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, algorithm := range []string{"ed25519", "nistp384"} {
		out, err := exec.Command("gpg", "--batch", "--quiet", "--passphrase", "", "--quick-generate-key", algorithm, algorithm, "sign", "never").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		public, err := exec.Command("gpg", "--export", algorithm).Output()
		if err != nil {
			t.Fatal(err)
		}
		pinned, err := pgp.ParseKey(public)
		if err != nil {
			t.Fatal(err)
		}
		write("default-sig-expire 30d\ndigest-algo SHA1\ntextmode\npersonal-digest-preferences SHA224\n")
		s, err := LoadSigner(KeyFile{GPG: true}, pinned, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		signature, err := s.Sign(strings.NewReader("a release"), time.Now())
		if err != nil {
			t.Fatalf("%s: %v", algorithm, err)
		}
		if err := pinned.Verify(strings.NewReader("a release"), signature, time.Now().AddDate(10, 0, 0)); err != nil {
			t.Errorf("%s: in ten years: %v", algorithm, err)
		}
		write("")
	}

	fpr := w.key("release", "ed25519", password)
	build := w.build(7, "release", fpr)
	a := ArchiveOptions{Build: build, Out: filepath.Join(w.dir, "by-hand"), Now: now}
	r, err := Archive(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	write("default-sig-expire 30d\n")
	w.byHand(fpr, r.Description+".pgp", r.Description)
	if _, err := Archive(t.Context(), a); err == nil || !strings.Contains(err.Error(), "signature ends on 2027-02-14") || !strings.Contains(err.Error(), "--default-sig-expire 0") {
		t.Errorf("by hand: %v", err)
	}
	o := w.options(build, "release")
	w.publish(o)
	archive := filepath.Join(o.Server, "x86_64", "test-os", "7", "7.tar.gz")
	w.byHand(fpr, archive+".pgp", archive)
	if err := w.verify(o); err == nil || !strings.Contains(err.Error(), "7.tar.gz.pgp: signature ends on 2027-02-14") {
		t.Errorf("on a server: %v", err)
	}
	write("")
	w.byHand(fpr, archive+".pgp", archive)
	if err := w.verify(o); err != nil {
		t.Errorf("on a server, signed again: %v", err)
	}
}
