package image

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/layout"
	"halogenos.internal/builder/erofs"
	"halogenos.internal/builder/rootfs"
)

// What an ESP holds: the UKIs of two systems, and the boot manager in two
// places, as a spare and while it is replaced. The file system takes some of it,
// and firmware's own updates and what the machine keeps of its boots need room too.
const (
	ukisOnESP     = 2
	managersOnESP = 4
	espReserve    = 32 << 20 // bytes
)

// fitsESP refuses a UKI that machines could not have twice: no update would ever
// be installed.
func fitsESP(uki, bootManager int64) error {
	room := layout.ESPSize - espReserve - managersOnESP*bootManager
	if ukisOnESP*uki <= room {
		return nil
	}
	return fmt.Errorf("the UKI has %s, and may have %s: the EFI system partition of %s must hold two of them, the boot manager and %s for other things; take modules out of Modules in [Initramfs], use a smaller kernel or splash, or leave out microcode (Microcode= in [UKI]: all of Intel's has 15 MB)",
		megabytes(uki), megabytes(room/ukisOnESP), megabytes(layout.ESPSize), megabytes(espReserve))
}

const largestShown = 10

// mebibytes is for what SlotSize is compared with, whose M is 2^20 bytes.
func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// tooLarge says what takes the room that a system partition does not have.
func (b *build) tooLarge(size int64) error {
	list, err := b.tree.Largest(largestShown)
	if err != nil {
		return err
	}
	var text strings.Builder
	for i, d := range list {
		if i > 0 && d.Size < list[0].Size/1000 {
			break // not worth a line
		}
		fmt.Fprintf(&text, "\n%10s  /%s", mebibytes(d.Size), d.Name)
	}
	return fmt.Errorf("the system image has %s and does not fit a system partition of %s: take out what machines do not need, or make SlotSize in [Image] larger (machines that are installed keep the size that they have). The largest directories, before compression:%s",
		mebibytes(size), mebibytes(b.Config.SlotSize), text.String())
}

// manyHoles is how many bytes of holes cost time that a distributor asks about.
const manyHoles = 2 << 30

// holes says early which file will keep mkfs.erofs busy with what is not in it, and
// refuses what would do so for too long.
func (b *build) holes() error {
	all, largest, most, err := b.tree.Holes()
	if err != nil || all < manyHoles {
		return err
	}
	if err := rootfs.CheckHoles(all); err != nil {
		return fmt.Errorf("the root file system %w. The largest is /%s with %s", err, largest, megabytes(most))
	}
	b.Progress.Note("WARNING: the root file system has holes of %s, most of them in /%s (%s): %s reads them all, some seconds a gigabyte, and the image keeps a list of their blocks. If no machine needs the file, empty it (truncate -s 0)",
		megabytes(all), largest, megabytes(most), erofs.Tool)
	return nil
}

// fullDisk is so few free bytes that a system image does not fail for another reason.
const fullDisk = 1 << 20

// explain adds what mkfs.erofs does not say: that the disk is full, or that before 1.6 it cannot take
// the longest names, and which one that is.
func (b *build) explain(err error) error {
	var failed *exec.ExitError
	if !errors.As(err, &failed) {
		return err
	}
	var s unix.Statfs_t
	if unix.Statfs(b.tree.Dir(), &s) == nil && s.Bavail*uint64(s.Bsize) < fullDisk {
		return fmt.Errorf("the file system of --out is full: make room there, or name a directory on another one: %w", err)
	}
	name, nameErr := b.tree.LongestName()
	if nameErr != nil || name == "" {
		return errors.Join(err, nameErr)
	}
	return fmt.Errorf("%w (/%s has a name of 255 bytes, which %s 1.5 cannot take: use a later one, or a shorter name)", err, name, erofs.Tool)
}
