package contract

import (
	"encoding/json"
	"fmt"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/strictjson"
	"halogenos.internal/boot/verity"
)

// ExtensionsPath is where a UKI says which extensions its release has, in an archive of
// its own behind the abilities', which is there only if the release has any. The contract
// itself has no room for it: an initagent that does not know a field refuses the whole
// contract.
const ExtensionsPath = "halogen/extensions.json"

// ExtensionsFormat is the number of this format; another is refused.
const ExtensionsFormat = 1

// MaxExtensions bounds how many extensions a release has.
const MaxExtensions = 64

// maxExtensions bounds the file in bytes.
const maxExtensions = 64 << 10

// An Extension is a system extension of one release: an EROFS image with /usr and /opt,
// and its verity tree behind it in the same file. The UKI's signature vouches for it.
type Extension struct {
	// Name is unique in the release, and the name of its extension-release file
	// (systemd-sysext(8)): usr/lib/extension-release.d/extension-release.NAME.
	Name     string `json:"name"`
	RootHash Hex    `json:"root_hash"` // of the verity tree, 32 bytes
	Salt     Hex    `json:"salt"`      // of the verity tree
	// ImageSize is the size in bytes of the EROFS image, whole verity blocks. The verity
	// superblock follows it, and then the tree.
	ImageSize int64 `json:"image_size"`
	// Essential: a machine that has it enabled does not start without it.
	Essential bool `json:"essential,omitempty"`
	// Modules: it has kernel modules, so that the indexes of depmod are to be merged.
	Modules bool `json:"modules,omitempty"`
}

// extensions is the file.
type extensions struct {
	Format     int         `json:"format"`
	Extensions []Extension `json:"extensions"`
}

// Root is the root hash as the verity package has it.
func (e *Extension) Root() verity.Root { return verity.Root(e.RootHash) }

// VerityParams are the parameters of the extension's tree.
func (e *Extension) VerityParams() verity.Params {
	return verity.Params{
		DataBlocks: uint64(e.ImageSize) / verity.BlockSize,
		Salt:       e.Salt,
		UUID:       layout.VerityUUID(e.Root()),
	}
}

// FileSize is the size in bytes of the image with its tree.
func (e *Extension) FileSize() (int64, error) {
	tree, err := verity.TreeSize(e.VerityParams().DataBlocks)
	return e.ImageSize + tree, err
}

// Validate reports the first thing that is wrong with the extension.
func (e *Extension) Validate() error {
	switch {
	case !ValidID(e.Name):
		return fmt.Errorf("extension %q: want a name of 1 to 64 of a-z, 0-9 and '-', starting with a letter", e.Name)
	case len(e.RootHash) != len(verity.Root{}):
		return fmt.Errorf("extension %s: root hash has %d bytes, want %d", e.Name, len(e.RootHash), len(verity.Root{}))
	case len(e.Salt) == 0 || len(e.Salt) > 256:
		return fmt.Errorf("extension %s: salt has %d bytes, want 1 to 256", e.Name, len(e.Salt))
	case e.ImageSize <= 0 || e.ImageSize%verity.BlockSize != 0 || e.ImageSize > layout.MaxSlot:
		return fmt.Errorf("extension %s: image size %d is not a positive multiple of %d up to %d", e.Name, e.ImageSize, verity.BlockSize, int64(layout.MaxSlot))
	}
	return nil
}

// validExtensions refuses a list with a wrong extension, one that comes twice, or too many.
func validExtensions(list []Extension) error {
	if len(list) == 0 || len(list) > MaxExtensions {
		return fmt.Errorf("the list has %d extensions, want 1 to %d", len(list), MaxExtensions)
	}
	seen := make(map[string]bool, len(list))
	for i := range list {
		if err := list[i].Validate(); err != nil {
			return err
		}
		if seen[list[i].Name] {
			return fmt.Errorf("extension %s is in the list twice", list[i].Name)
		}
		seen[list[i].Name] = true
	}
	return nil
}

// ExtensionsArchive is an archive that follows those of [Archive] in a release with
// extensions. Of an empty list it is empty.
func ExtensionsArchive(list []Extension) ([]byte, error) {
	if len(list) == 0 {
		return nil, nil
	}
	if err := validExtensions(list); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(extensions{Format: ExtensionsFormat, Extensions: list}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the list of extensions: %w", err)
	}
	if len(text) >= maxExtensions {
		return nil, fmt.Errorf("the list of extensions has %d bytes, more than %d", len(text), maxExtensions)
	}
	return archive(ExtensionsPath, append(text, '\n'))
}

// ExtensionsFromInitrd reads the list from a UKI's .initrd section. A release without
// extensions has none, which is no error; a list that does not parse is one.
func ExtensionsFromInitrd(initrd []byte) ([]Extension, error) {
	text, err := factFromInitrd(initrd, ExtensionsPath, maxExtensions)
	if text == nil || err != nil {
		return nil, err
	}
	return ParseExtensions(text)
}

// ParseExtensions reads the text of the file.
func ParseExtensions(text []byte) ([]Extension, error) {
	var file extensions
	if err := strictjson.Decode(text, &file); err != nil {
		return nil, fmt.Errorf("parse list of extensions: %w", err)
	}
	if file.Format != ExtensionsFormat {
		return nil, fmt.Errorf("list of extensions has format %d, want %d", file.Format, ExtensionsFormat)
	}
	if err := validExtensions(file.Extensions); err != nil {
		return nil, fmt.Errorf("list of extensions: %w", err)
	}
	return file.Extensions, nil
}
