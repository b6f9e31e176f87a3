package inspect

import (
	"bytes"
	"fmt"
	"io"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/release"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Archive describes the archive of a release, or of an extension, by its head.
type Archive struct {
	Release  *release.Release `json:"release"`
	SignedBy string           `json:"signed_by,omitempty"` // fingerprint that the signature names; not verified
	Files    []ArchiveFile    `json:"files"`
}

// ArchiveFile is where a file lies in an archive.
type ArchiveFile struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`   // bytes, unpacked
	Offset int64  `json:"offset"` // bytes
	Packed int64  `json:"packed"` // bytes
}

func describeArchive(f io.ReaderAt, size int64) (*Archive, error) {
	believe := func(_, _ []byte) error { return nil }
	head, err := archive.ReadHead(io.NewSectionReader(f, 0, size), believe)
	if extension, otherErr := archive.ReadExtensionHead(io.NewSectionReader(f, 0, size), believe); otherErr == nil {
		head, err = extension, nil
	}
	if err != nil {
		return nil, fmt.Errorf("release archive: %w", err)
	}
	a := &Archive{Release: head.Release}
	if p, err := packet.Read(bytes.NewReader(head.Signature)); err == nil {
		if sig, ok := p.(*packet.Signature); ok {
			a.SignedBy = fmt.Sprintf("%X", sig.IssuerFingerprint)
		}
	}
	for _, p := range head.Places() {
		a.Files = append(a.Files, ArchiveFile{p.Name, p.Size, p.Offset, p.Packed})
	}
	return a, nil
}

func (a *Archive) text(w io.Writer, size int64) {
	kind := "release archive"
	if a.Release.Extension != "" {
		kind = "extension archive"
	}
	line(w, "%s\t%d bytes\n", kind, size)
	by := "none"
	if a.SignedBy != "" {
		by = "by " + a.SignedBy + ", not verified"
	}
	line(w, "signature\t%s\n", by)
	for _, f := range a.Files {
		line(w, "%s\t%d bytes, packed %d from byte %d\n", f.Name, f.Size, f.Packed, f.Offset)
	}
	releaseText(w, a.Release)
}
