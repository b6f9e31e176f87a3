package archive

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/release"
)

// Every block can be read from its place alone.
func TestPlaces(t *testing.T) {
	s := newSample(t, 1<<20+4096)
	for _, blocks := range []int{0, 1, blockindex.MaxMemberBlocks} {
		packed := s.write(t, []byte("signature"), Options{MemberBlocks: blocks})
		src := bytes.NewReader(packed)
		head, err := ReadHead(src, trust)
		if err != nil {
			t.Fatal(err)
		}
		if read := int64(len(packed) - src.Len()); read != head.Size {
			t.Errorf("%d bytes were read of a head of %d", read, head.Size)
		}
		if head.ArchiveSize() != int64(len(packed)) {
			t.Errorf("ArchiveSize = %d, want %d", head.ArchiveSize(), len(packed))
		}
		index, err := head.Index(section(s.contents[release.IndexFile]), 20)
		if err != nil {
			t.Fatal(err)
		}
		hasher, unpack := blockindex.NewHasher(s.release.Salt), NewUnpacker()
		for _, f := range s.build.Files {
			file, ok := index.File(f.Name)
			if !ok {
				t.Fatalf("index does not have %s", f.Name)
			}
			var content []byte
			var part blockindex.Part
			if err := part.Load(file, 0); err != nil {
				t.Fatal(err)
			}
			for i := range file.Members() {
				if err := part.Reach(file.First(i)); err != nil {
					t.Fatal(err)
				}
				at, size := part.Member(i)
				offset, n := file.Content(i)
				plain := make([]byte, n)
				if err := unpack.Member(plain, packed[at:at+int64(size)]); err != nil {
					t.Fatal(err)
				}
				if err := part.Check(i, plain, hasher); err != nil {
					t.Error(err)
				}
				if offset != int64(len(content)) {
					t.Errorf("%s: member %d holds what starts at %d, want %d", f.Name, i, offset, len(content))
				}
				content = append(content, plain...)
			}
			if !bytes.Equal(content, s.contents[f.Name]) {
				t.Errorf("%s differs", f.Name)
			}
		}
		for _, f := range s.release.Files {
			place, _ := head.Place(f.Name)
			content, err := head.Content(bytes.NewReader(packed[place.Offset:]), f.Name)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(content); err != nil || !bytes.Equal(got, s.contents[f.Name]) {
				t.Errorf("%s alone: %d bytes, %v", f.Name, len(got), err)
			}
		}
	}
}

