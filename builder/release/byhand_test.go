package release

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/server"
)

// byHand executes gpg as somebody does who publishes by hand.
func (w *world) byHand(key, output, input string) {
	w.t.Helper()
	w.gpg("--passphrase", password, "--local-user", key, "--output", output, "--detach-sign", input)
}

// taken wants a machine that runs a build to take a version from a server.
func (w *world) taken(root, runs string, v contract.Version) {
	w.t.Helper()
	b, err := loadBuild(runs)
	if err != nil {
		w.t.Fatal(err)
	}
	self := &offer.Self{Running: b.contract, Channel: manifest.Stable, Signed: "auto", Now: now, Machine: []byte("m")}
	place, err := server.New(root, server.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	found, err := fetch.Look(w.t.Context(), place, self, "", time.Millisecond)
	if err != nil {
		w.t.Fatal(err)
	}
	if d, head, _, err := found.Judge(self); err != nil || d.Verdict != offer.Take || head == nil || head.Release.Version != v {
		w.t.Errorf("a machine with release %s: %+v, %v", b.release.Version, d, err)
	}
}

// FAULTS 112 (R14): published by hand, with gpg and an editor
func TestByHand(t *testing.T) {
	w := newWorld(t)
	fpr := w.key("release", "ed25519", password)
	build := w.build(7, "release", fpr)
	root := filepath.Join(w.dir, "server")
	dir := filepath.Join(root, "x86_64", "test-os")
	out := filepath.Join(dir, "7")
	a := ArchiveOptions{Build: build, Out: out, Now: now}
	r, err := Archive(t.Context(), a)
	if err != nil || r.Signed {
		t.Fatalf("%+v, %v", r, err)
	}
	other := w.key("other", "ed25519", password)
	w.byHand(other, r.Description+".pgp", r.Description)
	if _, err := Archive(t.Context(), a); err == nil || !strings.Contains(err.Error(), "by the key "+fpr) {
		t.Errorf("signed by another: %v", err)
	}
	w.byHand(fpr, r.Description+".pgp", r.Description)
	if r, err = Archive(t.Context(), a); err != nil || !r.Signed {
		t.Fatalf("%+v, %v", r, err)
	}
	w.byHand(fpr, r.Archive+".pgp", r.Archive)
	w.write("edited", "# ours\nSTABLE=7\nPUBKEY=ours.pgp\n")
	for name, file := range map[string]string{"manifest.env": "edited", "ours.pgp": "release.pub"} {
		if err := os.WriteFile(filepath.Join(dir, name), mustRead(t, filepath.Join(w.dir, file)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	key, err := pgp.ParseKey(mustRead(t, filepath.Join(w.dir, "release.pub")))
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(t.Context(), Directory(dir), VerifyOptions{Key: key, Now: now, Note: t.Logf}); err != nil {
		t.Error(err)
	}
	w.taken(root, w.build(6, "release", fpr), 7)
	// What the tools make afterwards goes on from there.
	next := w.options(w.build(8, "release", fpr), "release")
	w.publish(next)
	if text := string(mustRead(t, filepath.Join(dir, "manifest.env"))); text != "STABLE=8\nPUBKEY=ours.pgp\nIMAGE=x86_64/test-os\n" {
		t.Errorf("manifest %q", text)
	}

	// A tar of one's own is told what makes an archive, and stands in nobody's way.
	for name, spoil := range map[string]func(){
		"tar and gzip": func() {
			if said, err := exec.Command("tar", "czf", filepath.Join(out, "7.tar.gz"), "-C", build, "uki.efi", "system.erofs").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, said)
			}
			if err := os.Remove(r.Archive + ".pgp"); err != nil {
				t.Fatal(err)
			}
			w.byHand(fpr, r.Archive+".pgp", r.Archive)
		},
		"a signature that was forgotten": func() {
			if err := os.Remove(r.Description + ".pgp"); err != nil {
				t.Fatal(err)
			}
			if _, err := Archive(t.Context(), a); err != nil {
				t.Fatal(err)
			}
		},
	} {
		if err := os.RemoveAll(filepath.Join(dir, "8")); err != nil {
			t.Fatal(err)
		}
		w.put(next, "manifest.env", "STABLE=7\nPUBKEY=ours.pgp\n")
		spoil()
		err := w.verify(next)
		if want := map[string]string{"tar and gzip": "'halogen release archive' makes one"}[name]; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: verify says %v", name, err)
		}
		w.publish(next)
		again := w.options(build, "release")
		again.Server = filepath.Join(w.dir, "only-seven")
		if err := os.CopyFS(filepath.Join(again.Server), os.DirFS(root)); err != nil {
			t.Fatal(err)
		}
		w.put(again, "manifest.env", "STABLE=7\nPUBKEY=ours.pgp\n")
		if got := w.publish(again); !got.New {
			t.Errorf("%s: it was not replaced", name)
		}
		if err := w.verify(again); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.RemoveAll(again.Server); err != nil {
			t.Fatal(err)
		}
	}
}
