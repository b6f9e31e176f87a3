package machinetest

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

	"halogenos.internal/boot/journal"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
)

// Remains is what is found of a file after a power cut.
type Remains struct {
	Absent, Unreadable bool
	Data               []byte
}

// ESPFile is a file of the ESP as the kernel has it, and all that a cut could
// leave of it, the oldest first.
type ESPFile struct {
	Now  Remains
	Disk []Remains
}

// MemESP keeps files the way vfat was measured to keep them: nothing is on the
// disk before it is flushed, and anything may be. The details of writing in
// place are tested where they are used, in enroll.
type MemESP struct {
	Files map[string]*ESPFile
	op    func(string) // before everything that changes something
	Fails error        // of every attempt to write
	Lying bool         // flushes are reported and not made
	Taken int64        // bytes of the GiB that it has
	Full  bool         // it has no room for another file, and does not say so
	Apart bool         // its names cannot be exchanged
	// exchanged says of each exchange whether both files were flushed before.
	Exchanged []bool
}

func newESP(files map[string]Remains, op func(string)) *MemESP {
	e := &MemESP{Files: map[string]*ESPFile{}, op: op}
	for name, r := range files {
		if !r.Absent {
			e.Files[name] = &ESPFile{r, []Remains{r}}
		}
	}
	return e
}

// after returns what a cut leaves: what was flushed alone when r is nil and all
// is false, everything when all is true, and any mixture with r.
func (e *MemESP) after(all bool, r *rand.Rand) map[string]Remains {
	out := map[string]Remains{}
	for name, f := range e.Files {
		switch {
		case all:
			out[name] = f.Now
		case r != nil:
			out[name] = f.Disk[r.IntN(len(f.Disk))]
		default:
			out[name] = f.Disk[0]
		}
	}
	return out
}

