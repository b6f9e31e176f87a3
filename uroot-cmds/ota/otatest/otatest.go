// Package otatest makes signed releases, and a server's content of them, for
// tests. It is imported by tests only.
package otatest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"testing"
	"testing/fstest"
	"time"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/boot/verity"
)

// Date is when keys, releases and signatures were made.
var Date = time.Unix(1_767_225_600, 0).UTC()

// SlotSize of every release, in bytes.
const SlotSize = 32 << 20

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Image returns blocks of a made-up system image: those of seed, with every
// every-th one changed, and some that are zero. every 0 changes none.
func Image(blocks int, seed uint64, every int, change uint64) []byte {
	out := make([]byte, blocks*verity.BlockSize)
	for i := range blocks {
		s := seed
		if every > 0 && i%every == 0 {
			s = change
		}
		b := out[i*verity.BlockSize:][:verity.BlockSize]
		if i%17 == 5 {
			continue
		}
		r := rand.New(rand.NewPCG(s, uint64(i)))
		for n := 0; n < len(b)/2; n += 8 { // half of it, so that it can be packed
			binary.LittleEndian.PutUint64(b[n:], r.Uint64())
		}
	}
	return out
}

// A Spec says what release to make.
type Spec struct {
	ImageID    string // "" is "test-os"
	Arch       string // "" is x86_64
	Version    contract.Version
	Epoch      uint64
	Key        *Key // that signs; nil: not signed
	Pinned     *Key // that the UKI has pinned; nil: as Key
	Image      []byte
	Extensions []Extension // by name, image and whether they are essential
	// Change changes the description before it is packed and signed.
	Change func(r *release.Release)
}

// A Release is one that was made.
type Release struct {
	Contract *contract.Contract
	UKI      []byte
	Image    []byte
	Archive  []byte
	Head     *archive.Head
	Text     []byte // release.json
	// Extensions are those of the spec, made.
	Extensions []Extension
}

type memory struct{ bytes.Buffer }

func (m *memory) ReadAt(b []byte, off int64) (int, error) {
	return bytes.NewReader(m.Bytes()).ReadAt(b, off)
}

type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// Make makes a release.
func Make(t testing.TB, s Spec) *Release {
	t.Helper()
	if s.ImageID == "" {
		s.ImageID = "test-os"
	}
	if s.Arch == "" {
		s.Arch = "x86_64"
	}
	if s.Pinned == nil {
		s.Pinned = s.Key
	}
	c := &contract.Contract{
		Format: contract.Format, ImageID: s.ImageID, Arch: s.Arch, Version: s.Version, Epoch: s.Epoch, SourceDate: Date.Unix(),
		RootHash: make([]byte, 32), Salt: []byte("salt of test-os"), ImageSize: int64(len(s.Image)), SlotSize: SlotSize, ReleaseKey: s.Pinned.public(),
		SecureBoot: contract.Required, TPM: contract.Required, VendorKeys: contract.VendorAuto, RootFileSystem: "ext4",
	}
	root, err := verity.Generate(context.Background(), bytes.NewReader(s.Image), c.VerityParams(), discard{}, nil)
	must(t, err)
	c.RootHash = root[:]
	first, err := contract.Archive(c)
	must(t, err)
	out := &Release{Contract: c, Image: s.Image}
	var list []contract.Extension
	for _, e := range s.Extensions {
		e.make(t, c, s.Key)
		out.Extensions = append(out.Extensions, e)
		list = append(list, e.Listed)
	}
	more, err := contract.ExtensionsArchive(list)
	must(t, err)
	first = append(first, more...)
	out.UKI = ukitest.Image(ukitest.Section{Name: ".text", Data: Image(20, 99, 0, 0)}, ukitest.Section{Name: ".initrd", Data: first}, ukitest.Section{Name: ".linux", Data: Image(40, 77, 0, 0)})
	contents := map[string][]byte{release.UKIFile: out.UKI, release.BootManagerFile: ukitest.Stub("257"), release.ImageFile: s.Image}
	sum := make([]byte, 32)
	r := &release.Release{
		Format: release.Format, ImageID: s.ImageID, Arch: s.Arch, Version: s.Version, Epoch: s.Epoch, RootHash: c.RootHash, Salt: c.Salt,
		ImageSize: c.ImageSize, SlotSize: c.SlotSize, PCR11: sum, SourceDate: c.SourceDate,
	}
	for _, name := range []string{release.UKIFile, release.BootManagerFile, release.ImageFile} {
		digest := sha256.Sum256(contents[name])
		f := release.File{Name: name, Size: int64(len(contents[name])), SHA256: digest[:]}
		if name != release.ImageFile {
			f.Authenticode = sum
		}
		r.Files = append(r.Files, f)
	}
	if s.Change != nil {
		s.Change(r)
	}
	var packed bytes.Buffer
	sign := func(text []byte) ([]byte, error) {
		out.Text = text
		return s.Key.Sign(text), nil
	}
	open := func(f release.File) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(contents[f.Name])), nil
	}
	_, err = archive.Write(context.Background(), &packed, new(memory), archive.Input{Build: r, Sign: sign, Open: open}, archive.Options{})
	must(t, err)
	out.Archive = packed.Bytes()
	out.Head, err = archive.ReadHead(bytes.NewReader(out.Archive), func(_, _ []byte) error { return nil })
	must(t, err)
	return out
}

// A Site is a server's content.
type Site struct {
	Files fstest.MapFS // below the server's root
	Key   *Key
}

// Directory is where the releases lie.
const Directory = "x86_64/test-os/"

// NewSite makes a site without a release.
func NewSite(k *Key) *Site {
	s := &Site{Files: fstest.MapFS{}, Key: k}
	if k != nil {
		s.Put(Directory+"release-key.pgp", k.Public)
	}
	return s
}

// Put puts a file there.
func (s *Site) Put(name string, content []byte) {
	s.Files[name] = &fstest.MapFile{Data: content, Mode: 0o644, ModTime: Date}
}

// Publish adds a release and makes it stable. change, if not nil, changes the
// manifest.
func (s *Site) Publish(r *Release, change func(m *manifest.Manifest)) *manifest.Manifest {
	v := r.Contract.Version
	s.Put(Directory+manifest.ArchiveName(v), r.Archive)
	for _, e := range r.Extensions {
		s.Put(Directory+manifest.ExtensionArchiveName(v, e.Name), e.Archive)
	}
	m := &manifest.Manifest{Stable: manifest.Entry{Version: v}}
	if s.Key != nil {
		m.PubKey = "release-key.pgp"
	}
	if change != nil {
		change(m)
	}
	text, err := m.Encode()
	if err != nil {
		panic(err)
	}
	s.Put(Directory+manifest.FileName, text)
	return m
}

// SignManifest adds the manifest's signature.
func (s *Site) SignManifest() {
	s.Put(Directory+manifest.SignatureName, s.Key.Sign(s.Files[Directory+manifest.FileName].Data))
}
