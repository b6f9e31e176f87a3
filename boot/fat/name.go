package fat

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// shortName is a name as a directory entry has it: eight characters and three
// of extension, padded with spaces.
type shortName [11]byte

var blankName = shortName([]byte("           "))

// String returns the usual form, "NAME.EXT".
func (s shortName) String() string {
	base, ext := strings.TrimRight(string(s[:8]), " "), strings.TrimRight(string(s[8:]), " ")
	if ext == "" {
		return base
	}
	return base + "." + ext
}

// checksum ties long entries to their short one (section "Short Directory
// Entry checksum").
func (s shortName) checksum() uint8 {
	var sum uint8
	for _, c := range s {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

// checkName refuses what a long name must not be. Spaces at either end and
// periods at the end are refused as well: other systems drop them, and find
// another file.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("%q is not a file name", name)
	case !utf8.ValidString(name):
		return fmt.Errorf("name %q is not UTF-8", name)
	case strings.Trim(name, " ") != name || strings.HasSuffix(name, "."):
		return fmt.Errorf("name %q begins or ends with a space, or ends with a period", name)
	}
	if i := strings.IndexFunc(name, func(r rune) bool { return !validRune(r) }); i >= 0 {
		return fmt.Errorf("name %q has a character that FAT has not, at byte %d", name, i)
	}
	if n := len(utf16.Encode([]rune(name))); n > 255 {
		return fmt.Errorf("name %q has %d UTF-16 code units, at most 255 fit", name, n)
	}
	return nil
}

// validRune reports whether a long name may have r.
func validRune(r rune) bool {
	return r >= 0x20 && r != 0x7f && !strings.ContainsRune(`"*/:<>?\|`, r)
}

// validShort reports whether a short name may have c.
func validShort(c rune) bool {
	return c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c < 0x80 && strings.ContainsRune("$%'-_@~`!(){}^#&", c)
}

// fold makes names equal that a FAT driver takes for equal.
func fold(name string) string { return strings.Map(unicode.ToUpper, name) }

// basis turns a long name into a short one (section "The Basis-Name
// Generation Algorithm"). exact is false when that lost anything but case.
func basis(name string) (short shortName, exact bool) {
	short, exact = blankName, true
	rest := strings.TrimLeft(strings.ReplaceAll(name, " ", ""), ".")
	exact = rest == name
	base, ext := rest, ""
	if dot := strings.LastIndexByte(rest, '.'); dot >= 0 {
		base, ext = rest[:dot], rest[dot+1:]
	}
	base, _, dotted := strings.Cut(base, ".")
	for _, part := range []struct {
		text string
		to   []byte
	}{{base, short[:8]}, {ext, short[8:]}} {
		n := 0
		for _, r := range part.text {
			if n == len(part.to) {
				exact = false
				break
			}
			r = unicode.ToUpper(r)
			if !validShort(r) {
				r, exact = '_', false
			}
			part.to[n] = byte(r)
			n++
		}
	}
	return short, exact && !dotted
}

// withTail puts a number behind the base, which gives up characters for it.
func (s shortName) withTail(n int) shortName {
	tail := fmt.Sprintf("~%d", n)
	base := strings.TrimRight(string(s[:8]), " ")
	base = base[:min(len(base), 8-len(tail))] + tail
	copy(s[:8], base+"        ")
	return s
}

// aliases gives each of a directory's names its short name, all different. Names
// that are one already keep it; the others get numbers, in order.
func aliases(names []string) ([]shortName, error) {
	short := make([]shortName, len(names))
	used := map[shortName]bool{}
	var rest []int
	for i, name := range names {
		s, exact := basis(name)
		short[i] = s
		if !exact || used[s] {
			rest = append(rest, i)
			continue
		}
		used[s] = true
	}
	next := map[shortName]int{} // the last number tried, so that many equal beginnings stay quick
	for _, i := range rest {
		s := short[i]
		n := next[s.withTail(1)] + 1
		for used[s.withTail(n)] {
			n++
		}
		if n > 999999 {
			return nil, errors.New("more than 999999 names have the same beginning")
		}
		next[s.withTail(1)] = n
		short[i] = s.withTail(n)
		used[short[i]] = true
	}
	return short, nil
}

// needsLong reports whether the short name does not say what name says.
func needsLong(name string, short shortName) bool { return name != short.String() }

// longEntries returns the entries for a long name, in the order of the disk.
func longEntries(name string, short shortName) []longEntry {
	units := utf16.Encode([]rune(name))
	n := (len(units) + longUnits - 1) / longUnits
	if len(units)%longUnits != 0 {
		units = append(units, 0)
	}
	for len(units) < n*longUnits {
		units = append(units, 0xffff)
	}
	entries := make([]longEntry, n)
	for i := range entries {
		e := &entries[n-1-i]
		part := units[i*longUnits:]
		*e = longEntry{Order: uint8(i + 1), Attr: attrLongName, Checksum: short.checksum()}
		copy(e.Name1[:], part)
		copy(e.Name2[:], part[5:])
		copy(e.Name3[:], part[11:])
	}
	entries[0].Order |= lastLong
	return entries
}