// settled reports whether everything was flushed.
func (e *MemESP) settled() bool {
	for _, f := range e.Files {
		if len(f.Disk) > 1 {
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
func (e *MemESP) Read(_ hw.Disk, read func(fs.FS) error) error {
	view := espFS{fstest.MapFS{}, map[string]bool{}}
	for name, f := range e.Files {
		if !f.Now.Absent {
			view.MapFS[name] = &fstest.MapFile{Data: f.Now.Data}
			view.damaged[name] = f.Now.Unreadable
		}
	}
	return read(view)
}

// Write implements hw.ESP.
func (e *MemESP) Write(_ hw.Disk, write func(hw.ESPDir) error) error {
	if e.Fails != nil {
		return e.Fails
	}
	return write(ESPDir{e})
}

// ESPDir is the ESP while it is written to.
type ESPDir struct{ *MemESP }

func (e *MemESP) Get(name string) (*ESPFile, error) {
	if f := e.Files[name]; f != nil && !f.Now.Absent {
		return f, nil
	}
	return nil, fs.ErrNotExist
}

func (e ESPDir) List(directory string) ([]enroll.FileInfo, error) {
	seen := map[string]bool{}
	var out []enroll.FileInfo
	for name, f := range e.Files {
		rest, ok := strings.CutPrefix("/"+name, path.Join("/", directory)+"/")
		if directory == "" {
			rest, ok = name, true
		}
		if !ok || f.Now.Absent {
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

func (e ESPDir) Read(name string) ([]byte, error) {
	f, err := e.Get(name)
	if err != nil {
		return nil, err
	}
	if f.Now.Unreadable {
		return nil, errors.New("chain of clusters is broken")
	}
	return bytes.Clone(f.Now.Data), nil
}

func (e ESPDir) Create(name string, data []byte) error {
	e.op("esp create " + name)
	f := e.Files[name]
	if f == nil {
		f = &ESPFile{Remains{Absent: true}, []Remains{{Absent: true}}}
		e.Files[name] = f
	}
	if !f.Now.Absent {
		return fs.ErrExist
	}
	garbage := bytes.Repeat([]byte{0xaa}, len(data))
	if e.Full {
		f.Now = Remains{Data: bytes.Clone(data[:len(data)/2])}
		f.Disk = append(f.Disk, Remains{Unreadable: true}, Remains{Data: []byte{}}, Remains{Data: garbage}, f.Now)
		return syscall.ENOSPC
	}
	f.Now = Remains{Data: bytes.Clone(data)}
	f.Disk = append(f.Disk, Remains{Unreadable: true}, Remains{Data: []byte{}}, Remains{Data: garbage}, f.Now)
	return nil
}

func (e ESPDir) Remove(name string) error {
	e.op("esp remove " + name)
	f, err := e.Get(name)
	if err != nil {
		return err
	}
	f.Now = Remains{Absent: true}
	f.Disk = append(f.Disk, Remains{Unreadable: true}, f.Now)
	return nil
}

func (e ESPDir) SyncFile(name string) error {
	e.op("esp sync " + name)
	f, err := e.Get(name)
	if err != nil {
		return err
	}
	e.flush(f)
	return nil
}

// flush puts the content on the disk; whether the name is there is the directory's.
func (e *MemESP) flush(f *ESPFile) {
	if e.Lying {
		return
	}
	absent := slices.ContainsFunc(f.Disk, func(r Remains) bool { return r.Absent })
	f.Disk = []Remains{f.Now}
	if absent {
		f.Disk = []Remains{{Absent: true}, f.Now}
	}
}

func (e ESPDir) SyncDir(directory string) error {
	e.op("esp sync directory " + directory)
	for name, f := range e.Files {
		switch {
		case path.Dir(name) != directory || e.Lying:
		case f.Now.Absent:
			f.Disk = []Remains{f.Now}
		default:
			f.Disk = slices.DeleteFunc(f.Disk, func(r Remains) bool { return r.Absent })
		}
	}
	return nil
}

func (e ESPDir) MakeDirectory(string) error { return nil }

func (e ESPDir) FreeBytes() (int64, error) { return 1<<30 - e.Taken, nil }

// Rename leaves the old name or the new one, as hw.ESPDir promises.
func (e ESPDir) Rename(from, to string) error {
	e.op("esp rename " + from)
	f, err := e.Get(from)
	if err != nil {
		return err
	}
	if _, err := e.Get(to); err == nil {
		return fs.ErrExist
	}
	e.Files[to] = &ESPFile{f.Now, []Remains{f.Now}}
	if e.Lying {
		e.Files[to].Disk = slices.Concat(f.Disk, []Remains{{Data: []byte{}}}) // as measured
	}
	delete(e.Files, from)
	return nil
}

func (e ESPDir) Open(name string) (enroll.File, error) {
	f, err := e.Get(name)
	if err != nil {
		return nil, err
	}
	return &espHandle{e.MemESP, f, name}, nil
}

type espHandle struct {
	e    *MemESP
	f    *ESPFile
	name string
}

func (h *espHandle) Reserve(int64) error { return nil }

func (h *espHandle) Close() error { return nil }

func (h *espHandle) Sync() error {
	h.e.op("esp sync " + h.name)
	h.e.flush(h.f)
	return nil
}

func (h *espHandle) WriteAt(p []byte, off int64) (int, error) {
	h.e.op("esp write " + h.name)
	old := h.f.Now.Data
	next := append(bytes.Clone(old), make([]byte, max(0, int(off)+len(p)-len(old)))...)
	copy(next[off:], p)
	torn := bytes.Clone(next)
	copy(torn[int(off)+min(512, len(p)):], bytes.Repeat([]byte{0xaa}, max(0, len(next)-len(old))))
	if len(next) == len(old) {
		copy(torn[int(off)+min(512, len(p)):], old[int(off)+min(512, len(p)):])
	}
	h.f.Now = Remains{Data: next}
	h.f.Disk = append(h.f.Disk, Remains{Data: torn}, h.f.Now)
	return len(p), nil
}

// Repair implements hw.ESP.
func (e *MemESP) Repair(_ hw.Disk, names []string) (int64, error) {
	for _, name := range names {
		e.op("esp forget " + name)
		f, err := e.Get(name)
		if err != nil {
			return 0, err
		}
		f.Now = Remains{Absent: true}
		f.Disk = []Remains{f.Now}
	}
	return 0, nil
}

// Files are the names and contents of the ESP.
func (m *Machine) Files() map[string][]byte {
	files := map[string][]byte{}
	for name, f := range m.ESP.Files {
		if !f.Now.Absent {
			files[name] = f.Now.Data
		}
	}
	return files
}

// SetFile puts a file on the ESP; nil takes it away.
func (m *Machine) SetFile(name string, data []byte) {
	r := Remains{Data: data, Absent: data == nil}
	m.ESP.Files[name] = &ESPFile{r, []Remains{r}}
}

// Entries are the boot journal's.
func (m *Machine) Entries() []journal.Entry {
	return journal.Parse(m.Volumes[*m.OpenVolume][bootjournal.File])
}

// Kinds are those of the journal's entries.
func (m *Machine) Kinds() (kinds []journal.Kind) {
	for _, e := range m.Entries() {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}
