// Command initagent is PID 1 in the initramfs of the unified kernel image.
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"halogenos.internal/boot/secretmem"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/version"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/agent"
	"halogenos.internal/initagent/console"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	_ "halogenos.internal/initagent/pid1" // for all programs of the initramfs
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/rootpart"
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
	if err := (hw.LinuxMounts{}).Base(); err != nil {
		return err
	}
	log := hw.OpenLog()
	line := cmdline()
	if quiet(line) {
		log.Hold(longestQuiet)
	}
	log.Say("initagent %s", version.String())
	kernel, err := hw.NewLinuxKernel("/sys", "/lib/modules")
	if err != nil {
		return err
	}
	m := hw.Linux(kernel, "/run/esp", rootpart.Directory)
	m.Power, m.Log = hw.LinuxPower{}, log
	m.Person = console.Person{ShellPath: "/bin/sh", Leave: lock, Shown: log.Show}
	m.Watchdog = func() (string, watchdog.Timer, error) { return watchdog.Find("/sys", "/dev") }
	m.Secretly, m.Collect = secretmem.Try, secretmem.Collect
	m.HideMemory, m.NoModules = hw.HideMemory, hw.NoModules
	a := &agent.Agent{Host: host.Host{
		Given:    host.Given{Machine: m, Variables: enroll.EFIVarFS{Root: hw.EFIVars}, Random: rand.Reader, NewKeys: secureboot.Generate, Root: "/"},
		Language: words.OfCmdline(line),
	}}
	return a.Boot(ctx)
}

// longestQuiet is how long a boot shows nothing: one that takes longer says what it does.
const longestQuiet = 3 * time.Second

// quiet reports whether the kernel's command line, which is signed, asks for a boot that
// shows nothing while it goes well, as it asks the kernel and systemd.
func quiet(line string) bool { return slices.Contains(strings.Fields(line), "quiet") }

// cmdline is the kernel's command line. No boot fails for want of it.
func cmdline() string {
	line, _ := os.ReadFile("/proc/cmdline") // empty names nothing
	return string(line)
}

// lock closes what `unlock` has opened.
func lock() error {
	m, err := recovery.Linux()
	if err != nil {
		return err
	}
	return m.Lock()
}
