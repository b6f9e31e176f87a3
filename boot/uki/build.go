package uki

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"halogenos.internal/boot/internal/pe"
)

// Section and image flags of the PE specification.
const (
	sectionCode        = 0x00000020
	sectionInitialized = 0x00000040
	sectionRead        = 0x40000000
	nxCompatible       = 0x0100
)

const (
	symbolSize       = 18      // an entry of the COFF symbol table
	maxFileAlignment = 1 << 16 // by the PE specification
)

// Build lays sections out behind those of stub, as ukify does: in the order
// given, each at the next multiple of the stub's file and section alignment.
// A .sbat section replaces the stub's in its place. The stub's symbol and
// certificate tables, which would not survive, are dropped. The same input
// gives the same bytes, a multiple of the file alignment (512 bytes in all
// known stubs). Memory needed is that of the result.
func Build(stub []byte, sections []Section) ([]byte, error) {
	return BuildAligned(stub, sections, 1)
}

// BuildAligned is Build, but for where sections lie in the file: each ends at a multiple of
// block, a power of two, and so all but the first begin at one. They have zeros behind them for
// that, in the file alone (SizeOfRawData, which may be more than VirtualSize), since what lies
// between sections is not signed. A section has no more of them than fit before the next one in
// memory: where one has no room, the next may end at a multiple, and one of no more bytes than
// the file alignment does. So blocks of a file that
// has a section's content are blocks of the image, too.
func BuildAligned(stub []byte, sections []Section, block int64) ([]byte, error) {
	plan, file, err := prepare(stub, sections, block)
	if err != nil {
		return nil, err
	}
	out := bytes.NewBuffer(make([]byte, 0, plan.size))
	err = plan.write(out, stub, file, sections)
	return out.Bytes(), err
}

// Write writes what Build returns. Memory needed is that of the stub, beside the
// sections.
func Write(w io.Writer, stub []byte, sections []Section) error {
	plan, file, err := prepare(stub, sections, 1)
	if err != nil {
		return err
	}
	if err := plan.write(w, stub, file, sections); err != nil {
		return fmt.Errorf("write UKI: %w", err)
	}
	return nil
}

// prepare checks stub and sections and decides where everything goes.
func prepare(stub []byte, sections []Section, block int64) (*layout, *pe.File, error) {
	file, err := pe.Parse(stub)
	if err != nil {
		return nil, nil, fmt.Errorf("parse stub: %w", err)
	}
	if err := checkTail(stub, file); err != nil {
		return nil, nil, fmt.Errorf("stub: %w", err)
	}
	if err := checkNames(file, sections); err != nil {
		return nil, nil, err
	}
	plan, err := lay(file, sections, uint64(block))
	if err != nil {
		return nil, nil, err
	}
	for _, b := range stub[file.SectionTableEnd():plan.headers] {
		if b != 0 {
			return nil, nil, errors.New("stub: the space behind the section table is in use")
		}
	}
	return plan, file, nil
}

// checkTail refuses a stub whose file holds more than its sections, a symbol
// table and a certificate table: dropping it silently might change it.
func checkTail(stub []byte, file *pe.File) error {
	for _, s := range file.Sections {
		if s.Size > 0 && (s.Offset%file.FileAlignment != 0 || s.Size%file.FileAlignment != 0) {
			return fmt.Errorf("section %s at offset %d, %d bytes, is not aligned to %d", s.Name, s.Offset, s.Size, file.FileAlignment)
		}
		if s.VirtualSize > s.Size {
			return fmt.Errorf("section %s needs %d bytes of memory, the file has %d", s.Name, s.VirtualSize, s.Size)
		}
	}
	tail := file.SectionsEnd()
	end := uint64(len(stub))
	if file.CertificateSize > 0 {
		end = uint64(file.CertificateOffset)
	}
	le := binary.LittleEndian
	symbols := uint64(le.Uint32(stub[file.COFF+pe.OffPointerToSymbolTable:]))
	if symbols != 0 {
		strings := symbols + symbolSize*uint64(le.Uint32(stub[file.COFF+pe.OffNumberOfSymbols:]))
		if symbols < tail || strings+4 > end {
			return fmt.Errorf("symbol table at %d to %d is not between sections (%d) and end (%d)", symbols, strings, tail, end)
		}
		symbolsEnd := strings + uint64(le.Uint32(stub[strings:]))
		if symbolsEnd > end {
			return fmt.Errorf("symbol names end at %d, behind %d", symbolsEnd, end)
		}
		if !zero(stub[tail:symbols]) {
			return fmt.Errorf("%d bytes before the symbol table belong to nothing", symbols-tail)
		}
		tail = symbolsEnd
	}
	if !zero(stub[tail:end]) {
		return fmt.Errorf("%d bytes behind the last section belong to nothing", end-tail)
	}
	return nil
}

