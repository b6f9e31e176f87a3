package fat

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// node is a file or directory to be written.
type node struct {
	name     string
	short    shortName
	file     *File // nil: a directory
	parent   *node // nil: the root
	children []*node

	index    map[string]*node // children by folded name
	first    uint32           // cluster; zero when there is none
	clusters uint32
}

func (n *node) isDir() bool { return n.file == nil }

// path returns where n is, for messages.
func (n *node) path() string {
	if n.parent == nil || n.parent.parent == nil {
		return n.name
	}
	return n.parent.path() + "/" + n.name
}

// newTree makes a tree of the files, its directories sorted by name.
func newTree(files []File) (*node, error) {
	root := &node{index: map[string]*node{}}
	for i := range files {
		if err := root.add(&files[i]); err != nil {
			return nil, err
		}
	}
	return root, root.finish()
}

// add puts f under its path, with the directories that leads through.
func (root *node) add(f *File) error {
	path, directory := strings.CutSuffix(f.Path, "/")
	switch {
	case directory && (f.Open != nil || f.Size != 0):
		return fmt.Errorf("%q: a directory has no content", f.Path)
	case !directory && f.Open == nil && f.Size != 0:
		return fmt.Errorf("%q: %d bytes, and nothing to read them from", f.Path, f.Size)
	case f.Size < 0 || f.Size > maxFileSize:
		return fmt.Errorf("%q: %d bytes, a file can have 0 to %d", f.Path, f.Size, int64(maxFileSize))
	}
	parts := strings.Split(path, "/")
	if len(parts) > maxDepth {
		return fmt.Errorf("%q: %d directories deep, at most %d are allowed", f.Path, len(parts), maxDepth)
	}
	at := root
	for i, name := range parts {
		if err := checkName(name); err != nil {
			return fmt.Errorf("%q: %w", f.Path, err)
		}
		last := i == len(parts)-1
		child := at.index[fold(name)]
		switch {
		case child == nil:
			child = &node{name: name, parent: at, index: map[string]*node{}}
			if last && !directory {
				child.file = f
			}
			at.index[fold(name)] = child
			at.children = append(at.children, child)
		case child.name != name:
			return fmt.Errorf("%q: differs from %q only in case", f.Path, child.path())
		case !child.isDir() || last && !directory:
			return fmt.Errorf("%q: there is a file or directory of that name already", f.Path)
		}
		at = child
	}
	return nil
}

// finish sorts the directories below n and gives everything its short name.
func (n *node) finish() error {
	slices.SortFunc(n.children, func(a, b *node) int { return cmp.Compare(a.name, b.name) })
	names := make([]string, len(n.children))
	for i, c := range n.children {
		names[i] = c.name
	}
	short, err := aliases(names)
	if err != nil {
		return fmt.Errorf("%q: %w", n.path(), err)
	}
	for i, c := range n.children {
		c.short = short[i]
		if err := c.finish(); err != nil {
			return err
		}
	}
	return nil
}

// walk calls visit for n and everything below it, directories before their content.
func (n *node) walk(visit func(*node) error) error {
	if err := visit(n); err != nil {
		return err
	}
	for _, c := range n.children {
		if err := c.walk(visit); err != nil {
			return err
		}
	}
	return nil
}

// entries returns how many directory entries directory n has.
func (n *node) entries(label string) int {
	count := 2 // "." and ".."
	if n.parent == nil {
		count = min(len(label), 1)
	}
	for _, c := range n.children {
		count++
		if needsLong(c.name, c.short) {
			count += len(longEntries(c.name, c.short))
		}
	}
	return count
}

// allocate gives directories, then files, their clusters, one behind the other
// from the first cluster on. It returns the runs in that order, and the first
// cluster that is free.
func (root *node) allocate(g *geometry, label string) (runs []*node, free uint32, err error) {
	next := int64(firstCluster)
	take := func(n *node, size int64) {
		count := (size + g.clusterSize() - 1) / g.clusterSize()
		if count > 0 {
			n.first, n.clusters = uint32(next), uint32(count)
			runs = append(runs, n)
		}
		next += count
		if next-firstCluster > int64(g.clusters) && err == nil {
			err = errFull
		}
	}
	if err := root.walk(func(n *node) error {
		if !n.isDir() {
			return nil
		}
		size := int64(n.entries(label)) * dirEntrySize
		if size > maxDirBytes {
			return fmt.Errorf("%q: %d directory entries, at most %d fit", n.path(), size/dirEntrySize, maxDirBytes/dirEntrySize)
		}
		take(n, max(size, 1)) // also an empty root has a cluster
		return nil
	}); err != nil {
		return nil, 0, err
	}
	for n := range root.files() {
		take(n, n.file.Size)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("need %d clusters of %d bytes, the volume has %d: %w", next-firstCluster, g.clusterSize(), g.clusters, err)
	}
	return runs, uint32(next), nil
}

// errFull is wrapped when nothing was written, for want of room.
var errFull = errors.New("the files do not fit")

// files yields the files of the tree in order.
func (n *node) files() iter.Seq[*node] {
	return func(yield func(*node) bool) { n.yieldFiles(yield) }
}

func (n *node) yieldFiles(yield func(*node) bool) bool {
	if !n.isDir() {
		return yield(n)
	}
	for _, c := range n.children {
		if !c.yieldFiles(yield) {
			return false
		}
	}
	return true
}
