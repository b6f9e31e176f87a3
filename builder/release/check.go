package release

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/verity"
	"halogenos.internal/builder/files"
)

// checkEFI compares an EFI file with its description.
func checkEFI(f release.File, image []byte) error {
	if sum := sha256.Sum256(image); int64(len(image)) != f.Size || !bytes.Equal(sum[:], f.SHA256) {
		return fmt.Errorf("%s is not the one that %s describes", f.Name, release.FileName)
	}
	digest, err := authenticode.Digest(image)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	if !bytes.Equal(digest[:], f.Authenticode) {
		return fmt.Errorf("%s has another Authenticode hash than %s says", f.Name, release.FileName)
	}
	return nil
}

// checkUKI compares a UKI with its release, and returns its boot contract.
func checkUKI(r *release.Release, image []byte) (*contract.Contract, error) {
	img, err := uki.Parse(image)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", release.UKIFile, err)
	}
	initrd, ok := img.Section(".initrd")
	if !ok {
		return nil, fmt.Errorf("%s has no initramfs", release.UKIFile)
	}
	c, err := contract.FromInitrd(initrd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", release.UKIFile, err)
	}
	if err := stopsKernel(r, img); err != nil {
		return nil, err
	}
	if err := r.Matches(c); err != nil {
		return nil, err
	}
	measured, err := pcr.PredictUKI(img)
	if err != nil {
		return nil, fmt.Errorf("predict PCR 11 of %s: %w", release.UKIFile, err)
	}
	if !bytes.Equal(measured[:], r.PCR11) {
		return nil, fmt.Errorf("%s leaves %s in PCR 11, %s says %x", release.UKIFile, measured, release.FileName, r.PCR11)
	}
	return c, nil
}

// discard is the place for a verity tree of which only the root is wanted.
type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// checkImage compares a system image's root hash with the contract's.
func checkImage(ctx context.Context, c *contract.Contract, image io.ReaderAt) error {
	root, err := verity.Generate(ctx, image, c.VerityParams(), discard{}, nil)
	if err != nil {
		return fmt.Errorf("hash %s: %w", release.ImageFile, err)
	}
	if root != c.Root() {
		return fmt.Errorf("%s has the root hash %s, the boot contract says %s", release.ImageFile, root, c.Root())
	}
	return nil
}

// A build is what halogen build left, and belongs together.
type build struct {
	dir      string
	release  *release.Release
	text     []byte // release.json
	contract *contract.Contract
	able     contract.Abilities
	// extensions are those that the UKI lists.
	extensions []contract.Extension
}

// badBuild says what a build that cannot be read needs.
func badBuild(dir string, err error) error {
	return fmt.Errorf("build %s: %w: make it (again) with 'halogen build --out %[1]s'", dir, err)
}

// loadBuild reads a build and checks everything but the system image and the extensions.
func loadBuild(dir string) (*build, error) {
	b := &build{dir: dir}
	var err error
	if b.text, err = files.Read(filepath.Join(dir, release.FileName), release.MaxSize); err != nil {
		return nil, err
	}
	if b.release, err = release.Parse(b.text); err != nil {
		return nil, err
	}
	for _, f := range b.release.Files {
		if len(f.Authenticode) == 0 {
			continue
		}
		image, err := files.Read(filepath.Join(dir, f.Name), f.Size)
		if err != nil {
			return nil, err
		}
		if err := checkEFI(f, image); err != nil {
			return nil, err
		}
		if f.Name == release.UKIFile {
			if b.contract, err = checkUKI(b.release, image); err != nil {
				return nil, err
			}
			b.able = abilities(image)
			if b.extensions, err = extensionsOf(image); err != nil {
				return nil, err
			}
		}
	}
	if b.contract == nil {
		return nil, errors.New("has no UKI")
	}
	return b, nil
}

// hashOf is the SHA-256 of a file from its start.
func hashOf(f io.ReadSeeker) ([]byte, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}
