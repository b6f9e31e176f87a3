package scan

import (
	"bytes"
	"encoding/binary"
)

// opensshBinary finds an OpenSSH key without its armor (PROTOCOL.key): the
// name of the cipher follows.
func opensshBinary(data []byte, at int) (int, bool) {
	rest := data[at+len("openssh-key-v1\x00"):]
	if len(rest) < 8 {
		return 0, false
	}
	n := binary.BigEndian.Uint32(rest)
	if n < 3 || n > 64 || int(n) > len(rest)-4 {
		return 0, false
	}
	for _, c := range rest[4 : 4+n] {
		if c < '!' || c > '~' {
			return 0, false
		}
	}
	return at, true
}

// luksHeader finds a LUKS header of version 1 or 2 (LUKS1 on-disk format 1.2.3,
// figure 1; LUKS2 on-disk format 1.1.3, figure 2), its second copy too. The
// magic alone is in every program that reads them.
func luksHeader(data []byte, at int) (int, bool) {
	rest := data[at:]
	if len(rest) < 208 {
		return 0, false
	}
	switch binary.BigEndian.Uint16(rest[6:]) {
	case 1:
		return at, text(rest[8:40]) && text(rest[40:72]) && text(rest[72:104])
	case 2:
		size := binary.BigEndian.Uint64(rest[8:])
		return at, size >= 4096 && size <= 4<<20 && size&(size-1) == 0 && text(rest[72:104])
	}
	return 0, false
}

// text reports whether a field holds a name, padded with zero bytes.
func text(field []byte) bool {
	name, rest, ok := bytes.Cut(field, []byte{0})
	for _, c := range name {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return ok && len(name) > 0 && len(bytes.Trim(rest, "\x00")) == 0
}

// javaStore finds a Java key store with a private or secret key in it
// (sun.security.provider.JavaKeyStore). A store of certificates is none.
func javaStore(data []byte, at int) (int, bool) {
	r := data[at:]
	if len(r) < 16 || r[7] != 1 && r[7] != 2 {
		return 0, false
	}
	count, r := binary.BigEndian.Uint32(r[8:]), r[12:]
	for range min(count, 1<<16) {
		if len(r) < 6 {
			return at, false
		}
		tag, alias := binary.BigEndian.Uint32(r), int(binary.BigEndian.Uint16(r[4:]))
		switch tag {
		case 1, 3:
			return at, alias < len(r)
		case 2:
		default:
			return at, false
		}
		// A trusted certificate: date, type, length, content.
		if r = skip(r, 6+alias+8); len(r) < 2 {
			return at, false
		}
		if r = skip(r, 2+int(binary.BigEndian.Uint16(r))); len(r) < 4 {
			return at, false
		}
		r = skip(r, 4+int(binary.BigEndian.Uint32(r)))
	}
	return at, false
}

func skip(b []byte, n int) []byte {
	if n > len(b) {
		return nil
	}
	return b[n:]
}

// nssStore finds the table of private keys in a database of Mozilla's NSS.
func nssStore(data []byte, at int) (int, bool) {
	return at, bytes.HasPrefix(data, []byte("SQLite format 3\x00"))
}

// keytab reports whether a file is a Kerberos keytab with a key in it (MIT
// Kerberos, "Keytab file format"): entries that fill it, each with a realm.
func keytab(data []byte) bool {
	if len(data) < 24 || data[0] != 5 || data[1] != 2 {
		return false
	}
	size := int32(binary.BigEndian.Uint32(data[2:]))
	if size < 16 || int(size) > len(data)-6 {
		return false
	}
	entry := data[6 : 6+size]
	parts, realm := binary.BigEndian.Uint16(entry), int(binary.BigEndian.Uint16(entry[2:]))
	if parts == 0 || parts > 16 || realm == 0 || realm > len(entry)-4 {
		return false
	}
	for _, c := range entry[4 : 4+realm] {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}
