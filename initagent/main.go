// Command initagent is PID 1 in the initramfs of the unified kernel image.
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"time"

	"halogenos.internal/boot/secretmem"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/version"
	"halogenos.internal/initagent/agent"
	"halogenos.internal/initagent/console"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	_ "halogenos.internal/initagent/pid1" // for all programs of the initramfs
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/watchdog"
)

func main() {
	err := run(context.Background())
	switch {
	case err == nil:
		return
	case os.Getpid() == 1:
		hw.OpenLog().Say("the boot ended: %v", err) // on every console, and the kernel panics
	default:
		fmt.Fprintln(os.Stderr, "initagent:", err)
	}
	os.Exit(1)
}

// run builds the machine and boots it. It returns only an error; as PID 1 that
// makes the kernel panic, and the machine restart.
func run(ctx context.Context) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("this is the init of an initramfs: it runs as process 1, not as process %d", os.Getpid())
	}
	mounts := hw.LinuxMounts{}
	if err := mounts.Base(); err != nil {
		return err
	}
	log := hw.OpenLog()
	log.Say("initagent %s", version.String())
	kernel, err := hw.NewLinuxKernel("/sys", "/lib/modules")
	if err != nil {
		return err
	}
	const efivars = "/sys/firmware/efi/efivars"
	disks := hw.LinuxDisks{Sys: "/sys", Dev: "/dev"}
	a := &agent.Agent{NewKeys: secureboot.Generate, Host: host.Host{
		Machine: hw.Machine{
			Disks:    disks,
			Firmware: hw.LinuxFirmware{EFIVars: efivars},
			Kernel:   kernel,
			Mapper:   hw.LinuxMapper{Dev: "/dev"},
			Mounts:   mounts,
			Power:    hw.LinuxPower{},
			ESP:      hw.LinuxESP{Disks: disks, Kernel: kernel, Mounts: mounts, Directory: "/run/esp"},
			Store:    hw.LinuxStore{Root: agent.StateDirectory, Mounts: mounts},
			TPM:      hw.OwnTPM(),
			Person:   console.Person{ShellPath: "/bin/sh", Leave: lock},
			Log:      log,
			Watchdog: func() (string, watchdog.Timer, error) { return watchdog.Find("/sys", "/dev") },
			Now:      time.Now,
			Sleep:    time.Sleep,
			Memory:   hw.Memory,
			Secretly: secretmem.Try,
			Collect:  secretmem.Collect,

			HideMemory: hw.HideMemory,
			NoModules:  hw.NoModules,
		},
		Variables: enroll.EFIVarFS{Root: efivars},
		Random:    rand.Reader,
		Root:      "/",
	}}
	return a.Boot(ctx)
}

// lock closes what `unlock` has opened.
func lock() error {
	m, err := recovery.Linux()
	if err != nil {
		return err
	}
	return m.Lock()
}
