package agent

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/layout"
)

// espFolder is where the ESP is mounted while it is written to.
const espFolder = "/run/esp"

// condemn takes the running UKI's tries away, so that the boot manager prefers
// the other one from now on.
//
// A rename on FAT is the only way, since the counter is the name. Cut before
// it, the UKI has the tries it had: it boots again, fails again and is
// condemned then. Cut after it, the name is there; the file is flushed once
// more before the folder is, or the new name could be left with no content.
func (a *Agent) condemn() error {
	names, err := a.ukiNames()
	if err != nil {
		return err
	}
	if err := a.mountESP(); err != nil {
		return err
	}
	defer a.Mounts.Unmount(espFolder)
	for _, n := range names {
		if !a.isOurs(n) || n.Bad() {
			continue
		}
		if err := renameSynced(filepath.Join(espFolder, bls.Folder), n.String(), n.Condemned().String()); err != nil {
			return err
		}
		a.Log.Say("%s has no tries left", n.Condemned())
	}
	return nil
}

func (a *Agent) mountESP() error {
	device, err := a.Disks.PartitionPath(a.disk, layout.ESPNumber)
	if err != nil {
		return err
	}
	// The tables for file names may be built in, or not be needed.
	if err := a.Kernel.Load("vfat"); err != nil {
		return err
	}
	_ = a.Kernel.Load("nls_cp437")
	_ = a.Kernel.Load("nls_ascii")
	return a.Mounts.Mount(device, espFolder, "vfat", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "umask=0077")
}

func renameSynced(folder, from, to string) error {
	if err := os.Rename(filepath.Join(folder, from), filepath.Join(folder, to)); err != nil {
		return err
	}
	for _, path := range []string{filepath.Join(folder, to), folder} {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("flush %s: %w", path, err)
		}
	}
	return nil
}

// recover opens the recovery console: a shell on every console, with nothing in
// reach that was not typed in. Leaving one of them restarts the machine.
func (a *Agent) recover(reason string) error {
	a.Log.Say("RECOVERY: %s", reason)
	// Whatever the TPM releases to the initramfs phase, it no longer does.
	if err := a.TPM.Phase("recovery"); err != nil {
		a.Log.Say("no console: the TPM could not be told that the boot has ended: %v", err)
		return errors.Join(err, a.restart())
	}
	a.Log.Say("the boot has stopped, and nothing was lost. `help` lists the commands; `exit` restarts the machine.")
	shellPath, err := exec.LookPath("/bin/gosh")
	if err != nil {
		return errors.Join(err, a.restart())
	}
	var once sync.Once
	left := make(chan error, 1)
	for _, tty := range consoles() {
		go func() {
			err := shell(shellPath, tty)
			once.Do(func() { left <- err })
		}()
	}
	if err := <-left; err != nil {
		a.Log.Say("the recovery console ended: %v", err)
	}
	return a.restart()
}

// restart waits long enough for what is on the screen to be read.
func (a *Agent) restart() error {
	a.Log.Say("restarting in 10 seconds")
	time.Sleep(10 * time.Second)
	return a.Power.Reboot()
}

// consoles are the terminals that the kernel writes to.
func consoles() []string {
	text, err := os.ReadFile("/sys/class/tty/console/active")
	names := strings.Fields(string(text))
	if err != nil || len(names) == 0 {
		return []string{"/dev/console"}
	}
	for i := range names {
		if names[i] == "tty0" {
			names[i] = "tty1" // tty0 is whichever is in front
		}
		names[i] = "/dev/" + names[i]
	}
	return names
}

func shell(path, tty string) error {
	f, err := os.OpenFile(tty, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.Command(path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, f
	cmd.Env = []string{"PATH=/bin", "HOME=/", "TERM=linux"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	return cmd.Run()
}
