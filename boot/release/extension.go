package release

import (
	"errors"
	"fmt"

	"halogenos.internal/boot/contract"
)

// ExtensionFile is the name of a system extension's file, beside the release that was
// built and in the extension's archive: the EROFS image with its verity tree behind it.
func ExtensionFile(name string) string { return name + ".raw" }

// ParseExtension reads what Encode wrote of a system extension. That of a release is
// refused.
func ParseExtension(text []byte) (*Release, error) {
	r, err := parse(text)
	if err == nil && r.Extension == "" {
		return nil, fmt.Errorf("%s describes a release, not a system extension", FileName)
	}
	return r, err
}

// OfExtension describes an extension of a release, with the SHA-256 of its file.
func OfExtension(c *contract.Contract, e *contract.Extension, sum []byte) (*Release, error) {
	size, err := e.FileSize()
	if err != nil {
		return nil, fmt.Errorf("extension %s: %w", e.Name, err)
	}
	r := &Release{
		Format: Format, ImageID: c.ImageID, Arch: c.Arch, Version: c.Version, Epoch: c.Epoch, SourceDate: c.SourceDate,
		RootHash: e.RootHash, Salt: e.Salt, ImageSize: e.ImageSize, Extension: e.Name,
		Files: []File{{Name: ExtensionFile(e.Name), Size: size, SHA256: sum}},
	}
	return r, r.Validate()
}

// extension is what the description says of the extension itself.
func (r *Release) extension() contract.Extension {
	return contract.Extension{Name: r.Extension, RootHash: r.RootHash, Salt: r.Salt, ImageSize: r.ImageSize}
}

// ValidateExtension reports the first thing that is wrong with the description of a
// system extension. Its root hash, salt and image size are those of the extension; it
// has no slot, no PCR and no revocations, and its files are the extension's, and the index
// where it is published.
func (r *Release) ValidateExtension() error {
	if r.Format != Format {
		return fmt.Errorf("%s %w %d, want %d", FileName, ErrFormat, r.Format, Format)
	}
	e := r.extension()
	if err := e.Validate(); err != nil {
		return err
	}
	size, err := e.FileSize()
	switch {
	case err != nil:
		return fmt.Errorf("extension %s: %w", e.Name, err)
	case !contract.ValidID(r.ImageID) || !contract.ValidArch(r.Arch) || r.Version == 0:
		return fmt.Errorf("extension %s is of version %s of %.80q for %.80q, which is no release", e.Name, r.Version, r.ImageID, r.Arch)
	case r.SourceDate < 0:
		return fmt.Errorf("source date %d lies before 1970", r.SourceDate)
	case r.SlotSize != 0 || len(r.PCR11) != 0 || len(r.Revocations) != 0:
		return fmt.Errorf("extension %s has a slot size, a PCR 11 or revocations, which only a release has", e.Name)
	}
	want := []rule{{ExtensionFile(e.Name), false, size}}
	if r.Published() {
		want = []rule{{IndexFile, false, 3*indexHead + indexBlock*(size/4096)}, want[0]}
	}
	if err := r.validateFiles(want); err != nil {
		return err
	}
	if f, _ := r.File(ExtensionFile(e.Name)); f.Size != size {
		return fmt.Errorf("%s has %d bytes, want the %d of image and hash tree", f.Name, f.Size, size)
	}
	return nil
}

// MatchesExtension reports why the description is not the one of an extension of the
// release with that boot contract, which the UKI lists as e.
func (r *Release) MatchesExtension(c *contract.Contract, e *contract.Extension) error {
	if r.Extension == "" {
		return errors.New("is the description of a release, not of a system extension")
	}
	for _, pair := range []struct{ name, have, want string }{
		{"name", r.Extension, e.Name},
		{"image ID", r.ImageID, c.ImageID},
		{"architecture", r.Arch, c.Arch},
		{"version", r.Version.String(), c.Version.String()},
		{"epoch", fmt.Sprint(r.Epoch), fmt.Sprint(c.Epoch)},
		{"root hash", fmt.Sprintf("%x", r.RootHash), fmt.Sprintf("%x", e.RootHash)},
		{"salt", fmt.Sprintf("%x", r.Salt), fmt.Sprintf("%x", e.Salt)},
		{"image size", fmt.Sprint(r.ImageSize), fmt.Sprint(e.ImageSize)},
	} {
		if pair.have != pair.want {
			return fmt.Errorf("%s is %s in the extension's %s, and %s in the release's UKI", pair.name, pair.have, FileName, pair.want)
		}
	}
	return nil
}
