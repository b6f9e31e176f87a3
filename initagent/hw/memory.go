package hw

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Memory returns how much memory the machine has, in bytes.
func Memory() (uint64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("size of the machine's memory: %w", err)
	}
	return info.Totalram * uint64(info.Unit), nil
}
