package image

import (
	"bytes"
	"debug/pe"
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
	modules string // directory of its modules; may not exist
}

// findKernel looks for the kernel of a root file system. It must be the only
// one, since which of two was meant cannot be told; `Linux=` names it then.
func findKernel(t *rootfs.Tree, chosen string) (*kernel, error) {
	if chosen != "" {
		return readKernel(t, chosen)
	}
	names, err := kernelFiles(t)
	if err != nil {
		return nil, err
	}
	var found []*kernel
	var others []error
	for _, name := range names {
		k, err := readKernel(t, name)
		if errors.Is(err, errNotKernel) {
			others = append(others, err) // such as a checksum beside a kernel
			continue
		}
		if err != nil {
			return nil, err
		}
		// The same kernel is often both in /boot and beside its modules.
		same := func(have *kernel) bool { return bytes.Equal(have.image, k.image) }
		if !slices.ContainsFunc(found, same) {
			found = append(found, k)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0 && len(others) > 0:
		return nil, fmt.Errorf("the root file system has no kernel: %w; name another one with Linux= in [UKI]", others[0])
	case len(found) == 0:
		return nil, fmt.Errorf("the root file system has no kernel: looked for /%s; name one that lies elsewhere with Linux= in [UKI]", strings.Join(kernelPlaces, ", /"))
	}
	var list []string
	for _, k := range found {
		list = append(list, fmt.Sprintf("/%s (%s)", k.path, k.release))
	}
	return nil, fmt.Errorf("the root file system has %d kernels: %s; say which with Linux= in [UKI]", len(found), strings.Join(list, ", "))
}

// kernelPlaces are where distributions install kernels, with their
// installers' and builds' own places last. Each part is a pattern.
var kernelPlaces = []string{
	"usr/lib/modules/*/vmlinuz", // Fedora, Arch, openSUSE, ostree; Gentoo's is a link
	"lib/modules/*/vmlinuz",
	"boot/vmlinuz", "boot/vmlinuz-*", // Debian, Alpine, Void
	"boot/kernel-*", "boot/bzImage", "boot/bzImage-*", // Gentoo
	"boot/*/*/linux",                // kernel-install's: machine ID, version
	"usr/lib/ostree-boot/vmlinuz-*", // ostree, before the kernel lay with its modules
	"usr/lib/kernel/vmlinuz-*",
	"usr/src/*/arch/x86/boot/bzImage", // built in the image and installed nowhere
}

// kernelFiles lists what can be a kernel by its place, each file once by the
// name that it has without symbolic links. A link that leads nowhere is none.
func kernelFiles(t *rootfs.Tree) ([]string, error) {
	var files []string
	for _, place := range kernelPlaces {
		names, err := expand(t, place)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			at, err := t.Resolve(name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			info, err := t.Lstat(at)
			if err != nil {
				return nil, err
			}
			if info.Mode().IsRegular() && !slices.Contains(files, at) {
				files = append(files, at)
			}
		}
	}
	return files, nil
}

// expand returns the names of a tree that a pattern fits.
func expand(t *rootfs.Tree, pattern string) ([]string, error) {
	found := []string{""}
	for part := range strings.SplitSeq(pattern, "/") {
		var next []string
		for _, dir := range found {
			if !strings.Contains(part, "*") {
				next = append(next, path.Join(dir, part))
				continue
			}
			names, err := t.List(dir)
			if err != nil {
				return nil, err
			}
			for _, name := range names {
				if ok, err := path.Match(part, name); err != nil {
					return nil, err
				} else if ok {
					next = append(next, path.Join(dir, name))
				}
			}
		}
		found = next
	}
	return found, nil
}

// errNotKernel is returned for a file that is not a kernel by its first bytes.
var errNotKernel = errors.New("is not an x86 kernel (bzImage)")

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

// itsModules refuses a kernel beside which there are only modules of others: they
// were not updated together.
func itsModules(t *rootfs.Tree, k *kernel) error {
	if _, err := t.Resolve(k.modules); !errors.Is(err, fs.ErrNotExist) {
		return nil // what is wrong otherwise is told by who reads them
	}
	var others []string
	for _, place := range []string{"usr/lib/modules/*", "lib/modules/*"} {
		names, err := expand(t, place)
		if err != nil {
			return err
		}
		for _, name := range names {
			if base := path.Base(name); !slices.Contains(others, base) {
				others = append(others, base)
			}
		}
	}
	if len(others) == 0 {
		return nil
	}
	return fmt.Errorf("the kernel /%s is %s, and the root file system has modules of %s only: install the modules of that kernel, or name a kernel of these with Linux= in [UKI]", k.path, k.release, strings.Join(others, " and "))
}

// kernelRelease reads the version out of a bzImage that firmware can start
// (Linux, Documentation/arch/x86/boot.rst, header fields from 0x1f1 on).
func kernelRelease(image []byte) (string, error) {
	if len(image) < 0x400 || string(image[0x202:0x206]) != "HdrS" || binary.LittleEndian.Uint16(image[0x1fe:]) != 0xaa55 {
		return "", errNotKernel
	}
	if string(image[:2]) != "MZ" {
		return "", errors.New("is a kernel without CONFIG_EFI_STUB, which firmware cannot start")
	}
	if machine := peMachine(image); machine != 0 && machine != pe.IMAGE_FILE_MACHINE_AMD64 {
		return "", fmt.Errorf("is a kernel for %s, want one for x86-64", machineName(machine))
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
