package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"halogenos.internal/builder/rootfs"
)

const maxKernel = 256 << 20 // bytes

// A kernel is the one kernel of a root file system.
type kernel struct {
	path    string // where it was found
	image   []byte
	release string // as uname -r will have it
	modules string // folder of its modules; may not exist
}

// findKernel looks for the kernel of a root file system. It must be the only
// one, since which of two was meant cannot be told; `Linux=` names it then.
func findKernel(t *rootfs.Tree, chosen string) (*kernel, error) {
	names := []string{chosen}
	if chosen == "" {
		var err error
		if names, err = kernelFiles(t); err != nil {
			return nil, err
		}
	}
	var found []*kernel
	for _, name := range names {
		k, err := readKernel(t, name)
		if err != nil {
			return nil, err
		}
		// The same kernel is often both in /boot and beside its modules.
		same := func(have *kernel) bool { return bytes.Equal(have.image, k.image) }
		if !slices.ContainsFunc(found, same) {
			found = append(found, k)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, errors.New("the root file system has no kernel: looked for /boot/vmlinuz-*, /boot/kernel-*, /boot/bzImage* and /usr/lib/modules/*/vmlinuz")
	}
	var list []string
	for _, k := range found {
		list = append(list, fmt.Sprintf("/%s (%s)", k.path, k.release))
	}
	return nil, fmt.Errorf("the root file system has %d kernels: %s; say which with Linux= in [UKI]", len(found), strings.Join(list, ", "))
}

// kernelFiles lists what can be a kernel by its name. Symbolic links are left
// out: they are second names.
func kernelFiles(t *rootfs.Tree) ([]string, error) {
	var candidates []string
	boot, err := t.List("boot")
	if err != nil {
		return nil, err
	}
	for _, name := range boot {
		if name == "vmlinuz" || strings.HasPrefix(name, "vmlinuz-") || strings.HasPrefix(name, "kernel-") || strings.HasPrefix(name, "bzImage") {
			candidates = append(candidates, path.Join("boot", name))
		}
	}
	for _, dir := range []string{"usr/lib/modules", "lib/modules"} {
		releases, err := t.List(dir)
		if err != nil {
			return nil, err
		}
		for _, release := range releases {
			candidates = append(candidates, path.Join(dir, release, "vmlinuz"))
		}
	}
	var files []string
	for _, name := range candidates {
		info, err := t.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		case info.Mode().IsRegular():
			files = append(files, name)
		}
	}
	return files, nil
}

func readKernel(t *rootfs.Tree, name string) (*kernel, error) {
	image, err := t.ReadFile(name, maxKernel)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	release, err := kernelRelease(image)
	if err != nil {
		return nil, fmt.Errorf("/%s: %w", strings.TrimPrefix(name, "/"), err)
	}
	k := &kernel{path: strings.TrimPrefix(name, "/"), image: image, release: release, modules: path.Join("usr/lib/modules", release)}
	if _, err := t.Resolve(k.modules); err != nil {
		k.modules = path.Join("lib/modules", release)
	}
	return k, nil
}

// kernelRelease reads the version out of a bzImage that firmware can start
// (Linux, Documentation/arch/x86/boot.rst, header fields from 0x1f1 on).
func kernelRelease(image []byte) (string, error) {
	if len(image) < 0x400 || string(image[0x202:0x206]) != "HdrS" || binary.LittleEndian.Uint16(image[0x1fe:]) != 0xaa55 {
		return "", errors.New("is not an x86 kernel (bzImage)")
	}
	if string(image[:2]) != "MZ" {
		return "", errors.New("is a kernel without CONFIG_EFI_STUB, which firmware cannot start")
	}
	at := int(binary.LittleEndian.Uint16(image[0x20e:])) + 0x200
	if at == 0x200 || at >= len(image) {
		return "", errors.New("is a kernel that does not tell its version")
	}
	text, _, ok := bytes.Cut(image[at:min(at+256, len(image))], []byte{0})
	release, _, _ := strings.Cut(string(text), " ")
	if !ok || release == "" || strings.ContainsAny(release, "/\n") || release[0] == '.' {
		return "", fmt.Errorf("is a kernel with the version %.80q", text)
	}
	return release, nil
}
