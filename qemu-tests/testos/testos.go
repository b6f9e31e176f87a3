// Package testos assembles the root file system of the test operating system: the
// smallest system that boots like a real one. Kernel, modules, stub, boot manager and
// mke2fs come from a Debian tree; everything else is one static program.
//
// It refuses a Debian tree that lacks any of these or has two kernels, and never
// writes into a directory that holds something.
package testos

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"halogenos.internal/builder/config"
)

// Options say what goes into the root file system.
type Options struct {
	Debian  string   // an unpacked Debian: linux-image, systemd-boot-efi, e2fsprogs
	Init    string   // the program made from testos/init, statically linked
	Out     string   // a directory, absent or empty
	Config  string   // the uki.conf it will be built with, which names modules; "": none
	Modules []string // names of more; nil: TestModules
}

// The parts that are text.
const (
	osRelease = `NAME="HalogenOS test system"
PRETTY_NAME="HalogenOS test system"
ID=testos
VERSION_ID=1
`
	// stateConf is shorter than what an image without the file gets, so that a test
	// can see which of the two was used.
	stateConf = `overlay /etc
bind /var
bind /home
tmpfs /tmp
`
)

// directories are mount points and places that a system is expected to have.
func directories() []string {
	return []string{"boot", "dev", "efi", "etc", "home", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "usr/bin", "usr/lib/halogen",
		"usr/lib64", "usr/local", "usr/sbin", "var/lib", "var/log", "var/tmp"}
}

// Make assembles the root file system.
func Make(o Options) error {
	modules, err := o.modules()
	if err != nil {
		return fmt.Errorf("test system: %w", err)
	}
	if entries, err := os.ReadDir(o.Out); err == nil && len(entries) > 0 {
		return fmt.Errorf("test system: %s is not empty", o.Out)
	}
	from, err := os.OpenRoot(o.Debian)
	if err != nil {
		return fmt.Errorf("test system: Debian tree: %w", err)
	}
	defer from.Close()
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return fmt.Errorf("test system: %w", err)
	}
	to, err := os.OpenRoot(o.Out)
	if err != nil {
		return fmt.Errorf("test system: %w", err)
	}
	defer to.Close()
	m := &maker{from: from, to: to}
	if err := errors.Join(m.tree(), m.init(o.Init), m.kernel(modules), m.boot(), m.mke2fs()); err != nil {
		return fmt.Errorf("test system from %s: %w", o.Debian, err)
	}
	return nil
}

// modules returns the names of all modules wanted.
func (o Options) modules() ([]string, error) {
	names := o.Modules
	if names == nil {
		names = TestModules()
	}
	if o.Config == "" {
		return names, nil
	}
	c, err := config.Load(o.Config)
	if err != nil {
		return nil, err
	}
	for _, m := range c.Modules {
		name := m.Name
		if m.Optional {
			name = "?" + name
		}
		names = append(names, name)
	}
	return names, nil
}

type maker struct{ from, to *os.Root }

