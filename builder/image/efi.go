package image

import (
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/uki"
	"halogenos.internal/builder/rootfs"
)

// peMachine returns what kind of processor a PE image is for; zero for what is
// no PE image.
func peMachine(image []byte) uint16 {
	if len(image) < 64 || string(image[:2]) != "MZ" {
		return 0
	}
	at := uint64(binary.LittleEndian.Uint32(image[60:]))
	if at+6 > uint64(len(image)) || string(image[at:at+4]) != "PE\x00\x00" {
		return 0
	}
	return binary.LittleEndian.Uint16(image[at+4:])
}

// machineName is how distributors call a kind of processor.
func machineName(machine uint16) string {
	if name, ok := map[uint16]string{
		pe.IMAGE_FILE_MACHINE_AMD64: "x86-64", pe.IMAGE_FILE_MACHINE_I386: "32-bit x86", pe.IMAGE_FILE_MACHINE_ARM64: "aarch64",
		pe.IMAGE_FILE_MACHINE_ARMNT: "32-bit ARM", pe.IMAGE_FILE_MACHINE_ARM: "32-bit ARM", pe.IMAGE_FILE_MACHINE_THUMB: "32-bit ARM",
		pe.IMAGE_FILE_MACHINE_RISCV64: "riscv64", pe.IMAGE_FILE_MACHINE_RISCV32: "riscv32",
		pe.IMAGE_FILE_MACHINE_LOONGARCH64: "loongarch64", pe.IMAGE_FILE_MACHINE_IA64: "Itanium",
	}[machine]; ok {
		return name
	}
	return fmt.Sprintf("processors of kind %#04x", machine)
}

// readEFI reads a PE file from where the configuration says, or from where
// systemd installs it. It is what machines can sign: a signature that it
// brings is left out, since no machine trusts another's, and one of a form that
// ours refuse would stop their first boot.
func readEFI(t *rootfs.Tree, chosen, usual, what, key, program string) (image []byte, signed bool, err error) {
	name := usual
	if chosen != "" {
		name = chosen
	}
	image, err = t.ReadFile(name, maxStub)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, fmt.Errorf("the root file system has no %s: looked for %s (install systemd-boot's EFI files, or name it with %s)", what, name, key)
	}
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", what, err)
	}
	if machine := peMachine(image); machine != 0 && machine != pe.IMAGE_FILE_MACHINE_AMD64 {
		return nil, false, fmt.Errorf("%s %s is for %s, and the kernel is for x86-64: name the one for x86-64 with %s", what, name, machineName(machine), key)
	}
	bare, err := bareEFI(image)
	if err == nil {
		err = checkTried(bare, program)
	}
	if err != nil {
		return nil, false, fmt.Errorf("%s %s: %w", what, name, err)
	}
	return bare, len(bare) != len(image), nil
}

// checkTried refuses a boot manager or stub of which it is not known what it
// measures.
func checkTried(image []byte, program string) error {
	parsed, err := uki.Parse(image)
	if err != nil {
		return err
	}
	return pcr.CheckTried(parsed, program)
}

// bareEFI returns an EFI image without signatures.
func bareEFI(image []byte) ([]byte, error) {
	bare, err := authenticode.Strip(dropTable(image))
	if err != nil {
		return nil, err
	}
	if _, err := uki.Parse(bare); err != nil {
		return nil, err
	}
	return bare, nil
}

// dropTable returns an image that names no certificate table where the one it
// has ends the file: an old signer's table may begin or end where ours may not.
// Any other image is returned as it is.
func dropTable(image []byte) []byte {
	at := uint64(0)
	if peMachine(image) != 0 {
		at = uint64(binary.LittleEndian.Uint32(image[60:])) + 24
	}
	const directories, entry = 108, 112 + 8*pe.IMAGE_DIRECTORY_ENTRY_SECURITY
	le := binary.LittleEndian
	if at == 0 || at+entry+8 > uint64(len(image)) || le.Uint16(image[at:]) != 0x20b || le.Uint32(image[at+directories:]) <= pe.IMAGE_DIRECTORY_ENTRY_SECURITY {
		return image
	}
	start, size := uint64(le.Uint32(image[at+entry:])), uint64(le.Uint32(image[at+entry+4:]))
	if size == 0 || start < at+entry+8 || start+size > uint64(len(image)) || uint64(len(image))-start-size >= 8 {
		return image
	}
	bare := append([]byte(nil), image[:start]...)
	le.PutUint64(bare[at+entry:], 0)
	return bare
}
