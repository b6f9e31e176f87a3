package agent

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing/fstest"

	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
)

// remains is what is found of a file after a power cut.
type remains struct {
	absent, unreadable bool
	data               []byte
}

// espFile is a file of the ESP as the kernel has it, and all that a cut could
// leave of it, the oldest first.
type espFile struct {
	now  remains
	disk []remains
}

// memESP keeps files the way vfat was measured to keep them: nothing is on the
// disk before it is flushed, and anything may be. The details of writing in
// place are tested where they are used, in enroll.
type memESP struct {
	files map[string]*espFile
	op    func(string) // before everything that changes something
	fails error        // of every attempt to write
	lying bool         // flushes are reported and not made
	taken int64        // bytes of the GiB that it has
	full  bool         // it has no room for another file, and does not say so
	apart bool         // its names cannot be exchanged
	// exchanged says of each exchange whether both files were flushed before.
	exchanged []bool
}

func newESP(files map[string]remains, op func(string)) *memESP {
	e := &memESP{files: map[string]*espFile{}, op: op}
	for name, r := range files {
		if !r.absent {
			e.files[name] = &espFile{r, []remains{r}}
		}
	}
	return e
}

// after returns what a cut leaves: what was flushed alone when r is nil and all
// is false, everything when all is true, and any mixture with r.
func (e *memESP) after(all bool, r *rand.Rand) map[string]remains {
	out := map[string]remains{}
	for name, f := range e.files {
		switch {
		case all:
			out[name] = f.now
		case r != nil:
			out[name] = f.disk[r.IntN(len(f.disk))]
		default:
			out[name] = f.disk[0]
		}
	}
	return out
}

// settled reports whether everything was flushed.
func (e *memESP) settled() bool {
	for _, f := range e.files {
		if len(f.disk) > 1 {
			return false
		}
	}
	return true
}

type espFS struct {
	fstest.MapFS
	damaged map[string]bool
}

func (f espFS) Open(name string) (fs.File, error) {
	if f.damaged[name] {
		return nil, errors.New("chain of clusters is broken")
	}
	return f.MapFS.Open(name)
}

// Read implements hw.ESP.
func (e *memESP) Read(_ hw.Disk, read func(fs.FS) error) error {
	view := espFS{fstest.MapFS{}, map[string]bool{}}
	for name, f := range e.files {
		if !f.now.absent {
			view.MapFS[name] = &fstest.MapFile{Data: f.now.data}
			view.damaged[name] = f.now.unreadable
		}
	}
	return read(view)
}

// Write implements hw.ESP.
func (e *memESP) Write(_ hw.Disk, write func(hw.ESPDir) error) error {
	if e.fails != nil {
		return e.fails
	}
	return write(espDir{e})
}

// espDir is the ESP while it is written to.
type espDir struct{ *memESP }

func (e *memESP) get(name string) (*espFile, error) {
	if f := e.files[name]; f != nil && !f.now.absent {
		return f, nil
	}
	return nil, fs.ErrNotExist
}

func (e espDir) List(directory string) ([]enroll.FileInfo, error) {
	seen := map[string]bool{}
	var out []enroll.FileInfo
	for name, f := range e.files {
		rest, ok := strings.CutPrefix("/"+name, path.Join("/", directory)+"/")
		if directory == "" {
			rest, ok = name, true
		}
		if !ok || f.now.absent {
			continue
		}
		first, _, below := strings.Cut(rest, "/")
		if !seen[first] {
			out = append(out, enroll.FileInfo{Name: first, Directory: below})
		}
		seen[first] = true
	}
	return out, nil
}

func (e espDir) Read(name string) ([]byte, error) {
	f, err := e.get(name)
	if err != nil {
		return nil, err
	}
	if f.now.unreadable {
		return nil, errors.New("chain of clusters is broken")
	}
	return bytes.Clone(f.now.data), nil
}

