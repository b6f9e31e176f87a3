package fetch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"halogenos.internal/boot/release"
	"halogenos.internal/uroot-cmds/ota/otatest"
)

// readOnly is a slot that nobody may write to.
type readOnly struct{ *os.File }

func (readOnly) WriteAt([]byte, int64) (int, error) { return 0, errors.New("written to") }
func (readOnly) Sync() error                        { return errors.New("flushed") }

// measure looks, and says what is to be fetched.
func (m *machine) measure(address string) Measured {
	m.t.Helper()
	f, t, err := m.look(m.t.Context(), address)
	if err != nil {
		m.t.Fatal(err)
	}
	got, err := m.job(t, f, readOnly{m.file("b")}).Measure(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	return got
}

// What is said before is what is fetched, byte for byte, whatever the two images are.
func TestMeasure(t *testing.T) {
	key := otatest.NewKey(t)
	for i, c := range []struct {
		old, new int
		every    int
		inSlot   []byte // what the other slot has of an older release
	}{
		{900, 900, 0, nil}, {900, 900, 1, nil}, {900, 900, 2, nil}, {900, 900, 3, nil}, {900, 900, 7, nil}, {900, 900, 50, nil},
		{900, 1300, 12, nil}, {1300, 900, 12, nil}, {5, 700, 3, nil}, {700, 1, 1, nil},
		{900, 1000, 9, otatest.Image(950, 2, 4, 1)}, {900, 1000, 2, otatest.Image(2000, 2, 0, 0)},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			old := otatest.Make(t, otatest.Spec{Version: 1, Key: key, Image: otatest.Image(c.old, 1, 0, 0)})
			fresh := otatest.Make(t, otatest.Spec{Version: 2, Key: key, Image: otatest.Image(c.new, 1, c.every, 2)})
			site := otatest.NewSite(key)
			site.Publish(fresh, nil)
			s := serve(t, site, true)
			m := newMachine(t, old)
			if _, err := m.file("b").WriteAt(c.inSlot, 0); err != nil {
				t.Fatal(err)
			}
			said := m.measure(s.URL)
			if index, _ := fresh.Head.Place(release.IndexFile); said.Index != index.Packed {
				t.Errorf("%d bytes of the index, which has %d", said.Index, index.Packed)
			}
			if again := m.measure(s.URL); again.Bytes != said.Bytes || again.Index != 0 {
				t.Errorf("a second time %+v, before %+v", again, said)
			}
			r, err := m.fetch(t.Context(), s.URL)
			if err != nil || r.Fetched != said.Bytes {
				t.Errorf("said %d bytes, fetched %d, %v", said.Bytes, r.Fetched, err)
			}
			if left := m.measure(s.URL); left != (Measured{}) {
				t.Errorf("when all is there: %+v", left)
			}
		})
	}
}

// Of a fetch that was cut, only what is left is said.
func TestMeasureAfterCut(t *testing.T) {
	w := newWorld(t)
	for _, after := range []int64{1, 70_000, 300_000, 700_000} {
		s := serve(t, w.site, true)
		m := newMachine(t, w.old)
		whole := m.measure(s.URL)
		ctx, cancel := context.WithCancel(t.Context())
		sent := int64(0)
		s.hook(func(out http.ResponseWriter, r *http.Request) bool {
			if sent = s.bytes(); sent > after {
				cancel()
			}
			return false
		})
		_, err := m.fetch(ctx, s.URL)
		cancel()
		s.hook(nil)
		if err == nil {
			t.Fatalf("after %d bytes nothing was cut", after)
		}
		said := m.measure(s.URL)
		if said.Bytes > whole.Bytes || after > 300_000 && said.Bytes == whole.Bytes {
			t.Errorf("cut after %d bytes: %d are left of %d", after, said.Bytes, whole.Bytes)
		}
		r, err := m.fetch(t.Context(), s.URL)
		if err != nil || r.Fetched != said.Bytes {
			t.Errorf("cut after %d bytes: said %d, fetched %d, %v", after, said.Bytes, r.Fetched, err)
		}
	}
}

// A server without ranges sends the whole archive, or nothing.
func TestMeasureStream(t *testing.T) {
	w := newWorld(t)
	s := serve(t, w.site, false)
	m := newMachine(t, w.old)
	if said := m.measure(s.URL); said.Bytes != int64(len(w.new.Archive)) || said.Index != 0 {
		t.Errorf("%+v, the archive has %d bytes", said, len(w.new.Archive))
	}
	if _, err := os.Stat(filepath.Join(m.dir, "directory", release.IndexFile)); err == nil {
		t.Error("something was fetched")
	}
	if r, err := m.fetch(t.Context(), s.URL); err != nil || r.Fetched != int64(len(w.new.Archive)) {
		t.Errorf("%+v, %v", r, err)
	}
	if left := m.measure(s.URL); left != (Measured{}) {
		t.Errorf("when all is there: %+v", left)
	}
}
