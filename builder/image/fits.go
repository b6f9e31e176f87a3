package image

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"halogenos.internal/boot/layout"
	"halogenos.internal/builder/erofs"
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
	return fmt.Errorf("the UKI has %s, and may have %s: the EFI system partition of %s must hold two of them, the boot manager and %s for other things; take modules out of Modules in [Initramfs], or use a smaller kernel or splash",
		megabytes(uki), megabytes(room/ukisOnESP), megabytes(layout.ESPSize), megabytes(espReserve))
}

const largestShown = 10

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
		fmt.Fprintf(&text, "\n%10s  /%s", megabytes(d.Size), d.Name)
	}
	return fmt.Errorf("the system image has %s and does not fit a system partition of %s (SlotSize in [Image], the same for ever on machines that are installed). The largest directories, before compression:%s",
		megabytes(size), megabytes(b.Config.SlotSize), text.String())
}

// explain adds what mkfs.erofs does not say: that before 1.6 it cannot take
// the longest names, and which one that is.
func (b *build) explain(err error) error {
	var failed *exec.ExitError
	if !errors.As(err, &failed) {
		return err
	}
	name, nameErr := b.tree.LongestName()
	if nameErr != nil || name == "" {
		return errors.Join(err, nameErr)
	}
	return fmt.Errorf("%w (/%s has a name of 255 bytes, which %s 1.5 cannot take: use a later one, or a shorter name)", err, name, erofs.Tool)
}
