package pcr_test

import (
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"unicode/utf16"

	"halogenos.internal/boot/pcr"
)

func sum(data []byte) pcr.Digest { return sha256.Sum256(data) }

// builder writes event logs.
type builder struct {
	out   []byte
	banks []pcr.Algorithm
	only  pcr.Algorithm // when not zero, events have this digest alone
}

func hashOf(bank pcr.Algorithm) crypto.Hash {
	return map[pcr.Algorithm]crypto.Hash{pcr.SHA1: crypto.SHA1, pcr.SHA256: crypto.SHA256}[bank]
}

func newLog(banks ...pcr.Algorithm) *builder {
	le := binary.LittleEndian
	id := []byte("Spec ID Event03\x00\x00\x00\x00\x00\x00\x02\x00\x02")
	id = le.AppendUint32(id, uint32(len(banks)))
	for _, bank := range banks {
		id = le.AppendUint16(id, uint16(bank))
		id = le.AppendUint16(id, uint16(hashOf(bank).Size()))
	}
	id = append(id, 0)
	b := &builder{banks: banks}
	b.out = le.AppendUint32(b.out, 0)
	b.out = le.AppendUint32(b.out, uint32(pcr.EventNoAction))
	b.out = append(b.out, make([]byte, 20)...)
	b.out = le.AppendUint32(b.out, uint32(len(id)))
	b.out = append(b.out, id...)
	return b
}

// event appends an event that measured its own data.
func (b *builder) event(register int, kind pcr.EventType, data []byte) *builder {
	return b.measured(register, kind, data, data)
}

// measured appends an event that measured something else than its data.
func (b *builder) measured(register int, kind pcr.EventType, data, measured []byte) *builder {
	le := binary.LittleEndian
	b.out = le.AppendUint32(b.out, uint32(register))
	b.out = le.AppendUint32(b.out, uint32(kind))
	banks := b.banks
	if b.only != 0 {
		banks = []pcr.Algorithm{b.only}
	}
	b.out = le.AppendUint32(b.out, uint32(len(banks)))
	for _, bank := range banks {
		h := hashOf(bank).New()
		h.Write(measured)
		b.out = le.AppendUint16(b.out, uint16(bank))
		b.out = h.Sum(b.out)
	}
	b.out = le.AppendUint32(b.out, uint32(len(data)))
	b.out = append(b.out, data...)
	return b
}

func (b *builder) bytes() []byte { return b.out }

const (
	global   = "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c"
	security = "\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f"
)

// variable encodes UEFI_VARIABLE_DATA.
func variable(guid, name string, data []byte) []byte {
	units := utf16.Encode([]rune(name))
	out := binary.LittleEndian.AppendUint64([]byte(guid), uint64(len(units)))
	out = binary.LittleEndian.AppendUint64(out, uint64(len(data)))
	for _, unit := range units {
		out = binary.LittleEndian.AppendUint16(out, unit)
	}
	return append(out, data...)
}

// firmware appends the events of a firmware with Secure Boot variables.
func (b *builder) firmware(on byte, pk, kek, db, dbx []byte) *builder {
	return b.event(7, pcr.EventVariableConfig, variable(global, "SecureBoot", []byte{on})).
		event(7, pcr.EventVariableConfig, variable(global, "PK", pk)).
		event(7, pcr.EventVariableConfig, variable(global, "KEK", kek)).
		event(7, pcr.EventVariableConfig, variable(security, "db", db)).
		event(7, pcr.EventVariableConfig, variable(security, "dbx", dbx)).
		event(7, pcr.EventSeparator, []byte{0, 0, 0, 0})
}

func (b *builder) authority(entry []byte) *builder {
	return b.event(7, pcr.EventVariableAuthority, variable(security, "db", entry))
}
