package testos

import (
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

// TestModules is what tests want of the kernel beyond what an image's uki.conf names
// for its initramfs: network, watchdogs, loop devices, a panic device, and the common
// disks and file systems whatever uki.conf says. A question mark allows a kernel
// without it.
func TestModules() []string {
	return strings.Fields(`virtio_pci virtio_blk nvme ahci sd_mod xhci_pci usb_storage
		erofs overlay ext4 vfat nls_cp437 nls_ascii efivarfs loop dm_verity dm_crypt xts
		?virtio_net ?e1000e ?i6300esb ?iTCO_wdt ?lpc_ich ?i2c_i801 ?pvpanic_pci`)
}

// indexFiles are what modprobe and the builder read beside modules.dep.
func indexFiles() []string {
	return []string{"modules.alias", "modules.softdep", "modules.builtin", "modules.builtin.modinfo", "modules.order", "modules.devname", "modules.symbols"}
}

// moduleIndex is what depmod and the kernel's build know of one kernel's modules
// (modules.dep(5)). Names are written with underscores.
type moduleIndex struct {
	files   map[string]string   // name: file, relative to the kernel's module directory
	needs   map[string][]string // file: files
	soft    map[string][]string // name: names or aliases
	aliases map[string][]string // alias without wildcards: names
	builtin map[string]bool
	lines   map[string]string // file: its line of modules.dep
}

// moduleName is a file's module: modprobe takes dashes for underscores.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// readModules reads the index in a directory such as usr/lib/modules/6.12.0.
func readModules(root *os.Root, dir string) (*moduleIndex, error) {
	x := &moduleIndex{files: make(map[string]string), needs: make(map[string][]string), soft: make(map[string][]string),
		aliases: make(map[string][]string), builtin: make(map[string]bool), lines: make(map[string]string)}
	read := func(name string, line func(string)) error {
		b, err := root.ReadFile(path.Join(dir, name))
		if err != nil {
			return fmt.Errorf("kernel modules: %w", err)
		}
		for l := range strings.Lines(string(b)) {
			if l = strings.TrimSpace(l); l != "" && l[0] != '#' {
				line(l)
			}
		}
		return nil
	}
	err := read("modules.dep", func(l string) {
		file, needs, _ := strings.Cut(l, ":")
		x.files[moduleName(file)], x.needs[file], x.lines[file] = file, strings.Fields(needs), l
	})
	if err != nil {
		return nil, err
	}
	err = read("modules.builtin", func(l string) { x.builtin[moduleName(l)] = true })
	if err != nil {
		return nil, err
	}
	err = read("modules.softdep", func(l string) {
		if f := strings.Fields(l); len(f) > 2 && f[0] == "softdep" {
			wants := slices.DeleteFunc(f[2:], func(w string) bool { return w == "pre:" || w == "post:" })
			x.soft[moduleName(f[1])] = append(x.soft[moduleName(f[1])], wants...)
		}
	})
	if err != nil {
		return nil, err
	}
	return x, read("modules.alias", func(l string) {
		if f := strings.Fields(l); len(f) == 3 && !strings.ContainsAny(f[1], "*?[") {
			x.aliases[f[1]] = append(x.aliases[f[1]], moduleName(f[2]))
		}
	})
}

// closure returns the files of the modules wanted with everything they depend on,
// softly too, sorted. A name with a question mark may be unknown.
func (x *moduleIndex) closure(wanted []string) ([]string, error) {
	taken := make(map[string]bool)
	var take func(file string)
	take = func(file string) {
		if taken[file] {
			return
		}
		taken[file] = true
		for _, need := range x.needs[file] {
			take(need)
		}
		for _, soft := range x.soft[moduleName(file)] {
			for _, name := range append(x.aliases[soft], moduleName(soft)) {
				if f, ok := x.files[name]; ok {
					take(f)
				}
			}
		}
	}
	for _, word := range wanted {
		name := moduleName(strings.TrimPrefix(word, "?"))
		file, ok := x.files[name]
		switch {
		case ok:
			take(file)
		case !x.builtin[name] && !strings.HasPrefix(word, "?"):
			return nil, fmt.Errorf("kernel module %s is neither in modules.dep nor in modules.builtin", name)
		}
	}
	return slices.Sorted(maps.Keys(taken)), nil
}
