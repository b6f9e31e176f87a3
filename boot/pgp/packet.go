package pgp

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Packet types, RFC 9580 section 5.
const (
	tagSignature     = 2
	tagPublicKey     = 6
	tagUserID        = 13
	tagPublicSubkey  = 14
	tagUserAttribute = 17
)

// A frame is one packet: its type and its body.
type frame struct {
	tag  uint8
	body []byte
}

// nextFrame cuts the first packet off b (RFC 9580, section 4.2). Lengths that
// are given in parts, or not at all, are for streams and refused here: readers
// differ in what they make of them.
func nextFrame(b []byte) (frame, []byte, error) {
	if len(b) < 2 || b[0]&0x80 == 0 {
		return frame{}, nil, fmt.Errorf("no OpenPGP packet where one should start, %d bytes before the end", len(b))
	}
	tag, head, size := b[0]&0x3f, 2, uint64(b[1])
	if b[0]&0x40 == 0 { // the legacy format
		tag = b[0] & 0x3f >> 2
		width := 1 << (b[0] & 3)
		if width == 8 {
			return frame{}, nil, fmt.Errorf("packet of type %d has no length", tag)
		}
		head = 1 + width
		size = bigEndian(b[1:], width)
	} else {
		switch first := b[1]; {
		case first == 255:
			head, size = 6, bigEndian(b[2:], 4)
		case first >= 224:
			return frame{}, nil, fmt.Errorf("packet of type %d has its length in parts", tag)
		case first >= 192:
			head, size = 3, uint64(first-192)<<8+bigEndian(b[2:], 1)+192
		}
	}
	if len(b) < head || size > uint64(len(b)-head) {
		return frame{}, nil, fmt.Errorf("packet of type %d claims %d bytes, %d are left", tag, size, max(0, len(b)-head))
	}
	end := head + int(size)
	return frame{tag, b[head:end]}, b[end:], nil
}

// bigEndian reads a number of width bytes; bytes that are missing count as
// zero, and nextFrame then finds the packet too short.
func bigEndian(b []byte, width int) uint64 {
	var padded [8]byte
	copy(padded[8-width:], b[:min(width, len(b))])
	return binary.BigEndian.Uint64(padded[:])
}

// frames cuts b into packets.
func frames(b []byte) ([]frame, error) {
	var all []frame
	for len(b) > 0 {
		f, rest, err := nextFrame(b)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
		b = rest
	}
	return all, nil
}

// encode returns the packet with the header that is always right: new format,
// five bytes of length.
func (f frame) encode() []byte {
	out := binary.BigEndian.AppendUint32([]byte{0xc0 | f.tag, 255}, uint32(len(f.body)))
	return append(out, f.body...)
}

// parse hands the packet to the library and sees to it that all of the body
// was used: what the library leaves, it would take for the next packet.
func (f frame) parse() (packet.Packet, error) {
	r := bytes.NewReader(f.encode())
	p, err := packet.Read(r)
	if err != nil {
		return nil, err
	}
	if r.Len() > 0 {
		return nil, fmt.Errorf("packet of type %d has %d bytes too many", f.tag, r.Len())
	}
	return p, nil
}
