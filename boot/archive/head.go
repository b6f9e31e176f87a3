package archive

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/release"
)

// An Authenticate says why release.json is not to be believed. signature is
// empty when the archive has none. Nothing has been parsed before it is asked.
type Authenticate func(description, signature []byte) error

// MaxHead bounds an archive's head in bytes: what lies before its first file.
// Usually it is a few KiB.
const MaxHead = maxHead + maxHead/maxStored*storedHead + 64<<10

const maxHead = release.MaxSize + MaxSignature + 6*block // bytes unpacked

// ErrForeign is wrapped where an archive does not even start as a release's.
var ErrForeign = errors.New("it is not a release's archive ('halogen release archive' makes one of a build; tar and gzip alone do not)")

// A Head is the beginning of an archive: what it holds, and where.
type Head struct {
	Release     *release.Release
	Description []byte // release.json as it lies in the archive
	Signature   []byte // of release.json; empty when there is none
	Size        int64  // bytes of the archive before the first file's first member
	plain       int64  // bytes of the tar before it
}

// ReadHead reads an archive's head, has it authenticated and only then parses
// it. src is the archive from its start, of which no byte more is read. One
// that ends in the head gives io.ErrUnexpectedEOF. The archive of a system extension
// is refused.
func ReadHead(src io.Reader, authenticate Authenticate) (*Head, error) {
	return readHead(src, authenticate, release.Parse)
}

// ReadExtensionHead is ReadHead for the archive of a system extension, which refuses a
// release's. Whose extension it is, the caller compares (release.Release.MatchesExtension).
func ReadExtensionHead(src io.Reader, authenticate Authenticate) (*Head, error) {
	return readHead(src, authenticate, release.ParseExtension)
}

