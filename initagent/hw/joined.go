package hw

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/anatol/devmapper.go"
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/layout"
)

// joinedPrefix is before the label of the partition in the name of its joined device, and
// joinedUUID before what it is made of in the device's UUID.
const (
	joinedPrefix = "halogen-"
	joinedUUID   = "HALOGEN-SLOT"
)

// An extent is a partition as the kernel has it, to be joined with another.
type extent struct {
	node   string // the device's
	number string // its major and minor number, as sysfs has them
	size   int64  // bytes
}

// joinedName is the device-mapper name of a slot's partition that has two extents.
func joinedName(r layout.Role) string { return joinedPrefix + r.Label() }

// joinedIs is the UUID of the device that these extents make. It says all that the device's
// table does, so that it tells a device that is there already from one over other partitions.
func joinedIs(extents []extent) string {
	var b strings.Builder
	b.WriteString(joinedUUID)
	for _, e := range extents {
		fmt.Fprintf(&b, "-%s+%d", e.number, e.size/sectorUnit)
	}
	return b.String()
}

// joinedTable has the extents one behind the other (kernel documentation,
// admin-guide/device-mapper/linear.rst).
func joinedTable(extents []extent) (table []devmapper.Table) {
	at := uint64(0)
	for _, e := range extents {
		table = append(table, devmapper.LinearTable{Start: at, Length: uint64(e.size), BackendDevice: e.node})
		at += uint64(e.size)
	}
	return table
}

// deviceMapper is what joining needs of the kernel's.
type deviceMapper struct {
	info   func(name string) (*devmapper.DeviceInfo, error)
	create func(name, uuid string, flags uint32, tables ...devmapper.Table) error
	remove func(name string) error
	sleep  func(time.Duration)
}

func kernelsMapper() deviceMapper {
	return deviceMapper{devmapper.InfoByName, devmapper.CreateAndLoad, devmapper.Remove, time.Sleep}
}

// join returns the number of the device that joins a partition's extents. Several programs
// may want it at the same time: one makes it, and the others wait until it is ready. One that
// was killed meanwhile leaves a device without a table, which is removed after a second.
func (m deviceMapper) join(r layout.Role, extents []extent) (minor uint32, err error) {
	const step, tries = 20 * time.Millisecond, 50
	name, uuid := joinedName(r), joinedIs(extents)
	for try := 0; ; try++ {
		info, err := m.info(name)
		switch {
		case errors.Is(err, unix.ENXIO):
			if err = m.create(name, uuid, 0, joinedTable(extents)...); err != nil && (!errors.Is(err, unix.EBUSY) || try >= 2*tries) {
				return 0, fmt.Errorf("join the two partitions %s and %s: %w", r, r.More(), err)
			}
			if err != nil {
				m.sleep(step) // somebody makes it at this moment, or reads a partition exclusively
			}
			continue
		case err != nil:
			return 0, fmt.Errorf("look for device %s: %w", name, err)
		case info.UUID != uuid:
			return 0, fmt.Errorf("device %s is there and is made of other partitions (%s, not %s): start again", name, info.UUID, uuid)
		case info.Flags&unix.DM_ACTIVE_PRESENT_FLAG != 0 && info.Flags&unix.DM_SUSPEND_FLAG == 0:
			return unix.Minor(info.DevNo), nil
		case try >= 2*tries:
			return 0, fmt.Errorf("device %s does not become ready: start again", name)
		case try == tries:
			if err := m.remove(name); err != nil && !errors.Is(err, unix.ENXIO) {
				return 0, fmt.Errorf("remove device %s, which has no table: %w", name, err)
			}
		default:
			m.sleep(step)
		}
	}
}

// joined is the device node of a slot's partition with two extents.
func (l LinuxDisks) joined(r layout.Role, extents []extent) (string, error) {
	if _, err := os.Stat(filepath.Join(l.Dev, "mapper/control")); errors.Is(err, fs.ErrNotExist) && l.load != nil {
		if err := l.load("dm_mod"); err != nil {
			return "", err
		}
	}
	minor, err := l.mapper.join(r, extents)
	if err != nil {
		return "", err
	}
	return filepath.Join(l.Dev, fmt.Sprintf("dm-%d", minor)), nil
}

// part lets go of the joined devices that nobody uses: they hold partitions, and the kernel
// reads no table while one is held. They are made again when they are wanted.
func (l LinuxDisks) part() {
	for _, s := range layout.Slots {
		for _, r := range []layout.Role{s.System(), s.Verity()} {
			_ = l.mapper.remove(joinedName(r)) // there is none, or it is in use and Reread says so
		}
	}
}
