package pcr

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// devicePath puts an EFI device path into words (UEFI 2.10, section 10.3), as
// far as it tells a person which device is meant.
func devicePath(b []byte) string {
	const (
		nodeHeader = 4
		most       = 16
	)
	var parts []string
	for len(b) >= nodeHeader && len(parts) < most {
		size := int(binary.LittleEndian.Uint16(b[2:]))
		if size < nodeHeader || size > len(b) {
			parts = append(parts, "unreadable")
			break
		}
		if b[0] == 0x7f { // end
			break
		}
		parts = append(parts, devicePathNode(b[0], b[1], b[nodeHeader:size]))
		b = b[size:]
	}
	if len(parts) == 0 {
		return "memory"
	}
	return strings.Join(parts, "/")
}

func devicePathNode(kind, subtype byte, data []byte) string {
	le := binary.LittleEndian
	switch key := [2]byte{kind, subtype}; {
	case key == [2]byte{1, 1} && len(data) == 2:
		return fmt.Sprintf("Pci(%#x,%#x)", data[1], data[0])
	case key == [2]byte{2, 1} && len(data) == 8 && le.Uint32(data) == 0x0a0341d0: // PNP0A03
		return fmt.Sprintf("PciRoot(%#x)", le.Uint32(data[4:]))
	case key == [2]byte{3, 1} && len(data) == 4:
		return fmt.Sprintf("Ata(%d,%d)", data[0], data[1])
	case key == [2]byte{3, 2} && len(data) == 4:
		return fmt.Sprintf("Scsi(%d,%d)", le.Uint16(data), le.Uint16(data[2:]))
	case key == [2]byte{3, 5} && len(data) == 2:
		return fmt.Sprintf("USB(%d,%d)", data[0], data[1])
	case key == [2]byte{3, 11}:
		return "Network card"
	case key == [2]byte{3, 18} && len(data) == 6:
		return fmt.Sprintf("Sata(%d)", le.Uint16(data))
	case key == [2]byte{3, 23} && len(data) == 12:
		return fmt.Sprintf("NVMe(%d)", le.Uint32(data))
	case key == [2]byte{4, 1} && len(data) == 38:
		return fmt.Sprintf("Partition %d", le.Uint32(data))
	case key == [2]byte{1, 4}, key == [2]byte{3, 10}, key == [2]byte{4, 3}:
		return "Vendor's own"
	case key == [2]byte{4, 4}:
		return textUTF16(data)
	case key == [2]byte{4, 6} && len(data) == 16, key == [2]byte{4, 7} && len(data) == 16:
		return "firmware volume"
	case key == [2]byte{4, 8} && len(data) == 20:
		return fmt.Sprintf("option ROM(%#x,%#x)", le.Uint64(data[4:]), le.Uint64(data[12:]))
	}
	return fmt.Sprintf("node(%d,%d)", kind, subtype)
}
