// Package uki writes and reads unified kernel images: a systemd-stub, a PE
// image, with the kernel, its initramfs and the facts about them as further
// sections (UAPI Group, Unified Kernel Image specification).
//
// It refuses whatever a firmware, a stub and a signer could read differently:
// overlapping, repeating or incomplete sections, and so images of several
// profiles too, since those repeat section names.
package uki

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"halogenos.internal/boot/internal/pe"
)

// Section is a named part of an image. Data is exactly what is loaded into
// memory, without the padding of the file.
type Section struct {
	Name string // with its dot, at most 8 bytes
	Data []byte
}

// Image is a parsed PE image: a unified kernel image, a bare stub or a boot
// manager.
type Image struct {
	sections []Section
}

// Parse reads the sections of an image. Their data points into image, which
// must not change afterwards. It does not check any signature: see package
// authenticode.
func Parse(image []byte) (*Image, error) {
	file, err := pe.Parse(image)
	if err != nil {
		return nil, fmt.Errorf("parse PE image: %w", err)
	}
	parsed := &Image{}
	for _, s := range file.Sections {
		if parsed.has(s.Name) {
			return nil, fmt.Errorf("parse PE image: section %s is there twice", s.Name)
		}
		// A tail that only memory has would be measured but not stored.
		if s.VirtualSize > s.Size {
			return nil, fmt.Errorf("parse PE image: section %s needs %d bytes of memory, the file has %d", s.Name, s.VirtualSize, s.Size)
		}
		start, end := uint64(s.Offset), uint64(s.Offset)+uint64(s.VirtualSize)
		if s.VirtualSize == 0 {
			start, end = 0, 0
		}
		parsed.sections = append(parsed.sections, Section{Name: s.Name, Data: image[start:end:end]})
	}
	return parsed, nil
}

// Sections returns the sections in the order of the section table.
func (i *Image) Sections() []Section { return slices.Clone(i.sections) }

// Section returns the data of the section of that name.
func (i *Image) Section(name string) ([]byte, bool) {
	for _, s := range i.sections {
		if s.Name == name {
			return s.Data, true
		}
	}
	return nil, false
}

func (i *Image) has(name string) bool {
	_, ok := i.Section(name)
	return ok
}

// Stub says which program an image was built on.
type Stub struct {
	Program string // "systemd-stub" or "systemd-boot"
	Version string // as the program reports it, "257.13-1~deb13u1"
	Major   int    // the number that Version starts with
}

// ErrNoStub means that an image carries no systemd-stub or systemd-boot mark.
var ErrNoStub = errors.New("no systemd mark in the image (section .sdmagic)")

// Stub reads the mark that systemd-stub and systemd-boot carry in .sdmagic:
// "#### LoaderInfo: systemd-stub 257.13-1~deb13u1 ####".
func (i *Image) Stub() (Stub, error) {
	magic, ok := i.Section(".sdmagic")
	if !ok {
		return Stub{}, ErrNoStub
	}
	text, ok := strings.CutPrefix(strings.TrimRight(string(magic), "\x00"), "#### LoaderInfo: ")
	if ok {
		text, ok = strings.CutSuffix(text, " ####")
	}
	program, version, found := strings.Cut(text, " ")
	if !ok || !found || strings.Contains(version, " ") {
		return Stub{}, fmt.Errorf("section .sdmagic reads %.80q, not as a systemd mark", magic)
	}
	major := 0
	for _, c := range []byte(version) {
		if c < '0' || c > '9' || major > 9999 {
			break
		}
		major = major*10 + int(c-'0')
	}
	if major == 0 {
		return Stub{}, fmt.Errorf("version %.80q of %s does not start with a number", version, program)
	}
	return Stub{Program: program, Version: version, Major: major}, nil
}

// MicrocodeStub is the first systemd-stub that hands .ucode to Linux, before the
// initramfs. Those before pass over the section.
const MicrocodeStub = 256

// Payload is what a unified kernel image carries beside the stub. Empty parts
// get no section.
type Payload struct {
	OSRelease    []byte // .osrel: os-release of the system
	Cmdline      []byte // .cmdline: kernel command line, UTF-8, without a trailing NUL
	DeviceTree   []byte // .dtb
	HardwareIDs  []byte // .hwids
	Uname        []byte // .uname: `uname -r` of the kernel
	Splash       []byte // .splash: a BMP picture
	PCRPublicKey []byte // .pcrpkey: PEM
	Linux        []byte // .linux: the kernel, itself a PE image
	Initrd       []byte // .initrd: one or more cpio archives, each padded to 4 bytes
	Microcode    []byte // .ucode: an uncompressed cpio archive
	SBAT         []byte // .sbat: replaces the stub's; empty keeps it
	PCRSignature []byte // .pcrsig: JSON
}

// Sections returns the sections in the order in which ukify lays them out.
func (p Payload) Sections() []Section {
	sections := []Section{
		{".osrel", p.OSRelease},
		{".cmdline", p.Cmdline},
		{".dtb", p.DeviceTree},
		{".hwids", p.HardwareIDs},
		{".uname", p.Uname},
		{".splash", p.Splash},
		{".pcrpkey", p.PCRPublicKey},
		{".linux", p.Linux},
		{".initrd", p.Initrd},
		{".ucode", p.Microcode},
		{".sbat", p.SBAT},
		{".pcrsig", p.PCRSignature},
	}
	return slices.DeleteFunc(sections, func(s Section) bool { return len(s.Data) == 0 })
}
