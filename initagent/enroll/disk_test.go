package enroll

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

var (
	errCut        = errors.New("the power is gone")
	errUnreadable = errors.New("chain of clusters is broken")
)

// A plug counts operations and goes out at one of them.
type plug struct {
	left int // operations until the cut; negative: never
	used int
}

func always() *plug { return &plug{left: -1} }

func (p *plug) tick() error {
	if p.left == 0 {
		return errCut
	}
	if p.left > 0 {
		p.left--
	}
	p.used++
	return nil
}

// A variant is what a cut can leave of a file.
type variant struct {
	absent, unreadable bool
	data               []byte
}

func (v variant) key() string {
	return fmt.Sprintf("%v%v%x", v.absent, v.unreadable, sha256.Sum256(v.data))
}

// A memFile is a file as the running system sees it, and all that a cut could
// leave of it on the disk.
type memFile struct {
	exists     bool
	unreadable bool
	data       []byte
	disk       []variant
	room       int // length that the chain of clusters on the disk holds
	reserved   int // the same, before it is flushed
}

// memDisk keeps files the way vfat was measured to keep them: nothing is on the
// disk before it is flushed, anything may be, and clusters that were never
// written read as 0xaa.
type memDisk struct {
	*plug
	files map[string]*memFile
	// Faults of a file system that the argument does not hold on.
	noSync, noReserve bool
}

func newDisk(p *plug, files map[string][]byte) *memDisk {
	d := &memDisk{plug: p, files: map[string]*memFile{}}
	for name, data := range files {
		d.files[name] = &memFile{exists: true, data: data, disk: []variant{{data: data}}, room: len(data), reserved: len(data)}
	}
	return d
}

// afterCut returns every disk that a cut can leave now.
func (d *memDisk) afterCut() []map[string]variant {
	states := []map[string]variant{{}}
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		var next []map[string]variant
		for _, s := range states {
			for _, v := range d.files[name].disk {
				if len(d.files[name].disk) == 1 {
					s[name] = v
					next = append(next, s)
					continue
				}
				c := maps.Clone(s)
				c[name] = v
				next = append(next, c)
			}
		}
		states = next
	}
	return states
}

// restart makes a disk of one of the states that a cut left.
func restart(p *plug, state map[string]variant) *memDisk {
	d := newDisk(p, nil)
	for name, v := range state {
		if !v.absent {
			d.files[name] = &memFile{exists: true, unreadable: v.unreadable, data: v.data, disk: []variant{v}, room: len(v.data), reserved: len(v.data)}
		}
	}
	return d
}

func stateKey(state map[string]variant) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(state)) {
		if !state[name].absent {
			b.WriteString(name + state[name].key())
		}
	}
	return b.String()
}

func (f *memFile) unique() {
	seen := map[string]bool{}
	f.disk = slices.DeleteFunc(f.disk, func(v variant) bool {
		k := v.key()
		defer func() { seen[k] = true }()
		return seen[k]
	})
}

func (d *memDisk) get(name string) (*memFile, error) {
	if f := d.files[name]; f != nil && f.exists {
		return f, nil
	}
	return nil, fs.ErrNotExist
}

func (d *memDisk) List(directory string) ([]FileInfo, error) {
	if err := d.tick(); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	var out []FileInfo
	for name, f := range d.files {
		rest, ok := strings.CutPrefix("/"+name, path.Join("/", directory)+"/")
		if directory == "" {
			rest, ok = name, true
		}
		if !ok || !f.exists {
			continue
		}
		first, _, below := strings.Cut(rest, "/")
		if !seen[first] {
			out = append(out, FileInfo{Name: first, Directory: below})
		}
		seen[first] = true
	}
	return out, nil
}

func (d *memDisk) Read(name string) ([]byte, error) {
	if err := d.tick(); err != nil {
		return nil, err
	}
	f, err := d.get(name)
	if err != nil {
		return nil, err
	}
	if f.unreadable {
		return nil, errUnreadable
	}
	return bytes.Clone(f.data), nil
}

func (d *memDisk) Create(name string, data []byte) error {
	if err := d.tick(); err != nil {
		return err
	}
	f := d.files[name]
	if f == nil {
		f = &memFile{disk: []variant{{absent: true}}}
		d.files[name] = f
	}
	if f.exists {
		return fs.ErrExist
	}
	garbage := bytes.Repeat([]byte{0xaa}, len(data))
	half := slices.Concat(data[:len(data)/2], garbage[len(data)/2:])
	f.exists, f.unreadable, f.data, f.room, f.reserved = true, false, bytes.Clone(data), 0, len(data)
	f.disk = append(f.disk, variant{data: []byte{}}, variant{data: garbage}, variant{data: half}, variant{data: f.data}, variant{unreadable: true})
	f.unique()
	return nil
}

func (d *memDisk) Remove(name string) error {
	if err := d.tick(); err != nil {
		return err
	}
	f, err := d.get(name)
	if err != nil {
		return err
	}
	f.exists = false
	f.disk = append(f.disk, variant{absent: true}, variant{unreadable: true})
	f.unique()
	return nil
}

func (d *memDisk) SyncFile(name string) error {
	if err := d.tick(); err != nil {
		return err
	}
	f, err := d.get(name)
	if err != nil {
		return err
	}
	d.flush(f)
	return nil
}

