package archive

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/flate"
)

// MaxMember is the greatest number of bytes that a gzip member unpacks to.
const MaxMember = 1 << 20

const (
	memberHead = 24    // bytes before the deflate stream
	memberTail = 8     // CRC-32 and length after it
	maxStored  = 65535 // bytes of a stored deflate block, RFC 1951 section 3.2.4
	storedHead = 5

	// level is where klauspost's deflate is as small as zlib's default.
	level = 6
)

// memberPrefix is what every member starts with: deflate, an extra field,
// no time, no operating system; the field's subfield "HG" of eight bytes.
const memberPrefix = "\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x0c\x00HG\x08\x00"

// storedSize is the size of n bytes as stored deflate blocks.
func storedSize(n int) int { return n + (n+maxStored-1)/maxStored*storedHead }

// appendMember appends a gzip member around the deflate stream of plain.
func appendMember(out, plain []byte, deflate func(out []byte) ([]byte, error)) ([]byte, error) {
	start := len(out)
	out = append(out, memberPrefix...)
	out = append(out, make([]byte, memberHead-len(memberPrefix))...)
	out, err := deflate(out)
	if err != nil {
		return nil, err
	}
	packed := len(out) - start - memberHead
	binary.LittleEndian.PutUint32(out[start+16:], uint32(packed))
	binary.LittleEndian.PutUint32(out[start+20:], uint32(len(plain)))
	out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(plain))
	return binary.LittleEndian.AppendUint32(out, uint32(len(plain))), nil
}

// appendStored appends deflate blocks that hold plain as it is.
func appendStored(out, plain []byte) []byte {
	for {
		n := min(len(plain), maxStored)
		last := byte(0)
		if n == len(plain) {
			last = 1
		}
		out = append(out, last)
		out = binary.LittleEndian.AppendUint16(out, uint16(n))
		out = binary.LittleEndian.AppendUint16(out, ^uint16(n))
		out = append(out, plain[:n]...)
		if plain = plain[n:]; last == 1 {
			return out
		}
	}
}

// A packer compresses one member at a time.
type packer struct {
	levels []*flate.Writer // tried in turn until one makes the member smaller
	out    bytes.Buffer
}

func newPacker() (*packer, error) {
	p := new(packer)
	// A system image is compressed already, and klauspost's deflate stores
	// what has no repetitions. Of half of a Debian image's blocks Huffman's
	// codes alone still take 7 %.
	for _, l := range []int{level, flate.HuffmanOnly} {
		w, err := flate.NewWriter(io.Discard, l)
		if err != nil {
			return nil, err
		}
		p.levels = append(p.levels, w)
	}
	return p, nil
}

// member appends the member for plain.
func (p *packer) member(out, plain []byte) ([]byte, error) {
	return appendMember(out, plain, func(out []byte) ([]byte, error) {
		for _, w := range p.levels {
			p.out.Reset()
			w.Reset(&p.out)
			if _, err := w.Write(plain); err != nil {
				return nil, err
			}
			if err := w.Close(); err != nil {
				return nil, err
			}
			if p.out.Len() < len(plain) {
				return append(out, p.out.Bytes()...), nil
			}
		}
		return appendStored(out, plain), nil
	})
}

// storedMember appends plain, of at most MaxMember bytes, without compression.
func storedMember(out, plain []byte) []byte {
	out, _ = appendMember(out, plain, func(out []byte) ([]byte, error) { return appendStored(out, plain), nil }) // fails only if that does
	return out
}

// readMember reads the next member into packed, from the deflate stream to the
// end, and returns its size unpacked. io.EOF means that there is none.
func readMember(r io.Reader, packed []byte) ([]byte, int, error) {
	var head [memberHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, 0, io.EOF
		}
		return nil, 0, fmt.Errorf("read archive: %w", err)
	}
	n, plain, err := parseMember(head)
	if err != nil {
		return nil, 0, err
	}
	if cap(packed) < n {
		packed = make([]byte, n)
	}
	packed = packed[:n]
	if _, err := io.ReadFull(r, packed); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, 0, fmt.Errorf("read archive: %w", err)
	}
	return packed, plain, nil
}

