package fetch

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/release"
	"halogenos.internal/uroot-cmds/ota/server"
)

// What the disk did not keep is named and fetched once more; then it is an
// error.
func TestForgetfulDisk(t *testing.T) {
	w := newWorld(t)
	for _, ranges := range []bool{true, false} {
		s := serve(t, w.site, ranges)
		for _, always := range []bool{false, true} {
			m := newMachine(t, w.old)
			f, tr, err := m.look(t.Context(), s.URL)
			if err != nil {
				t.Fatal(err)
			}
			_, err = m.job(tr, f, &forgetful{Device: m.file("b"), block: 120, always: always}).Run(t.Context())
			if !always && err == nil {
				m.has(w.new)
			}
			if (err != nil) != always || always && !strings.Contains(err.Error(), "does not keep") {
				t.Errorf("ranges %v, always %v: %v", ranges, always, err)
			}
			if !strings.Contains(m.notes.String(), "block 120") {
				t.Errorf("the block is not named: %s", m.notes.String())
			}
		}
	}
}

// A UKI that the disk did not keep is fetched once more.
func TestForgetfulDirectory(t *testing.T) {
	w := newWorld(t)
	s := serve(t, w.site, true)
	m := newMachine(t, w.old)
	m.source = nil
	next, _ := w.new.Head.Place(release.BootManagerFile)
	damaged := 0
	s.hook(func(_ http.ResponseWriter, r *http.Request) bool {
		// When the boot manager is asked for, all blocks of the UKI are there.
		if strings.HasPrefix(r.Header.Get("Range"), fmt.Sprintf("bytes=%d-", next.Offset)) {
			damaged++
			m.damage(release.UKIFile+partial, 10)
		}
		return false
	})
	if _, err := m.fetch(t.Context(), s.URL); err != nil {
		t.Fatal(err)
	}
	m.has(w.new)
	if damaged != 1 {
		t.Errorf("the UKI was damaged %d times", damaged)
	}
}

// A small file that cannot be put in its place ends the fetch, whatever becomes of
// the image, and nothing is said to be there.
func TestSmallStuck(t *testing.T) {
	w := newWorld(t)
	s := serve(t, w.site, true)
	m := newMachine(t, w.old)
	m.source = nil
	next, _ := w.new.Head.Place(release.BootManagerFile)
	image, _ := w.new.Head.Place(release.ImageFile)
	s.hook(func(_ http.ResponseWriter, r *http.Request) bool {
		var from int64
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err != nil {
			t.Error(err)
		}
		if from == next.Offset {
			if err := os.MkdirAll(filepath.Join(m.dir, "directory", release.UKIFile, "in the way"), 0o700); err != nil {
				t.Error(err)
			}
		}
		if from < image.Offset {
			return false
		}
		<-r.Context().Done() // the image never comes, and is not waited for
		return true
	})
	f, _, err := m.look(t.Context(), s.URL)
	if err != nil {
		t.Fatal(err)
	}
	patient, err := server.New(s.URL, server.Options{Window: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = m.job(patient, f, nil).Run(t.Context()); err == nil || !strings.Contains(err.Error(), release.UKIFile) {
		t.Errorf("the UKI's name is taken: %v", err)
	}
	if _, err := os.Stat(filepath.Join(m.dir, "directory", release.FileName)); err == nil {
		t.Error("the release is said to be there")
	}
}

// damage changes a file of the directory.
func (m *machine) damage(name string, at int64) {
	f, err := os.OpenFile(filepath.Join(m.dir, "directory", name), os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("damage"), at)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		m.t.Error(err)
	}
}

// What is wrong with a small file is not taken for its key's fault, nor is it put in
// its place; and a release that contradicts itself is refused.
func TestSmallDamaged(t *testing.T) {
	w := newWorld(t)
	s := serve(t, w.site, true)
	m := newMachine(t, w.old)
	f, tr, err := m.look(t.Context(), s.URL)
	if err != nil {
		t.Fatal(err)
	}
	j := m.job(tr, f, nil)
	if j.head, err = f.head(m.self); err != nil {
		t.Fatal(err)
	}
	if err := j.fetchIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer j.closeIndex()
	uki := &small{name: release.UKIFile, at: release.UKIFile + partial}
	if err := j.fillSmall(t.Context(), uki.name, nil); err != nil {
		t.Fatal(err)
	}
	m.damage(uki.at, 0) // no PE file any more
	if err := j.checkUKI(uki.at); err == nil {
		t.Fatal("the damage harms nothing")
	}
	if err := j.compare([]*small{uki}); err != nil || uki.good {
		t.Errorf("what is damaged is good: %v, %v", uki.good, err)
	}
	if _, err := os.Stat(filepath.Join(m.dir, "directory", uki.name)); err == nil {
		t.Error("what is damaged has its name")
	}
	if err := j.judgeUKI(t.Context(), uki); err != nil || !uki.good {
		t.Errorf("after the UKI was fetched once more: %v, %v", uki.good, err)
	}
	if ok, err := j.whole(uki.name); !ok || err != nil {
		t.Errorf("the UKI is there: %v, %v", ok, err)
	}
	// Each block right, and the whole wrong.
	for i := range j.head.Release.Files {
		if file := &j.head.Release.Files[i]; file.Name == uki.name {
			file.SHA256 = bytes.Repeat([]byte{1}, 32)
		}
	}
	uki.good = false
	if err := j.refill(t.Context(), []*small{uki}); err == nil || !strings.Contains(err.Error(), "contradicts itself") {
		t.Errorf("a release that contradicts itself: %v", err)
	}
}

// forgetful writes another content to a block, the first time or always.
type forgetful struct {
	block.Device
	mu     sync.Mutex
	block  int64
	always bool
	done   bool
}

func (f *forgetful) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	at := f.block*4096 - off
	hit := at >= 0 && at < int64(len(p)) && (f.always || !f.done)
	if hit {
		f.done = true
		p = bytes.Clone(p)
		p[at] ^= 1
	}
	f.mu.Unlock()
	return f.Device.WriteAt(p, off)
}

