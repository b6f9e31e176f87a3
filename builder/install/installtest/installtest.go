// Package installtest makes releases to be installed, small enough for a test.
package installtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/boot/verity"
)

// Sizes in bytes.
const (
	ImageSize = 3 << 20
	SlotSize  = 4 << 20
)

// Build makes a directory as halogen build leaves it, of a release that change has had its
// way with.
func Build(t testing.TB, change func(*contract.Contract)) string {
	t.Helper()
	return BuildAsking(t, change, nil)
}

// BuildAsking is Build of a release whose UKI has choices for the one who installs it.
func BuildAsking(t testing.TB, change func(*contract.Contract), choices []byte) string {
	t.Helper()
	image := make([]byte, ImageSize)
	if _, err := rand.Read(image); err != nil {
		t.Fatal(err)
	}
	c := &contract.Contract{
		Format: contract.Format, ImageID: "test", Arch: "x86_64", Version: 7, SourceDate: 1772604367,
		Salt: []byte("salt"), ImageSize: ImageSize, SlotSize: SlotSize,
		SecureBoot: contract.Required, TPM: contract.Required, VendorKeys: contract.VendorAuto, RootFileSystem: "ext4",
	}
	params := verity.Params{DataBlocks: ImageSize / verity.BlockSize, Salt: c.Salt}
	root, err := verity.Generate(t.Context(), bytes.NewReader(image), params, blocktest.New(1<<20, blocktest.Zero), nil)
	if err != nil {
		t.Fatal(err)
	}
	c.RootHash = root[:]
	if change != nil {
		change(c)
	}
	text, err := initrd(c, choices)
	if err != nil {
		t.Fatal(err)
	}
	sections := uki.Payload{OSRelease: []byte("ID=test\n"), Cmdline: []byte("quiet"), Linux: ukitest.Stub("kernel"), Initrd: text}.Sections()
	kernel, err := uki.Build(ukitest.Stub("257.13-1"), sections)
	if err != nil {
		t.Fatal(err)
	}
	img, err := uki.Parse(kernel)
	if err != nil {
		t.Fatal(err)
	}
	measured, err := pcr.PredictUKI(img)
	if err != nil {
		t.Fatal(err)
	}
	r := &release.Release{
		Format: release.Format, ImageID: c.ImageID, Arch: c.Arch, Version: c.Version, Epoch: c.Epoch, RootHash: c.RootHash, Salt: c.Salt,
		ImageSize: c.ImageSize, SlotSize: c.SlotSize, PCR11: measured[:], SourceDate: c.SourceDate,
	}
	dir := t.TempDir()
	for _, f := range []struct {
		name    string
		content []byte
	}{{release.UKIFile, kernel}, {release.BootManagerFile, ukitest.Stub("257.13-1")}, {release.ImageFile, image}} {
		sum := sha256.Sum256(f.content)
		described := release.File{Name: f.name, Size: int64(len(f.content)), SHA256: sum[:]}
		if f.name != release.ImageFile {
			digest, err := authenticode.Digest(f.content)
			if err != nil {
				t.Fatal(err)
			}
			described.Authenticode = digest[:]
		}
		r.Files = append(r.Files, described)
		if err := os.WriteFile(filepath.Join(dir, f.name), f.content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	description, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, release.FileName), description, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// initrd is the beginning of an initramfs.
func initrd(c *contract.Contract, choices []byte) ([]byte, error) {
	text, err := contract.Archive(c)
	if err != nil || choices == nil {
		return text, err
	}
	return contract.WithChoices(text, choices)
}

// A Signer is a distributor's key, in a home of gpg's own.
type Signer struct {
	t    testing.TB
	home string
}

// NewSigner makes a key.
func NewSigner(t testing.TB) *Signer {
	t.Helper()
	testkit.Need(t, "gpg")
	home, err := os.MkdirTemp("", "g") // short: a socket lies in it
	if err != nil {
		t.Fatal(err)
	}
	s := &Signer{t, home}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	s.run(nil, "--passphrase", "", "--quick-generate-key", "distributor@example.org", "ed25519", "sign", "never")
	return s
}

func (s *Signer) run(stdin []byte, args ...string) []byte {
	s.t.Helper()
	cmd := exec.Command("gpg", append([]string{"--homedir", s.home, "--batch", "--quiet", "--pinentry-mode", "loopback"}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("gpg %q: %v", args, err)
	}
	return out
}

// Public is the key's public half.
func (s *Signer) Public() []byte { return s.run(nil, "--export") }

// Sign makes a detached signature.
func (s *Signer) Sign(message []byte) []byte {
	return s.run(message, "--passphrase", "", "--detach-sign")
}

// Archive packs a build, signed by sign, or not where that is nil.
func Archive(t testing.TB, build string, sign func(description []byte) []byte) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(build, release.FileName))
	if err != nil {
		t.Fatal(err)
	}
	r, err := release.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	spool, err := os.Create(filepath.Join(t.TempDir(), "spool"))
	if err != nil {
		t.Fatal(err)
	}
	defer spool.Close()
	var out bytes.Buffer
	_, err = archive.Write(context.Background(), &out, spool, archive.Input{Build: r, Sign: func(description []byte) ([]byte, error) {
		if sign == nil {
			return nil, nil
		}
		return sign(description), nil
	}, Open: func(f release.File) (io.ReadCloser, error) { return os.Open(filepath.Join(build, f.Name)) }}, archive.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
