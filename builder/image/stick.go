package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/builder/erofs"
	"halogenos.internal/builder/install"
)

// StickFile is the name of the installer stick's image.
const StickFile = "installer.img"

// Stick makes an installer stick out of what a build has left in a directory, and
// puts it there: an ESP with the release's own UKI, and beside it a partition
// with the release and the program that installs it. The UKI, started from it,
// installs instead of booting. program is the file of halogen itself. The same
// build and program give the same bytes.
func Stick(ctx context.Context, dir, program string) (err error) {
	out, err := newOutputs(dir) // first: no other build changes the release from here on
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	s, err := install.FromDirectory(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	payload, err := packStick(ctx, out, dir, program, s.ESP.Release)
	if err != nil {
		return err
	}
	if err := writeStick(out.path(StickFile), payload, s.ESP); err != nil {
		return fmt.Errorf("make installer stick: %w", err)
	}
	if err := out.finish(StickFile); err != nil {
		return err
	}
	if err := os.Rename(out.path(StickFile), filepath.Join(dir, StickFile)); err != nil {
		return err
	}
	return syncDirectory(dir)
}

// packStick makes the file system with the release and the program, and returns
// its file.
func packStick(ctx context.Context, out *outputs, dir, program string, r *release.Release) (string, error) {
	directory := out.path("stick")
	if err := os.MkdirAll(filepath.Join(directory, "release"), 0o755); err != nil {
		return "", err
	}
	if err := copyFile(filepath.Join(directory, "halogen"), program, 0o755); err != nil {
		return "", err
	}
	names := []string{release.FileName}
	for _, f := range r.Files {
		names = append(names, f.Name)
	}
	for _, name := range names {
		if err := copyFile(filepath.Join(directory, "release", name), filepath.Join(dir, name), 0o644); err != nil {
			return "", err
		}
	}
	date := time.Unix(r.SourceDate, 0)
	for _, at := range []string{directory, filepath.Join(directory, "release")} {
		if err := errors.Join(os.Chmod(at, 0o755), os.Chtimes(at, date, date)); err != nil {
			return "", err
		}
	}
	file := out.path("stick.erofs")
	// What it holds is packed already.
	err := erofs.Make(ctx, file, directory, erofs.Options{UUID: derive("installer", r.ImageID, r.Version), Date: date, AllRoot: true, NoXattrs: true})
	return file, err
}

func copyFile(to, from string, mode os.FileMode) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, in)
	return errors.Join(err, f.Chmod(mode), f.Close())
}

// writeStick lays out the stick: ESP and payload.
func writeStick(name, payload string, esp install.ESP) (err error) {
	in, err := os.Open(payload)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	// FAT32 has a least size.
	espSize := layout.AlignUp(max(64<<20, int64(len(esp.UKI)+2*len(esp.BootManager))+16<<20))
	t, err := stickTable(esp.Release, espSize, layout.AlignUp(info.Size()))
	if err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(int64(t.Sectors) * sectorSize); err != nil {
		return err
	}
	if err := t.Write(f); err != nil {
		return err
	}
	volume := binary.BigEndian.Uint32(t.Partitions[0].UUID[:4])
	if err := esp.Format(io.NewOffsetWriter(f, int64(t.Partitions[0].First)*sectorSize), espSize, volume, sectorSize, true); err != nil {
		return err
	}
	_, err = io.Copy(io.NewOffsetWriter(f, int64(t.Partitions[1].First)*sectorSize), in)
	return err
}

func stickTable(r *release.Release, espSize, payloadSize int64) (*gpt.Table, error) {
	unit := int64(layout.Align / sectorSize)
	first := unit + espSize/sectorSize
	t := &gpt.Table{
		Disk: derive("installer disk", r.ImageID, r.Version), SectorSize: sectorSize, Sectors: uint64(first + payloadSize/sectorSize + unit),
	}
	layout.Insert(t, layout.ESP, derive("installer esp", r.ImageID, r.Version), uint64(unit), uint64(first-1))
	layout.Insert(t, layout.Installer, derive("installer payload", r.ImageID, r.Version), uint64(first), uint64(first+payloadSize/sectorSize-1))
	return t, t.Validate()
}
