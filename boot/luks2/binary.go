package luks2

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"unicode"
	"unicode/utf8"
)

// side is one of the two copies.
type side int

const (
	primary side = iota
	secondary
)

func (s side) String() string {
	if s == primary {
		return "primary"
	}
	return "secondary"
}

func (s side) magic() string {
	if s == primary {
		return "LUKS\xba\xbe"
	}
	return "SKUL\xba\xbe"
}

// The binary header (specification section 2.1), big-endian.
const (
	binarySize = 4096

	offVersion    = 6
	offHeaderSize = 8
	offSeq        = 16
	offLabel      = 24
	labelSize     = 48
	offAlgorithm  = 72
	algorithmSize = 32
	offSalt       = 104
	saltSize      = 64
	offUUID       = 168
	uuidSize      = 40
	offSubsystem  = 208
	offOffset     = 256
	offChecksum   = 448
	checksumSize  = 64

	checksumAlgorithm = "sha256"

	// headerSize is that of one copy, in bytes: the least that there is, and
	// what every volume of ours has.
	headerSize = 16 << 10
	maxJSON    = headerSize - binarySize - 1 // it ends in a NUL
)

// headerCopy is one whole copy of a header.
type headerCopy struct {
	uuid, label, subsystem string
	seq                    uint64
	json                   []byte // without the padding
}

var errNoMagic = errors.New("no LUKS magic")

// readCopy reads a copy and checks everything that does not need the JSON text
// understood. Each byte is read once.
func readCopy(r io.ReaderAt, s side) (*headerCopy, error) {
	head := make([]byte, binarySize)
	if err := readFull(r, head, s.offset()); err != nil {
		return nil, err
	}
	if string(head[:offVersion]) != s.magic() {
		return nil, errNoMagic
	}
	be := binary.BigEndian
	if v := be.Uint16(head[offVersion:]); v != 2 {
		return nil, fmt.Errorf("LUKS version %d, want 2: %w", v, ErrUnsupported)
	}
	if size := be.Uint64(head[offHeaderSize:]); size != headerSize {
		return nil, fmt.Errorf("header of %d bytes, want %d", size, headerSize)
	}
	if at := be.Uint64(head[offOffset:]); at != uint64(s.offset()) {
		return nil, fmt.Errorf("header says that it is at offset %d, found at %d", at, s.offset())
	}
	if alg, err := text(head[offAlgorithm:][:algorithmSize]); err != nil || alg != checksumAlgorithm {
		return nil, fmt.Errorf("checksum algorithm %q, want %s", alg, checksumAlgorithm)
	}
	area := make([]byte, headerSize-binarySize)
	if err := readFull(r, area, s.offset()+binarySize); err != nil {
		return nil, err
	}
	var want [checksumSize]byte
	copy(want[:], head[offChecksum:])
	if checksum(head, area) != want {
		return nil, errors.New("checksum does not match")
	}
	// From here on a fault is not damage but somebody's doing.
	return decodeCopy(head, area)
}

func decodeCopy(head, area []byte) (*headerCopy, error) {
	c := &headerCopy{seq: binary.BigEndian.Uint64(head[offSeq:])}
	if c.seq == math.MaxUint64 {
		return nil, fmt.Errorf("sequence number is used up: %w", ErrUnsupported)
	}
	for field, b := range map[*string][]byte{
		&c.label: head[offLabel:][:labelSize], &c.uuid: head[offUUID:][:uuidSize], &c.subsystem: head[offSubsystem:][:labelSize],
	} {
		var err error
		if *field, err = text(b); err != nil {
			return nil, fmt.Errorf("%w: %w", err, ErrUnsupported)
		}
	}
	if !validUUID(c.uuid) {
		return nil, fmt.Errorf("UUID %q: %w", c.uuid, ErrUnsupported)
	}
	var padding []byte
	var ended bool
	c.json, padding, ended = bytes.Cut(area, []byte{0})
	if !ended || len(bytes.Trim(padding, "\x00")) > 0 {
		return nil, fmt.Errorf("JSON area does not end in zeros: %w", ErrUnsupported)
	}
	return c, nil
}

// text decodes a field that is filled up with NULs.
func text(b []byte) (string, error) {
	t, _, ok := strings.Cut(string(b), "\x00")
	if !ok || !utf8.ValidString(t) || strings.ContainsFunc(t, unicode.IsControl) {
		return "", fmt.Errorf("malformed text %q in the binary header", t)
	}
	return t, nil
}

