package bootoption

import (
	"encoding/binary"
	"unicode/utf16"

	"halogenos.internal/boot/gpt"
)

// Kinds of nodes that lead to a file on a partition (UEFI 2.10, section 10.3.5).
const (
	typeMedia, subHardDrive, subFile = 0x04, 0x01, 0x04
	endWhole                         = 0xff

	hardDriveSize            = 42
	formatGPT, signatureGUID = 2, 2

	active = 1 // LOAD_OPTION_ACTIVE
)

// Encode returns an EFI_LOAD_OPTION for a file on a partition of a GPT disk, in
// the short form that names no way to the disk, so that it holds wherever the
// disk is plugged in. file has backslashes; first and sectors are the
// partition's place on the disk in sectors.
func Encode(description string, number int, first, sectors uint64, partition gpt.GUID, file string) []byte {
	le := binary.LittleEndian
	path := node(typeMedia, subHardDrive, hardDriveSize-headerSize)
	path = le.AppendUint32(path, uint32(number))
	path = le.AppendUint64(path, first)
	path = le.AppendUint64(path, sectors)
	id := partition.Encoded()
	path = append(path, id[:]...)
	path = append(path, formatGPT, signatureGUID)
	name := text(file)
	path = append(path, node(typeMedia, subFile, len(name))...)
	path = append(path, name...)
	path = append(path, node(typeEnd, endWhole, 0)...)

	out := le.AppendUint32(nil, active)
	out = le.AppendUint16(out, uint16(len(path)))
	out = append(out, text(description)...)
	return append(out, path...)
}

func node(kind, sub byte, content int) []byte {
	return binary.LittleEndian.AppendUint16([]byte{kind, sub}, uint16(headerSize+content))
}

// text is UCS-2 with a NUL at its end.
func text(s string) (out []byte) {
	for _, unit := range utf16.Encode([]rune(s)) {
		out = binary.LittleEndian.AppendUint16(out, unit)
	}
	return append(out, 0, 0)
}
