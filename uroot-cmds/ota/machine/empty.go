package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/hw"
)

// empty makes the slot nobody's, before the first write to it.
//
// The order: first staged.json goes, so that the next boot stages nothing. Cut
// after it: a system that can start is in the slot, as before. Then its UKI: cut
// after it, nothing starts from the slot, which is still whole. Then the UUIDs
// change, so that no UKI that is put back finds a slot half written. Each step
// is flushed before the next.
func (u *update) empty() error {
	if err := hw.RemoveFile(u.state(u.running, stagedFile)); err != nil {
		return err
	}
	if stale := u.stale(); len(stale) > 0 {
		err := u.Hardware.ESP.Write(u.disk, func(dir hw.ESPDir) error {
			for _, n := range stale {
				if err := esp.Remove(dir, n); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return u.rename()
}

// stale are the UKIs of the slot to be emptied. Of the running system's image
// all but the running version are: there are only two slots.
func (u *update) stale() []bls.Name {
	keep := u.running.runningFiles(names(u.inv))
	var out []bls.Name
	for _, s := range u.inv.Systems {
		n, err := bls.Parse(s.File)
		if err != nil || slices.Contains(keep, n) {
			continue
		}
		if n.ImageID == u.running.Contract.ImageID || s.Slot == u.running.Slot.Other() {
			out = append(out, n)
		}
	}
	return out
}

// emptied says which UUIDs were given to a slot that is being written.
type emptied struct {
	Slot   layout.Slot `json:"slot"`
	System string      `json:"system"`
	Tree   string      `json:"tree"`
}

// rename gives the slot's partitions random UUIDs, unless it did so before and
// nobody has named them since.
func (u *update) rename() error {
	s := u.running.Slot.Other()
	system, err := layout.Find(u.table, s.System())
	tree, terr := layout.Find(u.table, s.Verity())
	if err := errors.Join(err, terr); err != nil {
		return fmt.Errorf("slot %s of %s: %w", s, u.disk.Name, err)
	}
	var before emptied
	if _, err := decode(u.state(u.running, slotFile), &before); err != nil {
		return err
	}
	if before == (emptied{s, system.UUID.String(), tree.UUID.String()}) {
		return nil
	}
	fresh, err := gpt.RandomGUID(u.Random)
	if err != nil {
		return err
	}
	second, err := gpt.RandomGUID(u.Random)
	if err != nil {
		return err
	}
	d, err := u.Hardware.Disks.Open(u.disk, true)
	if err != nil {
		return err
	}
	if err := errors.Join(layout.Rename(u.table, s, fresh, second).Write(d), d.Close()); err != nil {
		return fmt.Errorf("write the partition table: %w", err)
	}
	text, err := json.Marshal(emptied{s, fresh.String(), second.String()})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(u.state(u.running, fetchDirectory), 0o755); err != nil {
		return err
	}
	// Cut here, they are given new ones once more.
	return hw.KeepFile(u.state(u.running, slotFile), append(text, '\n'), 0o644)
}
