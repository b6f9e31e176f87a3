package inspect

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/release"
)

// Text writes a report for people.
func (r *Report) Text(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', 0)
	switch {
	case r.EFI != nil:
		r.EFI.text(w, r.Size)
	case r.Disk != nil:
		r.Disk.text(w, r.Size)
	case r.System != nil:
		fmt.Fprintf(w, "system image\t%d bytes\n", r.Size)
		r.System.text(w)
	case r.Release != nil:
		releaseText(w, r.Release)
	case r.Archive != nil:
		r.Archive.text(w, r.Size)
	case r.LUKS != nil:
		r.LUKS.text(w, r.Size)
	case r.Key != nil:
		r.Key.text(w)
	case r.Kind == "esp":
		fmt.Fprintf(w, "ESP\t%d bytes\n", r.Size)
		for _, f := range r.ESP {
			fmt.Fprintf(w, "file\t%s, %d bytes%s\n", f.Path, f.Size, f.remark())
		}
	}
	return w.Flush()
}

func (s *System) text(w io.Writer) {
	fmt.Fprintf(w, "EROFS\t%d blocks, %d inodes, features 0x%x\n", s.Blocks, s.Inodes, s.Features)
	fmt.Fprintf(w, "created\t%s\nUUID\t%s\n", s.Created.Format(time.RFC3339), s.UUID)
}

func (e *EFI) text(w io.Writer, size int64) {
	kind := "EFI image"
	if e.PCR11 != nil {
		kind = "UKI"
	}
	fmt.Fprintf(w, "%s\t%d bytes\n", kind, size)
	if e.Program != "" {
		fmt.Fprintf(w, "program\t%s %s\n", e.Program, e.Version)
	}
	if e.Machine != "" {
		fmt.Fprintf(w, "for\t%s\n", e.Machine)
	}
	fmt.Fprintf(w, "SHA-256\t%x\n", e.SHA256)
	if len(e.Authenticode) > 0 {
		fmt.Fprintf(w, "Authenticode\t%x\n", e.Authenticode)
	}
	for _, fault := range e.Faults {
		fmt.Fprintf(w, "fault\t%s\n", fault)
	}
	if len(e.Signatures) == 0 {
		fmt.Fprintf(w, "signatures\tnone\n")
	}
	for _, s := range e.Signatures {
		fmt.Fprintf(w, "signature\t%d bytes, not verified, certificates: %s\n", s.Size, strings.Join(s.Certificates, "; "))
	}
	for _, s := range e.Sections {
		memory := ""
		if s.Memory > 0 {
			memory = fmt.Sprintf(" (%d in memory)", s.Memory)
		}
		fmt.Fprintf(w, "section %s\t%d bytes%s, SHA-256 %x\n", s.Name, s.Size, memory, s.SHA256)
	}
	if p := e.PCR11; p != nil {
		fmt.Fprintf(w, "PCR 11\t%s when the kernel starts\n\t%s after enter-initrd\n\t%s after leave-initrd\n", p.Stub, p.EnterInitrd, p.LeaveInitrd)
		fmt.Fprintf(w, "kernel\t%s\ncommand line\t%s\n", e.Uname, e.Cmdline)
		fmt.Fprintf(w, "os-release\t%s\n", strings.ReplaceAll(strings.TrimSpace(e.OSRelease), "\n", "\n\t"))
	}
	if e.Contract != nil {
		contractText(w, e.Contract)
	}
}

func contractText(w io.Writer, c *contract.Contract) {
	fmt.Fprintf(w, "boot contract\t%s %s for %s, epoch %d\n", c.ImageID, c.Version, c.Arch, c.Epoch)
	fmt.Fprintf(w, "  root hash\t%x\n  salt\t%x\n", c.RootHash, c.Salt)
	fmt.Fprintf(w, "  sizes\timage %d bytes, slot %d bytes\n", c.ImageSize, c.SlotSize)
	key := "none: releases are not signed"
	if len(c.ReleaseKey) > 0 {
		key = fmt.Sprintf("%d bytes, SHA-256 %x", len(c.ReleaseKey), sum(c.ReleaseKey))
	}
	fmt.Fprintf(w, "  release key\t%s\n", key)
	fmt.Fprintf(w, "  Secure Boot\t%s, vendor keys %s\n  TPM\t%s\n  root\t%s\n", c.SecureBoot, c.VendorKeys, c.TPM, c.RootFileSystem)
}

func releaseText(w io.Writer, r *release.Release) {
	fmt.Fprintf(w, "release\t%s %s for %s, epoch %d\n", r.ImageID, r.Version, r.Arch, r.Epoch)
	fmt.Fprintf(w, "root hash\t%x\nsalt\t%x\n", r.RootHash, r.Salt)
	fmt.Fprintf(w, "sizes\timage %d bytes, slot %d bytes\n", r.ImageSize, r.SlotSize)
	fmt.Fprintf(w, "PCR 11\t%x when the kernel starts\n", r.PCR11)
	fmt.Fprintf(w, "source date\t%s\n", time.Unix(r.SourceDate, 0).UTC().Format(time.RFC3339))
	for _, f := range r.Files {
		fmt.Fprintf(w, "%s\t%d bytes, SHA-256 %x\n", f.Name, f.Size, f.SHA256)
		if len(f.Authenticode) > 0 {
			fmt.Fprintf(w, "\tAuthenticode %x\n", f.Authenticode)
		}
	}
}

func (d *Disk) text(w io.Writer, size int64) {
	fmt.Fprintf(w, "disk\t%d bytes, sectors of %d\n", size, d.SectorSize)
	if d.GUID == "" {
		fmt.Fprintf(w, "table\t%s\n", d.Table)
	} else {
		fmt.Fprintf(w, "GUID\t%s\nGPT\t%s\n", d.GUID, d.Table)
	}
	for _, p := range d.Partitions {
		fmt.Fprintf(w, "partition %d\t%s, %d bytes from %d\n\ttype %s\n\tUUID %s\n", p.Number, p.Label, p.Size, p.Start, p.Type, p.UUID)
		if p.Fault != "" {
			fmt.Fprintf(w, "\tfault: %s\n", p.Fault)
		}
		if p.System != nil {
			fmt.Fprintf(w, "\tEROFS, %d blocks, %d inodes\n", p.System.Blocks, p.System.Inodes)
		}
		if p.LUKS != nil {
			fmt.Fprintf(w, "\tLUKS2 %s, %s, %d keyslots, %d tokens\n", p.LUKS.UUID, p.LUKS.Cipher, len(p.LUKS.Keyslots), len(p.LUKS.Tokens))
		}
	}
	for _, f := range d.ESP {
		fmt.Fprintf(w, "ESP\t%s, %d bytes%s\n", f.Path, f.Size, f.remark())
	}
}

func (e *ESPFile) remark() string {
	switch {
	case e.Fault != "":
		return ": " + e.Fault
	case e.Version == 0:
		return ""
	case e.Partition == 0:
		return fmt.Sprintf(": version %s, no partition has its root hash", e.Version)
	}
	return fmt.Sprintf(": version %s, for partition %d", e.Version, e.Partition)
}
