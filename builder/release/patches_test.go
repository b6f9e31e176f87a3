package release

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/patch"
	"halogenos.internal/uroot-cmds/ota/server"
)

func noteTo(w io.Writer) func(string, ...any) {
	return func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
}

func rewrite(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := os.WriteFile(file, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// programs are files of which a byte here and there is another from version to version.
func programs(version byte) map[string][]byte {
	all := make(map[string][]byte)
	for i, name := range []string{"usr/bin/one", "usr/bin/two", "usr/lib/three"} {
		b := make([]byte, 300_000+i*10_000)
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(b)
		for at := 100; at < len(b); at += 3000 {
			b[at] = version
		}
		all[name] = b
	}
	return all
}

// patchedBuild makes a build of programs that lie in the image without compression.
func (w *world) patchedBuild(version contract.Version, key, fingerprint string) string {
	w.more = programs(byte(version))
	return w.build(version, key, fingerprint, "SlotSize=16M", "SlotSize=16M\nCompression=none")
}

// Patches from older versions lie beside the archive, signed and the same each time, spare
// most of what machines would fetch, and are judged by --verify.
func TestPatchFrom(t *testing.T) {
	w := newWorld(t)
	fingerprint := w.key("release", "ed25519", strings.TrimSpace(password))
	w.publish(w.options(w.patchedBuild(1, "release", fingerprint), "release"))
	w.publish(w.options(w.patchedBuild(2, "release", fingerprint), "release"))
	third := w.options(w.patchedBuild(3, "release", fingerprint), "release")
	for _, c := range []struct {
		from contract.Version
		want string
	}{{3, "machines take nothing older"}, {4, "machines take nothing older"}, {0, "must be on the server"}} {
		third.PatchFrom = []contract.Version{2, c.from}
		w.refused("patches from "+c.from.String(), third, c.want)
	}
	third.PatchFrom = nil
	without := w.publish(third).Delta
	third.PatchFrom = []contract.Version{1, 2}
	r := w.publish(third) // the release is there already
	if d := r.Delta; d.From != 2 || d.Patches == 0 || d.Patches >= d.Bytes || d.Blocks != without.Blocks || d.Bytes > without.Bytes-700_000 || !strings.Contains(d.String(), "of them patches") {
		t.Errorf("%+v with patches, %+v without", d, without)
	}
	before := snapshot(t, r.Directory)
	w.publish(third)
	if after := snapshot(t, r.Directory); after != before {
		t.Errorf("published again, the server changed from\n%s\nto\n%s", before, after)
	}
	verify := func() (string, error) {
		var said bytes.Buffer
		err := Verify(t.Context(), Directory(r.Directory), VerifyOptions{Now: now, Note: noteTo(&said)})
		return said.String(), err
	}
	said, err := verify()
	for _, want := range []string{"patches from version 1 to 3 are good", "patches from version 2 to 3 are good", "of them patches"} {
		if err != nil || !strings.Contains(said, want) {
			t.Errorf("%v, said %q, want %q", err, said, want)
		}
	}
	for name, want := range map[string]string{
		patch.FileName(3, 1):      "another SHA-256",
		patch.TableName(3, 2):     "signature",
		patch.SignatureName(3, 1): "signature",
	} {
		file := filepath.Join(r.Directory, filepath.FromSlash(name))
		good := mustRead(t, file)
		damaged := bytes.Clone(good)
		damaged[len(damaged)/2] ^= 1
		for _, content := range [][]byte{damaged, good[:len(good)-1]} {
			rewrite(t, file, content)
			if said, err := verify(); err == nil || !strings.Contains(err.Error(), "patches from version") || !strings.Contains(err.Error(), "--patch-from") {
				t.Errorf("%s of %d bytes: %v, want %q; said %q", name, len(content), err, want, said)
			}
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if _, err := verify(); (err == nil) != (name == patch.TableName(3, 2)) {
			t.Errorf("without %s: %v", name, err)
		}
		rewrite(t, file, good)
	}
}

// Patches whose signature ends, or whose old archive is not there, are not passed over in
// silence; over HTTP those of a step are looked for, too.
func TestVerifyPatches(t *testing.T) {
	w := newWorld(t)
	fingerprint := w.key("release", "ed25519", strings.TrimSpace(password))
	first := w.options(w.patchedBuild(1, "release", fingerprint), "release")
	w.publish(first)
	second := w.options(w.patchedBuild(2, "release", fingerprint), "release")
	second.PatchFrom = []contract.Version{1}
	dir := w.publish(second).Directory
	m := Manage{Directory: Directory(dir), Key: first.Key, Now: now, Note: t.Logf}
	if err := SetStep(t.Context(), m, 1, true); err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(http.FileServer(http.Dir(second.Server)))
	defer web.Close()
	overHTTP, err := NewWeb(web.URL+"/x86_64/test-os", server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	verify := func(s Server) string {
		var said bytes.Buffer
		err := Verify(t.Context(), s, VerifyOptions{Now: now, Note: noteTo(&said)})
		return fmt.Sprint(said.String(), err)
	}
	both := func(name, want string) {
		t.Helper()
		for _, s := range []Server{Directory(dir), overHTTP} {
			if said := verify(s); !strings.Contains(said, want) {
				t.Errorf("%s, of %s: %s", name, s, said)
			}
		}
	}
	both("as it is", "patches from version 1 to 2 are good")
	if said := verify(overHTTP); !strings.Contains(said, "does not name are not looked for over HTTP") {
		t.Error(said)
	}
	table, signature := filepath.Join(dir, patch.TableName(2, 1)), filepath.Join(dir, patch.SignatureName(2, 1))
	good := mustRead(t, signature)
	conf := filepath.Join(w.home, "gpg.conf")
	rewrite(t, conf, []byte("default-sig-expire 30d\n"))
	w.byHand(fingerprint, signature, table)
	both("a signature that ends", "signature ends on 2027-02-14")
	rewrite(t, signature, good)
	if err := errors.Join(SetStep(t.Context(), m, 1, false), os.Remove(filepath.Join(dir, manifest.ArchiveName(1)))); err != nil {
		t.Fatal(err)
	}
	if said := verify(Directory(dir)); !strings.Contains(said, "patches from version 1 to 2 are not checked: the archive of version 1 is missing or cannot be read") {
		t.Errorf("without the old archive: %s", said)
	}
}

// Notes and patches that are published later leave a release with the machines that it is
// for, also where its rollout was stopped, unless a share is given.
func TestKeepRollout(t *testing.T) {
	for _, share := range []Rollout{{Limited: true, Percent: 10}, {Limited: true, Percent: 0}} {
		w := newWorld(t)
		w.publish(w.options(w.patchedBuild(1, "", ""), ""))
		second := w.options(w.patchedBuild(2, "", ""), "")
		second.Rollout = share
		directory := w.publish(second).Directory
		entry := func() Rollout {
			m, err := manifest.Parse(mustRead(t, filepath.Join(directory, manifest.FileName)))
			if err != nil || m.Stable.Version != 2 {
				t.Fatalf("%+v, %v", m, err)
			}
			return Rollout{Limited: m.Stable.Limited, Percent: m.Stable.Percent}
		}
		second.Rollout, second.KeepRollout = Rollout{}, true
		for name, o := range map[string]func() Options{
			"patches": func() Options { o := second; o.PatchFrom = []contract.Version{1}; return o },
			"notes":   func() Options { o := second; o.Notes = w.write("notes.md", "It is better.\n"); return o },
		} {
			if w.publish(o()); entry() != share {
				t.Errorf("%s: %+v, want %+v", name, entry(), share)
			}
		}
		if share.Percent > 0 {
			w.refused("nothing else", second, "with --rollout")
		}
		second.KeepRollout, second.Rollout = false, Rollout{Limited: true, Percent: 30}
		if w.publish(second); entry() != second.Rollout {
			t.Errorf("%+v, want %+v", entry(), second.Rollout)
		}
	}
}

// An old image of which no patches can be made leaves nothing of the release on the server.
func TestPatchFromRefused(t *testing.T) {
	w := newWorld(t)
	w.publish(w.options(w.patchedBuild(1, "", ""), ""))
	second := w.options(w.patchedBuild(2, "", ""), "")
	second.PatchFrom = []contract.Version{1}
	archive := filepath.Join(w.dir, "server", "x86_64", "test-os", filepath.FromSlash(manifest.ArchiveName(1)))
	good := mustRead(t, archive)
	rewrite(t, archive, good[:len(good)/2]) // its image ends early
	w.refused("half an old archive", second, "patches from version 1")
	rewrite(t, archive, good)
	if d := w.publish(second).Delta; d == nil || d.Patches == 0 {
		t.Errorf("%+v", d)
	}
}

// Two images that have nothing in common that lies without compression have no patches.
func TestPatchFromCompressed(t *testing.T) {
	w := newWorld(t)
	w.more = map[string][]byte{"usr/bin/tool": bytes.Repeat([]byte("the first one "), 9999)}
	w.publish(w.options(w.build(1, "", ""), ""))
	w.more = map[string][]byte{"usr/bin/tool": bytes.Repeat([]byte("another one "), 9999)}
	second := w.options(w.build(2, "", ""), "")
	second.PatchFrom = []contract.Version{1}
	var said bytes.Buffer
	second.Note = noteTo(&said)
	r := w.publish(second)
	if _, err := os.Stat(filepath.Join(r.Directory, patch.TableName(2, 1))); err == nil || !strings.Contains(said.String(), "would spare nothing") {
		t.Errorf("%v, said %q", err, said.String())
	}
}

// What is said of two builds is what machines fetch once they are published, and the shares
// of the files add up to it.
func TestCostOf(t *testing.T) {
	w := newWorld(t)
	first := w.options(w.patchedBuild(1, "", ""), "")
	second := w.options(w.patchedBuild(2, "", ""), "")
	w.publish(first)
	without := w.publish(second).Delta
	second.PatchFrom = []contract.Version{1}
	with := w.publish(second).Delta
	for _, patched := range []bool{false, true} {
		c, err := CostOf(t.Context(), first.Build, second.Build, patched)
		if err != nil {
			t.Fatal(err)
		}
		want := without
		if patched {
			// The table of patches, too, is read.
			table := len(mustRead(t, filepath.Join(w.dir, "server", "x86_64", "test-os", filepath.FromSlash(patch.TableName(2, 1)))))
			want = with
			want.Bytes, want.Patches = want.Bytes-int64(table), want.Patches-int64(table)
		}
		if c.Bytes != want.Bytes || c.Patches != want.Patches || c.Archive != want.Archive || c.Blocks != want.Blocks || c.Changed != want.Changed || c.Requests != want.Requests {
			t.Errorf("patches %v: %+v, want %+v", patched, c, want)
		}
		all, blocks := int64(0), 0
		names := make(map[string]Share)
		for _, s := range c.Files {
			all, blocks = all+s.Bytes, blocks+s.Blocks
			names[s.Name] = s
		}
		// Head and index are of no file, and a group's bytes are divided by its blocks.
		if blocks != c.Changed || all > c.Bytes || all < c.Bytes-20_000 {
			t.Errorf("patches %v: files of %d bytes and %d blocks, of %d and %d", patched, all, blocks, c.Bytes, c.Changed)
		}
		two := names["system.erofs!/usr/bin/two"]
		if two.Blocks < 70 || two.Blocks > 80 || (two.Bytes > 200_000) == patched {
			t.Errorf("patches %v: %+v", patched, two)
		}
		for _, s := range c.Directories {
			if s.Name == "system.erofs!/usr/bin" && s.Blocks != two.Blocks+names["system.erofs!/usr/bin/one"].Blocks+names["system.erofs!/usr/bin/hello"].Blocks {
				t.Errorf("%+v, and %+v", s, c.Files)
			}
		}
	}
	other := w.build(3, "", "", "ImageID=test-os", "ImageID=other-os")
	if _, err := CostOf(t.Context(), first.Build, other, false); err == nil || !strings.Contains(err.Error(), "do not update") {
		t.Errorf("another image: %v", err)
	}
	if _, err := CostOf(t.Context(), t.TempDir(), other, false); err == nil {
		t.Error("an empty directory was taken for a build")
	}
}
