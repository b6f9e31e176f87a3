// Command initagent is PID 1 in the initramfs of the unified kernel image.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"halogenos.internal/initagent/agent"
	"halogenos.internal/initagent/enrol"
	"halogenos.internal/initagent/hw"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "initagent:", err)
		os.Exit(1)
	}
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
	kernel, err := hw.NewLinuxKernel("/sys", "/lib/modules")
	if err != nil {
		return err
	}
	a := &agent.Agent{
		Machine: hw.Machine{
			Disks:    hw.LinuxDisks{Sys: "/sys", Dev: "/dev"},
			Firmware: hw.LinuxFirmware{EFIVars: "/sys/firmware/efi/efivars"},
			Kernel:   kernel,
			Mapper:   hw.LinuxMapper{Dev: "/dev"},
			Mounts:   mounts,
			Power:    hw.LinuxPower{},
			Log:      log,
			Now:      time.Now,
		},
		Variables: enrol.EFIVarFS{Root: "/sys/firmware/efi/efivars"},
		Root:      "/",
	}
	return a.Boot(ctx)
}
