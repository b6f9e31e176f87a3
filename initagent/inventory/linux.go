package inventory

import "halogenos.internal/initagent/hw"

// Linux is the running machine as far as an inventory needs it.
func Linux() hw.Machine {
	disks := hw.LinuxDisks{Sys: "/sys", Dev: "/dev"}
	return hw.Machine{
		Disks:    disks,
		Firmware: hw.LinuxFirmware{EFIVars: "/sys/firmware/efi/efivars"},
		ESP:      hw.LinuxESP{Disks: disks},
	}
}
