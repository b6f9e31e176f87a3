package hw

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

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

// Printk is the kernel's file of what its consoles show (proc_sys_kernel(5), printk).
const Printk = "/proc/sys/kernel/printk"

// errorsAlone is the console log level that shows errors and worse.
const errorsAlone = 4

// HoldMessages keeps the kernel's messages off the consoles, but for errors, until
// restore is called: drivers that load would write over what a person is asked. The
// kernel's log has them all. file is [Printk]; where it cannot be read or written the
// consoles stay as they are, since no boot fails for that.
func HoldMessages(file string) (restore func()) {
	stay := func() {}
	was, err := os.ReadFile(file)
	if err != nil {
		return stay
	}
	level, _, _ := strings.Cut(strings.TrimSpace(string(was)), "\t")
	if n, err := strconv.Atoi(level); err != nil || n <= errorsAlone {
		return stay
	}
	// The kernel takes the first of its four numbers alone.
	if err := os.WriteFile(file, fmt.Appendln(nil, errorsAlone), 0); err != nil {
		return stay
	}
	return func() { _ = os.WriteFile(file, []byte(level+"\n"), 0) }
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
