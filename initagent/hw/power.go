package hw

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// LinuxPower ends the boot through the kernel.
type LinuxPower struct{}

// Reboot implements Power. What was written is flushed first.
func (LinuxPower) Reboot() error { return end("restart", unix.LINUX_REBOOT_CMD_RESTART) }

// PowerOff implements Power.
func (LinuxPower) PowerOff() error { return end("switch off", unix.LINUX_REBOOT_CMD_POWER_OFF) }

func end(what string, command int) error {
	unix.Sync()
	if err := unix.Reboot(command); err != nil {
		return fmt.Errorf("%s the machine: %w", what, err)
	}
	return nil
}
