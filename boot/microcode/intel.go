package microcode

import (
	"encoding/binary"
	"fmt"
)

// Sizes of Intel's format in bytes (Intel SDM volume 3A, section 11.11.1, "Microcode
// Update"; tables 11-7 to 11-9).
const (
	intelHeader    = 48
	intelTable     = 20 // head of the extended signature table
	intelSignature = 12 // entry of it
	intelUnit      = 1024
	// An update that says that it has no data is of before the fields for sizes.
	oldIntelData  = 2000
	oldIntelTotal = 2048
)

// fit is a kind of processor that an update is for.
type fit struct{ signature, platforms uint32 }

// update is one of Intel's, whole.
type update struct {
	data     []byte
	revision uint32
	fits     []fit // the first is the header's
}

// parseIntel reads updates that follow one another.
func parseIntel(data []byte) ([]update, error) {
	var all []update
	for at := 0; at < len(data); {
		u, err := parseUpdate(data[at:])
		if err != nil {
			return nil, fmt.Errorf("update %d, at byte %d: %w", len(all)+1, at, err)
		}
		all = append(all, u)
		at += len(u.data)
	}
	return all, nil
}

// parseUpdate reads the update that data begins with. It checks what Linux does
// (intel_microcode_sanity_check), which reads nothing after one that fails.
func parseUpdate(data []byte) (update, error) {
	le := binary.LittleEndian
	if len(data) < intelHeader {
		return update{}, fmt.Errorf("%d bytes are left, a header has %d", len(data), intelHeader)
	}
	if header, loader := le.Uint32(data), le.Uint32(data[20:]); header != 1 || loader != 1 {
		return update{}, fmt.Errorf("header version %d and loader revision %d, want 1 and 1", header, loader)
	}
	size, total := uint64(le.Uint32(data[28:])), uint64(le.Uint32(data[32:]))
	if size == 0 {
		size, total = oldIntelData, oldIntelTotal
	}
	if size%4 != 0 || total%intelUnit != 0 || intelHeader+size > total || total > uint64(len(data)) {
		return update{}, fmt.Errorf("%d bytes of data in %d bytes, of which the file has %d", size, total, len(data))
	}
	u := update{data: data[:total:total], revision: le.Uint32(data[4:])}
	if s := sum(data[:intelHeader+size]); s != 0 {
		return update{}, fmt.Errorf("the checksum of header and data is %#x, want 0: the file is damaged", s)
	}
	own := fit{le.Uint32(data[12:]), le.Uint32(data[24:])}
	u.fits = []fit{own}
	if table := u.data[intelHeader+size:]; len(table) > 0 {
		more, err := extended(table, own, le.Uint32(data[16:]))
		if err != nil {
			return update{}, fmt.Errorf("extended signature table: %w", err)
		}
		u.fits = append(u.fits, more...)
	}
	return u, nil
}

// extended reads the table of further processors that an update is for.
func extended(table []byte, own fit, checksum uint32) ([]fit, error) {
	le := binary.LittleEndian
	if len(table) < intelTable {
		return nil, fmt.Errorf("%d bytes, its head has %d", len(table), intelTable)
	}
	count := uint64(le.Uint32(table))
	end := intelTable + count*intelSignature
	if end != uint64(len(table)) { // Linux wants it to be exact
		return nil, fmt.Errorf("%d bytes for %d entries, want %d", len(table), count, end)
	}
	if s := sum(table); s != 0 {
		return nil, fmt.Errorf("the checksum is %#x, want 0: the file is damaged", s)
	}
	var more []fit
	for entry := table[intelTable:]; len(entry) > 0; entry = entry[intelSignature:] {
		f := fit{le.Uint32(entry), le.Uint32(entry[4:])}
		// The entry's checksum is what the header's would be with the entry's fields.
		if f.signature+f.platforms+le.Uint32(entry[8:]) != own.signature+own.platforms+checksum {
			return nil, fmt.Errorf("the checksum for %s is wrong: the file is damaged", SignatureName(f.signature))
		}
		if f != own {
			more = append(more, f)
		}
	}
	return more, nil
}

// sum adds up words of 32 bits.
func sum(data []byte) uint32 {
	var s uint32
	for ; len(data) >= 4; data = data[4:] {
		s += binary.LittleEndian.Uint32(data)
	}
	return s
}
