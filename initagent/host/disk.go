package host

import (
	"errors"
	"fmt"

	"halogenos.internal/boot/gpt"
)

// PutTable puts a table on the disk. The kernel, which lets go of no partition that
// is in use, reads it at the next boot. Cut before it, the old table stands; cut
// during it, one of the two copies is good (gpt.Table.Write).
func (h *Host) PutTable(t *gpt.Table) error {
	f, err := h.Disks.Open(h.Disk, true)
	if err != nil {
		return err
	}
	err = errors.Join(t.Write(f), f.Close())
	if err != nil {
		return fmt.Errorf("write the partition table of %s: %w", h.Disk.Name, err)
	}
	return nil
}

// WriteTable puts a table on the disk and makes the kernel use it.
func (h *Host) WriteTable(t *gpt.Table) error {
	if err := h.PutTable(t); err != nil {
		return err
	}
	return h.Disks.Reread(h.Disk)
}