func section(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

// A file that is fetched alone is what release.json says, or refused. FAULTS 9, 27, 28, 30
func TestContentRefused(t *testing.T) {
	s := newSample(t, 1<<20)
	packed := s.write(t, nil, Options{})
	head, err := ReadHead(bytes.NewReader(packed), trust)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := head.Content(bytes.NewReader(nil), "other"); err == nil {
		t.Error("a file that is not there was opened")
	}
	if _, ok := head.Place("other"); ok {
		t.Error("a file that is not there has a place")
	}
	at, _ := head.Place(release.UKIFile)
	bootManager, _ := head.Place(release.BootManagerFile)
	uki := packed[at.Offset : at.Offset+at.Packed]
	read := func(src []byte) error {
		content, err := head.Content(bytes.NewReader(src), release.UKIFile)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, content)
		return err
	}
	if err := read(append(bytes.Clone(uki), "what follows is not read"...)); err != nil {
		t.Error(err)
	}
	for i := 0; i < len(uki); i += 1 + len(uki)/100 {
		if err := read(uki[:i]); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the first %d bytes: %v", i, err)
		}
	}
	pack, err := newPacker()
	if err != nil {
		t.Fatal(err)
	}
	bomb, err := pack.member(nil, make([]byte, MaxMember))
	if err != nil {
		t.Fatal(err)
	}
	stored := storedMembers(nil, s.contents[release.UKIFile]) // fewer bytes than with small members
	for _, c := range []struct {
		name, want string
		src        []byte
	}{
		{"shifted", "not a gzip member", packed[at.Offset+1:]},
		{"another file", "more than", packed[bootManager.Offset+bootManager.Packed:]},
		{"more behind it", "follow its last member", append(bytes.Clone(stored), make([]byte, len(uki)-len(stored))...)},
		{"unpacks to more", "more than", bomb},
		{"other content", "another SHA-256", func() []byte {
			var out []byte
			for b := range slices.Chunk(make([]byte, len(s.contents[release.UKIFile])), memberBlocks*blockindex.BlockSize) {
				out = storedMember(out, b)
			}
			return out
		}()},
		{"damaged", "checksum", func() []byte { b := bytes.Clone(uki); b[memberHead+storedHead+9] ^= 1; return b }()},
	} {
		if err := read(c.src); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// A deflate stream (RFC 1951) that does not hold what its member says.
func TestDeflateRefused(t *testing.T) {
	const hello = "\x4b\x04\x00" // "a", in fixed codes
	u := NewUnpacker()
	for name, c := range map[string]struct{ stream, plain string }{
		"as it should be":       {hello, "a"},
		"more than it says":     {"\x4b\x4c\x04\x00", "a"},
		"less than it says":     {hello, "aa"},
		"bytes behind it":       {hello + "\x00", "a"},
		"no last block":         {"\x00\x01\x00\xfe\xffa", "a"},
		"a block of no kind":    {"\x07", "a"},
		"stored, other lengths": {"\x01\x01\x00\xff\xffa", "a"},
		"stored, cut":           {"\x01\x04\x00\xfb\xff\x00", "abcd"},
		"before its start":      {"\x63\x00\x22\x00", "\x00\x00\x00\x00"},
		"too many literals":     {"\xfd\xff\xff\xff\xff\xff\xff", "ab"},
		"no code for sizes":     {"\x05\x00\x00\x00\x00\x00\x00", "ab"},
	} {
		member, err := appendMember(nil, []byte(c.plain), func(out []byte) ([]byte, error) { return append(out, c.stream...), nil })
		if err != nil {
			t.Fatal(err)
		}
		err = u.Member(make([]byte, len(c.plain)), member)
		if (err == nil) != (c.stream == hello && c.plain == "a") || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMemberRefused(t *testing.T) {
	content := bytes.Repeat([]byte("content "), 512)
	pack, err := newPacker()
	if err != nil {
		t.Fatal(err)
	}
	good, err := pack.member(nil, content)
	if err != nil {
		t.Fatal(err)
	}
	u := NewUnpacker()
	for name, c := range map[string]struct {
		member []byte
		size   int
	}{
		"nothing":   {nil, 4096},
		"a part":    {good[:len(good)-1], 4096},
		"the head":  {good[:memberHead], 4096},
		"more":      {append(bytes.Clone(good), 0), 4096},
		"two":       {append(bytes.Clone(good), good...), 8192},
		"too short": {good, 4095},
		"too long":  {good, 4097},
		"damaged":   {append(bytes.Clone(good[:len(good)-1]), 1), 4096},
	} {
		if err := u.Member(make([]byte, c.size), c.member); err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", name, err)
		}
		// What was refused leaves nothing behind.
		got := make([]byte, len(content))
		if err := u.Member(got, good); err != nil || !bytes.Equal(got, content) {
			t.Errorf("after %s: %v", name, err)
		}
	}
}

// The index of another release, and one that does not fit. FAULTS 30
func TestIndexRefused(t *testing.T) {
	s := newSample(t, 1<<20)
	head, err := ReadHead(bytes.NewReader(s.write(t, nil, Options{})), trust)
	if err != nil {
		t.Fatal(err)
	}
	other := newSample(t, 1<<20)
	other.contents[release.ImageFile][5] ^= 1
	other.build.Files = nil
	other.describe(t)
	other.write(t, nil, Options{})
	index := s.contents[release.IndexFile]
	for name, raw := range map[string][]byte{
		"nothing": nil, "another release's": other.contents[release.IndexFile], "a part": index[:len(index)-1], "more": append(bytes.Clone(index), 0),
		"damaged": append(bytes.Clone(index[:len(index)-1]), index[len(index)-1]^1),
	} {
		if _, err := head.Index(section(raw), 0); err == nil || !strings.Contains(err.Error(), "is not the one") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A description of a build says nothing of an archive.
func TestBuildRefused(t *testing.T) {
	s := newSample(t, 8192)
	s.write(t, nil, Options{})
	text, err := s.build.Encode()
	if err != nil {
		t.Fatal(err)
	}
	head := tarFile(nil, release.FileName, text, s.build.SourceDate)
	first := header(release.UKIFile, s.build.Files[0].Size, s.build.SourceDate)
	if _, err := ReadHead(bytes.NewReader(storedMembers(nil, append(head, first[:]...))), trust); err == nil || !strings.Contains(err.Error(), "describes a build") {
		t.Errorf("ReadHead: %v", err)
	}
	if _, err := Write(t.Context(), io.Discard, new(memory), Input{s.release, signWith(nil), s.open}, Options{}); err == nil || !strings.Contains(err.Error(), "packed already") {
		t.Errorf("Write: %v", err)
	}
}

// FuzzContent unpacks a file that is fetched alone.
func FuzzContent(f *testing.F) {
	s := newSample(f, 8192)
	packed := s.write(f, nil, Options{})
	head, err := ReadHead(bytes.NewReader(packed), trust)
	if err != nil {
		f.Fatal(err)
	}
	at, _ := head.Place(release.BootManagerFile)
	f.Add(packed[at.Offset : at.Offset+at.Packed])
	f.Add(storedMembers(nil, s.contents[release.BootManagerFile]))
	f.Fuzz(func(t *testing.T, src []byte) {
		content, err := head.Content(bytes.NewReader(src), release.BootManagerFile)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(content); err == nil && !bytes.Equal(got, s.contents[release.BootManagerFile]) {
			t.Fatalf("accepted %d other bytes", len(got))
		} else if len(got) > len(s.contents[release.BootManagerFile]) {
			t.Fatalf("unpacked %d bytes", len(got))
		}
	})
}

// A server or a disk that fails says nothing of the archive: nobody may replace one for
// it.
func TestFailureIsNotForeign(t *testing.T) {
	failed := errors.New("input/output error")
	accept := func(_, _ []byte) error { return nil }
	if _, err := ReadHead(iotest.ErrReader(failed), accept); errors.Is(err, ErrForeign) || !errors.Is(err, failed) {
		t.Errorf("a failure: %v", err)
	}
	if _, err := ReadHead(strings.NewReader("PK\x03\x04 and more than a gzip member's head takes"), accept); !errors.Is(err, ErrForeign) {
		t.Errorf("another file: %v", err)
	}
}
