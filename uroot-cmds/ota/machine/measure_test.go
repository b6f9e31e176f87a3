package machine

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"halogenos.internal/boot/release"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/otatest"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// What check says is what fetch fetches, to the byte; check writes to no slot.
func TestCheckSaysSize(t *testing.T) {
	w := newWorld(t)
	before, ukis := w.table(), w.ukis()
	out, err := w.m.Check(t.Context(), Options{})
	if err != nil || out.Verdict != offer.Take || out.Fetch == nil || *out.Fetch == 0 || *out.Fetch >= out.Size {
		t.Fatalf("%+v, %v", out, err)
	}
	if len(w.log) > 0 || w.ukis() != ukis || !slices.Equal(before.Partitions, w.table().Partitions) {
		t.Errorf("the machine changed: %v, %s", w.log, w.ukis())
	}
	if s, err := w.m.Status(t.Context()); err != nil || s.Fetching != 0 {
		t.Errorf("version %s counts as partly fetched, %v", s.Fetching, err)
	}
	requests := len(w.archiveRequested)
	if again, err := w.m.Check(t.Context(), Options{}); err != nil || *again.Fetch != *out.Fetch || len(w.archiveRequested) != requests+1 {
		t.Errorf("a second time: %+v, %v, and %v is asked for", again, err, w.archiveRequested[requests:])
	}
	fetched, err := w.fetch()
	if err != nil || fetched.Result.Fetched != *out.Fetch {
		t.Errorf("said %d bytes, %+v, %v", *out.Fetch, fetched.Result, err)
	}
	w.complete()
	if out, err = w.m.Check(t.Context(), Options{}); err != nil || out.Verdict != offer.Current || !out.Staged || out.Fetch != nil {
		t.Errorf("when it is fetched: %+v, %v", out, err)
	}
}

// Of ten pairs of images as well: what the server sends of the archive is what was said.
func TestCheckSaysSizeOfPairs(t *testing.T) {
	same := otatest.Image(blocks, 1, 0, 0)
	moved := slices.Concat(same[len(same)/2:], same[:len(same)/2])
	for name, image := range map[string][]byte{
		"the same as an hour before": same, "moved": moved, "nothing alike": otatest.Image(blocks, 9, 0, 0),
		"every second block": otatest.Image(blocks, 1, 2, 9), "every third": otatest.Image(blocks, 1, 3, 9),
		"every seventh": otatest.Image(blocks, 1, 7, 9), "every hundredth": otatest.Image(blocks, 1, 100, 9),
		"shorter": same[:len(same)*3/4], "longer": otatest.Image(blocks*5/4, 1, 50, 9),
		"zeros": make([]byte, len(same)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.site.Publish(otatest.Make(t, otatest.Spec{Version: 4, Key: w.key, Image: image}), nil)
			var sent atomic.Int64
			w.onArchive = func(out http.ResponseWriter, _ *http.Request) http.ResponseWriter { return counting{out, &sent} }
			said, err := w.m.Check(t.Context(), Options{})
			if err != nil || said.Verdict != offer.Take || said.Version != 4 || said.Fetch == nil {
				t.Fatalf("%+v, %v", said, err)
			}
			before := sent.Load()
			fetched, err := w.fetch()
			if err != nil || fetched.Result.Fetched != *said.Fetch {
				t.Errorf("said %d bytes, %+v, %v", *said.Fetch, fetched.Result, err)
			}
			// The first of it, by which a fetch sees that the archive is the same, is beside that.
			if got := sent.Load() - before; got < *said.Fetch || got > *said.Fetch+16<<10 {
				t.Errorf("said %d bytes, and the server has sent %d", *said.Fetch, got)
			}
			t.Logf("%d of %d bytes", *said.Fetch, said.Size)
		})
	}
}

// counting counts the bytes of an answer.
type counting struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (c counting) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.sent.Add(int64(n))
	return n, err
}

