package setup

import (
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/host"
)

// Where an installer stick has its program, once it is mounted.
const (
	installerDirectory = "/run/installer"
	installerProgram   = installerDirectory + "/halogen"
)

// Install lets a person install what is on the stick. What is on a stick nobody
// has verified, so that it is treated as a person at the recovery console is:
// the TPM learns that the boot has ended before anything of it runs, and nothing
// that this machine has is open.
func Install(h *host.Host) error {
	if err := h.LeavePhase("installer"); err != nil {
		return err
	}
	device, err := h.Disks.PartitionPath(h.Disk, layout.Installer)
	if err != nil {
		return err
	}
	if err := h.Kernel.Load("erofs"); err != nil {
		return err
	}
	if err := h.Mounts.Mount(device, h.Path(installerDirectory), "erofs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, ""); err != nil {
		return err
	}
	// A stick starts with this machine's own UKI as well, and a machine that was only
	// restarted still has in memory what the boot before this one knew.
	if err := h.HideMemory(); err != nil {
		return err
	}
	if err := h.LeavePhase("installer"); err != nil { // for a TPM that took its time
		return err
	}
	h.ReleaseWatchdog(0) // a person takes the time that it takes
	return h.Attended(func() error { return h.Person.Program(environment(h), h.Path(installerProgram), "install") })
}

// environment tells the installer the language, and what the keys of a screen's keyboard type: it
// asks for both, and changes the latter.
func environment(h *host.Host) []string {
	keymap := "us"
	if k, err := keyboard.FindKeymap(h.Keymap); err == nil {
		keymap = k.Name
	}
	return []string{"LANG=" + h.Language.Code() + ".UTF-8", "HALOGEN_KEYMAP=" + keymap}
}