// tree makes directories, links and texts.
func (m *maker) tree() error {
	for _, dir := range directories() {
		if err := m.to.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64",
		"etc/os-release": "../usr/lib/os-release", "var/run": "../run"} {
		if err := m.to.Symlink(target, link); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{"usr/lib/os-release": osRelease, "usr/lib/halogen/state.conf": stateConf,
		"etc/hostname": "testos\n", "usr/lib/testos": "this file is part of the verified image\n"} {
		if err := m.to.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// init installs the program that is everything.
func (m *maker) init(program string) error {
	f, err := elf.Open(program)
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("init: %s is not statically linked: build it with CGO_ENABLED=0", program)
		}
	}
	in, err := os.Open(program)
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	defer in.Close()
	return m.put("usr/sbin/init", in, 0o755)
}

// kernel copies the only kernel with the modules wanted and the indexes that belong
// to them.
func (m *maker) kernel(modules []string) error {
	release, err := m.release()
	if err != nil {
		return err
	}
	if err := m.copy("boot/vmlinuz-" + release); err != nil {
		return err
	}
	dir := "usr/lib/modules/" + release
	index, err := readModules(m.from, dir)
	if err != nil {
		return err
	}
	files, err := index.closure(modules)
	if err != nil {
		return err
	}
	var dep strings.Builder
	for _, file := range files {
		if err := m.copy(path.Join(dir, file)); err != nil {
			return err
		}
		dep.WriteString(index.lines[file] + "\n")
	}
	for _, name := range indexFiles() {
		if err := m.copy(path.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return m.put(path.Join(dir, "modules.dep"), strings.NewReader(dep.String()), 0o644)
}

// release finds the one kernel.
func (m *maker) release() (string, error) {
	kernels, err := fs.Glob(m.from.FS(), "boot/vmlinuz-*")
	if err != nil {
		return "", err
	}
	if len(kernels) != 1 {
		return "", fmt.Errorf("need one kernel /boot/vmlinuz-*, found %d: %q (package linux-image-amd64)", len(kernels), kernels)
	}
	return strings.TrimPrefix(kernels[0], "boot/vmlinuz-"), nil
}

// boot copies the stubs and the boot manager.
func (m *maker) boot() error {
	const dir = "usr/lib/systemd/boot/efi/"
	for _, name := range []string{"linuxx64.efi.stub", "systemd-bootx64.efi"} {
		if err := m.copy(dir + name); err != nil {
			return fmt.Errorf("%w (package systemd-boot-efi)", err)
		}
	}
	// fwupd's program is of the package fwupd-unsigned, which only one boot test needs.
	for _, name := range []string{dir + "addonx64.efi.stub", "usr/libexec/fwupd/efi/fwupdx64.efi"} {
		if err := m.copy(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// mke2fs copies what makes and checks the root partition's file system, with the
// shared libraries it needs.
func (m *maker) mke2fs() error {
	if err := m.copy("etc/mke2fs.conf"); err != nil {
		return fmt.Errorf("%w (package e2fsprogs)", err)
	}
	copied := make(map[string]bool)
	for _, name := range []string{"mke2fs", "e2fsck"} {
		if err := m.program("usr/sbin/"+name, copied); err != nil {
			return fmt.Errorf("%w (package e2fsprogs)", err)
		}
	}
	if err := m.to.Symlink("mke2fs", "usr/sbin/mkfs.ext4"); err != nil {
		return err
	}
	return m.to.Symlink("e2fsck", "usr/sbin/fsck.ext4")
}

// program copies an ELF file, its interpreter and, in turn, its libraries.
func (m *maker) program(name string, copied map[string]bool) error {
	if copied[name] {
		return nil
	}
	copied[name] = true
	if err := m.copy(name); err != nil {
		return err
	}
	interp, libraries, err := m.dynamic(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if interp != "" {
		if err := m.program("usr"+interp, copied); err != nil {
			return err
		}
	}
	for _, lib := range libraries {
		where, err := m.library(lib)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := m.program(where, copied); err != nil {
			return err
		}
	}
	return nil
}

// dynamic returns what the dynamic linker would need for an ELF file.
func (m *maker) dynamic(name string) (interp string, libraries []string, err error) {
	f, err := m.from.Open(name)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	e, err := elf.NewFile(f)
	if err != nil {
		return "", nil, err
	}
	for _, p := range e.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b := make([]byte, min(p.Filesz, 4096))
		if _, err := io.ReadFull(p.Open(), b); err != nil {
			return "", nil, err
		}
		interp = strings.TrimRight(string(b), "\x00")
	}
	libraries, err = e.ImportedLibraries()
	return interp, libraries, err
}

// library finds a shared library where Debian's dynamic linker would.
func (m *maker) library(name string) (string, error) {
	dirs := []string{"usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib"}
	i := slices.IndexFunc(dirs, func(dir string) bool {
		_, err := m.from.Stat(path.Join(dir, name))
		return err == nil
	})
	if i < 0 {
		return "", fmt.Errorf("library %s is in none of %q", name, dirs)
	}
	return path.Join(dirs[i], name), nil
}

// copy copies a file under its name, following links.
func (m *maker) copy(name string) error {
	in, err := m.from.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", name)
	}
	return m.put(name, in, info.Mode().Perm())
}

func (m *maker) put(name string, in io.Reader, mode fs.FileMode) (err error) {
	if err := m.to.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	out, err := m.to.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}
