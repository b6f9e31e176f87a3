package machine

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/release"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/otatest"
)

func TestFetch(t *testing.T) {
	w := newWorld(t)
	old := w.table()
	w.write(filepath.Join(stateDirectory, stagedFile), []byte(`{"format":1,"version":"1","slot":"b"}`))
	w.write(filepath.Join(stateDirectory, "fetch/1/uki.efi"), []byte("old"))
	// Nothing of the slot is touched before nothing stages or starts it.
	w.atESP = func() {
		if _, err := os.Stat(w.path(filepath.Join(stateDirectory, stagedFile))); err == nil {
			t.Error("staged.json is still there when the UKI goes")
		}
	}
	out, err := w.fetch()
	must(t, err)
	if out.Verdict != offer.Take || out.Version != 3 || !out.Staged || out.Result.Fetched == 0 || out.Result.Copied == 0 || out.Result.Fetched > out.Size/2+100_000 {
		t.Errorf("%+v %+v", out, out.Result)
	}
	w.complete()
	want := "remove test-os_1.efi; partition table; open system-b; open verity-b"
	if got := strings.Join(w.log, "; "); got != want {
		t.Errorf("order %s, want %s", got, want)
	}
	if w.ukis() != "test-os_2.efi" {
		t.Errorf("the ESP has %s", w.ukis())
	}
	for i, before := range old.Partitions {
		r := layout.RoleOf(before)
		if changed := before.UUID != w.table().Partitions[i].UUID; changed != (r == layout.SystemB || r == layout.VerityB) {
			t.Errorf("partition %s: UUID changed: %v", r, changed)
		}
	}
	if w.kinds() != "fetched 3" {
		t.Errorf("journal %s", w.kinds())
	}
	if _, err := os.Stat(w.path(filepath.Join(stateDirectory, "fetch/1"))); err == nil {
		t.Error("the directory of version 1 is still there")
	}
	// Once more: it waits, and nothing is touched.
	w.log = nil
	out, err = w.fetch()
	if err != nil || out.Verdict != offer.Current || !out.Staged || len(w.log) > 0 {
		t.Errorf("a second time: %+v, %v, %s", out, err, w.log)
	}
	// A newer one takes its place.
	four := otatest.Make(t, otatest.Spec{Version: 4, Key: w.key, Image: otatest.Image(blocks, 1, 5, 4)})
	w.site.Publish(four, nil)
	out, err = w.fetch()
	if err != nil || out.Version != 4 || !out.Staged || strings.Contains(strings.Join(w.log, " "), "partition table") {
		t.Errorf("a newer one: %+v, %v, %v", out, err, w.log)
	}
	if got := w.read(filepath.Join(stateDirectory, stagedFile)); !strings.Contains(got, `"4"`) {
		t.Errorf("staged.json is %s", got)
	}
}

// Cut between any two effects, the slot is either the whole one that it was, or
// nobody's; and the next fetch ends well.
func TestCutWhileEmptying(t *testing.T) {
	for cut := range 4 {
		w := newWorld(t)
		w.cut = cut
		if _, err := w.fetch(); !errors.Is(err, errCut) {
			t.Fatalf("cut after %d effects: %v", cut, err)
		}
		system, err := layout.Find(w.table(), layout.SystemB)
		must(t, err)
		named := system.UUID == layout.SystemUUID(w.one.Contract.Root())
		if written := slices.Contains(w.log, "open system-b"); written && (named || strings.Contains(w.ukis(), "test-os_1")) {
			t.Errorf("cut after %d effects: slot B is written to and is still version 1's", cut)
		}
		if !named && strings.Contains(w.ukis(), "test-os_1") {
			t.Errorf("cut after %d effects: version 1 starts, and has lost its slot", cut)
		}
		if _, err := os.Stat(w.path(filepath.Join(stateDirectory, stagedFile))); err == nil {
			t.Errorf("cut after %d effects: it is staged", cut)
		}
		w.cut = -1
		if _, err := w.fetch(); err != nil {
			t.Errorf("cut after %d effects, then: %v", cut, err)
		}
		w.complete()
	}
}

