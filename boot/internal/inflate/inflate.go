// Package inflate decompresses DEFLATE (RFC 1951) from memory to memory, where
// the size of the content is known. Being given all of both it looks at eight
// bytes at a time and keeps no window, and takes two thirds of the time of what
// reads a stream, as the libraries do: with klauspost/compress a full update of
// 204 MB takes 0.75 s and not 0.53.
//
// It refuses a stream that holds less or more than the destination, that ends
// early or does not end where the source does, codes that are over-subscribed
// or incomplete, and distances that lead before the start.
package inflate

import (
	"encoding/binary"
	"errors"
	"io"
)

// The errors of Fill, besides io.ErrUnexpectedEOF for a stream that ends early or
// holds less than it should.
var (
	ErrCorrupt = errors.New("deflate stream is corrupt")
	ErrLong    = errors.New("deflate stream holds more than it says")
	ErrBehind  = errors.New("deflate stream has bytes behind its data")
)

// A Decoder decompresses one stream at a time, in some 40 KiB of memory. Its
// zero value is ready.
type Decoder struct {
	literals, distances table

	src  []byte
	at   int    // the next byte of src
	bits uint64 // bits of src before it that are not used yet, from the lowest on
	have uint   // how many; those above are bits of src too, or zero
}

// The kinds of blocks (RFC 1951 section 3.2.3).
const (
	stored  = 0
	fixed   = 1
	dynamic = 2
)

// Fill decompresses src, all of it, to dst, all of it.
func (d *Decoder) Fill(dst, src []byte) error {
	d.src, d.at, d.bits, d.have = src, 0, 0, 0
	defer func() { d.src = nil }()
	out := 0
	for last := false; !last; {
		head, err := d.take(3)
		if err != nil {
			return err
		}
		last = head&1 != 0
		switch head >> 1 {
		case stored:
			out, err = d.copyStored(dst, out)
		case fixed:
			if err = d.fixedCodes(); err == nil {
				out, err = d.block(dst, out)
			}
		case dynamic:
			if err = d.readCodes(); err == nil {
				out, err = d.block(dst, out)
			}
		default:
			err = ErrCorrupt
		}
		if err != nil {
			return err
		}
	}
	if out < len(dst) {
		return io.ErrUnexpectedEOF
	}
	if d.unused() > 0 {
		return ErrBehind
	}
	return nil
}

// unused is the number of whole bytes of src that are not used yet.
func (d *Decoder) unused() int { return len(d.src) - d.at + int(d.have/8) }

// refill makes at least 56 bits available, or all that are left.
func (d *Decoder) refill() {
	if d.at+8 <= len(d.src) {
		d.bits |= binary.LittleEndian.Uint64(d.src[d.at:]) << (d.have & 63)
		d.at += int(63-d.have) / 8
		d.have |= 56
		return
	}
	for d.have < 56 && d.at < len(d.src) {
		d.bits |= uint64(d.src[d.at]) << (d.have & 63)
		d.at++
		d.have += 8
	}
}

// take returns the next n bits, at most 16.
func (d *Decoder) take(n uint) (uint, error) {
	if d.have < n {
		d.refill()
		if d.have < n {
			return 0, io.ErrUnexpectedEOF
		}
	}
	v := uint(d.bits) & (1<<n - 1)
	d.drop(n)
	return v, nil
}

func (d *Decoder) drop(n uint) {
	d.bits >>= n & 63
	d.have -= n
}

// copyStored copies a block that is not compressed (section 3.2.4).
func (d *Decoder) copyStored(dst []byte, out int) (int, error) {
	d.at = len(d.src) - d.unused()
	d.bits, d.have = 0, 0
	rest := d.src[d.at:]
	if len(rest) < 4 {
		return out, io.ErrUnexpectedEOF
	}
	n := int(binary.LittleEndian.Uint16(rest))
	switch {
	case binary.LittleEndian.Uint16(rest[2:]) != ^uint16(n):
		return out, ErrCorrupt
	case n > len(rest)-4:
		return out, io.ErrUnexpectedEOF
	case n > len(dst)-out:
		return out, ErrLong
	}
	d.at += 4 + n
	return out + copy(dst[out:], rest[4:4+n]), nil
}

