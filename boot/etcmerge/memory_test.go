package etcmerge

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// memory is a directory in memory. A path that ends with a slash is a directory; the
// directories above a file need not be named.
type memory map[string]node

type node struct {
	Entry
	content string
}

var day = time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)

func text(s string) node { return node{Entry{Type: Regular, Mode: 0o644, ModTime: day}, s} }

func dir() node { return node{Entry: Entry{Type: Directory, Mode: 0o755, ModTime: day}} }

func link(to string) node { return node{Entry: Entry{Type: Link, Mode: 0o777, Target: to}} }

var (
	gone   = node{Entry: Entry{Type: Whiteout}}
	opaque = node{Entry: Entry{Type: Directory, Mode: 0o755, Opaque: true}}
)

func (n node) mode(mode uint32) node { n.Mode = mode; return n }

func (n node) owner(uid, gid uint32) node {
	n.UID, n.GID = uid, gid
	return n
}

func (n node) attr(name, value string) node {
	n.Xattrs = maps.Clone(n.Xattrs)
	if n.Xattrs == nil {
		n.Xattrs = map[string]string{}
	}
	n.Xattrs[name] = value
	return n
}

func (m memory) node(p string) (node, bool) {
	if n, ok := m[p]; ok {
		n.Size = int64(len(n.content))
		return n, true
	}
	for name := range m {
		if p == "." || strings.HasPrefix(name, p+"/") {
			return dir(), true
		}
	}
	return dir(), p == "."
}

func (m memory) Entry(p string) (Entry, error) {
	n, ok := m.node(p)
	if !ok {
		return Entry{}, fmt.Errorf("lstat %s: %w", p, fs.ErrNotExist)
	}
	return n.Entry, nil
}

func (m memory) Names(p string) ([]string, error) {
	if n, ok := m.node(p); !ok || n.Type != Directory {
		return nil, fmt.Errorf("%q is not a directory", p)
	}
	names := map[string]bool{}
	for name := range m {
		if rest, ok := strings.CutPrefix(name, p+"/"); ok || p == "." && name != "." {
			if p == "." {
				rest = name
			}
			first, _, _ := strings.Cut(rest, "/")
			names[first] = true
		}
	}
	return slices.Collect(maps.Keys(names)), nil
}

func (m memory) Open(p string) (io.ReadCloser, error) {
	n, ok := m.node(p)
	if !ok || n.Type != Regular {
		return nil, fmt.Errorf("%q is not a file", p)
	}
	return io.NopCloser(strings.NewReader(n.content)), nil
}

// full has a directory for each that is not named.
func (m memory) full() memory {
	out := memory{}
	for p, n := range m {
		out[p] = n
		for at := path.Dir(p); at != "."; at = path.Dir(at) {
			out[at], _ = m.node(at)
		}
	}
	return out
}

// over is what an overlay shows.
func over(lower, upper memory) memory {
	lower, upper = lower.full(), upper.full()
	out := memory{}
	for p, n := range lower {
		shows := true
		for at := p; ; at = path.Dir(at) {
			u, ok := upper.node(at)
			shows = shows && (!ok || u.Type == Directory && !(u.Opaque && at != p) && (at != p || n.Type == Directory))
			if l, is := lower.node(at); ok && at != p && u.Type == Directory && (!is || l.Type != Directory) {
				shows = false
			}
			if at == "." {
				break
			}
		}
		if shows {
			out[p] = n
		}
	}
	for p, n := range upper {
		if n.Type != Whiteout {
			n.Opaque = false
			out[p] = n
		}
	}
	return out
}

// failing is a tree with something that cannot be read.
type failing struct {
	memory
	at  string
	err error
}

func (f failing) Open(p string) (io.ReadCloser, error) {
	if p == f.at {
		return io.NopCloser(io.MultiReader(strings.NewReader("1"), brokenReader{f.err})), nil
	}
	return f.memory.Open(p)
}

type brokenReader struct{ err error }

func (b brokenReader) Read([]byte) (int, error) { return 0, b.err }

func (m memory) clone() memory { return maps.Clone(m) }

func same(a, b memory) bool {
	return maps.EqualFunc(a, b, func(x, y node) bool {
		return x.content == y.content && x.Type == y.Type && metadataOf(&x.Entry).equal(metadataOf(&y.Entry)) && x.Target == y.Target
	})
}
