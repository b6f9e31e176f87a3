// Package modindex reads, writes and merges the indexes that depmod makes of a kernel's
// modules (modules.dep(5), kmod's libkmod-index.c): a binary one is a trie with the names as
// its paths, and a text has a line for each.
//
// It refuses an index of another version, and one in which a node lies below itself.
package modindex

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The binary format: magic, version, the root node's offset; then the nodes. An offset's
// upper bits say what a node has. All numbers are big-endian.
const (
	magic       = 0xb007f457
	version     = 0x00020001
	header      = 12
	hasPrefix   = 0x80000000
	hasValues   = 0x40000000
	hasChildren = 0x20000000
	offsetMask  = 0x0fffffff
	maxByte     = 127 // of a name: kmod has nodes for ASCII alone
)

// MaxSize bounds an index in bytes; maxDepth the nodes on a path, since a module's name or
// alias is shorter; and maxNames the names together, in bytes.
const (
	MaxSize  = 64 << 20
	maxDepth = 512
	maxNames = 4 * MaxSize
)

// A Value is what an index has for a name: a module or its line of dependencies.
type Value struct {
	Priority uint32 // the lowest one counts first
	Text     string
}

// An Index has the values of each name, in the order of the file.
type Index map[string][]Value

// Parse reads a binary index.
func Parse(raw []byte) (Index, error) {
	if len(raw) < header || len(raw) > MaxSize || binary.BigEndian.Uint32(raw) != magic {
		return nil, errors.New("is no index of depmod's")
	}
	if v := binary.BigEndian.Uint32(raw[4:]); v>>16 != version>>16 {
		return nil, fmt.Errorf("is an index of version %d.%d, want %d", v>>16, v&0xffff, version>>16)
	}
	p := &parser{raw: raw, out: Index{}}
	if err := p.node(binary.BigEndian.Uint32(raw[8:]), nil, 0); err != nil {
		return nil, fmt.Errorf("index of depmod's: %w", err)
	}
	return p.out, nil
}

type parser struct {
	raw          []byte
	out          Index
	nodes, names int
}

