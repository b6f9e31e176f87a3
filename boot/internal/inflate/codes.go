package inflate

import (
	"io"
	"math/bits"
)

const (
	maxBits     = 15 // of a code
	primaryBits = 11 // that are looked up at once
	maxLiterals = 286
	maxDistance = 30
	maxMatch    = 258 // bytes

	// Of a code's prefixes with primaryBits those that longer codes share have
	// a table each, and each of them has at least two codes.
	tableSize = 1<<primaryBits + 1<<(maxBits-primaryBits)*(maxLiterals+2)/2
)

// An entry says what a code stands for: from the lowest bit on, the code's
// size in bits (8), the bits that follow it (4), the kind (4), the value (16).
// The zero entry is a code that there is not.
type entry uint32

const (
	none = iota
	length
	distance
	end
	link          // to the table that starts at the value
	literal   = 8 // and no other has this bit
	isLiteral = literal << 12
)

func newEntry(kind, extra, value uint) entry { return entry(extra<<8 | kind<<12 | value<<16) }

func (e entry) size() uint  { return uint(e & 0xff) }
func (e entry) extra() uint { return uint(e >> 8 & 0xf) }
func (e entry) kind() uint  { return uint(e >> 12 & 0xf) }
func (e entry) value() uint { return uint(e >> 16) }

// The meanings of the symbols (RFC 1951 section 3.2.5), and of those that the
// sizes of codes are written with (section 3.2.7).
var literalEntries, distanceEntries, sizeEntries = meanings()

func meanings() (literals [maxLiterals + 2]entry, distances [maxDistance + 2]entry, sizes [19]entry) {
	for i := range 256 {
		literals[i] = newEntry(literal, 0, uint(i))
	}
	literals[256] = newEntry(end, 0, 0)
	base := uint(3)
	for i := range 28 {
		extra := uint(max(0, i/4-1))
		literals[257+i] = newEntry(length, extra, base)
		base += 1 << extra
	}
	literals[285] = newEntry(length, 0, 258)
	base = 1
	for i := range maxDistance {
		extra := uint(max(0, i/2-1))
		distances[i] = newEntry(distance, extra, base)
		base += 1 << extra
	}
	for i := range sizes {
		sizes[i] = newEntry(literal, 0, uint(i))
	}
	return literals, distances, sizes
}

// A table finds a code's entry by the bits that come next.
type table struct{ entries [tableSize]entry }

// look returns the entry of the code that comes next.
func (t *table) look(next uint64) entry {
	e := t.entries[next&(1<<primaryBits-1)]
	if e.kind() == link {
		e = t.entries[uint64(e.value())+next>>primaryBits&(1<<e.extra()-1)]
	}
	return e
}

// make makes the table of a code from the sizes of its symbols' codes, 0 for
// one that has none (section 3.2.2). All codes must be used, but for a code of
// one symbol, which has one bit, and one of none.
func (t *table) make(sizes []uint8, meaning []entry) error {
	var count [maxBits + 1]uint
	for _, n := range sizes {
		count[n]++
	}
	count[0] = 0
	var next [maxBits + 2]uint // the next code of each size
	code, longest := uint(0), 0
	for n := 1; n <= maxBits; n++ {
		next[n] = code << 1
		code = next[n] + count[n]
		if count[n] > 0 {
			longest = n
		}
	}
	next[maxBits+1] = code << 1
	switch {
	case code == 1<<maxBits:
	case longest == 0, longest == 1 && count[1] == 1:
		clear(t.entries[:1<<primaryBits])
	default:
		return ErrCorrupt
	}
	// Longer codes have the last of the prefixes.
	rest := uint(max(longest-primaryBits, 0))
	at := uint(1 << primaryBits)
	for prefix := next[primaryBits+1] / 2; rest > 0 && prefix < 1<<primaryBits; prefix++ {
		t.entries[reverse(prefix, primaryBits)] = newEntry(link, rest, at) | primaryBits
		at += 1 << rest
	}
	for symbol, n := range sizes {
		if n == 0 {
			continue
		}
		code := reverse(next[n], uint(n))
		next[n]++
		in, step := t.entries[:1<<primaryBits], uint(1)<<n
		if n > primaryBits {
			first := in[code%(1<<primaryBits)].value()
			in, code, step = t.entries[first:first+1<<rest], code>>primaryBits, step>>primaryBits
		}
		for e := meaning[symbol] | entry(n); code < uint(len(in)); code += step {
			in[code] = e
		}
	}
	return nil
}

// reverse returns the n bits of a code in the order in which they are read.
func reverse(code, n uint) uint { return uint(bits.Reverse16(uint16(code))) >> (16 - n) }

// fixedCodes makes the tables of a block with the fixed codes (section 3.2.6).
func (d *Decoder) fixedCodes() error {
	var sizes [maxLiterals + 2]uint8
	for i := range sizes {
		switch {
		case i < 144, i >= 280:
			sizes[i] = 8
		case i < 256:
			sizes[i] = 9
		default:
			sizes[i] = 7
		}
	}
	if err := d.literals.make(sizes[:], literalEntries[:]); err != nil {
		return err
	}
	for i := range maxDistance + 2 {
		sizes[i] = 5
	}
	return d.distances.make(sizes[:maxDistance+2], distanceEntries[:])
}

// sizeOrder is the order in which the sizes of the codes come that sizes are
// written with.
const sizeOrder = "\x10\x11\x12\x00\x08\x07\x09\x06\x0a\x05\x0b\x04\x0c\x03\x0d\x02\x0e\x01\x0f"

// readCodes reads a block's codes (section 3.2.7).
func (d *Decoder) readCodes() error {
	head, err := d.take(14)
	if err != nil {
		return err
	}
	literals, distances, count := int(head&31)+257, int(head>>5&31)+1, int(head>>10)+4
	if literals > maxLiterals || distances > maxDistance {
		return ErrCorrupt
	}
	var order [len(sizeOrder)]uint8
	for i := range count {
		n, err := d.take(3)
		if err != nil {
			return err
		}
		order[sizeOrder[i]] = uint8(n)
	}
	if err := d.distances.make(order[:], sizeEntries[:]); err != nil {
		return err
	}
	var sizes [maxLiterals + maxDistance]uint8
	if err := d.readSizes(sizes[:literals+distances]); err != nil {
		return err
	}
	if err := d.literals.make(sizes[:literals], literalEntries[:]); err != nil {
		return err
	}
	return d.distances.make(sizes[literals:literals+distances], distanceEntries[:])
}

// readSizes reads the sizes of codes, with the code that is in place of the
// distances'.
func (d *Decoder) readSizes(sizes []uint8) error {
	for i := 0; i < len(sizes); {
		d.refill()
		e := d.distances.look(d.bits)
		if e.kind() == none {
			return ErrCorrupt
		}
		if e.size() > d.have {
			return io.ErrUnexpectedEOF
		}
		d.drop(e.size())
		symbol := uint8(e.value())
		if symbol < 16 {
			sizes[i] = symbol
			i++
			continue
		}
		// One that comes several times: the one before, or 0.
		size, least, extra := uint8(0), uint(3), uint(2)
		switch symbol {
		case 16:
			if i == 0 {
				return ErrCorrupt
			}
			size = sizes[i-1]
		case 17:
			extra = 3
		default:
			least, extra = 11, 7
		}
		more, err := d.take(extra)
		if err != nil {
			return err
		}
		n := int(least + more)
		if n > len(sizes)-i {
			return ErrCorrupt
		}
		for range n {
			sizes[i] = size
			i++
		}
	}
	return nil
}
