package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"
	"unicode/utf16"
)

// info is a file or directory as its directory entry describes it. It implements
// [fs.FileInfo] and [fs.DirEntry].
type info struct {
	name    string
	short   string
	raw     shortName // as it is on the disk
	dir     bool
	cluster uint32
	size    int64
	time    time.Time
}

func (i *info) Name() string               { return i.name }
func (i *info) Size() int64                { return i.size }
func (i *info) ModTime() time.Time         { return i.time }
func (i *info) IsDir() bool                { return i.dir }
func (i *info) Sys() any                   { return nil }
func (i *info) Type() fs.FileMode          { return i.Mode().Type() }
func (i *info) Info() (fs.FileInfo, error) { return i, nil }
func (i *info) String() string             { return fs.FormatDirEntry(i) }
func (i *info) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o555
	}
	return 0o444
}

// clean replaces what must not be in a name: it could lead out of a directory, or
// talk to the terminal.
func clean(name string) string {
	return strings.Map(func(r rune) rune {
		if !validRune(r) || r >= 0x80 && r < 0xa0 {
			return '_'
		}
		return r
	}, name)
}

// errBehindEnd says that a directory has entries behind its end. The specification ends
// a directory at the first empty entry, and so does firmware; Linux goes on.
var errBehindEnd = errors.New("a directory has entries behind its end")

// readDir returns the files and directories in the directory at cluster first. With
// an error it returns those found before it.
func (f *FS) readDir(first uint32) ([]*info, error) {
	var found []*info
	c, err := f.chain(first)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, f.g.clusterSize())
	var long longName
	ended, number := false, 0
	for total := len(buf); ; total += len(buf) {
		if total > maxDirBytes {
			return found, fmt.Errorf("more than %d directory entries", maxDirBytes/dirEntrySize)
		}
		if err := readFull(f.r, buf, f.g.cluster(c.cluster)); err != nil {
			return found, fmt.Errorf("read cluster %d: %w", c.cluster, err)
		}
		for e := range slices.Chunk(buf, dirEntrySize) {
			switch {
			case e[0] == 0 && !f.strict:
				return found, nil
			case e[0] == 0:
				ended = true
				number++
				continue
			case ended && e[0] != 0xe5:
				return found, errBehindEnd
			}
			if i := f.parseEntry(e, &long); i != nil && !f.isDots(i, number, first) {
				found = append(found, i)
			}
			number++
		}
		if err := c.advance(); err == io.EOF {
			return found, nil
		} else if err != nil {
			return found, err
		}
	}
}

// parseEntry returns the file or directory of entry e, or nil when it is none.
func (f *FS) parseEntry(e []byte, long *longName) *info {
	var d dirEntry
	if _, err := binary.Decode(e, binary.LittleEndian, &d); err != nil {
		return nil
	}
	if e[0] == 0xe5 { // deleted
		*long = longName{}
		return nil
	}
	if d.Attr&attrLongMask == attrLongName {
		long.add(e)
		return nil
	}
	name := long.take(d.Name)
	if d.Attr&attrVolumeID != 0 && !(f.strict && (d.ClusterLow != 0 || d.ClusterHigh != 0)) {
		return nil // a label has no clusters: what has some may have been a file
	}
	short := shortText(d.Name, 0)
	if name == "" {
		name = shortText(d.Name, d.Case)
	}
	i := &info{
		name: name, short: short, raw: d.Name, dir: d.Attr&attrDir != 0,
		cluster: uint32(d.ClusterHigh)<<16 | uint32(d.ClusterLow),
		time:    goTime(d.WriteDate, d.WriteTime),
	}
	if !i.dir {
		i.size = int64(d.Size)
	}
	return i
}

// isDots reports whether entry number n of the directory at cluster first is the one for
// the directory itself or for the one above: the root has neither, and in all others
// they come first (section "Directory creation"). Whatever else has such a name was
// something else before a byte of it changed.
func (f *FS) isDots(i *info, n int, first uint32) bool {
	if first == f.root || !i.dir {
		return false
	}
	own := i.cluster == first || i.cluster == 0 || !f.strict
	return n == 0 && i.raw == dotName(1) && own || n == 1 && i.raw == dotName(2)
}

// dotName is the short name of so many dots.
func dotName(dots int) shortName {
	name := blankName
	copy(name[:], strings.Repeat(".", dots))
	return name
}

// shortText returns a short name as text. The bits in lower say which parts
// Windows NT and Linux show in lower case.
func shortText(name [11]byte, lower uint8) string {
	if name[0] == '.' { // no name begins so, and it could lead out of the directory
		name[0] = '_'
	}
	if name[0] == 0x05 { // stands for 0xe5, which would mean deleted
		name[0] = 0xe5
	}
	text := func(b []byte, lower bool) string {
		var s strings.Builder
		for _, c := range b {
			switch {
			case c >= 0x80: // the code page is not known
				s.WriteByte('_')
			case lower && c >= 'A' && c <= 'Z':
				s.WriteByte(c + 'a' - 'A')
			default:
				s.WriteByte(c)
			}
		}
		return clean(strings.TrimRight(s.String(), " "))
	}
	base, ext := text(name[:8], lower&0x08 != 0), text(name[8:], lower&0x10 != 0)
	if base == "" {
		base = "_"
	}
	if ext == "" {
		return base
	}
	return base + "." + ext
}

// longName collects the long entries before a short one. Those that do not
// belong together, or not to it, are no name: the short one then counts.
type longName struct {
	units    []uint16
	left     int // parts still to come
	checksum uint8
}

