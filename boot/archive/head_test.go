package archive

import (
	"bytes"
	"io"
	"testing"

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
		index, err := head.Index(bytes.Clone(s.contents[release.IndexFile]))
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
			for i := range file.Members() {
				at, size := file.Member(i)
				offset, n := file.Content(i)
				plain := make([]byte, n)
				if err := unpack.Member(plain, packed[at:at+int64(size)]); err != nil {
					t.Fatal(err)
				}
				if err := file.Check(i, plain, hasher); err != nil {
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