// What checks have left of versions that were never fetched goes; what a fetch has begun
// stays.
func TestCheckTidies(t *testing.T) {
	w := newWorld(t)
	if _, err := w.m.Check(t.Context(), Options{}); err != nil {
		t.Fatal(err)
	}
	checked := w.path(filepath.Join(stateDirectory, "fetch/3.work", release.IndexFile))
	if _, err := os.Stat(checked); err != nil {
		t.Fatal(err)
	}
	w.write(filepath.Join(stateDirectory, "fetch/2.work/uki.efi.part"), []byte("begun"))
	four := otatest.Make(t, otatest.Spec{Version: 4, Key: w.key, Image: otatest.Image(blocks, 1, 5, 4)})
	w.site.Publish(four, nil)
	if out, err := w.m.Check(t.Context(), Options{}); err != nil || out.Version != 4 || out.Fetch == nil {
		t.Fatalf("%+v, %v", out, err)
	}
	if _, err := os.Stat(checked); err == nil {
		t.Error("the index of version 3 is still there")
	}
	if got := w.read(filepath.Join(stateDirectory, "fetch/2.work/uki.efi.part")); got != "begun" {
		t.Errorf("what a fetch has begun is %s", got)
	}
}

// Where it cannot be found out, the offer is told all the same.
func TestCheckWithoutSize(t *testing.T) {
	w := newWorld(t)
	w.write(filepath.Join(stateDirectory, "fetch/3.work"), nil) // which is not a directory
	var notes []string
	out, err := w.m.Check(t.Context(), Options{Tell: func(e worker.Event) {
		if e.Note != "" {
			notes = append(notes, e.Note)
		}
	}})
	if err != nil || out.Verdict != offer.Take || out.Fetch != nil || len(notes) != 1 || !strings.Contains(notes[0], "is not known: ") {
		t.Errorf("%v, %+v, %q", err, out, notes)
	}
}

// On a metered network, and where no fetch would follow, nothing of the release is fetched
// for it.
func TestCheckMeasuresNothing(t *testing.T) {
	for _, c := range []struct {
		set  func(w *world)
		note string
	}{
		{func(w *world) { w.is(true, -1) }, "the network is metered"},
		{func(w *world) { w.corrupt = true }, "has corrupt blocks"},
	} {
		w := newWorld(t)
		c.set(w)
		var notes []string
		out, err := w.m.Check(t.Context(), Options{Tell: func(e worker.Event) {
			if e.Note != "" {
				notes = append(notes, e.Note)
			}
		}})
		if err != nil || out.Verdict != offer.Take || out.Fetch != nil || len(notes) != 1 || !strings.Contains(notes[0], c.note) {
			t.Errorf("%v, %+v, %q, want %q", err, out, notes, c.note)
		}
		if _, err := os.Stat(w.path(filepath.Join(stateDirectory, "fetch/3.work", release.IndexFile))); err == nil {
			t.Errorf("%s: the block index was fetched", c.note)
		}
	}
	w := newWorld(t)
	w.is(true, -1)
	w.write("etc/halogen/ota.conf", []byte("Server="+w.server.URL+"\nFetchMetered=yes\n"))
	if out, err := w.m.Check(t.Context(), Options{}); err != nil || out.Fetch == nil {
		t.Errorf("where the owner allows it: %+v, %v", out, err)
	}
}

// What a check has left counts as no fetch, and makes room for that of another version: a
// check whose block index could not be fetched leaves an empty directory.
func TestMeasured(t *testing.T) {
	for name, want := range map[string]bool{"3.work": true, "4.work/" + release.IndexFile: true, "5.work/" + release.ImageFile: false, "6": false} {
		directory, file, _ := strings.Cut(name, "/")
		directory = filepath.Join(t.TempDir(), directory)
		must(t, os.Mkdir(directory, 0o700))
		if file != "" {
			must(t, os.WriteFile(filepath.Join(directory, file), nil, 0o600))
		}
		if measured(directory) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}