func checkNames(file *pe.File, sections []Section) error {
	seen := map[string]bool{}
	for _, s := range file.Sections {
		if seen[s.Name] {
			return fmt.Errorf("stub: section %s is there twice", s.Name)
		}
		seen[s.Name] = true
	}
	delete(seen, ".sbat")
	for _, s := range sections {
		if len(s.Name) < 2 || len(s.Name) > 8 || s.Name[0] != '.' {
			return fmt.Errorf("section name %q is not a dot and 1 to 7 letters", s.Name)
		}
		for _, c := range []byte(s.Name) {
			if c <= ' ' || c > '~' {
				return fmt.Errorf("section name %q is not printable", s.Name)
			}
		}
		if seen[s.Name] {
			return fmt.Errorf("section %s is there twice", s.Name)
		}
		if len(s.Data) == 0 {
			return fmt.Errorf("section %s is empty", s.Name)
		}
		seen[s.Name] = true
	}
	return nil
}

// layout is where everything goes; nothing is allocated before it is known
// to fit.
type layout struct {
	headers uint32       // SizeOfHeaders of the result
	stub    uint32       // bytes of the stub's file that are kept
	size    uint32       // of the file
	image   uint32       // SizeOfImage
	added   uint32       // bytes of initialised data
	places  []pe.Section // one for each section; a replaced one keeps the stub's place
	fresh   int          // how many of places are new
}

func lay(file *pe.File, sections []Section, block uint64) (*layout, error) {
	align := uint64(file.FileAlignment)
	if align > maxFileAlignment {
		return nil, fmt.Errorf("stub: file alignment of %d bytes, want at most %d", align, maxFileAlignment)
	}
	headers := alignUp(uint64(file.SizeOfHeaders), align)
	stored := file.ByOffset()
	if len(stored) == 0 || uint64(stored[0].Offset) < headers {
		return nil, fmt.Errorf("stub: no section starts behind the headers, which end at %d", headers)
	}
	last := file.Sections[len(file.Sections)-1]
	offset := alignUp(file.SectionsEnd(), align)
	address := last.VirtualEnd()
	plan := &layout{headers: uint32(headers), stub: uint32(file.SectionsEnd())}
	var added uint64
	for _, s := range sections {
		if old, ok := find(file, s.Name); ok {
			if uint64(len(s.Data)) > uint64(old.Size) {
				return nil, fmt.Errorf("section %s needs %d bytes, the stub's has room for %d", s.Name, len(s.Data), old.Size)
			}
			if room := file.Room(old); uint64(len(s.Data)) > room {
				return nil, fmt.Errorf("section %s needs %d bytes, in memory the stub's next section begins after %d", s.Name, len(s.Data), room)
			}
			plan.places = append(plan.places, old)
			continue
		}
		address = alignUp(address, uint64(file.SectionAlignment))
		stored := alignUp(offset+uint64(len(s.Data)), max(align, block)) - offset
		if room := alignUp(uint64(len(s.Data)), uint64(file.SectionAlignment)); stored > room {
			stored = alignUp(uint64(len(s.Data)), align) // the next one begins right behind that in memory
		}
		if offset+stored > math.MaxUint32 || address+uint64(len(s.Data)) > math.MaxUint32-uint64(file.SectionAlignment) {
			return nil, fmt.Errorf("section %s of %d bytes does not fit: a PE image ends at 4 GiB", s.Name, len(s.Data))
		}
		plan.places = append(plan.places, pe.Section{
			Name:            s.Name,
			VirtualSize:     uint32(len(s.Data)),
			VirtualAddress:  uint32(address),
			Size:            uint32(stored),
			Offset:          uint32(offset),
			Characteristics: characteristics(s.Name),
		})
		plan.fresh++
		offset += stored
		address += uint64(len(s.Data))
		added += uint64(len(s.Data))
	}
	if count := len(file.Sections) + plan.fresh; count > pe.MaxSections {
		return nil, fmt.Errorf("%d sections, a PE image holds %d", count, pe.MaxSections)
	}
	if need := uint64(file.SectionTableEnd() + plan.fresh*pe.SectionHeaderSize); need > headers {
		return nil, fmt.Errorf("the stub's headers have room for %d more sections, need %d",
			(headers-uint64(file.SectionTableEnd()))/pe.SectionHeaderSize, plan.fresh)
	}
	plan.size, plan.added = uint32(offset), uint32(added)
	plan.image = uint32(alignUp(address, uint64(file.SectionAlignment)))
	return plan, nil
}

