package hw

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"github.com/anatol/devmapper.go"
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/shrink"
)

// A Snapshot is what a dm-snapshot device is made from. It reads as the origin does, which
// nothing may write to meanwhile; what is written to it goes to the store.
type Snapshot struct {
	Name          string // of the device-mapper device
	Origin, Store string // device nodes
	Size          int64  // of the origin, in bytes
}

// table is the parameters of the target "snapshot" (kernel documentation,
// admin-guide/device-mapper/snapshot.rst): a persistent store. It is not told that "Overflow"
// is understood: so a store that is full is marked as not valid on the disk, too.
func (s Snapshot) table() string {
	return fmt.Sprintf("%s %s P %d", s.Origin, s.Store, shrink.ChunkSectors)
}

// OpenSnapshot implements Mapper. The library for the device mapper has no such target.
func (l LinuxMapper) OpenSnapshot(s Snapshot) (string, error) {
	if err := devmapper.Create(s.Name, "halogen-"+s.Name); err != nil {
		return "", fmt.Errorf("make snapshot %s: %w", s.Name, err)
	}
	_, err := l.control(unix.DM_TABLE_LOAD, s.Name, &target{kind: "snapshot", sectors: uint64(s.Size) / devmapper.SectorSize, params: s.table()})
	if err == nil {
		err = devmapper.Resume(s.Name)
	}
	var node string
	if err == nil {
		node, err = l.node(s.Name)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("make snapshot %s (%s): %w", s.Name, s.table(), err), devmapper.Remove(s.Name))
	}
	return node, nil
}

// SnapshotUse implements Mapper.
func (l LinuxMapper) SnapshotUse(name string) (used int64, err error) {
	status, err := l.control(unix.DM_TABLE_STATUS, name, nil)
	if err == nil {
		used, err = snapshotUse(status)
	}
	if err != nil {
		return 0, fmt.Errorf("status of snapshot %s: %w", name, err)
	}
	return used, nil
}

// snapshotUse reads the status of the target "snapshot": sectors that are used, all of them,
// and those for metadata; or one word.
func snapshotUse(status string) (int64, error) {
	of, _, _ := strings.Cut(status, " ")
	text, _, fraction := strings.Cut(of, "/")
	if status == "Invalid" || status == "Overflow" {
		return 0, fmt.Errorf("%w (%s)", shrink.ErrOverflow, status)
	}
	sectors, err := strconv.ParseUint(text, 10, 50)
	if err != nil || !fraction {
		return 0, fmt.Errorf("%q is not understood", status)
	}
	return int64(sectors) * devmapper.SectorSize, nil
}

// A target is one line of a table.
type target struct {
	kind, params string
	sectors      uint64
}

const statusRoom = 4096 // for a status, which takes one line

// request is what an ioctl on a device by its name is given: struct dm_ioctl of the kernel's
// include/uapi/linux/dm-ioctl.h, and after it struct dm_target_spec with its parameters.
func request(name string, t *target) ([]byte, error) {
	if len(name) >= unix.DM_NAME_LEN {
		return nil, fmt.Errorf("name of %d bytes", len(name))
	}
	room := unix.SizeofDmIoctl + statusRoom
	if t != nil {
		room = unix.SizeofDmIoctl + unix.SizeofDmTargetSpec + (len(t.params)+1+7)/8*8
	}
	b := make([]byte, room)
	head := (*unix.DmIoctl)(unsafe.Pointer(&b[0]))
	head.Version = [3]uint32{4, 0, 0}
	head.Data_size, head.Data_start = uint32(len(b)), unix.SizeofDmIoctl
	copy(head.Name[:], name)
	if t == nil {
		return b, nil
	}
	head.Target_count = 1
	spec := (*unix.DmTargetSpec)(unsafe.Pointer(&b[unix.SizeofDmIoctl]))
	spec.Length, spec.Next = t.sectors, uint32(len(b)-unix.SizeofDmIoctl)
	copy(spec.Target_type[:], t.kind)
	copy(b[unix.SizeofDmIoctl+unix.SizeofDmTargetSpec:], t.params)
	return b, nil
}

// answer is the status of the first target in what an ioctl has left.
func answer(b []byte) (string, error) {
	head := (*unix.DmIoctl)(unsafe.Pointer(&b[0]))
	text := int(head.Data_start) + unix.SizeofDmTargetSpec
	if head.Target_count != 1 || head.Flags&unix.DM_BUFFER_FULL_FLAG != 0 || int(head.Data_size) > len(b) || text >= len(b) {
		return "", fmt.Errorf("%d targets, flags %#x, %d bytes", head.Target_count, head.Flags, head.Data_size)
	}
	status, _, _ := bytes.Cut(b[text:], []byte{0})
	return strings.TrimSpace(string(status)), nil
}

func (l LinuxMapper) control(command uintptr, name string, t *target) (string, error) {
	b, err := request(name, t)
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(filepath.Join(l.Dev, "mapper/control"), os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), command, uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
		return "", os.NewSyscallError("device mapper ioctl", errno)
	}
	if t != nil {
		return "", nil
	}
	return answer(b)
}
