package hw

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"unicode/utf16"

	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
)

// Namespaces of EFI variables: the boot loader interface's vendor GUID and the
// UEFI global variables (UEFI 2.10 section 3.3).
const (
	loaderGUID = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
	globalGUID = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
)

// maxVariable bounds what is taken from one of these variables, in bytes.
const maxVariable = bootoption.MaxSize

// LinuxFirmware reads efivarfs.
type LinuxFirmware struct{ EFIVars string }

// read returns the value without the four bytes of attributes that efivarfs
// puts before it; an absent variable is nil.
func (l LinuxFirmware) read(name, guid string) ([]byte, error) {
	return l.readUnless(0, name, guid)
}

// readUnless is read for a variable that counts as absent where it has one of these
// attributes, whatever its size.
func (l LinuxFirmware) readUnless(attributes uint32, name, guid string) ([]byte, error) {
	b, err := enroll.ReadVariable(filepath.Join(l.EFIVars, name+"-"+guid), maxVariable)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read EFI variable %s: %w", name, err)
	}
	if len(b) >= 4 && binary.LittleEndian.Uint32(b)&attributes != 0 {
		return nil, nil
	}
	if len(b) < 4 || len(b) > maxVariable {
		return nil, fmt.Errorf("EFI variable %s has %d bytes, want 4 to %d", name, len(b), maxVariable)
	}
	return b[4:], nil
}

// LoaderString implements Firmware. Boot manager and stub set these variables again in
// each start, as volatile ones. One that outlives a restart is of somebody who was root,
// and neither of them can replace it: a variable's attributes do not change (UEFI 2.10,
// section 8.2).
func (l LinuxFirmware) LoaderString(name string) (string, error) {
	b, err := l.readUnless(secureboot.NonVolatile, name, loaderGUID)
	if err != nil || b == nil {
		return "", err
	}
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := binary.LittleEndian.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units)), nil
}

// Flag implements Firmware.
func (l LinuxFirmware) Flag(name string) (bool, error) {
	b, err := l.read(name, globalGUID)
	if err != nil || b == nil {
		return false, err
	}
	return len(b) == 1 && b[0] == 1, nil
}

// BootedFrom implements Firmware (UEFI 2.10, section 3.3: BootCurrent names the
// Boot#### variable that was used).
func (l LinuxFirmware) BootedFrom() ([]bootoption.Function, error) {
	current, err := l.read("BootCurrent", globalGUID)
	if err != nil || len(current) != 2 {
		return nil, err
	}
	option, err := l.read(fmt.Sprintf("Boot%04X", binary.LittleEndian.Uint16(current)), globalGUID)
	if err != nil || option == nil {
		return nil, err
	}
	return bootoption.Parse(option)
}