// block decompresses a block whose codes are known, from out on.
func (d *Decoder) block(dst []byte, out int) (int, error) {
	for {
		out = d.run(dst, out)
		d.refill()
		e := d.literals.look(d.bits)
		if e.size() > d.have {
			return out, io.ErrUnexpectedEOF
		}
		d.drop(e.size())
		switch e.kind() {
		case literal:
			if out == len(dst) {
				return out, ErrLong
			}
			dst[out] = byte(e.value())
			out++
		case length:
			n, err := d.match(e, dst, out)
			if err != nil {
				return out, err
			}
			out += n
		case end:
			return out, nil
		default:
			return out, ErrCorrupt
		}
	}
}

// run decompresses what it can without looking whether src or dst end: neither
// is close to its end. Of what it leaves, block decompresses at least a symbol.
func (d *Decoder) run(dst []byte, out int) int {
	const several, mask = 4, 1<<primaryBits - 1
	src, at, bits, have := d.src, d.at, d.bits, d.have
	short := &d.literals.entries
	for at+16 <= len(src) && out+several+maxMatch <= len(dst) {
		// Several literals with short codes, which is what most come as, are
		// there in 56 bits. Each waits for the one before: nothing else must.
		bits |= binary.LittleEndian.Uint64(src[at:]) << (have & 63)
		at += int(63-have) / 8
		have |= 56
		to := (*[several]byte)(dst[out:])
		n := 0
		e := short[bits&mask]
		for ; n < several && e&isLiteral != 0; n++ {
			to[n] = byte(e >> 16)
			bits >>= e & 63
			have -= uint(e & 63)
			e = short[bits&mask]
		}
		out += n
		if n == several {
			continue
		}
		// A length, and its distance, have up to 48 bits.
		bits |= binary.LittleEndian.Uint64(src[at:]) << (have & 63)
		at += int(63-have) / 8
		have |= 56
		if e.kind() == link {
			e = d.literals.look(bits)
		}
		if e.kind() == literal {
			dst[out] = byte(e >> 16)
			out++
			bits >>= e & 63
			have -= uint(e & 63)
			continue
		}
		next := bits >> e.size()
		size := int(e.value() + uint(next)&(1<<e.extra()-1))
		next >>= e.extra()
		far := d.distances.look(next)
		if e.kind() != length || far.kind() != distance {
			break
		}
		next >>= far.size()
		back := int(far.value() + uint(next)&(1<<far.extra()-1))
		if back > out {
			break
		}
		bits = next >> far.extra()
		have -= e.size() + e.extra() + far.size() + far.extra()
		repeat(dst[:out+size], out, back)
		out += size
	}
	d.at, d.bits, d.have = at, bits, have
	return out
}

// repeat fills dst from out on with what lies back bytes before.
func repeat(dst []byte, out, back int) {
	// Where it reaches into itself, each round doubles what is there.
	for start := out - back; out < len(dst); {
		out += copy(dst[out:], dst[start:out])
	}
}

// match copies what came before, for a length whose code has been read, and
// returns how much.
func (d *Decoder) match(e entry, dst []byte, out int) (int, error) {
	more, err := d.take(e.extra())
	if err != nil {
		return 0, err
	}
	n := int(e.value() + more)
	d.refill()
	e = d.distances.look(d.bits)
	if e.kind() != distance {
		return 0, ErrCorrupt
	}
	if e.size()+e.extra() > d.have {
		return 0, io.ErrUnexpectedEOF
	}
	d.drop(e.size())
	if more, err = d.take(e.extra()); err != nil {
		return 0, err
	}
	back := int(e.value() + more)
	switch {
	case back > out:
		return 0, ErrCorrupt
	case n > len(dst)-out:
		return 0, ErrLong
	}
	repeat(dst[:out+n], out, back)
	return n, nil
}
