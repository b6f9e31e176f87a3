// Package bootdisk tells the disk that this system was started from, from all
// others. Boot and commands find it the same way.
//
// It refuses to choose between two disks that nothing tells apart.
package bootdisk

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/hw"
)

var (
	// ErrNone says that no disk is the one, or that it has not appeared yet.
	ErrNone = errors.New("no disk has the partition that this system was started from")
	// ErrTwo says that several disks could be the one: writing to the wrong one
	// cannot be undone.
	ErrTwo = errors.New("two disks carry the partition that this system was started from")
)

// Disk returns the disk that holds the ESP the boot manager was started from.
// The loader names it by partition UUID; where it does not, the disk is the only
// one with our layout. The ESP is noted in it (hw.Disk.ESP), so that later it is found by
// that and not by its label.
func Disk(disks hw.Disks, firmware hw.Firmware) (hw.Disk, error) {
	esp, err := firmware.LoaderString("LoaderDevicePartUUID")
	if err != nil {
		return hw.Disk{}, err
	}
	found, unread, err := candidates(disks, strings.ToLower(esp))
	if err != nil {
		return hw.Disk{}, err
	}
	near := startedFrom(firmware, found)
	if named := slices.DeleteFunc(slices.Clone(near), func(c candidate) bool { return c.renamed }); len(named) == 1 {
		near = named
	}
	near = oncePerDisk(near)
	switch refused := slices.IndexFunc(near, func(c candidate) bool { return c.refused != nil }); {
	case refused >= 0: // it may be the one, and another would be taken for it
		return hw.Disk{}, fmt.Errorf("%w (%s): %s: %w", ErrNone, esp, near[refused].Name, near[refused].refused)
	case len(near) == 0:
		return hw.Disk{}, errors.Join(append([]error{fmt.Errorf("%w (%s)", ErrNone, esp)}, unread...)...)
	case len(near) == 1:
		return near[0].Disk, nil
	}
	return hw.Disk{}, fmt.Errorf("%w (%s and %s): detach the one that does not belong here", ErrTwo, near[0].Name, near[1].Name)
}

// oncePerDisk takes a disk once that one controller reaches in two ways, as SAS and
// Fibre Channel disks are wired: any of its names will do. Disks elsewhere that give the
// same serial number stay two.
func oncePerDisk(found []candidate) []candidate {
	var out []candidate
	for _, c := range found {
		same := func(o candidate) bool {
			return c.Serial != "" && o.Serial == c.Serial && o.Model == c.Model && o.Sectors == c.Sectors && len(c.PCI) > 0 && slices.Equal(o.PCI, c.PCI)
		}
		if !slices.ContainsFunc(out, same) {
			out = append(out, c)
		}
	}
	return out
}

// A candidate can be the disk. One was renamed if its ESP has a UUID of its own in
// place of the one that the loader names: this boot has given it that, or an earlier
// one when the same image was installed there.
type candidate struct {
	hw.Disk
	renamed bool
	refused error // why it is not to be written to, though it has what the loader names
}

// startedFrom picks, of several disks that carry the same partition, those on
// the controller that the firmware started from. Where it does not say, or names
// none of them, all stay.
func startedFrom(firmware hw.Firmware, found []candidate) []candidate {
	if len(found) < 2 {
		return found
	}
	way, err := firmware.BootedFrom()
	if err != nil || len(way) == 0 {
		return found
	}
	elsewhere := func(c candidate) bool { return !c.At(way) }
	if near := slices.DeleteFunc(slices.Clone(found), elsewhere); len(near) > 0 {
		return near
	}
	return found
}

// candidates are the disks present now that can be the one. Why others could not
// be read explains, where there is none, what became of it. In the boot that gives
// an ESP its own UUID the loader still names the old one, which another disk with
// the same image may have: both are candidates, so that the choice after it is the
// one before it.
func candidates(disks hw.Disks, esp string) (found []candidate, unread []error, err error) {
	all, err := disks.List()
	if err != nil {
		return nil, nil, err
	}
	var started gpt.GUID
	if esp != "" {
		if started, err = gpt.ParseGUID(esp); err != nil {
			return nil, nil, fmt.Errorf("%w: the loader names %q: %w", ErrNone, esp, err)
		}
	}
	for _, d := range all {
		table, _, err := Table(disks, d)
		if err != nil {
			// Not ours, not ready, or damaged.
			unread = append(unread, fmt.Errorf("%s: %w", d.Name, err))
			continue
		}
		switch first, err := layout.FindESP(table, started); {
		case errors.Is(err, layout.ErrMissing), started.IsZero() && !hasSystem(table):
			continue
		case err != nil:
			found = append(found, candidate{Disk: d, refused: err})
		default:
			d.ESP = first.UUID
			found = append(found, candidate{Disk: d, renamed: !started.IsZero() && first.UUID != started})
		}
	}
	return found, unread, nil
}

// hasSystem tells our layout from another system's ESP where the loader names none: an
// installer stick, which has no system partition, is always named.
func hasSystem(t *gpt.Table) bool {
	_, err := layout.Find(t, layout.SystemA)
	return !errors.Is(err, layout.ErrMissing)
}

// Table reads a disk's partition table.
func Table(disks hw.Disks, d hw.Disk) (*gpt.Table, gpt.Health, error) {
	f, err := disks.Open(d, false)
	if err != nil {
		return nil, gpt.Health{}, err
	}
	defer f.Close()
	return gpt.Read(f, d.Sectors, d.SectorSize)
}
