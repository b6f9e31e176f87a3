package release

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// spoil overwrites the start of a file: what a disk or a copy that lost its first block has.
func spoil(t *testing.T, file string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
}

// A release that machines may have is never replaced by another of its version, however
// damaged it is: not by what its archive says of itself.
func TestDamagedIsNotReplaced(t *testing.T) {
	for _, key := range []string{"release", ""} {
		w, fingerprint := newWorld(t), ""
		if key != "" {
			fingerprint = w.key(key, "ed25519", password)
		}
		o := w.options(w.build(1, key, fingerprint), key)
		w.publish(o)
		dir := filepath.Join(o.Server, "x86_64", "test-os")
		spoil(t, filepath.Join(dir, "1", "1.tar.gz"))
		other := w.options(w.build(1, key, fingerprint, "Cmdline=quiet", "Cmdline=loud"), key)
		w.refused("other content, key "+key, other, "Put it back from a copy")
		w.refused("the same, key "+key, o, "Put it back from a copy")
		w.refused("the next, key "+key, w.options(w.build(2, key, fingerprint), key), "Put it back from a copy")
		if key == "" {
			continue
		}
		// Named by no channel, it has the signature that machines took it by.
		for _, name := range []string{"manifest.env", "manifest.env.pgp"} {
			if err := os.Remove(filepath.Join(dir, name)); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
		w.refused("named by no channel", other, "release 1 is on the server already")
	}
}

// What is replaced comes back where the new one cannot be written.
func TestReplacedComesBack(t *testing.T) {
	w := newWorld(t)
	o := w.options(w.build(1, "", ""), "")
	dir := filepath.Join(o.Server, "x86_64", "test-os", "1")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "1.tar.gz"), []byte("a tar of one's own, which no machine takes"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, o.Server)
	ctx, cancel := context.WithCancel(t.Context())
	replaced := o
	replaced.Note = func(format string, args ...any) {
		if strings.Contains(format, "replacing it") {
			cancel()
		}
	}
	if _, err := Publish(ctx, replaced); err == nil || ctx.Err() == nil {
		t.Fatalf("it was not interrupted: %v", err)
	}
	if after := snapshot(t, o.Server); after != before {
		t.Errorf("the server changed from\n%s\nto\n%s", before, after)
	}
	if r := w.publish(o); !r.New {
		t.Error("it was not replaced")
	}
}
