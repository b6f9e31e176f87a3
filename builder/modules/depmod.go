package modules

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"strings"
)

// PlainName is the name of a module's file once it is unpacked.
func PlainName(name string) string {
	if IsModule(name) && path.Ext(name) != ".ko" {
		return strings.TrimSuffix(name, path.Ext(name))
	}
	return name
}

// plainWord is PlainName for a word of modules.dep, which may end in a colon.
func plainWord(word string) string {
	if name, ok := strings.CutSuffix(word, ":"); ok {
		return PlainName(name) + ":"
	}
	return PlainName(word)
}

// PlainDep returns modules.dep(5), or another text with names of modules' files in it,
// once all modules are unpacked. Whatever else is in it stays.
func PlainDep(text []byte) []byte {
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		for i, word := range strings.Split(string(line), " ") {
			if i > 0 {
				out.WriteByte(' ')
			}
			bare := strings.TrimRight(word, "\n")
			out.WriteString(plainWord(bare) + word[len(bare):])
		}
	}
	return out.Bytes()
}

// The format of depmod's binary indexes (kmod, shared/depmod.h and libkmod-index.c): a
// header, and nodes that say by the four highest bits of their offset what they have.
const (
	binMagic    = 0xb007f457
	binVersion  = 0x00020001
	binHeader   = 12
	hasPrefix   = 0x80000000
	hasValues   = 0x40000000
	hasChildren = 0x20000000
	offsetMask  = 0x0fffffff

	maxBin      = 64 << 20 // bytes
	maxBinDepth = 512      // a module's name is shorter
)

// PlainDepBin returns modules.dep.bin once all modules are unpacked. What modules are
// called, and their order, stays.
func PlainDepBin(raw []byte) ([]byte, error) {
	if len(raw) < binHeader || len(raw) > maxBin || binary.BigEndian.Uint32(raw) != binMagic {
		return nil, errors.New("is no index of depmod's")
	}
	if v := binary.BigEndian.Uint32(raw[4:]); v>>16 != binVersion>>16 {
		return nil, fmt.Errorf("is an index of version %d.%d, want %d", v>>16, v&0xffff, binVersion>>16)
	}
	b := &bin{raw: raw, out: bytes.Clone(raw[:binHeader])}
	root, err := b.node(binary.BigEndian.Uint32(raw[8:]), 0)
	if err != nil {
		return nil, fmt.Errorf("index of depmod's: %w", err)
	}
	binary.BigEndian.PutUint32(b.out[8:], root)
	return b.out, nil
}

// bin is an index that is written again.
type bin struct {
	raw, out []byte
	nodes    int
}

// node writes a node after those below it, as depmod does, and returns its offset.
func (b *bin) node(offset uint32, depth int) (uint32, error) {
	if b.nodes++; depth > maxBinDepth || b.nodes > len(b.raw)/4 {
		return 0, errors.New("a node lies below itself")
	}
	r := &binReader{b: b.raw, at: int(offset & offsetMask)}
	prefix, first, children := "", byte(0), []uint32(nil)
	if offset&hasPrefix != 0 {
		prefix = r.text()
	}
	if offset&hasChildren != 0 {
		var last byte
		if first, last = r.byte(), r.byte(); r.err == nil && last < first {
			return 0, errors.New("a node has less than no children")
		}
		for range int(last) - int(first) + 1 {
			children = append(children, r.number())
		}
	}
	var values []byte
	if offset&hasValues != 0 {
		count := r.number()
		values = binary.BigEndian.AppendUint32(values, count)
		for i := uint32(0); i < count && r.err == nil; i++ {
			values = binary.BigEndian.AppendUint32(values, r.number()) // the priority
			values = append(append(values, PlainDep([]byte(r.text()))...), 0)
		}
	}
	if r.err != nil {
		return 0, r.err
	}
	for i, child := range children {
		if child == 0 {
			continue
		}
		var err error
		if children[i], err = b.node(child, depth+1); err != nil {
			return 0, err
		}
	}
	at := len(b.out)
	if at > offsetMask {
		return 0, fmt.Errorf("has more than %d bytes", offsetMask)
	}
	if offset&hasPrefix != 0 {
		b.out = append(append(b.out, prefix...), 0)
	}
	if offset&hasChildren != 0 {
		b.out = append(b.out, first, first+byte(len(children)-1))
		for _, child := range children {
			b.out = binary.BigEndian.AppendUint32(b.out, child)
		}
	}
	b.out = append(b.out, values...)
	return uint32(at) | offset&^offsetMask, nil
}

// binReader reads an index. After an error it returns nothing.
type binReader struct {
	b   []byte
	at  int
	err error
}

func (r *binReader) take(n int) []byte {
	if r.err != nil || r.at < binHeader || r.at+n > len(r.b) {
		if r.err == nil {
			r.err = fmt.Errorf("ends before byte %d", r.at+n)
		}
		return make([]byte, n)
	}
	r.at += n
	return r.b[r.at-n : r.at]
}

func (r *binReader) byte() byte     { return r.take(1)[0] }
func (r *binReader) number() uint32 { return binary.BigEndian.Uint32(r.take(4)) }

func (r *binReader) text() string {
	n := -1
	if r.err == nil && r.at >= binHeader && r.at < len(r.b) {
		n = bytes.IndexByte(r.b[r.at:], 0)
	}
	if n < 0 {
		r.take(len(r.b) + 1)
		return ""
	}
	return string(r.take(n + 1)[:n])
}
