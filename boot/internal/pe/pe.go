// Package pe reads the headers of a PE32+ image (Microsoft Portable Executable
// and Common Object File Format Specification) strictly enough that two readers
// cannot disagree about it. It refuses what a firmware, a signer and a stub
// might read differently: sections that overlap, in the file or in memory, that
// reach past the end, names that are not plain text, and bytes after the
// certificate table. It interprets no section's content.
package pe

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

const (
	// SectionHeaderSize is the size of an entry of the section table in bytes.
	SectionHeaderSize = 40
	// MaxSections is the most sections a PE loader has to accept.
	MaxSections = 96

	dosHeaderSize      = 64
	coffHeaderSize     = 24 // the signature "PE\0\0" included
	fixedOptionalSize  = 112
	directorySize      = 8
	certificateEntry   = 4
	minimumDirectories = certificateEntry + 1
	magicPE32Plus      = 0x20b
)

// Offsets of fields within the COFF header (from its signature on).
const (
	OffNumberOfSections     = 6
	OffPointerToSymbolTable = 12
	OffNumberOfSymbols      = 16
	OffSizeOfOptionalHeader = 20
)

// Offsets of fields within the PE32+ optional header.
const (
	OffSizeOfInitializedData = 8
	OffSectionAlignment      = 32
	OffFileAlignment         = 36
	OffSizeOfImage           = 56
	OffSizeOfHeaders         = 60
	OffCheckSum              = 64
	OffDLLCharacteristics    = 70
	OffNumberOfDirectories   = 108
	OffCertificateDirectory  = fixedOptionalSize + certificateEntry*directorySize
)

// Section is an entry of the section table. Offsets are from the start of the
// file, addresses relative to the image base, sizes in bytes.
type Section struct {
	Name            string
	VirtualSize     uint32
	VirtualAddress  uint32
	Size            uint32 // in the file
	Offset          uint32 // in the file
	Characteristics uint32
}

// VirtualEnd returns the address behind the section's last byte in memory.
func (s Section) VirtualEnd() uint64 { return uint64(s.VirtualAddress) + uint64(s.VirtualSize) }

// End returns the offset behind the section's last byte in the file.
func (s Section) End() uint64 { return uint64(s.Offset) + uint64(s.Size) }

// File is what the headers of an image say.
type File struct {
	COFF              int // offset of the signature "PE\0\0"
	Optional          int // offset of the optional header
	SectionTable      int // offset of the section table
	SectionAlignment  uint32
	FileAlignment     uint32
	SizeOfImage       uint32
	SizeOfHeaders     uint32
	Sections          []Section // in table order, which is address order
	CertificateOffset uint32    // zero when the image is not signed
	CertificateSize   uint32    // bytes, up to the end of the file
}

// SectionTableEnd returns the offset behind the last entry of the section table.
func (f *File) SectionTableEnd() int {
	return f.SectionTable + len(f.Sections)*SectionHeaderSize
}

// SectionsEnd returns the offset behind the last byte of any section, or of
// the headers when no section has content.
func (f *File) SectionsEnd() uint64 {
	end := uint64(f.SizeOfHeaders)
	for _, s := range f.Sections {
		if s.Size > 0 {
			end = max(end, s.End())
		}
	}
	return end
}

// Room returns how many bytes of memory lie between the start of s and the
// next section, or the end of the image.
func (f *File) Room(s Section) uint64 {
	for _, next := range f.Sections {
		if next.VirtualAddress > s.VirtualAddress {
			return uint64(next.VirtualAddress - s.VirtualAddress)
		}
	}
	return uint64(f.SizeOfImage) - uint64(s.VirtualAddress)
}

// ByOffset returns the sections that have content in the file, in file order.
func (f *File) ByOffset() []Section {
	stored := slices.DeleteFunc(slices.Clone(f.Sections), func(s Section) bool { return s.Size == 0 })
	slices.SortFunc(stored, func(a, b Section) int { return cmp.Compare(a.Offset, b.Offset) })
	return stored
}

// Parse reads and checks the headers of image. The result holds no reference
// to it.
func Parse(image []byte) (*File, error) {
	f, sections, err := parseHeaders(image)
	if err != nil {
		return nil, err
	}
	table := image[f.SectionTable:]
	for i := range sections {
		s, err := parseSection(table[i*SectionHeaderSize : (i+1)*SectionHeaderSize])
		if err != nil {
			return nil, fmt.Errorf("section %d: %w", i, err)
		}
		f.Sections = append(f.Sections, s)
	}
	if err := f.checkSections(uint64(len(image))); err != nil {
		return nil, err
	}
	return f, f.checkCertificates(uint64(len(image)))
}

