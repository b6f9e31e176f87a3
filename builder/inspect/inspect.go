// Package inspect describes the files that the builder makes and machines have:
// UKIs and other EFI images, disks, ESPs, system images, LUKS2 headers,
// release.json, releases and keys.
//
// It refuses to judge: what it shows of a file is what the file says, checked
// for consistency but not for whose it is. It opens files for reading only.
package inspect

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/release"
	"halogenos.internal/builder/erofs"
	"halogenos.internal/builder/modules"
	"halogenos.internal/builder/room"
)

// maxEFI bounds what is read of an EFI image in bytes.
const maxEFI = 512 << 20

// A Report is what is known about a file. One of the pointers before Room is set.
type Report struct {
	Kind    string           `json:"kind"` // efi, disk, system, release, archive, esp, luks or key
	Size    int64            `json:"size"` // bytes
	EFI     *EFI             `json:"efi,omitempty"`
	Disk    *Disk            `json:"disk,omitempty"`
	System  *System          `json:"system,omitempty"`
	Release *release.Release `json:"release,omitempty"`
	Archive *Archive         `json:"archive,omitempty"`
	ESP     []ESPFile        `json:"esp,omitempty"`
	LUKS    *LUKS            `json:"luks,omitempty"`
	Key     *Key             `json:"key,omitempty"`
	// Room is how much of machines' partitions a release takes, where it is one's.
	Room *room.Plan `json:"room,omitempty"`
}

// System describes a system image by its superblock.
type System struct {
	Blocks   uint64    `json:"blocks"` // of 4096 bytes
	Inodes   uint64    `json:"inodes"`
	Created  time.Time `json:"created"`
	UUID     string    `json:"uuid"`
	Features uint32    `json:"features"` // that a reader must know
	// Modules are the kernel modules in it; nil where there are none, or its directories
	// cannot be read.
	Modules *Modules `json:"modules,omitempty"`
}

// Modules counts kernel modules by how they lie in an image.
type Modules struct {
	// Plain lie without compression in a run of blocks each (Modules=plain), and Packed
	// as a file of their own compression, or in the image's.
	Plain  int   `json:"plain"`
	Packed int   `json:"packed"`
	Size   int64 `json:"size"` // bytes of their files
}

// ErrUnknown is returned for a file that is none of what the builder makes.
var ErrUnknown = errors.New("neither an EFI image, a disk with a partition table, an ESP, an EROFS image, a LUKS2 volume, a release.json, a release's archive nor a key: check that it is whole, and the one you mean")

// File describes a file by what is in it, whatever its name.
func File(path string) (*Report, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: name a file", path)
	}
	r, err := describe(f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	r.Size = info.Size()
	r.Plan(nil)
	return r, nil
}

func describe(f io.ReaderAt, size int64) (*Report, error) {
	start := make([]byte, min(size, 8192))
	if _, err := f.ReadAt(start, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(start, []byte("MZ")):
		image, err := readAll(f, size, maxEFI)
		if err != nil {
			return nil, err
		}
		efi, err := describeEFI(image)
		if other := otherKind(start); err != nil && other != nil {
			err = other
		}
		return &Report{Kind: "efi", EFI: efi}, err
	case bytes.HasPrefix(bytes.TrimLeft(start, " \t\r\n"), []byte("{")):
		text, err := readAll(f, size, release.MaxSize)
		if err != nil {
			return nil, err
		}
		r, err := release.Parse(text)
		if extension, otherErr := release.ParseExtension(text); otherErr == nil {
			r, err = extension, nil
		}
		return &Report{Kind: "release", Release: r}, err
	case hasGPT(start, f, size):
		disk, err := describeDisk(f, size)
		return &Report{Kind: "disk", Disk: disk}, err
	}
	system, err := describeSystem(f)
	if !errors.Is(err, erofs.ErrNotErofs) {
		return &Report{Kind: "system", System: system}, err
	}
	return describeMore(start, f, size)
}

// describeMore describes what is none of the parts of a build.
func describeMore(start []byte, f io.ReaderAt, size int64) (*Report, error) {
	switch {
	case bytes.HasPrefix(start, luksMagic):
		luks, err := describeLUKS(f, size)
		return &Report{Kind: "luks", LUKS: luks}, err
	case bytes.HasPrefix(start, []byte("\x1f\x8b")):
		archive, err := describeArchive(f, size)
		return &Report{Kind: "archive", Archive: archive}, err
	}
	if esp, err := describeESP(io.NewSectionReader(f, 0, size), new(gpt.Table)); err == nil {
		return &Report{Kind: "esp", ESP: esp}, nil
	}
	if err := otherKind(start); err != nil {
		return nil, err
	}
	if disk := describeMBR(start, size); disk != nil {
		return &Report{Kind: "disk", Disk: disk}, nil
	}
	if size > maxKey {
		return nil, ErrUnknown
	}
	text, err := readAll(f, size, maxKey)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	key, err := describeKey(text)
	if err == nil && key == nil {
		err = cmp.Or(otherSecret(text), ErrUnknown)
	}
	return &Report{Kind: "key", Key: key}, err
}

func readAll(f io.ReaderAt, size, limit int64) ([]byte, error) {
	if size > limit {
		return nil, fmt.Errorf("has %d bytes, more than %d", size, limit)
	}
	content := make([]byte, size)
	_, err := f.ReadAt(content, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return content, err
}

func describeSystem(r io.ReaderAt) (*System, error) {
	h, err := erofs.ReadHeader(r)
	if err != nil {
		return nil, err
	}
	return &System{Blocks: h.Blocks, Inodes: h.Inodes, Created: h.Created, UUID: h.UUID.String(), Features: h.Features, Modules: countModules(r)}, nil
}

// countModules looks at the kernel modules of a system image.
func countModules(r io.ReaderAt) *Modules {
	m := new(Modules)
	err := erofs.Walk(r, func(f erofs.File) error {
		switch {
		case !modules.IsModule(f.Name):
			return nil
		case f.Plain && modules.PlainName(f.Name) == f.Name:
			m.Plain++
		default:
			m.Packed++
		}
		m.Size += f.Size
		return nil
	})
	if err != nil || m.Plain+m.Packed == 0 {
		return nil // a part of an image is described all the same
	}
	return m
}

func sum(b []byte) contract.Hex {
	s := sha256.Sum256(b)
	return s[:]
}
