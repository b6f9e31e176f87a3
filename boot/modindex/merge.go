package modindex

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"
)

// kind is how the files of one name are merged.
type kind int

const (
	lines    kind = iota // all lines, each once
	override             // text by module: the uppermost layer's line counts
	values               // binary: all values of a name, each once
	replace              // binary: the uppermost layer's values of a name count
)

// kinds are the files that say something of loadable modules. What is built into the kernel
// (modules.builtin and others) is of one image alone.
var kinds = map[string]kind{
	"modules.alias": lines, "modules.symbols": lines, "modules.softdep": lines, "modules.weakdep": lines, "modules.devname": lines, "modules.order": lines,
	"modules.dep":       override,
	"modules.alias.bin": values, "modules.symbols.bin": values,
	"modules.dep.bin": replace,
}

// Is reports whether a file name in a directory of modules is that of an index.
func Is(name string) bool { return strings.HasPrefix(name, "modules.") }

// Merges reports whether a file with this name has something of each layer. Of any other
// index the lowest layer's counts.
func Merges(name string) bool {
	_, known := kinds[name]
	return known
}

// Merge merges the files of one name in several directories of modules, the lowest layer
// first, to what depmod would write of all their modules together. A module that an upper
// layer has takes the place of one with its name.
func Merge(name string, layers ...[]byte) ([]byte, error) {
	k, known := kinds[name]
	if !known || len(layers) == 0 {
		return nil, fmt.Errorf("%s: not an index that is merged", name)
	}
	if len(layers) == 1 {
		return layers[0], nil
	}
	if k == lines || k == override {
		return mergeText(k, layers), nil
	}
	all := Index{}
	for _, raw := range layers {
		x, err := Parse(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for key, more := range x {
			if k == replace {
				all[key] = more
				continue
			}
			for _, v := range more {
				all.add(key, v)
			}
		}
	}
	return all.Encode()
}

// add adds a value unless it is there, where its priority belongs: after those that have the
// same one.
func (x Index) add(name string, v Value) {
	have := x[name]
	if slices.ContainsFunc(have, func(h Value) bool { return h.Text == v.Text }) {
		return
	}
	at := slices.IndexFunc(have, func(h Value) bool { return h.Priority > v.Priority })
	if at < 0 {
		at = len(have)
	}
	x[name] = slices.Insert(slices.Clone(have), at, v)
}

func mergeText(k kind, layers [][]byte) []byte {
	key := func(line string) string {
		if k == override {
			return moduleOf(line)
		}
		return line
	}
	last := map[string]int{} // the layer whose line counts
	for i, text := range layers {
		for line := range strings.Lines(string(text)) {
			if n, seen := last[key(ended(line))]; !seen || k == override && n < i {
				last[key(ended(line))] = i
			}
		}
	}
	var out bytes.Buffer
	for i, text := range layers {
		done := map[string]bool{}
		for line := range strings.Lines(string(text)) {
			line = ended(line)
			if id := key(line); last[id] == i && (k == override || !done[id]) {
				done[id] = true
				out.WriteString(line)
			}
		}
	}
	return out.Bytes()
}

// ended has the end that the last line of a file may lack.
func ended(line string) string { return strings.TrimSuffix(line, "\n") + "\n" }

// moduleOf is the name of the module that a line of modules.dep is about, as kmod has it:
// without its directory, compression and ending, and '-' as '_'.
func moduleOf(line string) string {
	file, _, _ := strings.Cut(line, ":")
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}
