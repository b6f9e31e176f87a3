// Package bootoption reads the firmware's boot options as far as they say on
// which device the boot manager lay: two disks can carry the same partitions,
// and only one of them was started from.
//
// It refuses an option that does not parse to its last byte, and says nothing
// about a device that is named otherwise than by its way through PCI.
package bootoption

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// MaxSize bounds an option in bytes.
const MaxSize = 64 << 10

// A Function is a place on a PCI bus.
type Function struct{ Device, Function uint8 }

// String returns the place as sysfs ends a PCI address.
func (f Function) String() string { return fmt.Sprintf("%02x.%x", f.Device, f.Function) }

// Kinds of nodes (UEFI 2.10, section 10.3).
const (
	headerSize           = 4 // type, subtype, length
	typeHardware, subPCI = 0x01, 0x01
	pciSize              = 6 // header, function, device
	typeEnd              = 0x7f
)

// Parse reads the content of a Boot#### variable, an EFI_LOAD_OPTION (UEFI 2.10,
// section 3.1.3), and returns the way through PCI on which its first device path
// leads: one function a bus, from the root bridge to the controller. It is empty
// where the path does not say.
func Parse(option []byte) ([]Function, error) {
	if len(option) > MaxSize {
		return nil, fmt.Errorf("boot option has %d bytes, more than %d", len(option), MaxSize)
	}
	if len(option) < 8 {
		return nil, fmt.Errorf("boot option has %d bytes, want at least 8", len(option))
	}
	pathSize := int(binary.LittleEndian.Uint16(option[4:]))
	rest := option[6:]
	for { // the description ends with a NUL
		if len(rest) < 2 {
			return nil, errors.New("boot option's description does not end")
		}
		char := binary.LittleEndian.Uint16(rest)
		rest = rest[2:]
		if char == 0 {
			break
		}
	}
	if pathSize > len(rest) {
		return nil, fmt.Errorf("boot option's device path of %d bytes runs past its end", pathSize)
	}
	return parsePath(rest[:pathSize])
}

func parsePath(path []byte) (way []Function, err error) {
	for len(path) > 0 {
		if len(path) < headerSize {
			return nil, errors.New("device path ends in the middle of a node")
		}
		size := int(binary.LittleEndian.Uint16(path[2:]))
		if size < headerSize || size > len(path) {
			return nil, fmt.Errorf("device path node claims %d bytes of %d", size, len(path))
		}
		switch node := path[:size]; {
		case node[0] == typeEnd:
			return way, nil
		case node[0] == typeHardware && node[1] == subPCI:
			if size != pciSize {
				return nil, fmt.Errorf("PCI node has %d bytes, want %d", size, pciSize)
			}
			way = append(way, Function{Device: node[5], Function: node[4]})
		}
		path = path[size:]
	}
	return nil, errors.New("device path has no end")
}
