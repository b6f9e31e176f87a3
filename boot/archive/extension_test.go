package archive

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
)

// newExtension is an extension of a release, with its file's content.
func newExtension(t *testing.T) *sample {
	t.Helper()
	e := &contract.Extension{Name: "vpn", RootHash: make([]byte, 32), Salt: []byte{1}, ImageSize: 300 * blockindex.BlockSize}
	size, err := e.FileSize()
	if err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("words "), int(size)/6+1)[:size]
	_, _ = rand.NewChaCha8([32]byte{2}).Read(content[size/2:])
	sum := sha256.Sum256(content)
	c := &contract.Contract{ImageID: "test", Arch: "x86_64", Version: 7, SourceDate: 1_767_225_600}
	build, err := release.OfExtension(c, e, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return &sample{build: build, contents: map[string][]byte{release.ExtensionFile("vpn"): content}}
}

func (s *sample) writeExtension(t *testing.T, signature []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if _, err := Write(t.Context(), &out, new(memory), Input{s.build, signWith(signature), s.open}, Options{}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// FAULTS 111
func TestExtension(t *testing.T) {
	t.Parallel()
	s := newExtension(t)
	packed := s.writeExtension(t, []byte("a signature"))
	for name, open := range map[string]func([]byte) error{
		"ReadHead": func(b []byte) error { _, err := ReadHead(bytes.NewReader(b), trust); return err },
		"Open":     func(b []byte) error { _, err := Open(t.Context(), bytes.NewReader(b), trust, Options{}); return err },
	} {
		if err := open(packed); err == nil || !strings.Contains(err.Error(), "system extension vpn") {
			t.Errorf("%s takes an extension for a release: %v", name, err)
		}
	}
	whole := newSample(t, 4096).write(t, nil, Options{})
	if _, err := ReadExtensionHead(bytes.NewReader(whole), trust); err == nil || !strings.Contains(err.Error(), "describes a release") {
		t.Errorf("a release was taken for an extension: %v", err)
	}
	r, err := Open(t.Context(), bytes.NewReader(packed), trust, Options{Extension: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, want := range []string{release.IndexFile, "vpn.raw"} {
		f, content, err := r.Next()
		if err != nil || f.Name != want {
			t.Fatalf("Next = %q, %v, want %s", f.Name, err, want)
		}
		if got, err := io.ReadAll(content); err != nil || want == "vpn.raw" && !bytes.Equal(got, s.contents[want]) {
			t.Errorf("%s differs, %v", want, err)
		}
	}
	if _, _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("behind the last file: %v", err)
	}
	if size := r.Head().ArchiveSize(); size != int64(len(packed)) {
		t.Errorf("ArchiveSize = %d, want %d", size, len(packed))
	}
	s.byIndex(t, packed)
}

// byIndex fetches each member alone, as a machine does.
func (s *sample) byIndex(t *testing.T, packed []byte) {
	t.Helper()
	head, err := ReadExtensionHead(bytes.NewReader(packed), trust)
	if err != nil {
		t.Fatal(err)
	}
	place, _ := head.Place(release.IndexFile)
	content, err := head.Content(bytes.NewReader(packed[place.Offset:]), release.IndexFile)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(content)
	if err != nil {
		t.Fatal(err)
	}
	index, err := head.Index(io.NewSectionReader(bytes.NewReader(raw), 0, int64(len(raw))), 0)
	if err != nil {
		t.Fatal(err)
	}
	f, ok := index.File("vpn.raw")
	if !ok {
		t.Fatal("the index does not have the extension's file")
	}
	var part blockindex.Part
	if err := part.Load(f, 0); err != nil {
		t.Fatal(err)
	}
	h, want := blockindex.NewHasher(head.Release.Salt), s.contents["vpn.raw"]
	for i := range f.Members() {
		offset, size := f.Content(i)
		if err := part.Check(i, want[offset:offset+int64(size)], h); err != nil {
			t.Error(err)
		}
	}
}

// TestTarAgreesOnExtensions has tar unpack the archive of an extension.
func TestTarAgreesOnExtensions(t *testing.T) {
	t.Parallel()
	s := newExtension(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "vpn.tar.gz")
	if err := os.WriteFile(file, s.writeExtension(t, []byte("signature")), 0o600); err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "tar", "xzf", file, "-C", dir)
	if got, err := os.ReadFile(filepath.Join(dir, "vpn.raw")); err != nil || !bytes.Equal(got, s.contents["vpn.raw"]) {
		t.Errorf("tar unpacks another file, %v", err)
	}
}
