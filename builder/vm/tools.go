package vm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
)

// MissingError says that something the machine is made of is not installed.
type MissingError struct {
	What    string // a program or file
	Package string // the Debian package that brings it
}

// Error implements error.
func (e *MissingError) Error() string {
	return fmt.Sprintf("%s is missing: `apt-get install %s` brings it (Debian's name; other distributions have their own)", e.What, e.Package)
}

// Firmware names the two halves of an OVMF build.
type Firmware struct {
	Code string // the program, built with SMM and Secure Boot
	Vars string // the template of the variables, with no keys enrolled (Setup Mode)
}

// knownFirmware lists where distributions put an OVMF with SMM, most preferred
// first: Debian and Ubuntu, Arch, Gentoo; at last the small build of Debian 12.
func knownFirmware() []Firmware {
	return []Firmware{
		{"/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
		{"/usr/share/edk2/x64/OVMF_CODE.secboot.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},
		{"/usr/share/edk2-ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2-ovmf/OVMF_VARS.fd"},
		smallFirmware,
	}
}

// smallFirmware has half the code of the build of 4 MiB: without the network's, a boot
// takes an emulated processor some 4 s less.
var smallFirmware = Firmware{"/usr/share/OVMF/OVMF_CODE.secboot.fd", "/usr/share/OVMF/OVMF_VARS.fd"}

// FindSmallFirmware returns the OVMF that starts soonest among those installed.
func FindSmallFirmware() (Firmware, error) {
	if smallFirmware.check() == nil {
		return smallFirmware, nil
	}
	return FindFirmware()
}

// FindFirmware returns the first OVMF that is installed.
func FindFirmware() (Firmware, error) {
	for _, f := range knownFirmware() {
		if f.check() == nil {
			return f, nil
		}
	}
	return Firmware{}, &MissingError{What: knownFirmware()[0].Code, Package: "ovmf"}
}

// check says which of the two files cannot be had.
func (f Firmware) check() error {
	for _, path := range []string{f.Code, f.Vars} {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return &MissingError{What: path, Package: "ovmf"}
		} else if err != nil {
			return fmt.Errorf("firmware: %w", err)
		}
	}
	return nil
}

// tool finds a program.
func tool(name, pkg string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", &MissingError{What: name, Package: pkg}
	}
	return path, nil
}

func findQEMU() (string, error)  { return tool("qemu-system-x86_64", "qemu-system-x86") }
func findSwtpm() (string, error) { return tool("swtpm", "swtpm") }

// Check returns nil when every tool that a machine needs is installed, and
// otherwise one error that names all that are missing.
func Check() error {
	_, qemu := findQEMU()
	_, swtpm := findSwtpm()
	_, firmware := FindFirmware()
	return errors.Join(qemu, swtpm, firmware)
}
