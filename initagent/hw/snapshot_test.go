package hw

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/shrink"
)

// What the kernel gets is struct dm_ioctl, struct dm_target_spec and the parameters, as
// include/uapi/linux/dm-ioctl.h has them.
func TestSnapshotRequest(t *testing.T) {
	s := Snapshot{Name: "halogen-shrink", Origin: "/dev/vda6", Store: "/dev/vda4", Size: 1 << 30}
	if got, want := s.table(), "/dev/vda6 /dev/vda4 P 8"; got != want {
		t.Errorf("the table is %q, want %q", got, want)
	}
	b, err := request(s.Name, &target{kind: "snapshot", sectors: uint64(s.Size) / 512, params: s.table()})
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	const head, spec = 312, 40 // sizes of the two structures
	if len(b)%8 != 0 || le.Uint32(b) != 4 || int(le.Uint32(b[12:])) != len(b) || le.Uint32(b[16:]) != head || le.Uint32(b[20:]) != 1 || !strings.HasPrefix(string(b[48:]), "halogen-shrink\x00") {
		t.Errorf("the head is %x", b[:head])
	}
	target := b[head:]
	if le.Uint64(target) != 0 || le.Uint64(target[8:]) != 1<<21 || int(le.Uint32(target[20:])) != len(b)-head || !strings.HasPrefix(string(target[24:]), "snapshot\x00") || !strings.HasPrefix(string(target[spec:]), s.table()+"\x00") {
		t.Errorf("the target is %x", target)
	}
	if _, err := request(strings.Repeat("x", unix.DM_NAME_LEN), nil); err == nil {
		t.Error("a name without an end is taken")
	}
}

func TestSnapshotAnswer(t *testing.T) {
	b, err := request("x", nil)
	if err != nil {
		t.Fatal(err)
	}
	head := (*unix.DmIoctl)(unsafe.Pointer(&b[0]))
	copy(b[unix.SizeofDmIoctl+unix.SizeofDmTargetSpec:], "16/2048 8\x00")
	head.Target_count = 1
	if got, err := answer(b); err != nil || got != "16/2048 8" {
		t.Errorf("%q, %v", got, err)
	}
	for name, spoil := range map[string]func(){
		"no target":     func() { head.Target_count = 0 },
		"no room":       func() { head.Target_count, head.Flags = 1, unix.DM_BUFFER_FULL_FLAG },
		"a far target":  func() { head.Flags, head.Data_start = 0, 1<<20 },
		"too much data": func() { head.Data_start, head.Data_size = unix.SizeofDmIoctl, 1<<20 },
	} {
		if spoil(); true {
			if got, err := answer(b); err == nil {
				t.Errorf("%s: %q", name, got)
			}
		}
	}
}

// The status is that of snapshot_status in drivers/md/dm-snap.c.
func TestSnapshotUse(t *testing.T) {
	for status, want := range map[string]int64{"16/2097152 16": 8192, "397896/2097152 1560": 397896 * 512, "0/8 0": 0} {
		if got, err := snapshotUse(status); err != nil || got != want {
			t.Errorf("%q: %d, %v", status, got, err)
		}
	}
	for _, status := range []string{"Invalid", "Overflow"} {
		if _, err := snapshotUse(status); !errors.Is(err, shrink.ErrOverflow) {
			t.Errorf("%q: %v", status, err)
		}
	}
	for _, status := range []string{"", "Unknown", "Merge failed", "16", "-1/8 0", "x/8 0", "99999999999999999999/8 0"} {
		if got, err := snapshotUse(status); err == nil || errors.Is(err, shrink.ErrOverflow) {
			t.Errorf("%q: %d, %v", status, got, err)
		}
	}
}
