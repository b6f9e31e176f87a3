package modules

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"halogenos.internal/boot/modindex"
)

// A File is a module of a system extension.
type File struct {
	Path    string // from the directory of the kernel's modules
	Content []byte // as the kernel loads it
}

// Lists are those that depmod has made of the image's modules.
type Lists struct {
	Dep     []byte // modules.dep
	Symbols []byte // modules.symbols; may be empty
	Builtin []byte // modules.builtin; may be empty
}

// Texts are the lists that [Depmod] writes, the last of which depmod itself has since kmod 33,
// and Indexes those that modprobe searches.
var (
	Texts   = []string{"modules.dep", "modules.alias", "modules.symbols", "modules.softdep", "modules.devname", "modules.weakdep"}
	Indexes = []string{"modules.dep.bin", "modules.alias.bin", "modules.symbols.bin"}
)

// Depmod returns what depmod writes of an extension's modules alone, by the file's name,
// where the image's lie beside them: the lines of modules.dep and of the other lists,
// and indexes of the same. A module is refused that has the name of one of the image's, or
// of one that is built in, or needs one that neither has.
func Depmod(files []File, image Lists) (map[string][]byte, error) {
	d := &depmod{modules: make(map[string]*described), owners: make(map[string]string), builtin: make(map[string]bool)}
	d.image(image)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	for _, f := range files {
		if err := d.add(f); err != nil {
			return nil, fmt.Errorf("kernel module %s: %w", f.Path, err)
		}
	}
	for _, m := range d.own {
		if err := d.link(m); err != nil {
			return nil, fmt.Errorf("kernel module %s: %w", m.path, err)
		}
	}
	return d.write()
}

// described is a module as far as modprobe needs to know it.
type described struct {
	name, path string
	info       map[string][]string
	exports    []string // symbols
	wants      []string // symbols that it does not have itself
	needs      []string // names of modules: of the image's all, of others those that it uses itself
	image      bool
}

type depmod struct {
	modules map[string]*described // by their canonical names
	own     []*described          // of the extension
	owners  map[string]string     // of the symbols, by name
	builtin map[string]bool
}

// image takes the image's modules over.
func (d *depmod) image(lists Lists) {
	for line := range strings.Lines(string(lists.Dep)) {
		file, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		m := &described{name: moduleName(file), path: file, image: true}
		for _, need := range strings.Fields(needs) {
			m.needs = append(m.needs, moduleName(need))
		}
		d.modules[m.name] = m
	}
	for line := range strings.Lines(string(lists.Symbols)) {
		words := strings.Fields(line)
		if len(words) != 3 || words[0] != "alias" {
			continue
		}
		if symbol, ok := strings.CutPrefix(words[1], "symbol:"); ok {
			d.owners[symbol] = canonical(words[2])
		}
	}
	for line := range strings.Lines(string(lists.Builtin)) {
		d.builtin[moduleName(strings.TrimSpace(line))] = true
	}
}

// add takes a module of the extension.
func (d *depmod) add(f File) error {
	plain, _, err := split(f.Content)
	if err != nil {
		return err
	}
	m := &described{name: moduleName(f.Path), path: f.Path}
	if have := d.modules[m.name]; have != nil && have.image {
		return fmt.Errorf("the image has a module of that name, %s: an extension replaces none", have.path)
	} else if have != nil {
		return fmt.Errorf("the extension has another of that name, %s", have.path)
	}
	if d.builtin[m.name] {
		return errors.New("the image's kernel has a module of that name built in: an extension replaces none")
	}
	if strings.ContainsAny(f.Path, " \t\n:") {
		return errors.New("modprobe reads no name with a space or a colon in it")
	}
	if m.info, err = modinfo(plain); err != nil {
		return err
	}
	if err := m.symbols(plain); err != nil {
		return err
	}
	for _, symbol := range m.exports {
		d.owners[symbol] = m.name
	}
	d.modules[m.name] = m
	d.own = append(d.own, m)
	return nil
}

// symbols reads what a module exports and what it wants (Linux,
// include/linux/export-internal.h; kmod's libkmod-elf.c reads the same section).
func (m *described) symbols(plain []byte) error {
	f, err := elf.NewFile(bytes.NewReader(plain))
	if err != nil {
		return fmt.Errorf("is not an ELF file: %w", err)
	}
	if s := f.Section("__ksymtab_strings"); s != nil && s.Type != elf.SHT_NOBITS {
		text, err := s.Data()
		if err != nil {
			return fmt.Errorf("read its symbols: %w", err)
		}
		for name := range bytes.SplitSeq(text, []byte{0}) {
			if len(name) > 0 {
				m.exports = append(m.exports, string(name))
			}
		}
	}
	all, err := f.Symbols()
	if err != nil && !errors.Is(err, elf.ErrNoSymbols) {
		return fmt.Errorf("read its symbols: %w", err)
	}
	for _, s := range all {
		if s.Section == elf.SHN_UNDEF && s.Name != "" {
			m.wants = append(m.wants, s.Name)
		}
	}
	return nil
}

