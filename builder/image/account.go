package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"halogenos.internal/boot/microcode"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/version"
	"halogenos.internal/builder/erofs"
	"halogenos.internal/builder/rootfs"
	"halogenos.internal/builder/sbom"
)

// Names of the files that say what a release is made of, and how.
const (
	BillFile       = "sbom.cdx.json"
	ProvenanceFile = "provenance.intoto.json"
)

// modulesFile lists the Go modules of the busybox, whose own build information
// does not have them.
const modulesFile = "bb.modules"

// account writes the bill of materials and the provenance.
func (b *build) account(ctx context.Context) error {
	done := b.Progress.Step("writing down what it is made of")
	bill, err := b.bill()
	if err != nil {
		return err
	}
	text, err := bill.Encode()
	if err != nil {
		return err
	}
	if err := b.out.write(BillFile, text); err != nil {
		return fmt.Errorf("write %s: %w", BillFile, err)
	}
	p, err := b.provenance(ctx, text)
	if err != nil {
		return err
	}
	if text, err = p.Encode(); err != nil {
		return err
	}
	if err := b.out.write(ProvenanceFile, text); err != nil {
		return fmt.Errorf("write %s: %w", ProvenanceFile, err)
	}
	done(fmt.Sprintf("%d packages, %d Go programs", len(bill.Packages), len(bill.Programs)))
	return nil
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// bill lists packages and programs.
func (b *build) bill() (*sbom.Bill, error) {
	packages, err := sbom.Read(b.tree)
	if err != nil {
		return nil, err
	}
	unread, err := sbom.Unread(b.tree)
	if err != nil {
		return nil, err
	}
	if len(unread) > 0 {
		b.Progress.Note("WARNING: %s does not list the packages of %s, whose database is not read: it has %d others", BillFile, strings.Join(unread, " and "), len(packages))
	}
	accounts, err := sbom.ReadAccounts(b.tree)
	if err != nil {
		return nil, err
	}
	bill := &sbom.Bill{
		Name: b.Config.ImageID, Version: b.Version.String(), Serial: derive("bill of materials", b.Config.ImageID, b.Version).String(),
		Date: b.Date, Builder: version.String(), Packages: packages, Kernel: b.parts.kernel.release, Accounts: accounts,
	}
	modules := sbom.GoModules(bytes.NewReader(b.busybox.Program))
	listed, err := os.ReadFile(filepath.Join(b.Machine, modulesFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	more, err := sbom.ReadModules(listed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(b.Machine, modulesFile), err)
	}
	bill.Programs = append(bill.Programs, sbom.Program{Name: "initramfs/bin/bb", SHA256: digest(b.busybox.Program), Modules: append(modules, more...)})
	programs, err := goPrograms(b.tree)
	if err != nil {
		return nil, err
	}
	bill.Programs = append(bill.Programs, programs...)
	bill.Extensions, err = b.extensionBills()
	for _, v := range microcode.Vendors() {
		if b.microcode.Has(v) {
			bill.Firmware = append(bill.Firmware, sbom.Firmware{Name: v.Path(), Supplier: v.Name(), SHA256: digest(b.microcode.File(v))})
		}
	}
	return bill, err
}

const leastProgram = 256 << 10 // bytes; no Go program is smaller

// goPrograms finds the programs in a tree that were written in Go.
func goPrograms(t *rootfs.Tree) ([]sbom.Program, error) {
	var all []sbom.Program
	err := filepath.WalkDir(t.Dir(), func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Mode()&0o111 == 0 || info.Size() < leastProgram {
			return err
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		modules := sbom.GoModules(f)
		if len(modules) == 0 {
			return nil
		}
		sum, err := hashFile(file)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(t.Dir(), file)
		all = append(all, sbom.Program{Name: filepath.ToSlash(name), SHA256: hex.EncodeToString(sum), Modules: modules})
		return err
	})
	return all, err
}

// provenance says what the release was made of, and by what.
func (b *build) provenance(ctx context.Context, bill []byte) (*sbom.Provenance, error) {
	source, err := sourceDigest(b.RootFS)
	if err != nil {
		return nil, fmt.Errorf("hash the root file system: %w", err)
	}
	c := b.Config
	p := &sbom.Provenance{
		Parameters: map[string]any{
			"imageID": c.ImageID, "arch": c.Arch, "version": b.Version.String(), "epoch": c.Epoch, "sourceDate": b.Date.Unix(),
			"slotSize": c.SlotSize, "espSize": c.ESPSize, "compression": c.Compression, "cmdline": c.Cmdline, "secureBoot": c.SecureBoot, "tpm": c.TPM,
			"vendorKeys": c.VendorKeys, "rootPartitionFormat": c.RootPartitionFormat, "watchdogSeconds": c.WatchdogSeconds, "releaseKey": "none",
			"swap": c.Swap, "microcode": b.microcodeFrom(), "firstStart": c.FirstStart,
		},
		Used:       []sbom.Digest{{Name: "root file system", SHA256: source}, {Name: busyboxFile, SHA256: digest(b.busybox.Program)}},
		Tools:      map[string]string{"halogen": version.String(), erofs.Tool: erofs.ToolVersion(ctx)},
		Invocation: "urn:uuid:" + derive("build", c.ImageID, b.Version).String(),
	}
	if len(c.ReleaseKey) > 0 {
		key, err := pgp.ParseKey(c.ReleaseKey)
		if err != nil {
			return nil, fmt.Errorf("release key: %w", err)
		}
		p.Parameters["releaseKey"] = key.Fingerprint().String()
	}
	if c.ModuleKey != nil {
		p.Parameters["moduleKey"], p.Parameters["moduleTrust"] = digest(c.ModuleKey.Raw), c.ModuleTrust
	}
	var allowed []string
	for _, a := range c.Allow {
		allowed = append(allowed, a.Rule+" "+a.Pattern+" "+a.Reason)
	}
	p.Parameters["allowed"] = allowed
	for name, program := range b.commands {
		p.Used = append(p.Used, sbom.Digest{Name: name, SHA256: digest(program)})
	}
	slices.SortFunc(p.Used[2:], func(x, y sbom.Digest) int { return strings.Compare(x.Name, y.Name) })
	if err := b.extensionsUsed(p); err != nil {
		return nil, err
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		p.Tools["go"] = info.GoVersion
	}
	for _, f := range b.release.Files {
		p.Made = append(p.Made, sbom.Digest{Name: f.Name, SHA256: hex.EncodeToString(f.SHA256)})
	}
	for _, e := range b.extensions {
		p.Made = append(p.Made, sbom.Digest{Name: release.ExtensionFile(e.Name), SHA256: hex.EncodeToString(e.sum)})
	}
	description, err := b.release.Encode()
	if err != nil {
		return nil, err
	}
	p.Made = append(p.Made, sbom.Digest{Name: release.FileName, SHA256: digest(description)}, sbom.Digest{Name: BillFile, SHA256: digest(bill)})
	return p, nil
}

// extensionsUsed adds what the extensions were made of, where there are any.
func (b *build) extensionsUsed(p *sbom.Provenance) error {
	var list []string
	for _, e := range b.extensions {
		source, err := sourceDigest(e.Source)
		if err != nil {
			return fmt.Errorf("hash the source of extension %s: %w", e.Name, err)
		}
		p.Used = append(p.Used, sbom.Digest{Name: "extension " + e.Name, SHA256: source})
		if list = append(list, e.Name); e.Essential {
			list[len(list)-1] += " essential"
		}
	}
	if len(list) > 0 {
		p.Parameters["extensions"] = list
	}
	return nil
}

// sourceDigest is the SHA-256 of an archive, or for a directory that of the list
// of what is in it: mode, digest or target, and name a line, by name.
func sourceDigest(source string) (string, error) {
	info, err := os.Stat(source)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		sum, err := hashFile(source)
		return hex.EncodeToString(sum), err
	}
	list := sha256.New()
	err = filepath.WalkDir(source, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(source, file)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := ""
		switch {
		case info.Mode().IsRegular():
			sum, err := hashFile(file)
			if err != nil {
				return err
			}
			content = hex.EncodeToString(sum)
		case info.Mode().Type() == fs.ModeSymlink:
			if content, err = os.Readlink(file); err != nil {
				return err
			}
		}
		_, err = fmt.Fprintf(list, "%s %q %q\n", info.Mode(), content, filepath.ToSlash(name))
		return err
	})
	return hex.EncodeToString(list.Sum(nil)), err
}