// node reads a node, whose name begins as the path to it.
func (p *parser) node(offset uint32, name []byte, depth int) error {
	if p.nodes++; depth > maxDepth || p.nodes > len(p.raw)/4 {
		return errors.New("a node lies below itself")
	}
	r := &reader{b: p.raw, at: int(offset & offsetMask)}
	if offset&hasPrefix != 0 {
		name = append(name, r.text()...)
	}
	var first byte
	var children []uint32
	if offset&hasChildren != 0 {
		var last byte
		if first, last = r.byte(), r.byte(); r.err == nil && last < first {
			return errors.New("a node has less than no children")
		}
		for range int(last) - int(first) + 1 {
			children = append(children, r.number())
		}
	}
	if offset&hasValues != 0 {
		if err := p.values(r, string(name)); err != nil {
			return err
		}
	}
	if r.err != nil {
		return r.err
	}
	for i, child := range children {
		if child == 0 {
			continue
		}
		// Each child's name has memory of its own.
		if err := p.node(child, append(slices.Clone(name), first+byte(i)), depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) values(r *reader, name string) error {
	if p.names += len(name); p.names > maxNames {
		return fmt.Errorf("its names have more than %d bytes", maxNames)
	}
	count := r.number()
	for i := uint32(0); i < count && r.err == nil; i++ {
		v := Value{Priority: r.number()}
		v.Text = r.text()
		p.out[name] = append(p.out[name], v)
	}
	return r.err
}

// Encode writes the index as depmod does, byte for byte. It fails where a name or a value
// cannot be in one, or where it has more than MaxSize bytes.
func (x Index) Encode() ([]byte, error) {
	names := slices.Sorted(maps.Keys(x))
	for _, n := range names {
		if strings.ContainsFunc(n, func(c rune) bool { return c == 0 || c > maxByte }) {
			return nil, fmt.Errorf("index of depmod's: the name %.80q has a byte that is no ASCII", n)
		}
		for _, v := range x[n] {
			if strings.ContainsRune(v.Text, 0) {
				return nil, fmt.Errorf("index of depmod's: a value of %.80q has a zero byte", n)
			}
		}
	}
	e := &encoder{x: x, out: make([]byte, header)}
	binary.BigEndian.PutUint32(e.out, magic)
	binary.BigEndian.PutUint32(e.out[4:], version)
	root, err := e.node(names, 0, 0, 0)
	if err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint32(e.out[8:], root)
	return e.out, nil
}

type encoder struct {
	x   Index
	out []byte
}

// node writes the node of sorted names that agree up to at, its children before it, and
// returns its offset. The root, at depth 0, has no prefix.
func (e *encoder) node(names []string, at, prefix, depth int) (uint32, error) {
	if depth > maxDepth {
		return 0, fmt.Errorf("index of depmod's: the name %.80q is too long", names[0])
	}
	from, own := at+prefix, ""
	var values []Value
	if len(names) > 0 {
		own = names[0][at:from]
	}
	if len(names) > 0 && len(names[0]) == from {
		values, names = e.x[names[0]], names[1:]
	}
	var children [maxByte + 1]uint32
	first, last := maxByte, 0
	for i := 0; i < len(names); {
		c := names[i][from]
		n := i
		for n < len(names) && names[n][from] == c {
			n++
		}
		child, err := e.node(names[i:n], from+1, common(names[i], names[n-1])-from-1, depth+1)
		if err != nil {
			return 0, err
		}
		children[c], first, last, i = child, min(first, int(c)), max(last, int(c)), n
	}
	return e.write(own, children[:], first, last, values)
}

// common is the length of what two names begin with alike. Of sorted names the first and the
// last say it of all.
func common(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// write writes one node.
func (e *encoder) write(prefix string, children []uint32, first, last int, values []Value) (uint32, error) {
	at := len(e.out)
	if at > offsetMask || at > MaxSize {
		return 0, fmt.Errorf("index of depmod's: has more than %d bytes", MaxSize)
	}
	offset := uint32(at)
	if prefix != "" {
		offset |= hasPrefix
		e.out = append(append(e.out, prefix...), 0)
	}
	if first <= last {
		offset |= hasChildren
		e.out = append(e.out, byte(first), byte(last))
		for _, c := range children[first : last+1] {
			e.out = binary.BigEndian.AppendUint32(e.out, c)
		}
	}
	if len(values) > 0 {
		offset |= hasValues
		e.out = binary.BigEndian.AppendUint32(e.out, uint32(len(values)))
		for _, v := range values {
			e.out = binary.BigEndian.AppendUint32(e.out, v.Priority)
			e.out = append(append(e.out, v.Text...), 0)
		}
	}
	return offset, nil
}

// reader reads a node. After an error all that it reads is zero.
type reader struct {
	b   []byte
	at  int
	err error
}

func (r *reader) take(n int) []byte {
	if r.err != nil || r.at < header || r.at+n > len(r.b) {
		if r.err == nil {
			r.err = fmt.Errorf("ends before byte %d", r.at+n)
		}
		return make([]byte, n)
	}
	r.at += n
	return r.b[r.at-n : r.at]
}

func (r *reader) byte() byte     { return r.take(1)[0] }
func (r *reader) number() uint32 { return binary.BigEndian.Uint32(r.take(4)) }

func (r *reader) text() string {
	n := -1
	if r.err == nil && r.at >= header && r.at < len(r.b) {
		n = bytes.IndexByte(r.b[r.at:], 0)
	}
	if n < 0 {
		if r.err == nil {
			r.err = fmt.Errorf("a text at byte %d does not end", r.at)
		}
		return ""
	}
	return string(r.take(n + 1)[:n])
}