// Blocks of the new UKI come from the running one, off the ESP.
func TestCopyFromESP(t *testing.T) {
	w := newWorld(t)
	f, err := os.OpenFile(w.part(layout.ESP), os.O_RDWR, 0)
	must(t, err)
	must(t, fat.Format(f, layout.ESPSize, fat.Options{SectorSize: 512, Label: "ESP", Zeroed: true}, []fat.File{{
		Path: bls.Directory + "/test-os_2.efi", Size: int64(len(w.two.UKI)),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(w.two.UKI)), nil },
	}}))
	must(t, f.Close())
	out, err := w.fetch()
	must(t, err)
	w.complete()
	if least := int64(len(w.three.Image)*8/10 + 150_000); out.Result.Copied < least {
		t.Errorf("%d bytes were copied, want %d", out.Result.Copied, least)
	}
}

// FAULTS 2, 83
func TestFetchRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world)
		want   string
		code   error
	}{
		"on trial": {func(w *world) {
			must(w.t, os.Rename(w.path("esp/EFI/Linux/test-os_2.efi"), w.path("esp/EFI/Linux/test-os_2+2-1.efi")))
		}, "is on trial", nil},
		"no UKI of ours": {func(w *world) { must(w.t, os.Remove(w.path("esp/EFI/Linux/test-os_2.efi"))) }, "has no boot file (UKI) of version 2", nil},
		"corrupt":        {func(w *world) { w.corrupt = true }, "corrupt blocks", nil},
		"failed before": {func(w *world) {
			w.journal(journal.Entry{Kind: journal.Failed, Version: 3, Reason: "the watchdog ended it"})
		}, "the watchdog ended it", nil},
		"given up": {func(w *world) {
			w.journal(journal.Entry{Kind: journal.Rollback, Version: 3, Reason: "no sound"})
		}, "given up by hand: no sound", nil},
		"epoch": {func(w *world) {
			w.two.Contract.Epoch = 5
			w.boot(layout.SlotA, w.two)
		}, "this machine's floor is 5", nil},
		"too large": {func(w *world) {
			r := otatest.Make(w.t, otatest.Spec{Version: 9, Key: w.key, Image: otatest.Image(50, 1, 0, 0), Change: func(r *release.Release) {
				r.ImageSize, r.SlotSize = 64<<20, 64<<20
			}})
			w.site.Publish(r, nil)
		}, "this machine's have 32 MiB: `ota grow`", nil},
		"no server": {func(w *world) { w.write("etc/halogen/ota.conf", nil) }, "no server is set", nil},
		"no root partition": {func(w *world) {
			must(w.t, os.RemoveAll(w.path(stateDirectory)))
		}, "no such file", nil},
		"another ota": {func(w *world) {
			r, err := w.m.Running()
			must(w.t, err)
			lock, err := w.m.lock(r)
			must(w.t, err)
			w.t.Cleanup(func() { _ = lock.Close() })
		}, "another ota is at work", ErrBusy},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c.change(w)
			w.log = nil
			before, table := w.ukis(), w.table()
			out, err := w.fetch()
			if err == nil || !strings.Contains(err.Error(), c.want) || c.code != nil && !errors.Is(err, c.code) {
				t.Fatalf("%+v, %v, want %q", out, err, c.want)
			}
			if len(w.log) > 0 || w.ukis() != before || !slices.Equal(table.Partitions, w.table().Partitions) {
				t.Errorf("the machine changed: %v, %s", w.log, w.ukis())
			}
		})
	}
}

// Not every machine's turn comes first.
func TestRollout(t *testing.T) {
	w := newWorld(t)
	w.site.Publish(w.three, func(m *manifest.Manifest) { m.Stable.Limited = true })
	out, err := w.fetch()
	if err != nil || out.Verdict != offer.Later || len(w.log) > 0 {
		t.Errorf("%+v, %v, %v", out, err, w.log)
	}
	out, err = w.m.Check(t.Context(), Options{Impatient: true})
	if err != nil || out.Verdict != offer.Take {
		t.Errorf("%+v, %v", out, err)
	}
}