func (e espDir) Create(name string, data []byte) error {
	e.op("esp create " + name)
	f := e.files[name]
	if f == nil {
		f = &espFile{remains{absent: true}, []remains{{absent: true}}}
		e.files[name] = f
	}
	if !f.now.absent {
		return fs.ErrExist
	}
	garbage := bytes.Repeat([]byte{0xaa}, len(data))
	if e.full {
		f.now = remains{data: bytes.Clone(data[:len(data)/2])}
		f.disk = append(f.disk, remains{unreadable: true}, remains{data: []byte{}}, remains{data: garbage}, f.now)
		return syscall.ENOSPC
	}
	f.now = remains{data: bytes.Clone(data)}
	f.disk = append(f.disk, remains{unreadable: true}, remains{data: []byte{}}, remains{data: garbage}, f.now)
	return nil
}

func (e espDir) Remove(name string) error {
	e.op("esp remove " + name)
	f, err := e.get(name)
	if err != nil {
		return err
	}
	f.now = remains{absent: true}
	f.disk = append(f.disk, remains{unreadable: true}, f.now)
	return nil
}

func (e espDir) SyncFile(name string) error {
	e.op("esp sync " + name)
	f, err := e.get(name)
	if err != nil {
		return err
	}
	e.flush(f)
	return nil
}

// flush puts the content on the disk; whether the name is there is the directory's.
func (e *memESP) flush(f *espFile) {
	if e.lying {
		return
	}
	absent := slices.ContainsFunc(f.disk, func(r remains) bool { return r.absent })
	f.disk = []remains{f.now}
	if absent {
		f.disk = []remains{{absent: true}, f.now}
	}
}

func (e espDir) SyncDir(directory string) error {
	e.op("esp sync directory " + directory)
	for name, f := range e.files {
		switch {
		case path.Dir(name) != directory || e.lying:
		case f.now.absent:
			f.disk = []remains{f.now}
		default:
			f.disk = slices.DeleteFunc(f.disk, func(r remains) bool { return r.absent })
		}
	}
	return nil
}

func (e espDir) MakeDirectory(string) error { return nil }

func (e espDir) FreeBytes() (int64, error) { return 1<<30 - e.taken, nil }

// Rename leaves the old name or the new one, as hw.ESPDir promises.
func (e espDir) Rename(from, to string) error {
	e.op("esp rename " + from)
	f, err := e.get(from)
	if err != nil {
		return err
	}
	if _, err := e.get(to); err == nil {
		return fs.ErrExist
	}
	e.files[to] = &espFile{f.now, []remains{f.now}}
	if e.lying {
		e.files[to].disk = slices.Concat(f.disk, []remains{{data: []byte{}}}) // as measured
	}
	delete(e.files, from)
	return nil
}

func (e espDir) Open(name string) (enroll.File, error) {
	f, err := e.get(name)
	if err != nil {
		return nil, err
	}
	return &espHandle{e.memESP, f, name}, nil
}

type espHandle struct {
	e    *memESP
	f    *espFile
	name string
}

func (h *espHandle) Reserve(int64) error { return nil }
func (h *espHandle) Close() error        { return nil }

func (h *espHandle) Sync() error {
	h.e.op("esp sync " + h.name)
	h.e.flush(h.f)
	return nil
}

func (h *espHandle) WriteAt(p []byte, off int64) (int, error) {
	h.e.op("esp write " + h.name)
	old := h.f.now.data
	next := append(bytes.Clone(old), make([]byte, max(0, int(off)+len(p)-len(old)))...)
	copy(next[off:], p)
	torn := bytes.Clone(next)
	copy(torn[int(off)+min(512, len(p)):], bytes.Repeat([]byte{0xaa}, max(0, len(next)-len(old))))
	if len(next) == len(old) {
		copy(torn[int(off)+min(512, len(p)):], old[int(off)+min(512, len(p)):])
	}
	h.f.now = remains{data: next}
	h.f.disk = append(h.f.disk, remains{data: torn}, h.f.now)
	return len(p), nil
}