// failing fails its n-th write, or its n-th flush.
type failing struct {
	block.Device
	mu           sync.Mutex
	writes, sync int
	err          error
}

func (f *failing) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	f.writes--
	fails := f.writes == 0
	f.mu.Unlock()
	if fails {
		return 0, f.err
	}
	return f.Device.WriteAt(p, off)
}

func (f *failing) Sync() error {
	f.sync--
	if f.sync == 0 {
		return f.err
	}
	return f.Device.Sync()
}

// FAULTS 82: a write or flush that fails ends the fetch, which goes on the next
// time.
func TestFailingDisk(t *testing.T) {
	w := newWorld(t)
	for _, ranges := range []bool{true, false} {
		s := serve(t, w.site, ranges)
		for _, f := range []*failing{{writes: 1}, {writes: 30}, {sync: 1}} {
			m := newMachine(t, w.old)
			found, tr, err := m.look(t.Context(), s.URL)
			if err != nil {
				t.Fatal(err)
			}
			f.err, f.Device = errors.New("no space left on device"), m.file("b")
			if _, err := m.job(tr, found, f).Run(t.Context()); !errors.Is(err, f.err) {
				t.Errorf("ranges %v, %+v: %v", ranges, f, err)
			}
			if _, err := os.Stat(filepath.Join(m.dir, "directory", release.FileName)); err == nil {
				t.Error("release.json says that all is there")
			}
			if _, err := m.fetch(t.Context(), s.URL); err != nil {
				t.Error(err)
			}
			m.has(w.new)
		}
	}
}

// FAULTS 82: the slot is smaller than it was, or there is no room for the small
// files.
func TestNoRoom(t *testing.T) {
	w := newWorld(t)
	for _, ranges := range []bool{true, false} {
		s := serve(t, w.site, ranges)
		m := newMachine(t, w.old)
		if err := m.file("b").Truncate(1 << 20); err != nil {
			t.Fatal(err)
		}
		found, tr, err := m.look(t.Context(), s.URL)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.job(tr, found, &short{m.file("b"), 1 << 20}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "system.erofs") {
			t.Errorf("ranges %v: a short slot: %v", ranges, err)
		}
		if got := m.names(); strings.Contains(got, release.FileName) {
			t.Errorf("the directory has %s", got)
		}
		m = newMachine(t, w.old)
		j := m.job(tr, found, nil)
		if err := os.Remove(filepath.Join(m.dir, "directory")); err != nil {
			t.Fatal(err)
		}
		if _, err := j.Run(t.Context()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("ranges %v: no directory: %v", ranges, err)
		}
	}
}

// short is a device that ends early, as a partition does.
type short struct {
	block.Device
	size int64
}

func (s *short) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > s.size {
		return 0, errors.New("no space left on device")
	}
	return s.Device.WriteAt(p, off)
}
