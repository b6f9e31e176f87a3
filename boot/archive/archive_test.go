package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
)

// sample is a small release with its files' contents.
type sample struct {
	build    *release.Release
	contents map[string][]byte
	// Of the archive that was written last.
	release *release.Release
	text    []byte
}

// memory is a Spool.
type memory struct{ bytes.Buffer }

func (m *memory) ReadAt(b []byte, off int64) (int, error) {
	return bytes.NewReader(m.Bytes()).ReadAt(b, off)
}

// signWith returns what signs with the same bytes every time.
func signWith(signature []byte) func([]byte) ([]byte, error) {
	return func([]byte) ([]byte, error) { return signature, nil }
}

func newSample(t testing.TB, image int) *sample {
	t.Helper()
	noise := rand.NewChaCha8([32]byte{1})
	random := func(n int) []byte {
		b := make([]byte, n)
		_, _ = noise.Read(b)
		return b
	}
	s := &sample{contents: map[string][]byte{
		release.UKIFile:         random(100_001),
		release.BootManagerFile: bytes.Repeat([]byte("loader "), 512),
		release.ImageFile:       append(bytes.Repeat([]byte("words that pack well. "), image/44+1)[:image/2], random(image-image/2)...),
	}}
	s.describe(t)
	return s
}

// describe makes the build's description fit the contents.
func (s *sample) describe(t testing.TB) {
	t.Helper()
	sum := make([]byte, 32)
	s.build = &release.Release{
		Format: release.Format, ImageID: "test", Arch: "x86_64", Version: 7,
		RootHash: sum, Salt: []byte{1}, ImageSize: int64(len(s.contents[release.ImageFile])), SlotSize: 64 << 20, PCR11: sum, SourceDate: 1_767_225_600,
	}
	for _, name := range []string{release.UKIFile, release.BootManagerFile, release.ImageFile} {
		content := s.contents[name]
		h := sha256.Sum256(content)
		f := release.File{Name: name, Size: int64(len(content)), SHA256: h[:]}
		if name != release.ImageFile {
			f.Authenticode = sum
		}
		s.build.Files = append(s.build.Files, f)
	}
}

func (s *sample) open(f release.File) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(s.contents[f.Name])), nil
}

