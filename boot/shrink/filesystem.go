package shrink

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// FileSystemEnd is where a file system of a kind, ext4 or btrfs, ends on its device, in
// bytes, by its superblock. A partition that ends before that loses data.
func FileSystemEnd(kind string, r io.ReaderAt) (int64, error) {
	read, known := map[string]func(io.ReaderAt) (uint64, error){"ext4": ext4End, "btrfs": btrfsEnd}[kind]
	if !known {
		return 0, fmt.Errorf("where a file system of type %q ends is not known here", kind)
	}
	end, err := read(r)
	if err == nil && (end == 0 || end > math.MaxInt64) {
		err = fmt.Errorf("it has %d bytes", end)
	}
	if err != nil {
		return 0, fmt.Errorf("superblock of %s: %w", kind, err)
	}
	return int64(end), nil
}

func superblock(r io.ReaderAt, at int64, size int) ([]byte, error) {
	b := make([]byte, size)
	if n, err := r.ReadAt(b, at); n < size {
		return nil, fmt.Errorf("read %d bytes at %d: %w", size, at, err)
	}
	return b, nil
}

// ext4End reads s_blocks_count (kernel documentation, filesystems/ext4/super.rst).
func ext4End(r io.ReaderAt) (uint64, error) {
	b, err := superblock(r, 1024, 1024)
	if err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	const wide = 0x80 // INCOMPAT_64BIT
	log := le.Uint32(b[0x18:])
	blocks := uint64(le.Uint32(b[4:]))
	if le.Uint32(b[0x60:])&wide != 0 {
		blocks |= uint64(le.Uint32(b[0x150:])) << 32
	}
	if le.Uint16(b[0x38:]) != 0xef53 || log > 6 || blocks > math.MaxInt64>>(10+log) {
		return 0, fmt.Errorf("it has the magic %#x and %d blocks of 2^%d KiB", le.Uint16(b[0x38:]), blocks, log)
	}
	return blocks << (10 + log), nil
}

// btrfsEnd reads the size of the only device (btrfs documentation, On-disk Format,
// "Superblock"): num_devices, and total_bytes of dev_item.
func btrfsEnd(r io.ReaderAt) (uint64, error) {
	b, err := superblock(r, 64<<10, 4096)
	if err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	if devices := le.Uint64(b[0x88:]); string(b[0x40:0x48]) != "_BHRfS_M" || devices != 1 {
		return 0, fmt.Errorf("it has the magic %q and %d devices", b[0x40:0x48], devices)
	}
	return le.Uint64(b[0xc9+8:]), nil
}