// link finds out which modules a module of the extension uses: those that have its
// symbols, and those that its maker knew of.
func (d *depmod) link(m *described) error {
	needs := make(map[string]bool)
	for _, symbol := range m.wants {
		if owner := d.owners[symbol]; owner != "" && owner != m.name { // else the kernel itself has it
			needs[owner] = true
		}
	}
	for need := range strings.SplitSeq(one(m.info, "depends"), ",") {
		if need = canonical(need); need != "" && !d.builtin[need] {
			needs[need] = true
		}
	}
	for need := range needs {
		if d.modules[need] == nil {
			return fmt.Errorf("needs the module %s, which neither the image nor the extension has", need)
		}
	}
	m.needs = slices.Sorted(maps.Keys(needs))
	return nil
}

// all returns a module's needs and theirs, each before what it needs itself: modprobe
// loads them from the last on.
func (d *depmod) all(m *described) ([]string, error) {
	const under, done = 1, 2
	state := make(map[string]int)
	var paths []string
	var visit func(m *described) error
	visit = func(m *described) error {
		switch state[m.name] {
		case under:
			return fmt.Errorf("needs itself, by way of others: %s", m.name)
		case done:
			return nil
		}
		state[m.name] = under
		for _, need := range m.needs {
			// The image's list has been made by depmod, which refuses rings; a name
			// that it does not explain is of a module that somebody took out.
			if next := d.modules[need]; next != nil {
				if err := visit(next); err != nil {
					return err
				}
			}
		}
		state[m.name] = done
		paths = append(paths, m.path)
		return nil
	}
	if err := visit(m); err != nil {
		return nil, err
	}
	slices.Reverse(paths)
	return paths[1:], nil
}

// Heads of depmod's lists, as it writes them.
const (
	aliasHead   = "# Aliases extracted from modules themselves.\n"
	softdepHead = "# Soft dependencies extracted from modules themselves.\n"
	weakdepHead = "# Weak dependencies extracted from modules themselves.\n"
	symbolsHead = "# Aliases for symbols, used by symbol_request().\n"
	devnameHead = "# Device nodes to trigger on-demand module loading.\n"
)

// write makes the lists and the indexes.
func (d *depmod) write() (map[string][]byte, error) {
	lists := map[string]*strings.Builder{}
	for name, head := range map[string]string{
		"modules.dep": "", "modules.alias": aliasHead, "modules.softdep": softdepHead, "modules.weakdep": weakdepHead, "modules.symbols": symbolsHead, "modules.devname": devnameHead,
	} {
		lists[name] = new(strings.Builder)
		lists[name].WriteString(head)
	}
	indexes := map[string]modindex.Index{"modules.dep.bin": {}, "modules.alias.bin": {}, "modules.symbols.bin": {}}
	put := func(index, key string, priority int, text string) {
		indexes[index][key] = append(indexes[index][key], modindex.Value{Priority: uint32(priority), Text: text})
	}
	for i, m := range d.own {
		needs, err := d.all(m)
		if err != nil {
			return nil, fmt.Errorf("kernel module %s: %w", m.path, err)
		}
		line := strings.Join(append([]string{m.path + ":"}, needs...), " ")
		lists["modules.dep"].WriteString(line + "\n")
		put("modules.dep.bin", m.name, i, line)
		for _, alias := range m.info["alias"] {
			fmt.Fprintf(lists["modules.alias"], "alias %s %s\n", alias, m.name)
			if key, ok := normal(alias); ok {
				put("modules.alias.bin", key, i, m.name)
			}
		}
		for _, list := range []string{"softdep", "weakdep"} {
			for _, value := range m.info[list] {
				fmt.Fprintf(lists["modules."+list], "%s %s %s\n", list, m.name, value)
			}
		}
		for _, symbol := range m.exports {
			fmt.Fprintf(lists["modules.symbols"], "alias symbol:%s %s\n", symbol, m.name)
			put("modules.symbols.bin", "symbol:"+symbol, i, m.name)
		}
		lists["modules.devname"].WriteString(devname(m))
	}
	out := make(map[string][]byte)
	for name, text := range lists {
		out[name] = []byte(text.String())
	}
	if lists["modules.weakdep"].Len() == len(weakdepHead) { // depmod of before kmod 33 writes none
		delete(out, "modules.weakdep")
	}
	for name, index := range indexes {
		raw, err := index.Encode()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out[name] = raw
	}
	return out, nil
}

// normal is an alias as modprobe looks for it, with '_' for each '-' that is in no
// brackets; one whose brackets are not closed is never found.
func normal(alias string) (string, bool) {
	inside := false
	out := []byte(alias)
	for i, c := range out {
		switch {
		case c == '[':
			inside = true
		case c == ']' && !inside:
			return "", false
		case c == ']':
			inside = false
		case c == '-' && !inside:
			out[i] = '_'
		}
	}
	return string(out), !inside
}

var deviceAlias = regexp.MustCompile(`^(char|block)-major-([0-9]+)-([0-9]+)$`)

// devname is the module's line of modules.devname, if it has one: the device node whose
// use loads it.
func devname(m *described) string {
	node, numbers := "", ""
	for _, alias := range m.info["alias"] {
		if name, ok := strings.CutPrefix(alias, "devname:"); ok {
			node = path.Clean(name)
		} else if found := deviceAlias.FindStringSubmatch(alias); found != nil && numbers == "" {
			numbers = found[1][:1] + found[2] + ":" + found[3]
		}
	}
	if node == "" || numbers == "" {
		return ""
	}
	return m.name + " " + node + " " + numbers + "\n"
}
