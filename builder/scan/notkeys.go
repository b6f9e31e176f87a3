package scan

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"regexp"
	"unicode/utf8"
)

// isPNG tells an icon in the size of a key from a key: it reads the picture's chunks (length,
// type, data and the CRC of both: PNG, third edition, section 5.3) to the last byte. The
// first has its size in pixels.
func isPNG(data []byte) bool {
	rest, ok := bytes.CutPrefix(data, []byte("\x89PNG\r\n\x1a\n"))
	if !ok || !bytes.HasPrefix(rest, []byte("\x00\x00\x00\x0dIHDR")) {
		return false
	}
	for len(rest) >= 12 {
		n := uint64(binary.BigEndian.Uint32(rest)) + 12
		if n > uint64(len(rest)) || crc32.ChecksumIEEE(rest[4:n-4]) != binary.BigEndian.Uint32(rest[n-4:]) {
			return false
		}
		if string(rest[4:8]) == "IEND" {
			return n == uint64(len(rest))
		}
		rest = rest[n:]
	}
	return false
}

// manualPage is the beginning of a page for man(1): comments, and then a heading in one of
// the two sets of macros.
var manualPage = regexp.MustCompile(`\A(?:['.]\\"[^\n]*\n|\.\n|\n)*\.(?:TH|Dd) `)

// shown are the passwords of networks that wpa_supplicant.conf(5) and wpa_action(8) have in
// their examples. Each is in use somewhere, too: they say nothing outside of a manual page.
var shown = regexp.MustCompile(`\A(?:psk=(?:"very secret passphrase"|123456789\.\.\.)|password="(?:foobar|password)"|private_key_passwd="password")[ \t]*(?:\n|\z)`)

// shownInManual reports whether the secret that starts in a text is such an example, in a
// manual page. A disk image that begins with a page is none: it has zeros.
func shownInManual(data []byte, start int) bool {
	return shown.Match(data[start:min(len(data), start+64)]) && manualPage.Match(data[:min(len(data), 16<<10)]) && bytes.IndexByte(data, 0) < 0
}

// unlessShown makes a check that passes over these examples.
func unlessShown(c check) check {
	return func(data []byte, at int) (int, bool) {
		start, ok := c(data, at)
		return start, ok && !shownInManual(data, start)
	}
}

// Lengths in bytes of a keyring's mark, and of what is between its name and its first
// random bytes: two times, flags and a time to lock.
const (
	keyringMark   = 16
	keyringNumber = 24
)

// gnomeKeyring takes what follows the mark of a keyring: the format's version and the
// keyring's name with its length (gnome-keyring, docs/file-format.txt), or the version of
// libsecret's own format with the length of its salt. The programs that read keyrings, and
// file's list of formats, have the mark alone.
func gnomeKeyring(data []byte, at int) (int, bool) {
	rest := data[min(at+keyringMark, len(data)):]
	if len(rest) < 8 {
		return 0, false
	}
	if rest[0] == 1 && rest[1] == 0 {
		salt := binary.LittleEndian.Uint32(rest[2:])
		return at, salt > 0 && salt <= 1024
	}
	// Of ciphers and hashes there is one, with the number 0.
	if rest[0] != 0 || rest[1] != 0 || rest[2] > 3 || rest[3] > 3 {
		return 0, false
	}
	n, rest := binary.BigEndian.Uint32(rest[4:]), rest[8:]
	switch {
	case n == 0 || n == 0xffffffff: // no name
		// How often the password was hashed. It is a few thousand times.
		if len(rest) < keyringNumber+4 {
			return at, n != 0
		}
		rounds := binary.BigEndian.Uint32(rest[keyringNumber:])
		return at, rounds > 0 && rounds <= 1<<24
	case n > 4096:
		return 0, false
	}
	name := rest[:min(int(n), len(rest))]
	return at, len(name) > 0 && bytes.IndexByte(name, 0) < 0 && (utf8.Valid(name) || len(name) < int(n))
}
