package inspect

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

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
		line(w, "system image\t%d bytes\n", r.Size)
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
		line(w, "ESP\t%d bytes\n", r.Size)
		for _, f := range r.ESP {
			line(w, "file\t%s, %d bytes%s\n", f.Path, f.Size, f.remark())
		}
	}
	r.roomText(w)
	return w.Flush()
}

// line writes as fmt.Fprintf does. Texts come from the file, which may be anybody's: what
// would steer the terminal, or look like another line, is written as an escape.
func line(w io.Writer, format string, args ...any) {
	for i, arg := range args {
		if text, ok := arg.(string); ok {
			args[i] = printable(text)
		}
	}
	fmt.Fprintf(w, format, args...)
}

// printable returns a text with escapes of Go in place of what cannot be printed.
func printable(text string) string {
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		if strconv.IsPrint(r) && (r != utf8.RuneError || n > 1) {
			b.WriteString(text[:n])
		} else {
			quoted := strconv.Quote(text[:n])
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		text = text[n:]
	}
	return b.String()
}

func (s *System) text(w io.Writer) {
	line(w, "EROFS\t%d blocks, %d inodes, features 0x%x\n", s.Blocks, s.Inodes, s.Features)
	line(w, "created\t%s\nUUID\t%s\n", s.Created.Format(time.RFC3339), s.UUID)
	if m := s.Modules; m != nil {
		line(w, "kernel modules\t%d without compression, %d compressed, %d bytes\n", m.Plain, m.Packed, m.Size)
	}
}

func (e *EFI) text(w io.Writer, size int64) {
	kind := "EFI image"
	if e.PCR11 != nil {
		kind = "UKI"
	}
	line(w, "%s\t%d bytes\n", kind, size)
	if e.Program != "" {
		line(w, "program\t%s %s\n", e.Program, e.Version)
	}
	if e.Machine != "" {
		line(w, "for\t%s\n", e.Machine)
	}
	line(w, "SHA-256\t%x\n", e.SHA256)
	if len(e.Authenticode) > 0 {
		line(w, "Authenticode\t%x\n", e.Authenticode)
	}
	for _, fault := range e.Faults {
		line(w, "fault\t%s\n", fault)
	}
	if len(e.Signatures) == 0 {
		line(w, "signatures\tnone\n")
	}
	for _, s := range e.Signatures {
		line(w, "signature\t%d bytes, not verified, certificates: %s\n", s.Size, strings.Join(s.Certificates, "; "))
	}
	for _, s := range e.Sections {
		memory := ""
		if s.Memory > 0 {
			memory = fmt.Sprintf(" (%d in memory)", s.Memory)
		}
		line(w, "section %s\t%d bytes%s, SHA-256 %x\n", s.Name, s.Size, memory, s.SHA256)
	}
	if p := e.PCR11; p != nil {
		line(w, "PCR 11\t%s when the kernel starts\n\t%s after enter-initrd\n\t%s after leave-initrd\n", p.Stub, p.EnterInitrd, p.LeaveInitrd)
		line(w, "kernel\t%s\ncommand line\t%s\n", strings.TrimSpace(e.Uname), strings.TrimSpace(e.Cmdline))
		heading := "os-release"
		for text := range strings.SplitSeq(strings.TrimSpace(e.OSRelease), "\n") {
			line(w, "%s\t%s\n", heading, text)
			heading = ""
		}
		microcodeText(w, e.Microcode)
	}
	if e.Contract != nil {
		contractText(w, e.Contract)
		line(w, "  ESP\t%d MiB where it is installed, %d MiB on machines at the least\n", e.ESPSize>>20, e.LeastESP>>20)
	}
	for _, x := range e.Extensions {
		extensionText(w, &x)
	}
	if k := e.ModuleKey; k != nil {
		line(w, "for db\tcertificate of kernel modules %s, SHA-256 %x\n", k.Subject, []byte(k.SHA256))
	}
}

