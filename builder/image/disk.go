package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
)

const sectorSize = 512 // bytes; what QEMU's disks and most others show

// loaderConf starts the newest UKI at once. It names no default entry, since a
// default would switch the counting of tries off. The editor would let whoever
// sits there change a command line, where Secure Boot is off.
const loaderConf = `timeout 0
editor no
auto-entries no
secure-boot-enroll off
`

// bootManagerPaths is where the boot manager lies on the ESP: where firmware
// starts it unasked, and where its own tools look for it.
var bootManagerPaths = []string{"EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"}

// planDisk lays out what a manual installation makes: the ESP, and the first
// system partition. That has the size of a slot where the disk has room for
// it, and else the size of the image.
func planDisk(r *release.Release, root gpt.GUID, diskSize int64) (*gpt.Table, error) {
	if diskSize <= 0 || diskSize%layout.Align != 0 {
		return nil, fmt.Errorf("disk size of %d bytes is not a multiple of %d", diskSize, int64(layout.Align))
	}
	t := &gpt.Table{
		Disk:       derive("disk", r.ImageID, r.Version),
		SectorSize: sectorSize,
		Sectors:    uint64(diskSize / sectorSize),
	}
	const start = layout.Align + layout.ESPSize
	room := diskSize - start - layout.Align // the alternate table lies in the last piece
	size := r.SlotSize
	if size > room {
		size = layout.AlignUp(r.ImageSize)
	}
	if size > room {
		return nil, fmt.Errorf("disk of %d bytes is too small: the ESP and a system image of %d bytes need %d", diskSize, r.ImageSize, start+size+layout.Align)
	}
	t.Partitions = []gpt.Partition{{
		Number: layout.ESPNumber, Type: layout.TypeESP, UUID: derive("esp", r.ImageID, r.Version), Label: layout.ESPLabel,
		First: layout.Align / sectorSize, Last: start/sectorSize - 1,
	}, {
		Number: layout.SlotA.SystemNumber(), Type: layout.TypeRoot, UUID: root, Label: layout.SlotA.SystemLabel(),
		First: start / sectorSize, Last: uint64(start+size)/sectorSize - 1,
	}}
	return t, t.Validate()
}

// disk makes the disk image.
func (b *build) disk(context.Context) error {
	if !b.Disk {
		return nil
	}
	done := b.Progress.Step("making the disk")
	t, err := planDisk(b.release, layout.SystemUUID(b.contract.Root()), b.DiskSize)
	if err != nil {
		return fmt.Errorf("plan disk: %w", err)
	}
	f, err := os.OpenFile(b.out.path(DiskFile), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	err = f.Truncate(b.DiskSize)
	if err == nil {
		err = t.Write(f)
	}
	if err == nil {
		err = b.writeESP(io.NewOffsetWriter(f, int64(t.Partitions[0].First)*sectorSize))
	}
	if err == nil {
		err = copyImage(io.NewOffsetWriter(f, int64(t.Partitions[1].First)*sectorSize), b.out.path(release.ImageFile))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	done("")
	return nil
}

// writeESP formats the ESP with the files of a manual installation.
func (b *build) writeESP(w io.WriterAt) error {
	id := derive("esp", b.release.ImageID, b.release.Version)
	files := []fat.File{b.espFile("loader/loader.conf", []byte(loaderConf))}
	for _, name := range bootManagerPaths {
		files = append(files, b.espFile(name, b.parts.bootManager))
	}
	name := bls.Name{ImageID: b.release.ImageID, Version: b.release.Version}.String()
	files = append(files, b.espFile(path.Join(bls.Folder, name), b.uki))
	o := fat.Options{Label: "ESP", VolumeID: binary.BigEndian.Uint32(id[:4]), Time: b.Date, SectorSize: sectorSize, Zeroed: true}
	if err := fat.Format(w, layout.ESPSize, o, files); err != nil {
		return fmt.Errorf("format ESP: %w", err)
	}
	return nil
}

func (b *build) espFile(name string, content []byte) fat.File {
	return fat.File{Path: name, Size: int64(len(content)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	}}
}

func copyImage(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(w, f); err != nil {
		return fmt.Errorf("copy system image: %w", err)
	}
	return nil
}
