// Package release describes one release of the operating system: the file
// release.json, which the distributor signs and which says everything a machine
// must know to check the rest.
//
// What a build has made is described in the same way, before it is packed for
// publication: without the index and the packed sizes.
//
// It refuses a description that names a file twice, leaves one out, or whose
// parts do not belong together; it never says that a signature is good, since
// it does not look at signatures.
package release

import (
	"encoding/json"
	"errors"
	"fmt"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/strictjson"
)

// Format is the number of this format; another is refused.
const Format = 1

// ErrFormat is wrapped where a description has another format.
var ErrFormat = errors.New("has format")

// MaxSize bounds release.json in bytes.
const MaxSize = 4 << 20

// Names of a release's files, in the order they have in the archive.
const (
	FileName        = "release.json"
	UKIFile         = "uki.efi"
	BootManagerFile = "bootx64.efi"
	IndexFile       = "system.index" // of package blockindex
	ImageFile       = "system.erofs"
)

// KeyFile lies beside a release that was fetched: the release key as the machine
// knew it then, which may be newer than the one in its image.
const KeyFile = "release-key.pgp"

// A File is one file of the release.
type File struct {
	Name   string       `json:"name"`
	Size   int64        `json:"size"` // bytes
	SHA256 contract.Hex `json:"sha256"`
	// Authenticode is the SHA-256 PE hash of an EFI file. It stays the same
	// when a machine signs the file for itself.
	Authenticode contract.Hex `json:"authenticode,omitempty"`
	// Packed is how many bytes the file takes in the archive; 0 as long as it
	// is not published.
	Packed int64 `json:"packed,omitempty"`
}

// A Release is the content of release.json.
type Release struct {
	Format  int              `json:"format"`
	ImageID string           `json:"image_id"`
	Arch    string           `json:"arch"`
	Version contract.Version `json:"version"`
	Epoch   uint64           `json:"epoch"`

	RootHash  contract.Hex `json:"root_hash"`
	Salt      contract.Hex `json:"salt"`
	ImageSize int64        `json:"image_size"`
	SlotSize  int64        `json:"slot_size,omitzero"`

	// PCR11 is the value that the UKI's measurements leave in PCR 11 of the
	// SHA-256 bank before the kernel starts.
	PCR11 contract.Hex `json:"pcr11,omitempty"`
	// SourceDate is the date of everything in the release, in seconds since
	// 1970 (SOURCE_DATE_EPOCH).
	SourceDate int64 `json:"source_date"`

	Files []File `json:"files"`

	// Revocations are entries for dbx, the firmware's list of what may not start. A
	// machine whose initagent does not know the field refuses the description
	// (contract.Abilities.Revocations says which does), so it is left out without any.
	Revocations []Revocations `json:"revocations,omitempty"`

	// Extension is the name of the system extension that the archive has, and empty in
	// the description of a release ([Release.ValidateExtension] has the differences).
	Extension string `json:"extension,omitempty"`
}

// File returns the file of that name.
func (r *Release) File(name string) (File, bool) {
	for _, f := range r.Files {
		if f.Name == name {
			return f, true
		}
	}
	return File{}, false
}

// Matches reports why a boot contract does not belong to this release.
func (r *Release) Matches(c *contract.Contract) error {
	for _, pair := range []struct{ name, release, contract string }{
		{"image ID", r.ImageID, c.ImageID},
		{"architecture", r.Arch, c.Arch},
		{"version", r.Version.String(), c.Version.String()},
		{"epoch", fmt.Sprint(r.Epoch), fmt.Sprint(c.Epoch)},
		{"root hash", fmt.Sprintf("%x", r.RootHash), fmt.Sprintf("%x", c.RootHash)},
		{"salt", fmt.Sprintf("%x", r.Salt), fmt.Sprintf("%x", c.Salt)},
		{"image size", fmt.Sprint(r.ImageSize), fmt.Sprint(c.ImageSize)},
		{"slot size", fmt.Sprint(r.SlotSize), fmt.Sprint(c.SlotSize)},
	} {
		if pair.release != pair.contract {
			return fmt.Errorf("%s is %s in %s and %s in the UKI's boot contract", pair.name, pair.release, FileName, pair.contract)
		}
	}
	return nil
}

