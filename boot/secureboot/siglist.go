package secureboot

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"halogenos.internal/boot/gpt"
)

// Signature types (UEFI 2.10, section 32.4.1).
var (
	// TypeX509 marks a DER certificate.
	TypeX509 = gpt.MustGUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
	// TypeSHA256 marks an Authenticode SHA-256 hash.
	TypeSHA256 = gpt.MustGUID("c1c41626-504c-4092-aca9-41f936934328")
)

const (
	// MaxDatabase bounds one signature database in bytes. The largest in the
	// field, dbx, has some 24 KiB; firmware's own limits are about 64 KiB.
	MaxDatabase = 1 << 20
	// listHeader is the size of EFI_SIGNATURE_LIST without its variable parts.
	listHeader = 16 + 4 + 4 + 4
	sha256Size = 32
)

// An Entry is one EFI_SIGNATURE_DATA with the type of the list it is in.
type Entry struct {
	Type, Owner gpt.GUID
	Data        []byte
}

// Certificate makes an entry of a certificate.
func Certificate(owner gpt.GUID, certificate *x509.Certificate) Entry {
	return Entry{Type: TypeX509, Owner: owner, Data: certificate.Raw}
}

// Hash makes an entry of an image's Authenticode SHA-256 hash.
func Hash(owner gpt.GUID, digest [32]byte) Entry {
	return Entry{Type: TypeSHA256, Owner: owner, Data: digest[:]}
}

// SignatureData returns the entry as EFI_SIGNATURE_DATA: what firmware measures
// into PCR 7 as the authority that let an image start.
func (e Entry) SignatureData() []byte { return append(appendGUID(nil, e.Owner), e.Data...) }

// ParseSignatureData reads what SignatureData returned. Nothing in it says of what type it
// is: what has the length of a hash is one.
func ParseSignatureData(b []byte) Entry {
	if len(b) < guidSize {
		return Entry{Data: bytes.Clone(b)}
	}
	e := Entry{Type: TypeX509, Owner: guidFromDisk(b), Data: bytes.Clone(b[guidSize:])}
	if len(e.Data) == sha256Size {
		e.Type = TypeSHA256
	}
	return e
}

// Equal reports whether both entries are the same in every byte.
func (e Entry) Equal(other Entry) bool {
	return e.Type == other.Type && e.Owner == other.Owner && bytes.Equal(e.Data, other.Data)
}

// String describes the entry for a person.
func (e Entry) String() string {
	switch e.Type {
	case TypeX509:
		if c, err := x509.ParseCertificate(e.Data); err == nil {
			return fmt.Sprintf("certificate %q", printable(c.Subject.String()))
		}
		if subject, ok := Subject(e.Data); ok {
			return fmt.Sprintf("certificate %q (of an unusual form)", printable(subject))
		}
		return fmt.Sprintf("unreadable certificate of %d bytes", len(e.Data))
	case TypeSHA256:
		return "hash " + hex.EncodeToString(e.Data)
	}
	return fmt.Sprintf("signature of type %s, %d bytes", e.Type, len(e.Data))
}

// Printable keeps what firmware claims from steering the console.
func Printable(s string) string { return printable(s) }

// printable keeps what firmware claims from steering the console.
func printable(s string) string {
	const longest = 120
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?' // a control character, or what turns the direction of a line
		}
		return r
	}, s)
	if len(s) > longest {
		s = strings.ToValidUTF8(s[:longest], "") + "..."
	}
	return s
}

// A Database is the content of PK, KEK, db or dbx, its lists flattened.
type Database []Entry

// ParseDatabase reads a sequence of EFI_SIGNATURE_LIST (UEFI 2.10, section
// 32.4.1). Types it does not know are kept as bytes. Every size must add up:
// what two readers could take for two things is refused. The entries do not
// refer to b.
func ParseDatabase(b []byte) (Database, error) {
	if len(b) > MaxDatabase {
		return nil, fmt.Errorf("signature database has %d bytes, at most %d are read", len(b), MaxDatabase)
	}
	var d Database
	for off := 0; off < len(b); {
		entries, size, err := parseList(b[off:])
		if err != nil {
			return nil, fmt.Errorf("signature list at byte %d: %w", off, err)
		}
		d = append(d, entries...)
		off += size
	}
	return d, nil
}