// What was seen of signed manifests is remembered. FAULTS 4
func TestSequence(t *testing.T) {
	w := newWorld(t)
	publish := func(sequence uint64) {
		w.site.Publish(w.three, func(m *manifest.Manifest) { m.Sequence = sequence })
		w.site.SignManifest()
	}
	publish(7)
	_, err := w.m.Check(t.Context(), Options{})
	must(t, err)
	publish(6)
	if _, err := w.m.Check(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "has seen 7") {
		t.Errorf("an old manifest: %v", err)
	}
	delete(w.site.Files, otatest.Directory+manifest.SignatureName)
	if _, err := w.m.Check(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "any more") {
		t.Errorf("without its signature: %v", err)
	}
}

func TestFrom(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	must(t, os.CopyFS(dir, w.site.Files))
	file := filepath.Join(dir, otatest.Directory, "3/3.tar.gz")
	// An archive alone need not be readable for the worker: it is opened for it.
	must(t, os.Chmod(file, 0o600))
	for _, from := range []string{file, "file://" + file, w.server.URL + "/" + otatest.Directory + "3/3.tar.gz", w.server.URL + "/", filepath.Join(dir, otatest.Directory)} {
		must(t, os.Chmod(file, 0o600))
		if from == filepath.Join(dir, otatest.Directory) {
			must(t, os.Chmod(file, 0o644))
		}
		out, err := w.m.Check(t.Context(), Options{From: from})
		if err != nil || out.Verdict != offer.Take || out.Version != 3 {
			t.Errorf("%s: %+v, %v", from, out, err)
		}
	}
	must(t, os.Chmod(file, 0o600))
	out, err := w.m.Fetch(t.Context(), Options{From: file})
	if err != nil || !out.Staged {
		t.Fatalf("%+v, %v", out, err)
	}
	w.complete()
	out, err = w.m.Check(t.Context(), Options{From: strings.Replace(w.server.URL, "://", "://me:secret@", 1)})
	if err != nil || out.From != w.server.URL {
		t.Errorf("with a password: %+v, %v", out, err)
	}
	if _, err := w.m.Check(t.Context(), Options{From: filepath.Join(dir, "none")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("from nowhere: %v", err)
	}
}

// A damaged memory of signed manifests does not pass for none, and a machine that is at
// work is not looked at half way. FAULTS 4
func TestSeenDamaged(t *testing.T) {
	w := newWorld(t)
	w.site.Publish(w.three, func(m *manifest.Manifest) { m.Sequence = 7 })
	w.site.SignManifest()
	_, err := w.m.Check(t.Context(), Options{})
	must(t, err)
	name := filepath.Join(stateDirectory, seenFile)
	good := w.read(name)
	w.site.Publish(w.three, func(m *manifest.Manifest) { m.Sequence = 6 })
	w.site.SignManifest()
	for _, text := range []string{"", "{", "{}", "null", "7", good[:len(good)/2], `{"sequence":0}`, strings.Repeat("\x00", len(good))} {
		w.write(name, []byte(text))
		_, err := w.fetch()
		if err == nil || !strings.Contains(err.Error(), "is damaged") || !strings.Contains(err.Error(), "`rm "+w.path(name)+"`") || len(w.log) > 0 {
			t.Errorf("%q: %v, %v", text, err, w.log)
		}
	}
	w.write(name, []byte(good))
	if _, err := w.fetch(); err == nil || !strings.Contains(err.Error(), "has seen 7") {
		t.Errorf("an old manifest: %v", err)
	}
	must(t, os.Remove(w.path(name)))
	out, err := w.fetch()
	if err != nil || !out.Staged {
		t.Errorf("after the advice was followed: %+v, %v", out, err)
	}
}
