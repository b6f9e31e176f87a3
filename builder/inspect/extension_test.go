package inspect

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/release"
)

// memory is an archive.Spool.
type memory struct{ bytes.Buffer }

func (m *memory) ReadAt(b []byte, off int64) (int, error) {
	return bytes.NewReader(m.Bytes()).ReadAt(b, off)
}

func TestExtension(t *testing.T) {
	t.Parallel()
	e := &contract.Extension{Name: "vpn", RootHash: bytes.Repeat([]byte{7}, 32), Salt: []byte{1}, ImageSize: 8192, Essential: true, Modules: true}
	size, err := e.FileSize()
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, size)
	sum := sha256.Sum256(content)
	r, err := release.OfExtension(&contract.Contract{ImageID: "test-os", Arch: "x86_64", Version: 7}, e, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	text, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	_, err = archive.Write(t.Context(), &packed, new(memory), archive.Input{
		Build: r, Sign: func([]byte) ([]byte, error) { return nil, nil },
		Open: func(release.File) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
	}, archive.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, c := range map[string]struct {
		content []byte
		want    []string
	}{
		"release.json": {text, []string{"extension  ", "vpn\n", "test-os 7 for x86_64", "vpn.raw  "}},
		"vpn.tar.gz":   {packed.Bytes(), []string{"extension archive", "system.index", "vpn.raw", "test-os 7 for x86_64"}},
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		report, err := File(file)
		if err != nil {
			t.Error(err)
			continue
		}
		var said strings.Builder
		if err := report.Text(&said); err != nil {
			t.Error(err)
		}
		for _, want := range append(c.want, "0707070707") {
			if !strings.Contains(said.String(), want) {
				t.Errorf("%s: no %q in\n%s", name, want, said.String())
			}
		}
		if strings.Contains(said.String(), "PCR 11") || strings.Contains(said.String(), "slot") || report.Room != nil {
			t.Errorf("%s: it has what only a release has:\n%s", name, said.String())
		}
	}
	var said strings.Builder
	extensionText(&said, e)
	if want := "image 8192 bytes, essential, with kernel modules"; !strings.Contains(said.String(), want) {
		t.Errorf("no %q in %s", want, said.String())
	}
}