func parseHeaders(image []byte) (*File, int, error) {
	le := binary.LittleEndian
	if len(image) < dosHeaderSize || string(image[:2]) != "MZ" {
		return nil, 0, errors.New("no MZ header: not a PE image")
	}
	coff := uint64(le.Uint32(image[60:]))
	if coff < dosHeaderSize || coff+coffHeaderSize+fixedOptionalSize > uint64(len(image)) {
		return nil, 0, fmt.Errorf("PE header at %d lies outside of the image's %d bytes", coff, len(image))
	}
	header := image[coff:]
	if string(header[:4]) != "PE\x00\x00" {
		return nil, 0, fmt.Errorf("no PE signature at %d", coff)
	}
	optionalSize := int(le.Uint16(header[OffSizeOfOptionalHeader:]))
	f := &File{COFF: int(coff), Optional: int(coff) + coffHeaderSize}
	f.SectionTable = f.Optional + optionalSize
	optional := image[f.Optional:]
	if magic := le.Uint16(optional); magic != magicPE32Plus {
		return nil, 0, fmt.Errorf("optional header's magic is %#x, want %#x (PE32+)", magic, magicPE32Plus)
	}
	directories := le.Uint32(optional[OffNumberOfDirectories:])
	if directories < minimumDirectories || directories > 16 {
		return nil, 0, fmt.Errorf("%d data directories, want %d to 16", directories, minimumDirectories)
	}
	if optionalSize < fixedOptionalSize+int(directories)*directorySize {
		return nil, 0, fmt.Errorf("optional header of %d bytes has no room for %d data directories", optionalSize, directories)
	}
	f.SectionAlignment = le.Uint32(optional[OffSectionAlignment:])
	f.FileAlignment = le.Uint32(optional[OffFileAlignment:])
	f.SizeOfImage = le.Uint32(optional[OffSizeOfImage:])
	f.SizeOfHeaders = le.Uint32(optional[OffSizeOfHeaders:])
	if !powerOfTwo(f.SectionAlignment) || !powerOfTwo(f.FileAlignment) {
		return nil, 0, fmt.Errorf("alignments %d and %d are not powers of two", f.SectionAlignment, f.FileAlignment)
	}
	count := int(le.Uint16(header[OffNumberOfSections:]))
	if count < 1 || count > MaxSections {
		return nil, 0, fmt.Errorf("%d sections, want 1 to %d", count, MaxSections)
	}
	if end := f.SectionTable + count*SectionHeaderSize; uint64(end) > uint64(f.SizeOfHeaders) || uint64(f.SizeOfHeaders) > uint64(len(image)) {
		return nil, 0, fmt.Errorf("section table ends at %d, headers at %d, image at %d: each must be within the next", end, f.SizeOfHeaders, len(image))
	}
	f.CertificateOffset = le.Uint32(optional[OffCertificateDirectory:])
	f.CertificateSize = le.Uint32(optional[OffCertificateDirectory+4:])
	return f, count, nil
}

func parseSection(entry []byte) (Section, error) {
	le := binary.LittleEndian
	name, err := parseName(entry[:8])
	if err != nil {
		return Section{}, err
	}
	return Section{
		Name:            name,
		VirtualSize:     le.Uint32(entry[8:]),
		VirtualAddress:  le.Uint32(entry[12:]),
		Size:            le.Uint32(entry[16:]),
		Offset:          le.Uint32(entry[20:]),
		Characteristics: le.Uint32(entry[36:]),
	}, nil
}

func parseName(field []byte) (string, error) {
	end := slices.Index(field, 0)
	if end < 0 {
		end = len(field)
	}
	for _, c := range field[:end] {
		if c <= ' ' || c > '~' {
			return "", fmt.Errorf("name %q is not printable", field)
		}
	}
	for _, c := range field[end:] {
		if c != 0 {
			return "", fmt.Errorf("name %q goes on behind its end", field)
		}
	}
	if end == 0 {
		return "", errors.New("no name")
	}
	return string(field[:end]), nil
}

// checkSections wants sections in address order, none touching another or the
// headers, neither in memory nor in the file.
func (f *File) checkSections(size uint64) error {
	memory := uint64(f.SizeOfHeaders)
	for _, s := range f.Sections {
		if uint64(s.VirtualAddress) < memory {
			return fmt.Errorf("section %s at address %#x overlaps what lies before it, up to %#x", s.Name, s.VirtualAddress, memory)
		}
		memory = s.VirtualEnd()
		if memory > uint64(f.SizeOfImage) {
			return fmt.Errorf("section %s ends at address %#x, behind the image's end %#x", s.Name, memory, f.SizeOfImage)
		}
	}
	file := uint64(f.SizeOfHeaders)
	for _, s := range f.ByOffset() {
		if uint64(s.Offset) < file {
			return fmt.Errorf("section %s at offset %d overlaps what lies before it, up to %d", s.Name, s.Offset, file)
		}
		file = s.End()
		if file > size {
			return fmt.Errorf("section %s ends at offset %d, the file at %d", s.Name, file, size)
		}
	}
	return nil
}

func (f *File) checkCertificates(size uint64) error {
	if f.CertificateOffset == 0 && f.CertificateSize == 0 {
		return nil
	}
	offset, end := uint64(f.CertificateOffset), uint64(f.CertificateOffset)+uint64(f.CertificateSize)
	switch {
	case offset < f.SectionsEnd():
		return fmt.Errorf("certificate table at %d overlaps the sections, up to %d", offset, f.SectionsEnd())
	case offset%8 != 0:
		return fmt.Errorf("certificate table at %d is not on a multiple of 8", offset)
	case end != size:
		return fmt.Errorf("certificate table ends at %d, the file at %d: want nothing behind it", end, size)
	}
	return nil
}

func powerOfTwo(n uint32) bool { return n != 0 && n&(n-1) == 0 }