func (l *longName) add(e []byte) {
	var p longEntry
	if _, err := binary.Decode(e, binary.LittleEndian, &p); err != nil {
		return
	}
	order := int(p.Order &^ lastLong)
	switch {
	case order < 1 || order > 20:
		*l = longName{}
		return
	case p.Order&lastLong != 0:
		*l = longName{units: make([]uint16, order*longUnits), left: order, checksum: p.Checksum}
	case order != l.left || p.Checksum != l.checksum:
		*l = longName{}
		return
	}
	part := l.units[(order-1)*longUnits:]
	copy(part, p.Name1[:])
	copy(part[5:], p.Name2[:])
	copy(part[11:], p.Name3[:])
	l.left--
}

// take returns the name, if there is a whole one that belongs to short.
func (l *longName) take(short shortName) string {
	units, whole := l.units, l.left == 0 && l.checksum == short.checksum()
	*l = longName{}
	if len(units) == 0 || !whole {
		return ""
	}
	if end := slices.Index(units, 0); end >= 0 {
		units = units[:end]
	}
	name := clean(string(utf16.Decode(units)))
	if checkName(name) != nil {
		return ""
	}
	return name
}

// find returns the file or directory of that name, exactly or as FAT compares.
func find(in []*info, name string) *info {
	for _, same := range []func(*info) bool{
		func(i *info) bool { return i.name == name },
		func(i *info) bool { return strings.EqualFold(i.name, name) },
		func(i *info) bool { return strings.EqualFold(i.short, name) },
	} {
		if i := slices.IndexFunc(in, same); i >= 0 {
			return in[i]
		}
	}
	return nil
}

var errNotDir = errors.New("not a directory")

// lookup returns what is at path.
func (f *FS) lookup(path string) (*info, error) {
	if !fs.ValidPath(path) {
		return nil, fs.ErrInvalid
	}
	at := &info{name: ".", dir: true, cluster: f.root}
	if path == "." {
		return at, nil
	}
	seen := []uint32{f.root}
	for part := range strings.SplitSeq(path, "/") {
		if !at.dir {
			return nil, fs.ErrNotExist
		}
		in, err := f.readDir(at.cluster)
		next := find(in, part)
		if next == nil {
			if err == nil { // else it may be in the part that cannot be read
				err = fs.ErrNotExist
			}
			return nil, err
		}
		if next.dir {
			if slices.Contains(seen, next.cluster) {
				return nil, fmt.Errorf("directory %q contains itself", part)
			}
			if seen = append(seen, next.cluster); len(seen) > maxDepth {
				return nil, fmt.Errorf("more than %d directories deep", maxDepth)
			}
		}
		at = next
	}
	return at, nil
}

// Stat implements [fs.StatFS].
func (f *FS) Stat(path string) (fs.FileInfo, error) {
	i, err := f.lookup(path)
	if err != nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return i, nil
}

// ReadDir implements [fs.ReadDirFS]. Of a damaged directory it returns what can
// be read, together with an error.
func (f *FS) ReadDir(path string) ([]fs.DirEntry, error) {
	i, err := f.lookup(path)
	if err == nil && !i.dir {
		err = errNotDir
	}
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: path, Err: err}
	}
	entries, err := f.sorted(i)
	if err != nil {
		err = &fs.PathError{Op: "readdir", Path: path, Err: err}
	}
	return entries, err
}

func (f *FS) sorted(dir *info) ([]fs.DirEntry, error) {
	in, err := f.readDir(dir.cluster)
	slices.SortStableFunc(in, func(a, b *info) int { return strings.Compare(a.name, b.name) })
	entries := make([]fs.DirEntry, len(in))
	for i := range in {
		entries[i] = in[i]
	}
	return entries, err
}

// Walk calls visit for everything on the volume, directories before their content,
// each directory's in the order of their names. A directory that cannot be read, or
// only in part, is visited once more, with the error; so is one that
// was reached before by another path. An error of visit ends the walk and is
// returned; so does a volume with more than a million entries.
func (f *FS) Walk(visit func(path string, i fs.FileInfo, err error) error) error {
	w := &walker{f: f, visit: visit, seen: map[uint32]string{}}
	return w.dir(".", &info{name: ".", dir: true, cluster: f.root}, 0)
}

type walker struct {
	f     *FS
	visit func(string, fs.FileInfo, error) error
	seen  map[uint32]string // path of the directory at a cluster
	count int
}

func (w *walker) dir(path string, dir *info, depth int) error {
	if err := w.visit(path, dir, nil); err != nil {
		return err
	}
	if other, ok := w.seen[dir.cluster]; ok {
		return w.visit(path, dir, fmt.Errorf("%s: is the directory %s again", path, other))
	}
	if depth > maxDepth {
		return w.visit(path, dir, fmt.Errorf("%s: more than %d directories deep", path, maxDepth))
	}
	w.seen[dir.cluster] = path
	entries, err := w.f.sorted(dir)
	if err != nil {
		if err := w.visit(path, dir, fmt.Errorf("%s: %w", path, err)); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if w.count++; w.count > maxWalk {
			return fmt.Errorf("walk: more than %d files and directories", maxWalk)
		}
		i, at := e.(*info), e.Name()
		if path != "." {
			at = path + "/" + at
		}
		step := w.visit
		if i.dir {
			step = func(path string, _ fs.FileInfo, _ error) error { return w.dir(path, i, depth+1) }
		}
		if err := step(at, i, nil); err != nil {
			return err
		}
	}
	return nil
}
