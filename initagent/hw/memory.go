package hw

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

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

// lockdownFile is of the kernel's lockdown module: one word for each level, the one
// in force in brackets. Writing a word raises the level; nothing lowers it.
const lockdownFile = "/sys/kernel/security/lockdown"

// Settings that can be switched on and never off again (Linux,
// Documentation/admin-guide/sysctl/kernel.rst). A kernel that has no modules, or starts
// no other kernel, has no such file.
const (
	noModulesFile = "/proc/sys/kernel/modules_disabled"
	noKexecFile   = "/proc/sys/kernel/kexec_load_disabled"
)

// HideMemory keeps every program of this boot, root's included, from reading the
// kernel's memory (kernel_lockdown(7), confidentiality), and from starting another kernel
// that would let them. What lay in the machine's memory before it was restarted is part
// of it.
func HideMemory() error { return errors.Join(hideMemory(lockdownFile), switchOn(noKexecFile)) }

// NoModules keeps the kernel from loading any further module.
func NoModules() error { return switchOn(noModulesFile) }

func switchOn(file string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString("1")
	return errors.Join(err, f.Close())
}

func hideMemory(file string) error {
	const level = "confidentiality"
	levels, err := os.ReadFile(file)
	if err == nil && !strings.Contains(string(levels), "["+level+"]") {
		err = os.WriteFile(file, []byte(level), 0) // the file exists: the kernel made it
	}
	if err != nil {
		return fmt.Errorf("raise the kernel's lockdown to %s: %w", level, err)
	}
	return nil
}
