package image

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/builder/erofs"
	"halogenos.internal/builder/room"
	"halogenos.internal/builder/rootfs"
)

// fitsESP refuses a UKI that machines could not have twice: no update would ever
// be installed. The partition has esp bytes on new machines, and least on those that
// have it from an earlier release.
func fitsESP(uki, bootManager, esp, least int64) error {
	most := room.ForUKI(least, bootManager)
	if uki <= most {
		return nil
	}
	whose, cure := "", "; or make ESPSize in [Image] larger (machines that are installed keep the size that they have)"
	if least < esp {
		whose, cure = " that machines have from an earlier release", ""
	}
	return fmt.Errorf("the UKI has %s, and may have %s: the EFI system partition of %s%s must hold two of them, the boot manager and %s for other things; take modules out of Modules in [Initramfs], use a smaller kernel or splash, or leave out microcode (Microcode= in [UKI]: all of Intel's has 15 MB)%s",
		megabytes(uki), megabytes(most), megabytes(least), whose, megabytes(room.Reserve), cure)
}

// plan says how long the partitions of machines will do.
func (b *build) plan(context.Context) error {
	b.roomPlan = room.New(room.Of(b.release, room.Abilities(b.Config.ESPSize, b.past)), b.past)
	for _, line := range b.roomPlan.Lines() {
		b.Progress.Note("%s", line)
	}
	return nil
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
func (b *build) holes(of string, t *rootfs.Tree) error {
	all, largest, most, err := t.Holes()
	if err != nil || all < manyHoles {
		return err
	}
	if err := rootfs.CheckHoles(all); err != nil {
		return fmt.Errorf("%s: %w. The largest is /%s with %s", of, err, largest, megabytes(most))
	}
	b.Progress.Note("WARNING: %s has holes of %s, most of them in /%s (%s): %s reads them all, some seconds a gigabyte, and the image keeps a list of their blocks. If no machine needs the file, empty it (truncate -s 0)",
		of, megabytes(all), largest, megabytes(most), erofs.Tool)
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
