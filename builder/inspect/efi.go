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

// EFI describes an EFI image. What only a UKI has is left out for others, and
// what cannot be read, with the reason among the faults.
type EFI struct {
	SHA256       contract.Hex `json:"sha256"`
	Authenticode contract.Hex `json:"authenticode,omitempty"` // SHA-256 PE hash
	Machine      string       `json:"machine,omitempty"`      // what processor it is for
	Faults       []string     `json:"faults,omitempty"`
	Sections     []Section    `json:"sections"`
	Program      string       `json:"program,omitempty"` // systemd-stub or systemd-boot
	Version      string       `json:"version,omitempty"` // of the program
	Signatures   []Signature  `json:"signatures"`

	OSRelease string             `json:"os_release,omitempty"`
	Cmdline   string             `json:"cmdline,omitempty"`
	Uname     string             `json:"uname,omitempty"`
	PCR11     *PCR11             `json:"pcr11,omitempty"`
	Microcode []Microcode        `json:"microcode,omitempty"`
	Contract  *contract.Contract `json:"contract,omitempty"`
	// ESPSize and LeastESP are the EFI system partition that an installation makes, and the
	// smallest that machines have from releases before, in bytes.
	ESPSize  int64 `json:"esp_size,omitempty"`
	LeastESP int64 `json:"least_esp,omitempty"`
	// Extensions are the release's system extensions.
	Extensions []contract.Extension `json:"extensions,omitempty"`
	// ModuleKey is the certificate for kernel modules that the release wants in each machine's db.
	ModuleKey *ModuleKey `json:"module_key,omitempty"`

	able contract.Abilities
}

