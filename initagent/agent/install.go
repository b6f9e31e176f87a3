package agent

import (
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/layout"
)

// Where an installer stick has its program, once it is mounted.
const (
	installerDirectory = "/run/installer"
	installerProgram   = installerDirectory + "/halogen"
)

// install lets a person install what is on the stick. What is on a stick nobody
// has verified, so that it is treated as a person at the recovery console is:
// the TPM learns that the boot has ended before anything of it runs, and nothing
// that this machine has is open.
func (a *Agent) install() error {
	if err := a.LeavePhase("installer"); err != nil {
		return err
	}
	device, err := a.Disks.PartitionPath(a.Disk, layout.InstallerNumber)
	if err != nil {
		return err
	}
	if err := a.Kernel.Load("erofs"); err != nil {
		return err
	}
	if err := a.Mounts.Mount(device, a.Path(installerDirectory), "erofs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, ""); err != nil {
		return err
	}
	// A stick starts with this machine's own UKI as well, and a machine that was only
	// restarted still has in memory what the boot before this one knew.
	if err := a.HideMemory(); err != nil {
		return err
	}
	if err := a.LeavePhase("installer"); err != nil { // for a TPM that took its time
		return err
	}
	a.ReleaseWatchdog(0) // a person takes the time that it takes
	return a.Attended(func() error { return a.Person.Program(a.Path(installerProgram), "install") })
}