func parseList(b []byte) (entries []Entry, size int, err error) {
	if len(b) < listHeader {
		return nil, 0, fmt.Errorf("header needs %d bytes, %d are left", listHeader, len(b))
	}
	kind := guidFromDisk(b)
	listSize := binary.LittleEndian.Uint32(b[16:])
	headerSize := binary.LittleEndian.Uint32(b[20:])
	each := binary.LittleEndian.Uint32(b[24:])
	switch {
	case listSize < listHeader || uint64(listSize) > uint64(len(b)):
		return nil, 0, fmt.Errorf("claims %d bytes, %d are left", listSize, len(b))
	case headerSize != 0:
		return nil, 0, fmt.Errorf("has a header of %d bytes, which no known type has", headerSize)
	case each <= uint32(guidSize):
		return nil, 0, fmt.Errorf("claims %d bytes for each signature, which leaves none beside the owner", each)
	case kind == TypeSHA256 && each != uint32(guidSize)+sha256Size:
		return nil, 0, fmt.Errorf("claims %d bytes for each SHA-256 hash, want %d", each, guidSize+sha256Size)
	case (listSize-listHeader)%each != 0:
		return nil, 0, fmt.Errorf("%d bytes of signatures are not a multiple of %d", listSize-listHeader, each)
	}
	for body := b[listHeader:listSize]; len(body) > 0; body = body[each:] {
		entries = append(entries, Entry{Type: kind, Owner: guidFromDisk(body), Data: bytes.Clone(body[guidSize:each])})
	}
	return entries, int(listSize), nil
}

// Marshal writes the database. Neighbouring hashes share a list; every
// certificate has its own, which is what all firmware reads.
func (d Database) Marshal() ([]byte, error) {
	var out []byte
	for i := 0; i < len(d); {
		end := i + 1
		for d[i].Type != TypeX509 && end < len(d) && d[end].Type == d[i].Type && len(d[end].Data) == len(d[i].Data) {
			end++
		}
		if d[i].Type == TypeSHA256 && len(d[i].Data) != sha256Size {
			return nil, fmt.Errorf("hash has %d bytes, want %d", len(d[i].Data), sha256Size)
		}
		each := guidSize + len(d[i].Data)
		size := listHeader + (end-i)*each
		if len(d[i].Data) == 0 || len(out)+size > MaxDatabase {
			return nil, fmt.Errorf("signature of %d bytes does not fit: the database would have %d bytes, at most %d are written", len(d[i].Data), len(out)+size, MaxDatabase)
		}
		out = appendGUID(out, d[i].Type)
		out = binary.LittleEndian.AppendUint32(out, uint32(size))
		out = binary.LittleEndian.AppendUint32(out, 0)
		out = binary.LittleEndian.AppendUint32(out, uint32(each))
		for ; i < end; i++ {
			out = append(out, d[i].SignatureData()...)
		}
	}
	return out, nil
}

// Contains reports whether the entry is in the database.
func (d Database) Contains(e Entry) bool { return slices.ContainsFunc(d, e.Equal) }

// Without returns the entries of d that are not in other, each once.
func (d Database) Without(other Database) Database {
	var rest Database
	for _, e := range d {
		if !other.Contains(e) && !rest.Contains(e) {
			rest = append(rest, e)
		}
	}
	return rest
}

// Same reports whether both hold the same entries. Firmware may keep them in
// an order of its own.
func (d Database) Same(other Database) bool {
	return len(d.Without(other)) == 0 && len(other.Without(d)) == 0
}

// String lists the entries for a person.
func (d Database) String() string {
	const most = 8
	var names []string
	for i, e := range d {
		if i == most {
			names = append(names, fmt.Sprintf("and %d more", len(d)-most))
			break
		}
		names = append(names, e.String())
	}
	return strings.Join(names, ", ")
}

// TakesHashes reports whether the content of SignatureSupport, an array of
// EFI_GUID, lists SHA-256 hashes.
func TakesHashes(types []byte) bool {
	for ; len(types) >= guidSize; types = types[guidSize:] {
		if guidFromDisk(types) == TypeSHA256 {
			return true
		}
	}
	return false
}

// guidFromDisk reads a GUID whose first three fields are little-endian (UEFI
// 2.10, appendix A). b has 16 bytes or more.
func guidFromDisk(b []byte) gpt.GUID {
	g := gpt.GUID(b[:guidSize])
	slices.Reverse(g[0:4])
	slices.Reverse(g[4:6])
	slices.Reverse(g[6:8])
	return g
}

func appendGUID(b []byte, g gpt.GUID) []byte {
	slices.Reverse(g[0:4])
	slices.Reverse(g[4:6])
	slices.Reverse(g[6:8])
	return append(b, g[:]...)
}