func find(file *pe.File, name string) (pe.Section, bool) {
	for _, s := range file.Sections {
		if s.Name == name {
			return s, true
		}
	}
	return pe.Section{}, false
}

// characteristics marks the kernel as code, since kernels with the EFI
// handover protocol run where they lie.
func characteristics(name string) uint32 {
	if name == ".linux" {
		return sectionCode | sectionRead
	}
	return sectionInitialized | sectionRead
}

// write writes the image front to back.
func (l *layout) write(w io.Writer, stub []byte, file *pe.File, sections []Section) error {
	head := make([]byte, l.stub)
	l.head(head, stub, file, sections)
	if _, err := w.Write(head); err != nil {
		return err
	}
	at := l.stub
	for i, s := range sections {
		place := l.places[i]
		if place.Offset < l.stub {
			continue // it has replaced one of the stub's
		}
		for _, part := range [][]byte{make([]byte, place.Offset-at), s.Data, make([]byte, int(place.Size)-len(s.Data))} {
			if _, err := w.Write(part); err != nil {
				return err
			}
		}
		at = place.Offset + place.Size
	}
	return nil
}

// head writes what comes before the new sections: the stub's, with headers that
// have them all, and with those of its sections that are replaced.
func (l *layout) head(out, stub []byte, file *pe.File, sections []Section) {
	le := binary.LittleEndian
	copy(out, stub[:l.stub])
	coff, optional := out[file.COFF:], out[file.Optional:]
	le.PutUint32(coff[pe.OffPointerToSymbolTable:], 0)
	le.PutUint32(coff[pe.OffNumberOfSymbols:], 0)
	le.PutUint16(coff[pe.OffNumberOfSections:], uint16(len(file.Sections)+l.fresh))
	le.PutUint32(optional[pe.OffSizeOfInitializedData:], le.Uint32(optional[pe.OffSizeOfInitializedData:])+l.added)
	le.PutUint32(optional[pe.OffSizeOfImage:], l.image)
	le.PutUint32(optional[pe.OffSizeOfHeaders:], l.headers)
	le.PutUint32(optional[pe.OffCheckSum:], 0) // zero: not computed; no firmware looks at it
	le.PutUint64(optional[pe.OffCertificateDirectory:], 0)

	entry := file.SectionTableEnd()
	for i, s := range sections {
		place := l.places[i]
		if s.Name == ".linux" && !kernelIsNX(s.Data) {
			// The firmware must not protect the stub in a way that its kernel does not bear.
			flags := le.Uint16(optional[pe.OffDLLCharacteristics:])
			le.PutUint16(optional[pe.OffDLLCharacteristics:], flags&^nxCompatible)
		}
		if replaced := replacedEntry(file, s.Name); replaced >= 0 {
			le.PutUint32(out[replaced+8:], uint32(len(s.Data)))
			stored := out[place.Offset:place.End()]
			clear(stored[copy(stored, s.Data):])
			continue
		}
		putEntry(out[entry:], place)
		entry += pe.SectionHeaderSize
	}
}

// replacedEntry returns the offset of the section table's entry of that name
// in the stub, or -1.
func replacedEntry(file *pe.File, name string) int {
	for i, s := range file.Sections {
		if s.Name == name {
			return file.SectionTable + i*pe.SectionHeaderSize
		}
	}
	return -1
}

func putEntry(b []byte, s pe.Section) {
	le := binary.LittleEndian
	copy(b[:8], s.Name)
	le.PutUint32(b[8:], s.VirtualSize)
	le.PutUint32(b[12:], s.VirtualAddress)
	le.PutUint32(b[16:], s.Size)
	le.PutUint32(b[20:], s.Offset)
	le.PutUint32(b[36:], s.Characteristics)
}

// kernelIsNX reports whether a kernel says that it runs with memory that is
// never both writable and executable. What is not a PE image says nothing, and
// leaves the stub's word alone.
func kernelIsNX(kernel []byte) bool {
	le := binary.LittleEndian
	if len(kernel) < 64 || string(kernel[:2]) != "MZ" {
		return true
	}
	optional := uint64(le.Uint32(kernel[60:])) + 24
	if optional+pe.OffDLLCharacteristics+2 > uint64(len(kernel)) || string(kernel[optional-24:optional-20]) != "PE\x00\x00" {
		return true
	}
	return le.Uint16(kernel[optional+pe.OffDLLCharacteristics:])&nxCompatible != 0
}

func alignUp(n, alignment uint64) uint64 { return (n + alignment - 1) &^ (alignment - 1) }

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
