package scan

import (
	"bytes"
	"encoding/binary"
	"regexp"
	"strings"
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

// field reads a string of SSH: its length, then its bytes (RFC 4251, section 5).
func field(r []byte) (value, rest []byte, ok bool) {
	if len(r) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(r)
	if uint64(n) > uint64(len(r)-4) {
		return nil, nil, false
	}
	return r[4 : 4+n], r[4+n:], true
}

// dropbear finds a key as dropbear keeps it, and as OpenSSH does inside of its
// own format: the name of the algorithm, then its numbers. A public key has
// fewer.
func dropbear(data []byte, at int) (int, bool) {
	if at < 4 {
		return 0, false
	}
	name, r, ok := field(data[at-4:])
	if !ok || len(name) < 7 || len(name) > 64 || !text(append(name[:len(name):len(name)], 0)) {
		return 0, false
	}
	var fields [][]byte
	for range 5 {
		var f []byte
		if f, r, ok = field(r); !ok || len(f) == 0 || len(f) > 2050 {
			break
		}
		fields = append(fields, f)
	}
	return at - 4, dropbearKey(string(name), fields)
}

// dropbearKey reports whether the first fields of a kind of key can be one with its secret.
func dropbearKey(name string, fields [][]byte) bool {
	size := func(i int) int { return len(bytes.TrimLeft(fields[i], "\x00")) }
	switch {
	case name == "ssh-rsa" && len(fields) == 5: // e, n, d, p, q, or n before e
		n := max(size(0), size(1))
		return n >= 64 && min(size(0), size(1)) <= 8 && size(2) <= n && size(2) > n/2-8 && size(3) <= n/2+16 && size(4) <= n/2+16
	case name == "ssh-dss" && len(fields) == 5: // p, q, g, y, x
		return size(0) >= 64 && size(1) <= 32 && size(4) <= size(1) && size(4) >= 12
	case name == "ssh-ed25519" && len(fields) > 0:
		return len(fields[0]) == 64 && random(fields[0])
	case strings.HasPrefix(name, "ecdsa-") && len(fields) > 2 && strings.HasSuffix(name, string(fields[0])): // curve, point, d
		d := len(fields[1]) / 2
		return fields[1][0] == 4 && size(2) <= d && size(2) > d-8
	}
	return false
}

// pvk finds a file of a private key of Microsoft's tools: whether it is
// encrypted, the lengths of salt and key, and both.
func pvk(data []byte, at int) (int, bool) {
	r := data[at:]
	if len(r) < 32 {
		return 0, false
	}
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(r[4*i:]) }
	return at, word(1) == 0 && word(2)-1 < 2 && word(3) < 2 && word(4) <= 64 && word(5) >= 64 && word(5) < 1<<16 && int(word(4)+word(5)) <= len(r)-24
}

// windowsBlob finds private keys as Windows exports them (PRIVATEKEYBLOB and
// the BLOBs of BCrypt), by how their lengths fit together.
func windowsBlob(data []byte, at int) (int, bool) {
	r := data[at:]
	if len(r) < 64 {
		return 0, false
	}
	word := func(i int) int { return int(binary.LittleEndian.Uint32(r[4*i:])) }
	switch magic := string(r[:4]); magic {
	case "RSA2", "RSA3", "DSS2":
		bits := word(1)
		if bits < 384 || bits > 16384 || bits%8 != 0 || len(r) < 32+bits/8 {
			return 0, false
		}
		if at >= 8 && data[at-8] == 7 && (data[at-7] == 2 || data[at-7] == 3) && data[at-6] == 0 && data[at-5] == 0 && magic != "RSA3" {
			return at - 8, magic == "DSS2" || word(2) > 1 && random(r[12:12+bits/8])
		}
		return at, magic != "DSS2" && word(2) <= 8 && word(2) > 0 && word(3) == bits/8 && word(4) == bits/16 && word(5) == bits/16
	default: // ECS2 to ECS6 and ECK2 to ECK6, of curves of 256, 384 and 521 bits
		size := map[byte]int{'2': 32, '4': 48, '6': 66}[magic[3]]
		return at, word(1) == size && len(r) >= 8+3*size && random(r[8:8+size]) && random(r[8+2*size:8+3*size])
	}
}

// sambaStore finds Samba's databases of secrets and of accounts. A new database
// without any is none.
func sambaStore(data []byte, at int) (int, bool) {
	return 0, at == 0 && sambaSecret.Match(data)
}

var sambaSecret = regexp.MustCompile(`SECRETS/(?:MACHINE_PASSWORD|\$MACHINE\.ACC|MACHINE_DOMAIN_INFO|LDAP_BIND_PW|\$DOMTRUST\.ACC|LOCAL_SCHANNEL_KEY|AUTH_PASSWORD|GENERIC|IDMAP_SECRETS)|USER_[a-zA-Z0-9_.$-]+\x00`)
