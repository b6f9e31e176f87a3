package hw

import (
	"os"
	"time"

	"halogenos.internal/boot/setupmenu"
)

// EFIVars is where efivarfs is mounted.
const EFIVars = "/sys/firmware/efi/efivars"

// Linux is the machine that this runs on. kernel loads modules; nil where none will be
// needed, and the ESP is only read then. While the ESP is written to it is mounted at esp,
// and the root partition's file system is mounted at state.
func Linux(kernel Kernel, esp, state string) Machine {
	mounts, disks := LinuxMounts{}, NewLinuxDisks(kernel)
	return Machine{
		Disks: disks, Firmware: LinuxFirmware{EFIVars: EFIVars}, Kernel: kernel, Mapper: LinuxMapper{Dev: "/dev"}, Mounts: mounts,
		ESP:   LinuxESP{Disks: disks, Kernel: kernel, Mounts: mounts, Directory: esp},
		Store: LinuxStore{Root: state, Mounts: mounts}, TPM: OwnTPM(),
		SetupMenu: func() (setupmenu.Menu, bool) { return setupmenu.Of(os.DirFS("/sys")) },
		Now:       time.Now, Sleep: time.Sleep, Memory: Memory,
	}
}