// parseMember reads a member's head: how many bytes follow it, and what the
// member unpacks to.
func parseMember(head [memberHead]byte) (packed, plain int, err error) {
	if string(head[:len(memberPrefix)]) != memberPrefix {
		return 0, 0, fmt.Errorf("not a gzip member as a release has them: starts with %x", head[:len(memberPrefix)])
	}
	size, n := binary.LittleEndian.Uint32(head[16:]), binary.LittleEndian.Uint32(head[20:])
	if n < 1 || n > MaxMember {
		return 0, 0, fmt.Errorf("gzip member of %d bytes, want 1 to %d", n, MaxMember)
	}
	if limit := storedSize(int(n)); size < 1 || int64(size) > int64(limit) {
		return 0, 0, fmt.Errorf("gzip member packs %d bytes into %d, want 1 to %d", n, size, limit)
	}
	return int(size) + memberTail, int(n), nil
}

// checkTail compares what was unpacked with the member's end.
func checkTail(packed, plain []byte) error {
	tail := packed[len(packed)-memberTail:]
	if binary.LittleEndian.Uint32(tail[4:]) != uint32(len(plain)) {
		return errors.New("gzip member has another length than it says")
	}
	if binary.LittleEndian.Uint32(tail) != crc32.ChecksumIEEE(plain) {
		return errors.New("gzip member is damaged: its checksum differs")
	}
	return nil
}

// unpackStored unpacks a member that is not compressed.
func unpackStored(plain, packed []byte) error {
	stream := packed[:len(packed)-memberTail]
	at := 0
	for last := false; !last; {
		if len(stream) < storedHead || stream[0] > 1 {
			return errors.New("what comes before the signature's check must not be compressed")
		}
		last = stream[0] == 1
		n := int(binary.LittleEndian.Uint16(stream[1:]))
		if binary.LittleEndian.Uint16(stream[3:]) != ^uint16(n) || n > len(stream)-storedHead || n > len(plain)-at {
			return errors.New("stored gzip member is damaged")
		}
		at += copy(plain[at:], stream[storedHead:storedHead+n])
		stream = stream[storedHead+n:]
	}
	if at != len(plain) || len(stream) > 0 {
		return errors.New("stored gzip member has another length than it says")
	}
	return checkTail(packed, plain)
}

// An Unpacker decompresses one member at a time.
type Unpacker struct {
	stream  bytes.Reader
	inflate io.ReadCloser
}

// NewUnpacker returns an Unpacker, which takes some 80 KiB of memory.
func NewUnpacker() *Unpacker {
	u := new(Unpacker)
	u.inflate = flate.NewReader(&u.stream)
	return u
}

// Member fills content with what member holds, a whole gzip member as it lies
// in the archive, and refuses one that holds less or more.
func (u *Unpacker) Member(content, member []byte) error {
	if len(member) < memberHead {
		return io.ErrUnexpectedEOF
	}
	packed, size, err := parseMember([memberHead]byte(member))
	rest := len(member) - memberHead
	switch {
	case err != nil:
		return err
	case rest < packed:
		return io.ErrUnexpectedEOF
	case rest > packed:
		return fmt.Errorf("%d bytes follow a gzip member", rest-packed)
	case size != len(content):
		return fmt.Errorf("gzip member of %d bytes, want %d", size, len(content))
	}
	return u.unpack(content, member[memberHead:])
}

// unpack fills plain with what packed holds, and refuses a stream that holds
// less or more.
func (u *Unpacker) unpack(plain, packed []byte) error {
	if err := u.fill(plain, packed[:len(packed)-memberTail]); err != nil {
		return fmt.Errorf("unpack gzip member: %w", err)
	}
	return checkTail(packed, plain)
}

func (u *Unpacker) fill(plain, stream []byte) error {
	u.stream.Reset(stream)
	if err := u.inflate.(flate.Resetter).Reset(&u.stream, nil); err != nil {
		return err
	}
	if _, err := io.ReadFull(u.inflate, plain); errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	} else if err != nil {
		return err
	}
	switch n, err := io.ReadFull(u.inflate, make([]byte, 1)); {
	case n > 0:
		return errors.New("the deflate stream holds more than it says")
	case !errors.Is(err, io.EOF):
		return err
	case u.stream.Len() > 0:
		return errors.New("the deflate stream has bytes behind its data")
	}
	return nil
}