// checksum is the digest of a copy whose checksum field counts as zeros.
func checksum(head, area []byte) (sum [checksumSize]byte) {
	d := sha256.New()
	d.Write(head[:offChecksum])
	d.Write(make([]byte, checksumSize))
	d.Write(head[offChecksum+checksumSize:])
	d.Write(area)
	d.Sum(sum[:0])
	return sum
}

// encode returns the bytes of a copy. The salt makes two copies differ, so
// that a device which merges equal blocks keeps two.
func (c *headerCopy) encode(rand io.Reader, s side) ([]byte, error) {
	if len(c.json) > maxJSON {
		return nil, fmt.Errorf("metadata of %d bytes, room for %d", len(c.json), maxJSON)
	}
	b := make([]byte, headerSize)
	be := binary.BigEndian
	copy(b, s.magic())
	be.PutUint16(b[offVersion:], 2)
	be.PutUint64(b[offHeaderSize:], headerSize)
	be.PutUint64(b[offSeq:], c.seq)
	copy(b[offLabel:], c.label)
	copy(b[offAlgorithm:], checksumAlgorithm)
	if _, err := io.ReadFull(rand, b[offSalt:][:saltSize]); err != nil {
		return nil, fmt.Errorf("random salt: %w", err)
	}
	copy(b[offUUID:], c.uuid)
	copy(b[offSubsystem:], c.subsystem)
	be.PutUint64(b[offOffset:], uint64(s.offset()))
	copy(b[binarySize:], c.json)
	sum := checksum(b[:binarySize], b[binarySize:])
	copy(b[offChecksum:], sum[:])
	return b, nil
}

// offset is where a copy lies: the secondary right behind the primary.
func (s side) offset() int64 {
	if s == primary {
		return 0
	}
	return headerSize
}

// Open reads and checks the header of a device of size bytes. Of two whole
// copies the newer one counts; Health says what is wrong with the other. The
// errors are ErrNotLUKS, ErrDamaged, ErrUnsupported, or those of reading.
func Open(r io.ReaderAt, size int64) (*Header, Health, error) {
	best, h, err := readCopies(r)
	if err != nil {
		return nil, h.health, fmt.Errorf("luks2: open: %w", err)
	}
	h.UUID, h.Label, h.Subsystem = best.uuid, best.label, best.subsystem
	h.seq, h.json, h.size = best.seq, best.json, size
	if h.meta, err = decodeMetadata(best.json); err == nil {
		err = h.meta.validate(size)
	}
	if err != nil {
		return nil, h.health, fmt.Errorf("luks2: open: %s header: %w: %w", h.loaded, ErrUnsupported, err)
	}
	return h, h.health, nil
}

// readCopies finds both copies and picks one.
func readCopies(r io.ReaderAt) (*headerCopy, *Header, error) {
	h := &Header{}
	var first, second *headerCopy
	first, h.health.Primary = readCopy(r, primary)
	second, h.health.Secondary = readCopy(r, secondary)
	switch {
	case first == nil && second == nil:
		if errors.Is(h.health.Primary, errNoMagic) && errors.Is(h.health.Secondary, errNoMagic) {
			return nil, h, ErrNotLUKS
		}
		for _, err := range []error{h.health.Primary, h.health.Secondary} {
			if errors.Is(err, ErrUnsupported) {
				return nil, h, err
			}
		}
		return nil, h, fmt.Errorf("%w: primary: %w; secondary: %w", ErrDamaged, h.health.Primary, h.health.Secondary)
	case first == nil:
		h.loaded = secondary
		return second, h, nil
	case second == nil:
		return first, h, nil
	}
	// Both are whole. They differ after a power cut between the two writes.
	switch cmp.Compare(first.seq, second.seq) {
	case -1:
		h.health.Primary = fmt.Errorf("out of date: sequence %d, the secondary has %d", first.seq, second.seq)
		h.loaded = secondary
		return second, h, nil
	case 1:
		h.health.Secondary = fmt.Errorf("out of date: sequence %d, the primary has %d", second.seq, first.seq)
	default:
		if !first.same(second) {
			h.health.Secondary = fmt.Errorf("differs from the primary of the same sequence %d", first.seq)
		}
	}
	return first, h, nil
}

func (c *headerCopy) same(o *headerCopy) bool {
	return c.uuid == o.uuid && c.label == o.label && c.subsystem == o.subsystem && bytes.Equal(c.json, o.json)
}

// readFull reads len(b) bytes at off; an early end is io.ErrUnexpectedEOF.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at offset %d: %w", len(b), off, err)
}
