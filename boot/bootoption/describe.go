package bootoption

import (
	"encoding/binary"
	"unicode/utf16"
)

// Describe returns what the firmware's menu calls an option, an EFI_LOAD_OPTION (UEFI 2.10,
// section 3.1.3), which Parse has to take. It is what somebody has written, and may have
// any characters.
func Describe(option []byte) (string, error) {
	if _, err := Parse(option); err != nil {
		return "", err
	}
	var units []uint16
	for at := 6; ; at += 2 { // Parse has found its end
		unit := binary.LittleEndian.Uint16(option[at:])
		if unit == 0 {
			return string(utf16.Decode(units)), nil
		}
		units = append(units, unit)
	}
}