func readHead(src io.Reader, authenticate Authenticate, parse func([]byte) (*release.Release, error)) (*Head, error) {
	from := &faulty{r: src}
	r := &headReader{src: from}
	h, err := r.header()
	if errors.Is(err, io.ErrUnexpectedEOF) || from.err != nil { // neither says what the archive is
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	head := new(Head)
	size, date, err := smallHeader(h, release.FileName, release.MaxSize)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	if head.Description, err = r.small(size); err != nil {
		return nil, fmt.Errorf("%s: %w", release.FileName, err)
	}
	if h, err = r.header(); err != nil {
		return nil, err
	}
	if bytes.HasPrefix(h[:], []byte(SignatureFile+"\x00")) {
		if head.Signature, err = r.signature(h, date); err != nil {
			return nil, err
		}
		if h, err = r.header(); err != nil {
			return nil, err
		}
	}
	if len(r.plain) > 0 {
		return nil, errors.New("gzip member holds a file's head and its content")
	}
	if err := authenticate(head.Description, head.Signature); err != nil {
		return nil, err
	}
	if head.Release, err = parse(head.Description); err != nil {
		return nil, err
	}
	if !head.Release.Published() {
		return nil, fmt.Errorf("%s describes a build, not an archive", release.FileName)
	}
	if first := head.Release.Files[0]; date != head.Release.SourceDate || h != header(first.Name, first.Size, date) {
		return nil, fmt.Errorf("archive does not have %s, as %s describes it, where it belongs", first.Name, release.FileName)
	}
	head.Size, head.plain = r.packed, r.opened
	return head, nil
}

// gap is the size in bytes of the member between two files, or behind the
// last: padding, and the next header or the tar's end.
func gap(size, next int64) int64 {
	return memberHead + memberTail + int64(storedSize(int(padding(size)+next)))
}

// Places returns where the files lie, in the order of release.json.
func (h *Head) Places() []blockindex.Place {
	var all []blockindex.Place
	at := h.Size
	for _, f := range h.Release.Files {
		all = append(all, blockindex.Place{Name: f.Name, Size: f.Size, Offset: at, Packed: f.Packed})
		at += f.Packed + gap(f.Size, block)
	}
	return all
}

// Place returns where a file lies.
func (h *Head) Place(name string) (blockindex.Place, bool) {
	for _, p := range h.Places() {
		if p.Name == name {
			return p, true
		}
	}
	return blockindex.Place{}, false
}

// ArchiveSize is the size of the whole archive in bytes.
func (h *Head) ArchiveSize() int64 {
	places := h.Places()
	last := places[len(places)-1]
	return last.Offset + last.Packed + gap(last.Size, trailer)
}

// total is the size of the whole tar in bytes.
func (h *Head) total() int64 {
	total := h.plain + trailer - block
	for _, f := range h.Release.Files {
		total += block + f.Size + padding(f.Size)
	}
	return total
}

// Index opens the content of the archive's index, and refuses one that is not
// described. The index reads raw as long as it is used; partBlocks is what
// blockindex.Open takes.
func (h *Head) Index(raw *io.SectionReader, partBlocks int) (*blockindex.Index, error) {
	other := fmt.Errorf("%s is not the one that %s describes", release.IndexFile, release.FileName)
	f, ok := h.Release.File(release.IndexFile)
	if !ok || raw.Size() != f.Size {
		return nil, other
	}
	var places []blockindex.Place
	for _, p := range h.Places() {
		if p.Name != release.IndexFile {
			places = append(places, p)
		}
	}
	x, err := blockindex.Open(raw, f.SHA256, places, partBlocks)
	if errors.Is(err, blockindex.ErrOther) {
		return nil, other
	}
	return x, err
}

// Content unpacks one file of the archive. src has the file's members: the
// bytes of its Place. Read returns io.EOF only when all of the file was there
// with the right SHA-256: until then nothing that was read counts. Of src no
// more than the place's bytes are read.
func (h *Head) Content(src io.Reader, name string) (io.Reader, error) {
	f, ok := h.Release.File(name)
	if !ok {
		return nil, fmt.Errorf("%s has no file %q", release.FileName, name)
	}
	return &single{src: &io.LimitedReader{R: src, N: f.Packed}, file: f, left: f.Size, sum: sha256.New(), unpack: NewUnpacker()}, nil
}

// single is the content of a file that is unpacked alone.
type single struct {
	src    *io.LimitedReader
	file   release.File
	left   int64 // bytes not unpacked yet
	sum    hash.Hash
	unpack *Unpacker
	packed []byte
	buffer []byte
	plain  []byte // unpacked and not read yet
	err    error
}

// Read implements io.Reader.
func (s *single) Read(b []byte) (int, error) {
	for len(s.plain) == 0 && s.err == nil {
		s.err = s.more()
	}
	if len(s.plain) == 0 {
		return 0, s.err
	}
	n := copy(b, s.plain)
	s.plain = s.plain[n:]
	return n, nil
}

// more unpacks the next member, or says how the file ends.
func (s *single) more() error {
	if s.left == 0 {
		if s.src.N != 0 {
			return fmt.Errorf("%s: %d bytes follow its last member", s.file.Name, s.src.N)
		}
		if !bytes.Equal(s.sum.Sum(nil), s.file.SHA256) {
			return fmt.Errorf("%s has another SHA-256 than %s says", s.file.Name, release.FileName)
		}
		return io.EOF
	}
	packed, size, err := readMember(s.src, s.packed)
	switch {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%s: %w", s.file.Name, io.ErrUnexpectedEOF)
	case err != nil:
		return fmt.Errorf("%s: %w", s.file.Name, err)
	case int64(size) > s.left:
		return fmt.Errorf("%s unpacks to more than %d bytes", s.file.Name, s.file.Size)
	}
	s.packed, s.buffer = packed, grow(s.buffer, size)
	if err := s.unpack.unpack(s.buffer, packed); err != nil {
		return fmt.Errorf("%s: %w", s.file.Name, err)
	}
	s.sum.Write(s.buffer)
	s.left -= int64(size)
	s.plain = s.buffer
	return nil
}

// faulty keeps the error of a reader that fails, which is not the archive's.
type faulty struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (f *faulty) Read(b []byte) (int, error) {
	n, err := f.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}

// headReader reads the tar in members that are not compressed.
type headReader struct {
	src    io.Reader
	plain  []byte // unpacked and not read yet
	opened int64  // bytes unpacked
	packed int64  // bytes read of src
}

func (r *headReader) full(b []byte) error {
	for len(b) > 0 {
		if len(r.plain) == 0 {
			if err := r.more(); err != nil {
				return err
			}
		}
		n := copy(b, r.plain)
		b, r.plain = b[n:], r.plain[n:]
	}
	return nil
}

// more unpacks the next member.
func (r *headReader) more() error {
	packed, size, err := readMember(r.src, nil)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("archive ends in its head: %w", io.ErrUnexpectedEOF)
	}
	if err != nil {
		return err
	}
	r.opened += int64(size)
	r.packed += memberHead + int64(len(packed))
	if r.opened > maxHead || r.packed > MaxHead { // the latter by members that hold next to nothing
		return errors.New("archive's head is too large")
	}
	r.plain = make([]byte, size)
	return unpackStored(r.plain, packed)
}

func (r *headReader) header() (h [block]byte, err error) { return h, r.full(h[:]) }

// small reads a file with its padding.
func (r *headReader) small(size int64) ([]byte, error) {
	b := make([]byte, size+padding(size))
	if err := r.full(b); err != nil {
		return nil, err
	}
	if !zero(b[size:]) {
		return nil, errors.New("is not padded with zeros")
	}
	return b[:size:size], nil
}

// signature reads release.json's signature, whose header is h.
func (r *headReader) signature(h [block]byte, date int64) ([]byte, error) {
	size, signed, err := smallHeader(h, SignatureFile, MaxSignature)
	if err != nil {
		return nil, err
	}
	signature, err := r.small(size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", SignatureFile, err)
	}
	if size == 0 || signed != date {
		return nil, fmt.Errorf("%s is empty or of another date than %s", SignatureFile, release.FileName)
	}
	return signature, nil
}