func extensionText(w io.Writer, e *contract.Extension) {
	more := ""
	if e.Essential {
		more += ", essential"
	}
	if e.Modules {
		more += ", with kernel modules"
	}
	line(w, "extension %s\timage %d bytes%s\n  root hash\t%x\n  salt\t%x\n", e.Name, e.ImageSize, more, e.RootHash, e.Salt)
}

func contractText(w io.Writer, c *contract.Contract) {
	line(w, "boot contract\t%s %s for %s, epoch %d\n", c.ImageID, c.Version, c.Arch, c.Epoch)
	line(w, "  root hash\t%x\n  salt\t%x\n", c.RootHash, c.Salt)
	line(w, "  sizes\timage %d bytes, slot %d bytes\n", c.ImageSize, c.SlotSize)
	key := "none: releases are not signed"
	if len(c.ReleaseKey) > 0 {
		key = fmt.Sprintf("%d bytes, SHA-256 %x", len(c.ReleaseKey), sum(c.ReleaseKey))
	}
	line(w, "  release key\t%s\n", key)
	line(w, "  Secure Boot\t%s, vendor keys %s\n  TPM\t%s\n  root\t%s\n", c.SecureBoot, c.VendorKeys, c.TPM, c.RootFileSystem)
}

func releaseText(w io.Writer, r *release.Release) {
	if r.Extension != "" {
		line(w, "extension\t%s\n", r.Extension)
	}
	line(w, "release\t%s %s for %s, epoch %d\n", r.ImageID, r.Version, r.Arch, r.Epoch)
	line(w, "root hash\t%x\nsalt\t%x\n", r.RootHash, r.Salt)
	if r.Extension != "" {
		line(w, "size\timage %d bytes\n", r.ImageSize)
	} else {
		line(w, "sizes\timage %d bytes, slot %d bytes\n", r.ImageSize, r.SlotSize)
		line(w, "PCR 11\t%x when the kernel starts\n", r.PCR11)
	}
	line(w, "source date\t%s\n", time.Unix(r.SourceDate, 0).UTC().Format(time.RFC3339))
	for _, l := range r.Revocations {
		owner := "each machine"
		if l.Owner != "" {
			owner = l.Owner
		}
		line(w, "dbx\t%d entries %s, owner %s\n", len(l.Entries), l.Type, owner)
	}
	for _, e := range r.DBX() {
		line(w, "\t%s\n", e)
	}
	for _, f := range r.Files {
		line(w, "%s\t%d bytes, SHA-256 %x\n", f.Name, f.Size, f.SHA256)
		if len(f.Authenticode) > 0 {
			line(w, "\tAuthenticode %x\n", f.Authenticode)
		}
	}
}

func (d *Disk) text(w io.Writer, size int64) {
	line(w, "disk\t%d bytes, sectors of %d\n", size, d.SectorSize)
	if d.GUID == "" {
		line(w, "table\t%s\n", d.Table)
	} else {
		line(w, "GUID\t%s\nGPT\t%s\n", d.GUID, d.Table)
	}
	for _, p := range d.Partitions {
		line(w, "partition %d\t%s, %d bytes from %d\n\ttype %s\n\tUUID %s\n", p.Number, p.Label, p.Size, p.Start, p.Type, p.UUID)
		if p.Fault != "" {
			line(w, "\tfault: %s\n", p.Fault)
		}
		if p.System != nil {
			line(w, "\tEROFS, %d blocks, %d inodes\n", p.System.Blocks, p.System.Inodes)
		}
		if p.LUKS != nil {
			line(w, "\tLUKS2 %s, %s, %d keyslots, %d tokens\n", p.LUKS.UUID, p.LUKS.Cipher, len(p.LUKS.Keyslots), len(p.LUKS.Tokens))
		}
	}
	for _, f := range d.ESP {
		line(w, "ESP\t%s, %d bytes%s\n", f.Path, f.Size, f.remark())
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
