// Package archive reads and writes a release's archive: a tar inside gzip that
// any tar unpacks, with release.json, its signature, the UKI, the boot manager,
// the block index and the system image, in this order. A system extension's has
// release.json, its signature, the block index and the extension's file.
//
// It refuses every other archive, however well formed. A tar header is not
// parsed but compared with the one that the signed release.json calls for, so
// that there are no links, devices, sparse files, owners, long names or global
// records to fall for. Sizes come from release.json as well: nothing is
// unpacked beyond them, and nothing may follow.
//
// The gzip is a row of independent members, so that many cores can work at
// once and any part of a file can be fetched alone. A member says in its
// header how long it is packed and unpacked (an extra field, which RFC 1952
// section 2.3.1.1 has for such things and other readers skip). No member holds
// parts of two files, so that release.json's packed sizes say where each file
// lies, and the index where each block of it. Up to the first byte after the
// signature members are stored, not compressed: what is not authenticated yet
// meets no decompressor and no parser but the strict ones of this package.
//
// The same release gives the same bytes, whatever the number of cores.
package archive

import (
	"bytes"
	"fmt"
	"runtime"

	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/release"
)

// SignatureFile is the name of release.json's signature in the archive.
const SignatureFile = release.FileName + ".pgp"

// MaxSignature bounds the signature in bytes.
const MaxSignature = 16 << 10

const (
	block   = 512 // bytes of a tar block
	trailer = 2 * block
)

// Options of writing and reading.
type Options struct {
	Workers int // goroutines that pack or unpack; 0 stands for one a core
	// MemberBlocks is the number of 4 KiB blocks of a file that a gzip member
	// holds, at most blockindex.MaxMemberBlocks; 0 stands for what suits most.
	MemberBlocks int
	// Members, if not nil, is told by a Reader of every gzip member behind the
	// head, in order: its size in bytes, packed and unpacked.
	Members func(packed, plain int)
	// Extension is for a Reader of the archive of a system extension; a release's is
	// then refused.
	Extension bool
}

func (o Options) workers() int {
	if o.Workers > 0 {
		return min(o.Workers, 256)
	}
	return runtime.GOMAXPROCS(0)
}

// memberBlocks weighs two things. In members of 1, 2, 4, 8 and 15 blocks, the
// archive of a Debian image is 5.3, 4.4, 3.7, 3.2 and 2.8 % larger than what
// gzip -6 makes of the same tar, and nine packages of another version are 3.8,
// 4.1, 4.8, 6.3 and 8.9 % of it. An image that is not compressed grows more,
// with less than 4 blocks.
const memberBlocks = 4

func (o Options) memberBlocks() int {
	if o.MemberBlocks > 0 {
		return min(o.MemberBlocks, blockindex.MaxMemberBlocks)
	}
	return memberBlocks
}

// header returns the tar header of a file (POSIX.1-2017, pax, "ustar
// Interchange Format"). There is one for every name, size and date.
func header(name string, size, date int64) [block]byte {
	var h [block]byte
	copy(h[0:100], name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	if size < 1<<33 {
		copy(h[124:], fmt.Sprintf("%011o\x00", size))
	} else { // more than the digits hold: base 256, which every tar reads
		h[124] = 0x80
		for i := range 8 {
			h[135-i] = byte(size >> (8 * i))
		}
	}
	copy(h[136:], fmt.Sprintf("%011o\x00", date))
	copy(h[148:], "        0")
	copy(h[257:], "ustar\x0000")
	copy(h[329:], "0000000\x000000000\x00")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

// maxDate is the greatest date that a header holds, in seconds since 1970.
const maxDate = 1<<33 - 1

// smallHeader reads size and date from the header of a file of at most limit
// bytes, and refuses any header that is not the one header returns.
func smallHeader(h [block]byte, name string, limit int64) (size, date int64, err error) {
	size, ok := octal(h[124:136])
	if date, isDate := octal(h[136:148]); ok && isDate {
		if size > limit {
			return 0, 0, fmt.Errorf("%s has %d bytes, more than %d", name, size, limit)
		}
		if h == header(name, size, date) {
			return size, date, nil
		}
	}
	return 0, 0, fmt.Errorf("archive does not have %s, as a plain file, where it belongs", name)
}

// octal reads eleven digits and a NUL.
func octal(field []byte) (int64, bool) {
	n := int64(0)
	for _, c := range field[:11] {
		if c < '0' || c > '7' {
			return 0, false
		}
		n = n<<3 | int64(c-'0')
	}
	return n, field[11] == 0
}

// padding is the number of zeros that follow a file.
func padding(size int64) int64 { return -size & (block - 1) }

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }
