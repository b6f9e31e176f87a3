package microcode

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

const (
	archiveMagic = "070701" // cpio, the format newc
	directory    = "kernel/x86/microcode"
	recordHeader = 110
	// Intel's processors want an update at a multiple of this address (Intel SDM volume
	// 3A, section 11.11.6), and Linux gives them the one in the archive.
	dataAlign = 16
)

// Path is where Linux looks for a maker's part in the archive.
func (v Vendor) Path() string { return directory + "/" + string(v) + ".bin" }

// Archive is the early archive. The same set gives the same bytes, a multiple of
// dataAlign of them; none for an empty set.
func (s *Set) Archive() ([]byte, error) {
	if !s.Has(Intel) && !s.Has(AMD) {
		return nil, nil
	}
	var out bytes.Buffer
	w := cpio.Newc.Writer(&out)
	var records []cpio.Record
	for i, c := range directory + "/" {
		if c == '/' {
			records = append(records, cpio.Directory(directory[:i], 0o755))
		}
	}
	if err := cpio.WriteRecords(w, records); err != nil {
		return nil, fmt.Errorf("write archive of microcode: %w", err)
	}
	for _, v := range Vendors() {
		if !s.Has(v) {
			continue
		}
		if name := filler(out.Len(), v); name != "" {
			if err := w.WriteRecord(cpio.StaticFile(name, "", 0o444)); err != nil {
				return nil, fmt.Errorf("write archive of microcode: %w", err)
			}
		}
		if err := w.WriteRecord(cpio.StaticFile(v.Path(), string(s.File(v)), 0o444)); err != nil {
			return nil, fmt.Errorf("write archive of microcode: %w", err)
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return nil, fmt.Errorf("end archive of microcode: %w", err)
	}
	if rest := out.Len() % dataAlign; rest != 0 {
		out.Write(make([]byte, dataAlign-rest))
	}
	return out.Bytes(), nil
}

// recordSize is how much of an archive a file takes before its data.
func recordSize(name string) int { return (recordHeader + len(name) + 1 + 3) &^ 3 }

// filler names the empty file that has to come before a maker's, at that byte of the
// archive, so that the maker's data is aligned; none where it is anyway. Microcode of
// iucode_tool's making has one like it.
func filler(at int, v Vendor) string {
	name := ""
	for i := 0; (at+recordSize(v.Path()))%dataAlign != 0 && i < dataAlign; i += 4 {
		if name != "" {
			at -= recordSize(name)
		}
		name = directory + "/." + string(v) + ".align" + strings.Repeat("0", i)
		at += recordSize(name)
	}
	return name
}

// addArchive takes over an archive that has microcode and nothing else.
func (s *Set) addArchive(data []byte) error {
	found, others, err := Find(data)
	if err != nil {
		return err
	}
	if len(others) > 0 {
		return fmt.Errorf("has %q, which is not microcode", others[0])
	}
	for _, v := range Vendors() {
		if err := s.Merge(found, v); err != nil {
			return err
		}
	}
	if !found.Has(Intel) && !found.Has(AMD) {
		return errors.New("is an archive without microcode")
	}
	return nil
}

// Find returns the microcode that Linux finds in an initramfs or in a section of a UKI:
// in the uncompressed archives that it begins with, one after the other (Linux,
// lib/earlycpio.c), the first of each maker's. Others are the names of other files in
// them. Microcode that is damaged is an error.
func Find(initramfs []byte) (s *Set, others []string, err error) {
	s = new(Set)
	for at := 0; ; {
		r, err := readRecord(initramfs, at)
		if err != nil {
			return nil, nil, fmt.Errorf("archive at the beginning: the record at byte %d %w", at, err)
		}
		if r == nil {
			return s, others, nil
		}
		at = r.end
		i := slices.IndexFunc(Vendors(), func(v Vendor) bool { return v.Path() == r.name })
		switch {
		case !r.regular || r.name == "TRAILER!!!":
		case len(r.data) == 0 && strings.HasPrefix(r.name, directory+"/."): // a filler
		case i < 0 || s.Has(Vendors()[i]):
			others = append(others, r.name)
		default:
			if err := s.addFile(Vendors()[i], r.data); err != nil {
				return nil, nil, fmt.Errorf("%s %w", r.name, err)
			}
		}
	}
}

func (s *Set) addFile(v Vendor, data []byte) error {
	if v == Intel {
		return s.addIntel(data)
	}
	return s.addAMD(data)
}

// record is a file in an archive.
type record struct {
	name    string
	data    []byte
	regular bool // neither a directory nor a link or device
	end     int  // where the next one may start
}

// readRecord reads the record at or, after zeros, behind a byte; nil where there is none
// (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
func readRecord(archive []byte, at int) (*record, error) {
	for at < len(archive) && archive[at] == 0 {
		at += 4 // records start at multiples of four bytes
	}
	if at >= len(archive) || !bytes.HasPrefix(archive[at:], []byte(archiveMagic)) {
		return nil, nil
	}
	if len(archive)-at < recordHeader {
		return nil, fmt.Errorf("has %d bytes, its header has %d", len(archive)-at, recordHeader)
	}
	var fields [13]uint32
	for i := range fields {
		digits := string(archive[at+6+8*i : at+14+8*i])
		n, err := strconv.ParseUint(digits, 16, 32)
		if err != nil {
			return nil, fmt.Errorf("has the field %q, want a hexadecimal number", digits)
		}
		fields[i] = uint32(n)
	}
	mode, size, length := fields[1], uint64(fields[6]), uint64(fields[11])
	start := uint64(at+recordHeader) + length
	start = (start + 3) &^ 3
	if length == 0 || start+size > uint64(len(archive)) {
		return nil, fmt.Errorf("has a name of %d bytes and %d of data, and the archive ends at %d", length, size, len(archive))
	}
	name, _, _ := bytes.Cut(archive[at+recordHeader:uint64(at+recordHeader)+length], []byte{0})
	return &record{
		name: string(name), data: archive[start : start+size : start+size],
		regular: mode&0o170000 == 0o100000, end: int((start + size + 3) &^ 3),
	}, nil
}
