package inspect

import (
	"bytes"
	"crypto/x509"
	"debug/pe"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/uki"
)

// EFI describes an EFI image. What only a UKI has is left out for others.
type EFI struct {
	SHA256       contract.Hex `json:"sha256"`
	Authenticode contract.Hex `json:"authenticode"` // SHA-256 PE hash
	Sections     []Section    `json:"sections"`
	Program      string       `json:"program,omitempty"` // systemd-stub or systemd-boot
	Version      string       `json:"version,omitempty"` // of the program
	Signatures   []Signature  `json:"signatures"`

	OSRelease string             `json:"os_release,omitempty"`
	Cmdline   string             `json:"cmdline,omitempty"`
	Uname     string             `json:"uname,omitempty"`
	PCR11     *PCR11             `json:"pcr11,omitempty"`
	Contract  *contract.Contract `json:"contract,omitempty"`
}

// Section is a section of an EFI image.
type Section struct {
	Name   string       `json:"name"`
	Size   int          `json:"size"` // bytes
	SHA256 contract.Hex `json:"sha256"`
}

// PCR11 is what the register holds in the SHA-256 bank at three moments.
type PCR11 struct {
	Stub        pcr.Digest `json:"stub"` // when the kernel starts
	EnterInitrd pcr.Digest `json:"enter_initrd"`
	LeaveInitrd pcr.Digest `json:"leave_initrd"`
}

// Signature is one signature of an EFI image, as it describes itself. It was
// not verified.
type Signature struct {
	Size         int      `json:"size"`         // bytes
	Certificates []string `json:"certificates"` // subjects
}

func describeEFI(image []byte) (*EFI, error) {
	img, err := uki.Parse(image)
	if err != nil {
		return nil, err
	}
	digest, err := authenticode.Digest(image)
	if err != nil {
		return nil, err
	}
	e := &EFI{SHA256: sum(image), Authenticode: digest[:]}
	for _, s := range img.Sections() {
		e.Sections = append(e.Sections, Section{Name: s.Name, Size: len(s.Data), SHA256: sum(s.Data)})
	}
	if stub, err := img.Stub(); err == nil {
		e.Program, e.Version = stub.Program, stub.Version
	} else if !errors.Is(err, uki.ErrNoStub) {
		return nil, err
	}
	if e.Signatures, err = signatures(image); err != nil {
		return nil, err
	}
	if _, ok := img.Section(".linux"); !ok {
		return e, nil
	}
	return e, e.describeUKI(img)
}

func (e *EFI) describeUKI(img *uki.Image) error {
	for _, part := range []struct {
		section string
		to      *string
	}{{".osrel", &e.OSRelease}, {".cmdline", &e.Cmdline}, {".uname", &e.Uname}} {
		text, _ := img.Section(part.section)
		*part.to = string(bytes.TrimRight(text, "\x00"))
	}
	stub, err := pcr.PredictUKI(img)
	if err != nil {
		return fmt.Errorf("predict PCR 11: %w", err)
	}
	e.PCR11 = &PCR11{
		Stub:        stub,
		EnterInitrd: pcr.Phases(stub, pcr.EnterInitrd),
		LeaveInitrd: pcr.Phases(stub, pcr.EnterInitrd, pcr.LeaveInitrd),
	}
	initrd, ok := img.Section(".initrd")
	if !ok {
		return nil
	}
	// Another's UKI has no boot contract, and can be looked at all the same.
	if c, err := contract.FromInitrd(initrd); err == nil {
		e.Contract = c
	} else if bytes.Contains(initrd[:min(len(initrd), 1024)], []byte(contract.Path)) {
		return err
	}
	return nil
}

// signatures lists the certificate table (PE format, "The Attribute
// Certificate Table").
func signatures(image []byte) ([]Signature, error) {
	f, err := pe.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	header, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok || len(header.DataDirectory) <= pe.IMAGE_DIRECTORY_ENTRY_SECURITY {
		return nil, nil
	}
	d := header.DataDirectory[pe.IMAGE_DIRECTORY_ENTRY_SECURITY]
	if d.Size == 0 {
		return nil, nil
	}
	start, end := uint64(d.VirtualAddress), uint64(d.VirtualAddress)+uint64(d.Size)
	if end > uint64(len(image)) {
		return nil, fmt.Errorf("certificate table from %d to %d in an image of %d bytes", start, end, len(image))
	}
	var list []Signature
	for table := image[start:end]; len(table) >= 8; {
		size := uint64(binary.LittleEndian.Uint32(table))
		if size < 8 || size > uint64(len(table)) {
			return nil, fmt.Errorf("signature of %d bytes, %d are left", size, len(table))
		}
		list = append(list, Signature{Size: int(size), Certificates: subjects(table[8:size])})
		table = table[min((size+7)&^7, uint64(len(table))):]
	}
	return list, nil
}

// subjects names the certificates in a PKCS #7 SignedData (RFC 2315, section
// 9.1); none when it is not one.
func subjects(der []byte) []string {
	var outer struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"explicit,tag:0"`
	}
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		return nil
	}
	var data struct {
		Version      int
		Digests      asn1.RawValue
		Content      asn1.RawValue
		Certificates asn1.RawValue `asn1:"optional,tag:0"`
		Rest         asn1.RawValue `asn1:"optional"`
		Signers      asn1.RawValue `asn1:"optional"`
	}
	if _, err := asn1.Unmarshal(outer.Content.Bytes, &data); err != nil {
		return nil
	}
	certificates, err := x509.ParseCertificates(data.Certificates.Bytes)
	if err != nil {
		return nil
	}
	var names []string
	for _, c := range certificates {
		names = append(names, c.Subject.String())
	}
	return names
}
