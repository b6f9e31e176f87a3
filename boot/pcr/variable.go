package pcr

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"

	"halogenos.internal/boot/secureboot"
)

// Namespaces of variables, in the byte order of the log.
const (
	// 8be4df61-93ca-11d2-aa0d-00e098032b8c
	globalVariables = "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c"
	// d719b2cb-3d3a-4596-a3bc-dad00e67656f
	imageSecurity = "\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f"
)

// variable is UEFI_VARIABLE_DATA (PC Client Platform Firmware Profile 1.06,
// section 10.2.6).
type variable struct {
	guid [16]byte
	name string
	data []byte
}

func parseVariable(b []byte) (variable, error) {
	c := &cursor{rest: b}
	var v variable
	copy(v.guid[:], c.take(16))
	units, size := c.u64(), c.u64()
	if c.short || units > uint64(len(c.rest))/2 || size != uint64(len(c.rest))-2*units {
		return variable{}, fmt.Errorf("a variable's name of %d characters and data of %d bytes in an event of %d bytes", units, size, len(b))
	}
	v.name = decodeUTF16(c.take(int(2 * units)))
	v.data = c.rest
	return v, nil
}

// looseVariable is parseVariable for people to read: old versions of shim state less data
// than they measure.
func looseVariable(b []byte) (variable, error) {
	v, err := parseVariable(b)
	const sizes = 16 + 8 + 8
	if err == nil || len(b) < sizes {
		return v, err
	}
	units, size := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	if units > uint64(len(b)) || size > uint64(len(b)) || sizes+2*units+size > uint64(len(b)) {
		return v, err
	}
	return parseVariable(b[:sizes+2*units+size])
}

// encode returns what firmware hashes.
func (v variable) encode() []byte {
	name := utf16.Encode([]rune(v.name))
	out := bytes.Clone(v.guid[:])
	out = binary.LittleEndian.AppendUint64(out, uint64(len(name)))
	out = binary.LittleEndian.AppendUint64(out, uint64(len(v.data)))
	for _, unit := range name {
		out = binary.LittleEndian.AppendUint16(out, unit)
	}
	return append(out, v.data...)
}

func (v variable) is(namespace, name string) bool {
	return v.name == name && string(v.guid[:]) == namespace
}

// describe says what a variable of the boot or of Secure Boot holds.
func (v variable) describe() string {
	switch {
	case v.is(globalVariables, "SecureBoot"), v.is(globalVariables, "SetupMode"), v.is(globalVariables, "AuditMode"), v.is(globalVariables, "DeployedMode"):
		return v.name + " is " + onOff(v.data)
	case v.isDatabase():
		return v.name + " holds " + describeDatabase(v.data)
	case v.name == "BootOrder" && len(v.data)%2 == 0:
		var order []string
		for i := 0; i < len(v.data) && i < 64; i += 2 {
			order = append(order, fmt.Sprintf("%04X", binary.LittleEndian.Uint16(v.data[i:])))
		}
		return "boot order is " + strings.Join(order, ", ")
	case strings.HasPrefix(v.name, "Boot") && len(v.name) == 8 && len(v.data) > 6:
		return fmt.Sprintf("boot option %s is %q", printable(v.name), textUTF16(v.data[6:]))
	}
	return fmt.Sprintf("variable %s holds %d bytes", printable(v.name), len(v.data))
}

func (v variable) isDatabase() bool {
	return v.is(globalVariables, "PK") || v.is(globalVariables, "KEK") || v.is(imageSecurity, "db") || v.is(imageSecurity, "dbx")
}

func onOff(data []byte) string {
	switch {
	case len(data) == 1 && data[0] == 1:
		return "on"
	case len(data) == 1 && data[0] == 0:
		return "off"
	case len(data) == 0:
		return "empty: the firmware has no such variable"
	}
	return fmt.Sprintf("%.16x", data)
}

func describeDatabase(data []byte) string {
	if len(data) == 0 {
		return "nothing"
	}
	database, err := secureboot.ParseDatabase(data)
	if err != nil {
		return fmt.Sprintf("%d bytes that are not a signature database", len(data))
	}
	return describeEntries(database)
}

func describeEntries(entries secureboot.Database) string {
	const most = 4
	var parts []string
	for i, entry := range entries {
		if i == most {
			parts = append(parts, fmt.Sprintf("%d more", len(entries)-most))
			break
		}
		parts = append(parts, entry.String())
	}
	return strings.Join(parts, ", ")
}

// describeAuthority says what let an image start: an EFI_SIGNATURE_DATA of db,
// or what a shim measured in its own name.
func (v variable) describeAuthority() string {
	const owner = 16
	if !v.is(imageSecurity, "db") || len(v.data) <= owner {
		return fmt.Sprintf("image allowed by %s, %d bytes", printable(v.name), len(v.data))
	}
	if len(v.data) == owner+32 {
		return "image allowed by db: hash " + hex.EncodeToString(v.data[owner:])
	}
	subject, ok := secureboot.Subject(v.data[owner:])
	if cert, err := x509.ParseCertificate(v.data[owner:]); err == nil {
		subject, ok = cert.Subject.String(), true
	}
	if !ok {
		return fmt.Sprintf("image allowed by db: unreadable certificate of %d bytes", len(v.data)-owner)
	}
	return fmt.Sprintf("image allowed by db: certificate %q", printable(subject))
}

func decodeUTF16(b []byte) string {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(units))
}

// textUTF16 decodes up to the first NUL.
func textUTF16(b []byte) string {
	text, _, _ := strings.Cut(decodeUTF16(b), "\x00")
	return printable(text)
}

// printable keeps what firmware claims from steering the console, and short.
func printable(s string) string {
	const longest = 200
	var out strings.Builder
	for i, r := range s {
		if i >= longest {
			out.WriteString("...")
			break
		}
		switch {
		case unicode.IsSpace(r): // a boot loader measures scripts, with their lines
			r = ' '
		case !unicode.IsPrint(r):
			r = '?'
		}
		out.WriteRune(r)
	}
	return out.String()
}
