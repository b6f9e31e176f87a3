package otatest

import (
	"bytes"
	"crypto/sha256"
	"io"
	"testing"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/verity"
)

// An Extension is a system extension of a release.
type Extension struct {
	Name      string
	Image     []byte
	Essential bool

	// Listed is what the UKI says of it, File its file on a machine, and Archive what a server
	// has.
	Listed  contract.Extension
	File    []byte
	Archive []byte
}

// fileTree writes a tree behind an image.
type fileTree struct {
	file []byte
	at   int64
}

func (f fileTree) WriteAt(p []byte, off int64) (int, error) { return copy(f.file[f.at+off:], p), nil }

// make fills in the rest.
func (e *Extension) make(t testing.TB, c *contract.Contract, key *Key) {
	t.Helper()
	e.Listed = contract.Extension{Name: e.Name, RootHash: make([]byte, 32), Salt: []byte("salt of " + e.Name), ImageSize: int64(len(e.Image)), Essential: e.Essential}
	root, err := verity.Generate(t.Context(), bytes.NewReader(e.Image), e.Listed.VerityParams(), discard{}, nil)
	must(t, err)
	e.Listed.RootHash = root[:]
	size, err := e.Listed.FileSize()
	must(t, err)
	e.File = make([]byte, size)
	copy(e.File, e.Image)
	// Once more, since the tree's superblock has a UUID that is made of the root hash.
	_, err = verity.Generate(t.Context(), bytes.NewReader(e.Image), e.Listed.VerityParams(), fileTree{e.File, e.Listed.ImageSize}, nil)
	must(t, err)
	sum := sha256.Sum256(e.File)
	build, err := release.OfExtension(c, &e.Listed, sum[:])
	must(t, err)
	var packed bytes.Buffer
	sign := func(text []byte) ([]byte, error) { return key.Sign(text), nil }
	open := func(release.File) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(e.File)), nil }
	_, err = archive.Write(t.Context(), &packed, new(memory), archive.Input{Build: build, Sign: sign, Open: open}, archive.Options{})
	must(t, err)
	e.Archive = packed.Bytes()
}