// Section is a section of an EFI image.
type Section struct {
	Name   string       `json:"name"`
	Size   int          `json:"size"` // bytes
	SHA256 contract.Hex `json:"sha256"`
	// Memory is what it takes there in bytes, where that is more.
	Memory int `json:"memory,omitempty"`
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

// describeEFI describes any program for EFI. Few are as plain as what a UKI is
// made of must be: most have memory that the file does not fill (.bss).
func describeEFI(image []byte) (*EFI, error) {
	f, err := openPE(image)
	if err != nil {
		return nil, fmt.Errorf("begins like a program for EFI, but is not one: %w", err)
	}
	e := &EFI{SHA256: sum(image), Machine: machineName(f.Machine)}
	if digest, err := authenticode.Digest(image); err != nil {
		e.fault("no PE hash: %w", err)
	} else {
		e.Authenticode = digest[:]
	}
	if e.Signatures, err = signatures(image, f); err != nil {
		e.fault("signatures: %w", err)
	}
	img, err := uki.Parse(image)
	if err != nil {
		e.looseSections(f)
		if f.Section(".linux") != nil || f.Section(".sdmagic") != nil {
			e.fault("no UKI can be made of it: %w", err)
		}
		return e, nil
	}
	for i, s := range img.Sections() {
		// The whole name: "/4" is one of more than 8 bytes, which is in the table of symbols.
		e.Sections = append(e.Sections, Section{Name: f.Sections[i].Name, Size: len(s.Data), SHA256: sum(s.Data)})
	}
	if stub, err := img.Stub(); err == nil {
		e.Program, e.Version = stub.Program, stub.Version
	} else if !errors.Is(err, uki.ErrNoStub) {
		e.fault("%w", err)
	}
	if _, ok := img.Section(".linux"); ok {
		if err := e.describeUKI(img); err != nil {
			e.fault("%w", err)
		}
	}
	return e, nil
}

// openPE reads the headers of a program for any processor. debug/pe refuses those that it
// does not know, such as LoongArch, though nothing in its headers depends on them.
func openPE(image []byte) (*pe.File, error) {
	f, err := pe.NewFile(bytes.NewReader(image))
	if err == nil || len(image) < 64 {
		return f, err
	}
	le := binary.LittleEndian
	at := uint64(le.Uint32(image[60:])) + 4 // of the COFF header, whose first field is the processor
	if at+2 > uint64(len(image)) {
		return nil, err
	}
	plain := bytes.Clone(image)
	le.PutUint16(plain[at:], pe.IMAGE_FILE_MACHINE_UNKNOWN)
	if f, err = pe.NewFile(bytes.NewReader(plain)); err != nil {
		return nil, err
	}
	f.Machine = le.Uint16(image[at:])
	return f, nil
}

func (e *EFI) fault(format string, args ...any) {
	e.Faults = append(e.Faults, fmt.Errorf(format, args...).Error())
}

// looseSections describes sections whatever they are like.
func (e *EFI) looseSections(f *pe.File) {
	for _, s := range f.Sections {
		var data []byte
		if s.Size > 0 {
			var err error
			if data, err = s.Data(); err != nil {
				e.fault("section %.8q: %w", s.Name, err)
				continue
			}
		}
		// What fills up the file's last block is not the program's.
		data = data[:min(len(data), int(s.VirtualSize))]
		section := Section{Name: s.Name, Size: len(data), SHA256: sum(data)}
		if int(s.VirtualSize) > len(data) {
			section.Memory = int(s.VirtualSize)
		}
		e.Sections = append(e.Sections, section)
	}
}

// machineName is how distributors call a kind of processor.
func machineName(machine uint16) string {
	if name, ok := map[uint16]string{
		pe.IMAGE_FILE_MACHINE_AMD64: "x86-64", pe.IMAGE_FILE_MACHINE_I386: "32-bit x86",
		pe.IMAGE_FILE_MACHINE_ARM64: "aarch64", pe.IMAGE_FILE_MACHINE_ARMNT: "32-bit ARM", pe.IMAGE_FILE_MACHINE_THUMB: "32-bit ARM",
		pe.IMAGE_FILE_MACHINE_RISCV64: "riscv64", pe.IMAGE_FILE_MACHINE_LOONGARCH64: "loongarch64",
	}[machine]; ok {
		return name
	}
	return fmt.Sprintf("kind %#04x", machine)
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
	if err := e.describeMicrocode(img, initrd); err != nil {
		e.fault("microcode: %w", err)
	}
	if !ok {
		return nil
	}
	// Another's UKI has no boot contract, and can be looked at all the same.
	if c, err := contract.FromInitrd(initrd); err == nil {
		e.Contract, e.able = c, contract.AbilitiesFromInitrd(initrd)
		e.ESPSize, e.LeastESP = e.able.ESP(), e.able.SmallestESP()
		if e.Extensions, err = contract.ExtensionsFromInitrd(initrd); err != nil {
			e.fault("extensions: %w", err)
		}
		return e.describeModuleKey(initrd)
	} else if bytes.Contains(initrd[:min(len(initrd), 1024)], []byte(contract.Path)) {
		return err
	}
	return nil
}

// A ModuleKey is a certificate for kernel modules.
type ModuleKey struct {
	Subject string       `json:"subject"`
	SHA256  contract.Hex `json:"sha256"`
}

func (e *EFI) describeModuleKey(initrd []byte) error {
	der, err := contract.ModuleKeyFromInitrd(initrd)
	if err != nil || der == nil {
		return err
	}
	c, err := contract.ValidModuleKey(der)
	if err != nil {
		return err
	}
	e.ModuleKey = &ModuleKey{c.Subject.String(), sum(der)}
	return nil
}

// signatures lists the certificate table (PE format, "The Attribute
// Certificate Table").
func signatures(image []byte, f *pe.File) ([]Signature, error) {
	var d pe.DataDirectory
	switch header := f.OptionalHeader.(type) {
	case *pe.OptionalHeader64:
		if header.NumberOfRvaAndSizes > pe.IMAGE_DIRECTORY_ENTRY_SECURITY {
			d = header.DataDirectory[pe.IMAGE_DIRECTORY_ENTRY_SECURITY]
		}
	case *pe.OptionalHeader32:
		if header.NumberOfRvaAndSizes > pe.IMAGE_DIRECTORY_ENTRY_SECURITY {
			d = header.DataDirectory[pe.IMAGE_DIRECTORY_ENTRY_SECURITY]
		}
	}
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