// flush puts the content on the disk; whether the name is there is the
// directory's.
func (d *memDisk) flush(f *memFile) {
	if d.noSync {
		return
	}
	absent := slices.ContainsFunc(f.disk, func(v variant) bool { return v.absent })
	f.disk = []variant{{data: bytes.Clone(f.data), unreadable: f.unreadable}}
	if absent {
		f.disk = append(f.disk, variant{absent: true})
	}
	f.room = f.reserved
}

func (d *memDisk) SyncDir(directory string) error {
	if err := d.tick(); err != nil {
		return err
	}
	for name, f := range d.files {
		switch {
		case path.Dir(name) != directory || d.noSync:
		case f.exists:
			f.disk = slices.DeleteFunc(f.disk, func(v variant) bool { return v.absent })
		default:
			f.disk = []variant{{absent: true}}
		}
	}
	return nil
}

func (d *memDisk) Open(name string) (File, error) {
	if err := d.tick(); err != nil {
		return nil, err
	}
	f, err := d.get(name)
	if err != nil {
		return nil, err
	}
	return &memHandle{d, f}, nil
}

type memHandle struct {
	d *memDisk
	f *memFile
}

func (h *memHandle) Reserve(size int64) error {
	if err := h.d.tick(); err != nil {
		return err
	}
	if !h.d.noReserve {
		h.f.reserved = max(h.f.reserved, int(size))
	}
	return nil
}

func (h *memHandle) Sync() error {
	if err := h.d.tick(); err != nil {
		return err
	}
	h.d.flush(h.f)
	return nil
}

func (h *memHandle) Close() error { return nil }

// WriteAt changes sector by sector: a cut leaves each of them old or new, and
// of what is behind the old end anything. Where the chain of clusters had to
// grow for it, the file may be unreadable.
func (h *memHandle) WriteAt(p []byte, off int64) (int, error) {
	if err := h.d.tick(); err != nil {
		return 0, err
	}
	f, end := h.f, int(off)+len(p)
	next := bytes.Clone(f.data)
	if end > len(next) {
		next = append(next, make([]byte, end-len(next))...)
	}
	copy(next[off:], p)
	for at := int(off) / sector * sector; at < min(end, len(f.data)); at += sector {
		stop := min(at+sector, len(f.data))
		for _, v := range slices.Clone(f.disk) {
			if len(v.data) >= stop {
				data := bytes.Clone(v.data)
				copy(data[at:stop], next[at:stop])
				f.disk = append(f.disk, variant{data: data})
			}
		}
	}
	if grown := len(next) - len(f.data); grown > 0 {
		for _, v := range slices.Clone(f.disk) {
			if v.absent || v.unreadable {
				continue
			}
			// Each sector behind the old end is written, or what was in the
			// cluster before.
			tail := next[len(f.data):]
			pieces := (grown + sector - 1) / sector
			for written := range 1 << pieces {
				data := slices.Concat(v.data, bytes.Repeat([]byte{0xaa}, grown))
				for i := range pieces {
					if written>>i&1 == 1 {
						copy(data[len(v.data)+i*sector:], tail[i*sector:min(grown, (i+1)*sector)])
					}
				}
				f.disk = append(f.disk, variant{data: data})
			}
		}
		if len(next) > f.room {
			f.disk = append(f.disk, variant{unreadable: true})
		}
		f.reserved = max(f.reserved, len(next))
	}
	f.data = next
	f.unique()
	return len(p), nil
}

// The toy image: "MZ", offset and length of the signature table as uint32 at
// byte 64, the body. The toy signature is a hash with a name in it, long enough
// to fill sectors.

const (
	toyPointer = 64
	toyTable   = 1400
)

func toyImage(seed byte, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = seed + byte(i*7)
	}
	copy(b, "MZ")
	clear(b[toyPointer : toyPointer+8])
	return b
}

// toySigner is somebody's db key.
type toySigner struct{ name string }

func (s toySigner) table(image []byte) []byte {
	plain := bytes.Clone(image)
	clear(plain[toyPointer : toyPointer+8])
	sum := sha256.Sum256(append([]byte(s.name), plain...))
	return bytes.Repeat(sum[:], toyTable/len(sum)+9)[:toyTable+8*len(s.name)]
}

// split returns the image without its table, and the table.
func toySplit(image []byte) (base, table []byte, ok bool) {
	if len(image) < toyPointer+8 || string(image[:2]) != "MZ" {
		return nil, nil, false
	}
	off, size := binary.LittleEndian.Uint32(image[toyPointer:]), binary.LittleEndian.Uint32(image[toyPointer+4:])
	if off == 0 && size == 0 {
		return image, nil, true
	}
	if uint64(off)+uint64(size) != uint64(len(image)) || off < toyPointer+8 {
		return nil, nil, false
	}
	return image[:off], image[off:], true
}

func (s toySigner) Sign(image []byte) ([]byte, error) {
	base, old, ok := toySplit(image)
	if !ok {
		return nil, errors.New("not an image")
	}
	out := append(bytes.Clone(base), make([]byte, -len(base)&7)...)
	table := append(bytes.Clone(old), s.table(out)...)
	binary.LittleEndian.PutUint32(out[toyPointer:], uint32(len(out)))
	binary.LittleEndian.PutUint32(out[toyPointer+4:], uint32(len(table)))
	return append(out, table...), nil
}

func (s toySigner) Verify(image []byte) error {
	base, table, ok := toySplit(image)
	if !ok || !bytes.HasSuffix(table, s.table(base)) {
		return errors.New("not signed by " + s.name)
	}
	return nil
}
