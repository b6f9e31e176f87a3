package hw

import (
	"fmt"
	"regexp"
	"slices"

	"golang.org/x/sys/unix"
)

// maxKernelLog bounds what is read of the kernel's log, in bytes.
const maxKernelLog = 16 << 20

// KernelLog returns the kernel's own log of this boot, as far as its buffer goes back
// (syslog(2)). Where the kernel keeps none the error is errors.ErrUnsupported.
func KernelLog() ([]byte, error) {
	size, err := unix.Klogctl(unix.SYSLOG_ACTION_SIZE_BUFFER, nil)
	if err != nil {
		return nil, fmt.Errorf("read the kernel's log: %w", err)
	}
	b := make([]byte, min(size, maxKernelLog))
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, b)
	if err != nil {
		return nil, fmt.Errorf("read the kernel's log: %w", err)
	}
	return b[:n], nil
}

// diskError is a line of the kernel's block layer (block/blk-core.c, blk_errors; before
// Linux 5.18 with the name of a function before it).
var diskError = regexp.MustCompile(`(?m)(I/O|critical medium|critical target|protection|timeout|device offline) error, dev ([^ ,]+), sector (\d+)`)

// DiskErrors says what a kernel's log has of a disk that fails: the first error, and how
// many there are; "" where it has none.
func DiskErrors(messages []byte, disk string) string {
	all := diskError.FindAllSubmatch(messages, -1)
	all = slices.DeleteFunc(all, func(m [][]byte) bool { return string(m[2]) != disk })
	if len(all) == 0 {
		return ""
	}
	first := fmt.Sprintf("%s error of %s at sector %s", all[0][1], all[0][2], all[0][3])
	if len(all) > 1 {
		first += fmt.Sprintf(", and %d more", len(all)-1)
	}
	return first
}
