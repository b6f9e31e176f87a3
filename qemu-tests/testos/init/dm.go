package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"halogenos.internal/qemu-tests/testos/protocol"
)

// maxTable bounds the answer of the kernel to a table request, in bytes.
const maxTable = 64 << 10

// deviceMapper describes every mapped device.
func (s *system) deviceMapper() []protocol.DM {
	var all []protocol.DM
	paths, _ := filepath.Glob("/sys/block/dm-*/dm") // the pattern is good
	for _, path := range paths {
		d := protocol.DM{Device: filepath.Base(filepath.Dir(path)), Name: text(filepath.Join(path, "name")), UUID: text(filepath.Join(path, "uuid"))}
		var err error
		if d.Table, err = dmTable(d.Name, unix.DM_STATUS_TABLE_FLAG); err == nil {
			d.Status, err = dmTable(d.Name, 0)
		}
		if err != nil {
			s.problem("%v", err)
		}
		for i := range d.Table {
			d.Table[i] = maskKey(d.Table[i])
		}
		all = append(all, d)
	}
	return all
}

// dmTable asks for the targets of a device (DM_TABLE_STATUS, include/uapi/linux/dm-ioctl.h):
// their parameters with DM_STATUS_TABLE_FLAG, their status otherwise.
func dmTable(name string, flags uint32) ([]string, error) {
	f, err := os.Open("/dev/mapper/control")
	if err != nil {
		return nil, fmt.Errorf("device mapper: %w", err)
	}
	defer f.Close()
	buf := make([]byte, maxTable)
	head := (*unix.DmIoctl)(unsafe.Pointer(&buf[0]))
	head.Version = [3]uint32{4, 0, 0}
	head.Data_size, head.Data_start, head.Flags = maxTable, unix.SizeofDmIoctl, flags
	if len(name) >= len(head.Name) {
		return nil, fmt.Errorf("device mapper: name %q is too long", name)
	}
	copy(head.Name[:], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.DM_TABLE_STATUS, uintptr(unsafe.Pointer(&buf[0]))); errno != 0 {
		return nil, fmt.Errorf("device mapper: status of %s: %w", name, errno)
	}
	if head.Flags&unix.DM_BUFFER_FULL_FLAG != 0 || head.Data_start > maxTable {
		return nil, fmt.Errorf("device mapper: status of %s needs more than %d bytes", name, maxTable)
	}
	return dmTargets(buf[head.Data_start:], head.Target_count)
}

// dmTargets decodes struct dm_target_spec and the text after each. Its next field
// counts from the start of the first one.
func dmTargets(data []byte, count uint32) ([]string, error) {
	var all []string
	at := uint32(0)
	for range count {
		if uint64(at)+unix.SizeofDmTargetSpec > uint64(len(data)) {
			return nil, fmt.Errorf("device mapper: target %d starts at %d of %d bytes", len(all), at, len(data))
		}
		spec := data[at:]
		start, length := binary.NativeEndian.Uint64(spec[0:]), binary.NativeEndian.Uint64(spec[8:])
		kind := unix.ByteSliceToString(spec[24:40])
		params := unix.ByteSliceToString(spec[unix.SizeofDmTargetSpec:])
		all = append(all, fmt.Sprintf("%d %d %s %s", start, length, kind, params))
		at = binary.NativeEndian.Uint32(spec[20:])
	}
	return all, nil
}

// maskKey hides the key of a crypt target, unless the table only names one in a
// keyring: "start length crypt cipher key ...".
func maskKey(line string) string {
	f := strings.Split(line, " ")
	if len(f) > 4 && f[2] == "crypt" && !strings.HasPrefix(f[4], ":") {
		f[4] = fmt.Sprintf("<%d hex digits>", len(f[4]))
	}
	return strings.Join(f, " ")
}
