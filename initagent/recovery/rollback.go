package recovery

import (
	"context"
	"errors"
	"fmt"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/bootdisk"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/initagent/rootpart"
)

// A Change is a rollback: From has its tries taken away, so that To starts next.
type Change struct {
	From inventory.System `json:"from"`
	To   inventory.System `json:"to"`
}

// PlanRollback says what a rollback would do. It refuses when there is no other
// system, or none that would start.
func (m *Machine) PlanRollback(inv *inventory.Inventory) (Change, error) {
	if len(inv.Systems) == 0 {
		return Change{}, errors.New("the EFI system partition has no system on it")
	}
	floor, _ := m.floor() // where it is not known the boot decides
	c := Change{From: inv.Systems[0]}
	reasons := []error{errors.New("there is no other system to go back to")}
	for _, s := range inv.Systems[1:] {
		n, err := bls.Parse(s.File)
		switch {
		case err != nil:
		case n.Bad():
			err = fmt.Errorf("%s has no tries left", s.File)
		case s.Problem != "":
			err = fmt.Errorf("%s: %s", s.File, s.Problem)
		case s.Epoch < floor:
			err = fmt.Errorf("%s has epoch %d and the TPM's floor is %d: it was replaced for good", s.File, s.Epoch, floor)
		default:
			c.To = s
			return c, nil
		}
		reasons = append(reasons, err)
	}
	return Change{}, errors.Join(reasons...)
}

// floor is the lowest epoch that the TPM releases keys to, 0 where it is not
// known.
func (m *Machine) floor() (uint64, error) {
	d, err := bootdisk.Disk(m.Disks, m.Firmware)
	if err != nil {
		return 0, err
	}
	table, _, err := bootdisk.Table(m.Disks, d)
	if err != nil {
		return 0, err
	}
	_, lock, err := rootpart.Look(m.Disks, d, table)
	if err != nil || lock == nil || lock.Sealed == nil || lock.Sealed.Kind != policy.KindNV {
		return 0, err
	}
	chip, err := m.TPM.Open()
	if err != nil {
		return 0, err
	}
	defer chip.Close()
	record, err := chip.ReadRecord(lock.Sealed)
	if err != nil {
		return 0, err
	}
	return record.Floor, nil
}

// Rollback does it, once the other system was read to its last block. Cut before
// the rename nothing has changed; after it the other system starts.
func (m *Machine) Rollback(ctx context.Context, inv *inventory.Inventory, c Change, progress func(done int64)) error {
	if err := inv.Verify(ctx, c.To, progress); err != nil {
		return fmt.Errorf("%s would not start: %w", c.To.File, err)
	}
	from, err := bls.Parse(c.From.File)
	if err != nil {
		return err
	}
	d, err := bootdisk.Disk(m.Disks, m.Firmware)
	if err != nil {
		return err
	}
	return m.ESP.Write(d, func(dir hw.ESPDir) error { return esp.Condemn(dir, from) })
}
