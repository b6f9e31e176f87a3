package initramfs

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"halogenos.internal/builder/config"
	"halogenos.internal/builder/modules"
)

// Files reads files of the root file system.
type Files interface {
	// ReadFile reads a file that may not have more than limit bytes.
	ReadFile(name string, limit int64) ([]byte, error)
}

const (
	maxIndex  = 64 << 20 // bytes of one of depmod's files
	maxModule = 256 << 20
)

// An Index is what depmod wrote about the modules of one kernel
// (modules.dep(5), modprobe.d(5)).
type Index struct {
	dir      string              // of the kernel's modules, in the root file system
	release  string              // as uname -r has it
	paths    map[string]string   // file of a module, relative to dir, by its canonical name
	needs    map[string][]string // names that a module depends on, transitively
	soft     map[string][]string // names or aliases that it would like to have
	builtins map[string]bool
	builtin  []byte              // modules.builtin as it is
	alias    []byte              // modules.alias as it is
	softdep  []byte              // modules.softdep as it is
	aliases  map[string][]string // modules of an alias without wildcards
	// Of modules.builtin.modinfo, where there is one.
	modinfo        bool
	builtinAliases map[string]bool // without wildcards or with, as they are
}

// LoadIndex reads depmod's files in a directory such as
// usr/lib/modules/6.12.1 of the root file system.
func LoadIndex(files Files, dir, release string) (*Index, error) {
	x := &Index{
		dir: dir, release: release, paths: map[string]string{}, needs: map[string][]string{}, soft: map[string][]string{},
		builtins: map[string]bool{}, aliases: map[string][]string{}, builtinAliases: map[string]bool{},
	}
	dep, err := files.ReadFile(path.Join(dir, "modules.dep"), maxIndex)
	if err != nil {
		return nil, fmt.Errorf("index of the kernel's modules: %w: install the modules of kernel %[2]s, or run `depmod %[2]s` in the root file system", err, release)
	}
	for _, f := range []struct {
		name string
		to   *[]byte
	}{{"modules.builtin", &x.builtin}, {"modules.alias", &x.alias}, {"modules.softdep", &x.softdep}} {
		if *f.to, err = files.ReadFile(path.Join(dir, f.name), maxIndex); err != nil {
			return nil, fmt.Errorf("index of the kernel's modules: %w: install the modules of kernel %[2]s, or run `depmod %[2]s` in the root file system", err, release)
		}
	}
	if err := x.readModinfo(files); err != nil {
		return nil, err
	}
	if err := x.readDep(string(dep)); err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(x.builtin)) {
		if line = strings.TrimSpace(line); line != "" {
			x.builtins[moduleName(line)] = true
		}
	}
	for line := range strings.Lines(string(x.alias)) {
		if w := strings.Fields(line); len(w) == 3 && w[0] == "alias" && !strings.ContainsAny(w[1], "*?[") {
			x.aliases[w[1]] = append(x.aliases[w[1]], canonical(w[2]))
		}
	}
	x.readSoftdep(string(x.softdep))
	return x, nil
}

func (x *Index) readDep(text string) error {
	for line := range strings.Lines(text) {
		file, deps, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		// depmod wrote whole names before module-init-tools 3.5, and some tools do.
		for _, top := range []string{"/lib/modules/", "/usr/lib/modules/"} {
			file = strings.TrimPrefix(file, top+x.release+"/")
		}
		if path.IsAbs(file) || path.Clean(file) != file || strings.HasPrefix(file, "..") {
			return fmt.Errorf("%s/modules.dep names %q, which is outside of it", x.dir, file)
		}
		name := moduleName(file)
		x.paths[name] = file
		for _, dep := range strings.Fields(deps) {
			x.needs[name] = append(x.needs[name], moduleName(dep))
		}
	}
	return nil
}

func (x *Index) readSoftdep(text string) {
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) < 3 || w[0] != "softdep" {
			continue
		}
		for _, word := range w[2:] {
			if word != "pre:" && word != "post:" {
				x.soft[canonical(w[1])] = append(x.soft[canonical(w[1])], word)
			}
		}
	}
}