// Validate reports the first thing that is wrong with the description, of a release or
// of a system extension.
func (r *Release) Validate() error {
	if r.Extension != "" {
		return r.ValidateExtension()
	}
	if r.Format != Format {
		return fmt.Errorf("%s %w %d, want %d", FileName, ErrFormat, r.Format, Format)
	}
	// The same rules as for the contract; what it has beyond is filled in.
	c := contract.Contract{
		Format: contract.Format, ImageID: r.ImageID, Arch: r.Arch, Version: r.Version, Epoch: r.Epoch,
		RootHash: r.RootHash, Salt: r.Salt, ImageSize: r.ImageSize, SlotSize: r.SlotSize,
		SecureBoot: contract.Required, TPM: contract.Required, VendorKeys: contract.VendorAuto, RootFileSystem: "ext4",
	}
	if err := c.Validate(); err != nil {
		return err
	}
	if len(r.PCR11) != 32 {
		return fmt.Errorf("pcr11 has %d bytes, want 32", len(r.PCR11))
	}
	if r.SourceDate < 0 {
		return fmt.Errorf("source date %d lies before 1970", r.SourceDate)
	}
	if err := r.validateFiles(r.rules()); err != nil {
		return err
	}
	return r.validateRevocations()
}

// Published reports whether the description is that of an archive, and not of
// a build.
func (r *Release) Published() bool {
	_, ok := r.File(IndexFile)
	return ok
}

// Build returns the description of the build that was published.
func (r *Release) Build() *Release {
	b := *r
	b.Files = nil
	for _, f := range r.Files {
		if f.Packed = 0; f.Name != IndexFile {
			b.Files = append(b.Files, f)
		}
	}
	return &b
}

// What the index may have for each file and for each block of 4 KiB.
const (
	indexHead  = 64
	indexBlock = 18
)

// rule says what a file of a description is.
type rule struct {
	name string
	efi  bool
	max  int64 // bytes
}

// rules are those for the files of a release, in their order.
func (r *Release) rules() []rule {
	const maxUKI, maxBootManager = 512 << 20, 16 << 20
	want := []rule{{UKIFile, true, maxUKI}, {BootManagerFile, true, maxBootManager}}
	if r.Published() {
		blocks := (r.ImageSize+maxUKI+maxBootManager)/4096 + 1
		want = append(want, rule{IndexFile, false, 3*indexHead + indexBlock*blocks})
	}
	return append(want, rule{ImageFile, false, r.ImageSize})
}

func (r *Release) validateFiles(want []rule) error {
	published := r.Published()
	if len(r.Files) != len(want) {
		return fmt.Errorf("%s names %d files, want %d", FileName, len(r.Files), len(want))
	}
	for i, w := range want {
		f := r.Files[i]
		switch {
		case f.Name != w.name:
			return fmt.Errorf("file %d is %q, want %q", i+1, f.Name, w.name)
		case f.Size <= 0 || f.Size > w.max:
			return fmt.Errorf("%s has %d bytes, want 1 to %d", f.Name, f.Size, w.max)
		case len(f.SHA256) != 32:
			return fmt.Errorf("%s: SHA-256 has %d bytes, want 32", f.Name, len(f.SHA256))
		case w.efi != (len(f.Authenticode) == 32) || !w.efi && len(f.Authenticode) != 0:
			return fmt.Errorf("%s: Authenticode hash has %d bytes", f.Name, len(f.Authenticode))
		case published && (f.Packed < 1 || f.Packed > MaxPacked(f.Size)), !published && f.Packed != 0:
			return fmt.Errorf("%s of %d bytes cannot take %d in the archive", f.Name, f.Size, f.Packed)
		}
	}
	return nil
}

// MaxPacked is the most that a file of so many bytes may take in the archive:
// gzip members of at least 4096 bytes that are not compressed.
func MaxPacked(size int64) int64 { return size + size/64 + 64 }

// Encode returns release.json.
func (r *Release) Encode() ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	out, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", FileName, err)
	}
	return append(out, '\n'), nil
}

// Parse reads what Encode wrote of a release. That of a system extension is refused.
func Parse(text []byte) (*Release, error) {
	r, err := parse(text)
	if err == nil && r.Extension != "" {
		return nil, fmt.Errorf("%s describes the system extension %s, not a release", FileName, r.Extension)
	}
	return r, err
}

func parse(text []byte) (*Release, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", FileName, len(text), MaxSize)
	}
	r := new(Release)
	if err := strictjson.Decode(text, r); err != nil {
		return nil, fmt.Errorf("parse %s: %w", FileName, err)
	}
	if err := r.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", FileName, err)
	}
	return r, nil
}
