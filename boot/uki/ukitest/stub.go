// Package ukitest makes PE images for tests.
package ukitest

import (
	"encoding/binary"
)

const (
	alignment = 512
	page      = 4096
	headers   = 1024 // room for 17 sections
)

// Section is a section of a made-up image; its place follows from its turn.
type Section struct {
	Name string
	Data []byte
}

// Stub returns the smallest image that passes for systemd-stub of that
// version ("257.13-1"). It does not run.
func Stub(version string) []byte {
	return Image(
		Section{".text", []byte{0xf4, 0xeb, 0xfd}},
		Section{".sbat", []byte("sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\nstub,1,Test,stub,1,none\n")},
		Section{".sdmagic", []byte("#### LoaderInfo: systemd-stub " + version + " ####\x00")},
	)
}

// Manager returns the smallest image that passes for systemd-boot of that version. It
// does not run.
func Manager(version string) []byte {
	return Image(
		Section{".text", []byte{0xf4, 0xeb, 0xfd}},
		Section{".sdmagic", []byte("#### LoaderInfo: systemd-boot " + version + " ####\x00")},
	)
}

// Image returns a PE32+ image with these sections, as a linker lays them out.
func Image(sections ...Section) []byte {
	le := binary.LittleEndian
	out := make([]byte, headers)
	copy(out, "MZ")
	le.PutUint32(out[60:], 64)
	coff := out[64:]
	copy(coff, "PE\x00\x00")
	le.PutUint16(coff[4:], 0x8664) // x86-64
	le.PutUint16(coff[6:], uint16(len(sections)))
	le.PutUint16(coff[20:], 240)
	le.PutUint16(coff[22:], 0x0206)
	optional := coff[24:]
	le.PutUint16(optional, 0x20b)
	le.PutUint32(optional[16:], page) // entry point
	le.PutUint32(optional[32:], page)
	le.PutUint32(optional[36:], alignment)
	le.PutUint32(optional[60:], headers)
	le.PutUint16(optional[68:], 10)     // EFI application
	le.PutUint16(optional[70:], 0x0160) // NX compatible, relocatable
	le.PutUint32(optional[108:], 16)
	address := uint32(page)
	for i, s := range sections {
		stored := (len(s.Data) + alignment - 1) / alignment * alignment
		entry := out[64+24+240+i*40:]
		copy(entry[:8], s.Name)
		le.PutUint32(entry[8:], uint32(len(s.Data)))
		le.PutUint32(entry[12:], address)
		le.PutUint32(entry[16:], uint32(stored))
		le.PutUint32(entry[20:], uint32(len(out)))
		le.PutUint32(entry[36:], 0x40000040)
		out = append(out, s.Data...)
		out = append(out, make([]byte, stored-len(s.Data))...)
		address += (uint32(len(s.Data)) + page - 1) / page * page
	}
	le.PutUint32(out[64+24+56:], address)
	return out
}