// moduleName is the canonical name of the module in a file.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return canonical(name)
}

func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// BuiltIn reports whether the kernel has a module built in.
func (x *Index) BuiltIn(name string) bool { return x.builtins[canonical(name)] }

// Select returns the names of the wanted modules with all that they depend on,
// sorted. A module that the kernel has built in is left out, one that it does
// not have at all is an error unless it is optional.
func (x *Index) Select(wanted []config.Module) ([]string, error) {
	selected := make(map[string]bool)
	var unknown []string
	for _, m := range wanted {
		name := canonical(m.Name)
		switch {
		case x.paths[name] != "":
			if err := x.add(selected, name); err != nil {
				return nil, err
			}
		case !x.builtins[name] && !m.Optional:
			unknown = append(unknown, m.Name)
		}
	}
	if len(unknown) > 0 {
		return nil, fmt.Errorf("kernel %s has no module %s: take it out of Modules in [Initramfs], or mark it with '?'",
			x.release, strings.Join(unknown, ", "))
	}
	return slices.Sorted(maps.Keys(selected)), nil
}

func (x *Index) add(selected map[string]bool, name string) error {
	if selected[name] {
		return nil
	}
	selected[name] = true
	for _, dep := range x.needs[name] {
		if x.paths[dep] == "" {
			return fmt.Errorf("module %s needs %s, which is not in %s/modules.dep", name, dep, x.dir)
		}
		if err := x.add(selected, dep); err != nil {
			return err
		}
	}
	for _, soft := range x.soft[name] {
		names := []string{canonical(soft)}
		if x.paths[names[0]] == "" {
			names = x.aliases[soft]
		}
		for _, n := range names {
			if x.paths[n] == "" {
				continue // soft: fine without
			}
			if err := x.add(selected, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// A file of the initramfs, its name relative to the top.
type file struct {
	name string
	data []byte
}

// load returns the decompressed modules and the index files cut down to them.
func (x *Index) load(files Files, names []string) ([]file, error) {
	base := path.Join("lib/modules", x.release)
	keep := make(map[string]bool)
	var out []file
	var dep bytes.Buffer
	for _, name := range names {
		keep[name] = true
		data, err := x.module(files, name)
		if err != nil {
			return nil, err
		}
		out = append(out, file{path.Join(base, plain(x.paths[name])), data})
		dep.WriteString(plain(x.paths[name]) + ":")
		for _, need := range x.needs[name] {
			dep.WriteString(" " + plain(x.paths[need]))
		}
		dep.WriteByte('\n')
	}
	return append(out,
		file{path.Join(base, "modules.alias"), filter(x.alias, keep, 2)},
		file{path.Join(base, "modules.builtin"), x.builtin},
		file{path.Join(base, "modules.dep"), dep.Bytes()},
		file{path.Join(base, "modules.softdep"), filter(x.softdep, keep, 1)},
	), nil
}

// module reads one module and checks that the kernel will take it.
func (x *Index) module(files Files, name string) ([]byte, error) {
	at := path.Join(x.dir, x.paths[name])
	raw, err := files.ReadFile(at, maxModule)
	if err != nil {
		return nil, fmt.Errorf("kernel module %s: %w", name, err)
	}
	data, err := modules.Unpack(at, raw)
	if err != nil {
		return nil, fmt.Errorf("kernel module /%s: %w", at, err)
	}
	if err := checkModule(data, x.release); err != nil {
		return nil, fmt.Errorf("kernel module /%s: %w", at, err)
	}
	return data, nil
}

// plain is the name of a module's file without the suffix of its compression.
func plain(file string) string {
	stem, _, _ := strings.Cut(file, ".ko")
	return stem + ".ko"
}

// filter keeps the lines whose word at the index names a module to be kept.
func filter(text []byte, keep map[string]bool, index int) []byte {
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		if w := bytes.Fields(line); len(w) > index && keep[canonical(string(w[index]))] {
			out.Write(line)
		}
	}
	return out.Bytes()
}