func (s *sample) write(t testing.TB, signature []byte, o Options) []byte {
	t.Helper()
	var out bytes.Buffer
	var err error
	sign := func(text []byte) ([]byte, error) {
		s.text = text
		return signature, nil
	}
	if s.release, err = Write(t.Context(), &out, new(memory), Input{s.build, sign, s.open}, o); err != nil {
		t.Fatal(err)
	}
	// Its content is known once it is written.
	head, err := ReadHead(bytes.NewReader(out.Bytes()), trust)
	if err != nil {
		t.Fatal(err)
	}
	index, _ := head.Place(release.IndexFile)
	content, err := head.Content(bytes.NewReader(out.Bytes()[index.Offset:]), release.IndexFile)
	if err != nil {
		t.Fatal(err)
	}
	if s.contents[release.IndexFile], err = io.ReadAll(content); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func trust(_, _ []byte) error { return nil }

// unpack reads a whole archive.
func unpack(ctx context.Context, src io.Reader, authenticate Authenticate) (map[string][]byte, error) {
	r, err := Open(ctx, src, authenticate, Options{})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	all := map[string][]byte{}
	for {
		f, content, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		if all[f.Name], err = io.ReadAll(content); err != nil {
			return nil, err
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for _, size := range []int{4096, 1 << 20, 5<<20 + 8192} {
		s := newSample(t, size)
		for _, signature := range [][]byte{nil, []byte("a signature")} {
			for _, blocks := range []int{0, 1, blockindex.MaxMemberBlocks} {
				packed := s.write(t, signature, Options{MemberBlocks: blocks})
				for _, workers := range []int{1, 7} {
					if !bytes.Equal(packed, s.write(t, signature, Options{MemberBlocks: blocks, Workers: workers})) {
						t.Errorf("%d workers give other bytes", workers)
					}
				}
				for name, src := range map[string]io.Reader{
					"whole": bytes.NewReader(packed), "halves": iotest.HalfReader(bytes.NewReader(packed)), "data and error": iotest.DataErrReader(bytes.NewReader(packed)),
				} {
					s.readBack(t, name, src, signature)
				}
			}
		}
	}
}

// readBack compares an archive with the sample.
func (s *sample) readBack(t *testing.T, name string, src io.Reader, signature []byte) {
	t.Helper()
	got, err := unpack(t.Context(), src, func(text, sig []byte) error {
		if !bytes.Equal(text, s.text) || !bytes.Equal(sig, signature) {
			t.Errorf("%s: authenticates %q and %q", name, text, sig)
		}
		return nil
	})
	if err != nil {
		t.Errorf("%s: %v", name, err)
	}
	for file, want := range s.contents {
		if !bytes.Equal(got[file], want) {
			t.Errorf("%s: %s differs", name, file)
		}
	}
}

// tar and gzip unpack what we write.
func TestTarAgrees(t *testing.T) {
	s := newSample(t, 3<<20)
	dir := t.TempDir()
	file := filepath.Join(dir, "7.tar.gz")
	if err := os.WriteFile(file, s.write(t, []byte("signature"), Options{}), 0o600); err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "gzip", "-t", file)
	if out := testkit.Run(t, "tar", "xzf", file, "-C", dir); out != "" {
		t.Errorf("tar says %s", out)
	}
	list := testkit.Run(t, "tar", "tzf", file)
	if want := "release.json\nrelease.json.pgp\nuki.efi\nbootx64.efi\nsystem.index\nsystem.erofs\n"; list != want {
		t.Errorf("tar lists %q, want %q", list, want)
	}
	s.contents[release.FileName], s.contents[SignatureFile] = s.text, []byte("signature")
	for name, want := range s.contents {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode() != 0o644 || info.ModTime().Unix() != s.release.SourceDate {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// Every size has a header that another reader understands.
func TestHeader(t *testing.T) {
	for _, size := range []int64{0, 1, 1<<33 - 1, 1 << 33, 64 << 30} {
		h := header(release.ImageFile, size, maxDate)
		got, err := tar.NewReader(bytes.NewReader(h[:])).Next()
		if err != nil || got.Name != release.ImageFile || got.Size != size || got.Typeflag != tar.TypeReg || got.ModTime.Unix() != maxDate || got.Mode != 0o644 {
			t.Errorf("%d bytes: %+v, %v", size, got, err)
		}
	}
}

func TestWriteRefused(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name, want string
		change     func(s *sample)
		open       func(s *sample) func(release.File) (io.ReadCloser, error)
		signature  []byte
	}{
		{name: "longer file", want: "has more than", change: func(s *sample) { s.contents[release.UKIFile] = append(s.contents[release.UKIFile], 0) }},
		{name: "shorter file", want: "read the last", change: func(s *sample) { s.contents[release.ImageFile] = s.contents[release.ImageFile][1:] }},
		{name: "other file", want: "another SHA-256", change: func(s *sample) { s.contents[release.ImageFile][9] ^= 1 }},
		{name: "no description", want: "pcr11", change: func(s *sample) { s.build.PCR11 = nil }},
		{name: "large signature", want: "signature has", signature: make([]byte, MaxSignature+1)},
		{name: "no file", want: "broken", open: func(*sample) func(release.File) (io.ReadCloser, error) {
			return func(release.File) (io.ReadCloser, error) { return nil, broken }
		}},
		{name: "close fails", want: "broken", open: func(s *sample) func(release.File) (io.ReadCloser, error) {
			return func(f release.File) (io.ReadCloser, error) {
				return closeError{bytes.NewReader(s.contents[f.Name]), broken}, nil
			}
		}},
	} {
		s := newSample(t, 3<<20)
		if c.change != nil {
			c.change(s)
		}
		open := s.open
		if c.open != nil {
			open = c.open(s)
		}
		if _, err := Write(t.Context(), io.Discard, new(memory), Input{s.build, signWith(c.signature), open}, Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	s := newSample(t, 3<<20)
	full := writerFunc(func([]byte) (int, error) { return 0, broken })
	if _, err := Write(t.Context(), full, new(memory), Input{s.build, signWith(nil), s.open}, Options{}); !errors.Is(err, broken) {
		t.Errorf("a full disk: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Write(ctx, io.Discard, new(memory), Input{s.build, signWith(nil), s.open}, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

type closeError struct {
	io.Reader
	err error
}

func (c closeError) Close() error { return c.err }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// However reading ends, no goroutine stays: synctest waits until each of them has
// ended, and fails where one never will.
func TestNothingIsLeftBehind(t *testing.T) { synctest.Test(t, nothingIsLeftBehind) }

func nothingIsLeftBehind(t *testing.T) {
	s := newSample(t, 5<<20)
	packed := s.write(t, nil, Options{})
	for range 20 {
		if _, err := unpack(t.Context(), bytes.NewReader(packed), trust); err != nil {
			t.Fatal(err)
		}
		if _, err := unpack(t.Context(), bytes.NewReader(packed[:len(packed)/2]), trust); err == nil {
			t.Fatal("half an archive was accepted")
		}
		r, err := Open(t.Context(), bytes.NewReader(packed), trust, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if _, body, err := r.Next(); err == nil {
			if _, err := io.ReadAll(body); err == nil {
				t.Fatal("a closed archive can be read")
			}
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	s := newSample(b, 64<<20)
	b.SetBytes(64 << 20)
	for b.Loop() {
		if _, err := Write(b.Context(), io.Discard, new(memory), Input{s.build, signWith(nil), s.open}, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	s := newSample(b, 64<<20)
	packed := s.write(b, nil, Options{})
	b.SetBytes(64 << 20)
	for b.Loop() {
		r, err := Open(b.Context(), bytes.NewReader(packed), trust, Options{})
		if err != nil {
			b.Fatal(err)
		}
		for {
			_, body, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, body); err != nil {
				b.Fatal(err)
			}
		}
		r.Close()
	}
}

// plainTar returns the tar inside an archive.
func plainTar(t testing.TB, packed []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
