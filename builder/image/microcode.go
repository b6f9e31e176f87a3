package image

import (
	"bytes"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/microcode"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/verity"
	"halogenos.internal/builder/rootfs"
)

// microcodeFiles is where distributions have the files that Linux itself can read, and
// what these are called. Debian and SUSE mark with a suffix those that are to be loaded at
// Linux's start alone, which ours are.
var microcodeFiles = map[microcode.Vendor]struct {
	dir  string
	name *regexp.Regexp
}{
	microcode.Intel: {"firmware/intel-ucode", regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{2}-[0-9a-f]{2}(\.|$)`)},
	microcode.AMD:   {"firmware/amd-ucode", regexp.MustCompile(`^microcode_amd.*\.bin(\.xz|\.zst)?$`)},
}

// microcodeArchives are what others make of these files for a boot loader (GRUB's
// grub-mkconfig knows the same names): Arch, and Gentoo with USE=initramfs.
var microcodeArchives = []string{
	"boot/intel-uc.img", "boot/intel-ucode.img", "boot/amd-uc.img", "boot/amd-ucode.img", "boot/early_ucode.cpio", "boot/microcode.cpio",
	"usr/lib/firmware/microcode.cpio",
}

// findMicrocode takes the microcode that the image is to have: of each maker from its
// files, or else from archives.
func findMicrocode(t *rootfs.Tree) (*microcode.Set, error) {
	found := new(microcode.Set)
	for _, v := range microcode.Vendors() {
		if err := readMicrocodeFiles(t, v, found); err != nil {
			return nil, err
		}
	}
	for _, name := range microcodeArchives {
		if found.Has(microcode.Intel) && found.Has(microcode.AMD) {
			break
		}
		if _, err := t.Resolve(name); err != nil {
			continue // is not there, or leads nowhere
		}
		archive, err := t.ReadFile(name, microcode.MaxSize)
		if err != nil {
			return nil, err
		}
		more, _, err := microcode.Find(archive) // others may have more in it
		for _, v := range microcode.Vendors() {
			if err == nil && !found.Has(v) {
				err = found.Merge(more, v)
			}
		}
		if err != nil {
			return nil, badMicrocode(name, err)
		}
	}
	return found, nil
}

func badMicrocode(name string, err error) error {
	return fmt.Errorf("microcode: /%s %w; install its package again, or leave microcode out with Microcode=none in [UKI]", name, err)
}

// readMicrocodeFiles adds what a maker's directory has.
func readMicrocodeFiles(t *rootfs.Tree, v microcode.Vendor, to *microcode.Set) error {
	files := microcodeFiles[v]
	var read []string
	for _, lib := range []string{"usr/lib", "lib"} {
		dir := path.Join(lib, files.dir)
		names, err := t.List(dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			if !files.name.MatchString(name) {
				continue
			}
			at, err := t.Resolve(path.Join(dir, name))
			if err != nil {
				return badMicrocode(path.Join(dir, name), err)
			}
			if slices.Contains(read, at) {
				continue
			}
			read = append(read, at)
			data, err := t.ReadFile(at, microcode.MaxSize)
			if err == nil {
				data, err = unpackFirmware(name, data)
			}
			if err == nil {
				err = to.Add(data)
			}
			if err != nil {
				return badMicrocode(at, err)
			}
		}
	}
	return nil
}

// unpackFirmware decompresses a file of firmware as its name says (Linux,
// drivers/base/firmware_loader/main.c). At its start Linux takes nothing compressed.
func unpackFirmware(name string, raw []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch path.Ext(name) {
	case ".xz":
		r, err = xz.NewReader(bytes.NewReader(raw), maxDictionary)
	case ".zst":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(bytes.NewReader(raw), zstd.WithDecoderConcurrency(1)); err == nil {
			defer z.Close()
			r = z
		}
	default:
		return raw, nil
	}
	if err == nil {
		raw, err = bounded.Read(r, microcode.MaxSize)
	}
	if err != nil {
		return nil, fmt.Errorf("does not decompress: %w", err)
	}
	return raw, nil
}

const maxDictionary = 128 << 20 // bytes, of xz

// chooseMicrocode takes the microcode that the configuration asks for, and says what there is.
func (b *build) chooseMicrocode() error {
	found := b.Config.Microcode
	if found == nil {
		var err error
		if found, err = findMicrocode(b.tree); err != nil {
			return err
		}
	}
	packed, err := found.Archive()
	if err != nil {
		return err
	}
	var has, lacks []string
	for _, v := range microcode.Vendors() {
		if names := found.Names(v); len(names) > 0 {
			has = append(has, fmt.Sprintf("%d processors of %s's", len(names), v.Name()))
		} else {
			lacks = append(lacks, v.Name()+"'s")
		}
	}
	switch {
	case len(packed) == 0 && b.Config.Microcode != nil: // as it was asked for
	case len(packed) == 0:
		b.Progress.Note("no microcode in the root file system: processors run with what their firmware brings, and with the holes that were closed since. " +
			"Debian has it in intel-microcode and amd64-microcode (non-free-firmware), Gentoo in sys-firmware/intel-microcode and sys-kernel/linux-firmware; Microcode=none in [UKI] says that none is wanted")
	default:
		text := fmt.Sprintf("microcode for %s, %s", strings.Join(has, " and "), megabytes(int64(len(packed))))
		if len(lacks) > 0 {
			text += "; there is none of " + lacks[0]
		}
		b.Progress.Note("%s", text)
		if s, err := b.kernelConfig(); err == nil && s != nil {
			if lacks := lacksLoader(s, b.parts.kernel.release, found); lacks != "" {
				b.Progress.Note("WARNING: kernel %s passes over microcode: it was built without CONFIG_%s", b.parts.kernel.release, lacks)
			}
		}
	}
	b.microcode, b.ucode = found, packed
	return nil
}

// lacksLoader is the option of the kernel without which it loads none of this microcode; empty
// where it has all. Before Linux 6.6 each maker's is an option of its own.
func lacksLoader(config map[string]string, kernel string, found *microcode.Set) string {
	if config["MICROCODE"] != "y" {
		return "MICROCODE"
	}
	var major, minor int
	if n, err := fmt.Sscanf(kernel, "%d.%d", &major, &minor); n != 2 || err != nil || major > 6 || major == 6 && minor >= 6 {
		return ""
	}
	for _, v := range microcode.Vendors() {
		if option := "MICROCODE_" + strings.ToUpper(v.Name()); found.Has(v) && config[option] != "y" {
			return option
		}
	}
	return ""
}

// microcodeFrom is what the provenance says of it.
func (b *build) microcodeFrom() string {
	switch {
	case b.Config.Microcode == nil:
		return "auto"
	case b.Config.MicrocodeFile == "":
		return "none"
	}
	return b.Config.MicrocodeFile
}

// placeMicrocode decides what hands the microcode to Linux: the stub, by a section of its own, or
// before systemd 256, whose stub passes over that section, the initramfs. There Linux
// looks into each uncompressed archive at the beginning, so it may follow the boot
// contract, which has to be first.
func (b *build) placeMicrocode(contracts []byte) (initrd, section []byte, err error) {
	img, err := uki.Parse(b.parts.stub)
	if err != nil {
		return nil, nil, fmt.Errorf("UKI stub: %w", err)
	}
	stub, err := img.Stub()
	if err != nil {
		return nil, nil, fmt.Errorf("UKI stub: %w", err)
	}
	// What follows begins at a block, as the sections do: it is often the running UKI's, too.
	fill := func(n int) []byte { return make([]byte, -n&(verity.BlockSize-1)) }
	if stub.Major < uki.MicrocodeStub {
		n := len(contracts) + len(b.ucode)
		return slices.Concat(contracts, b.ucode, fill(n), b.initramfs), nil, nil
	}
	return slices.Concat(contracts, fill(len(contracts)), b.initramfs), b.ucode, nil
}
