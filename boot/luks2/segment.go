package luks2

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// SectorSize is the unit of Segment and of device mapper, in bytes, whatever
// the sector size of the encryption.
const SectorSize = 512

// Segment is where the data is and how it is encrypted, in the terms of the
// kernel's crypt target.
type Segment struct {
	Offset      uint64 // on the device, in units of SectorSize
	Sectors     uint64 // in units of SectorSize
	Cipher      string // as the table has it
	IVOffset    uint64 // in units of SectorSize
	CryptSector int    // bytes that are encrypted as one: 512 to 4096
	KeySize     int    // of the volume key in bytes; 0 if the header has no keyslot
}

// Segment returns the volume's only segment.
func (h *Header) Segment() (Segment, error) {
	s := h.meta.Segments["0"]
	size := h.size - int64(s.Offset)
	if s.Size != sizeDynamic {
		n, err := parseDecimal(s.Size)
		if err != nil {
			return Segment{}, fmt.Errorf("luks2: segment 0: %w", err)
		}
		size = int64(n)
	}
	if size%int64(s.SectorSize) != 0 {
		return Segment{}, fmt.Errorf("luks2: segment 0: %d bytes of data are not whole sectors of %d", size, s.SectorSize)
	}
	keySize := 0
	for _, k := range h.meta.Keyslots {
		keySize = k.KeySize
	}
	return Segment{
		Offset:      uint64(s.Offset) / SectorSize,
		Sectors:     uint64(size) / SectorSize,
		Cipher:      s.Encryption,
		IVOffset:    uint64(s.IVTweak),
		CryptSector: s.SectorSize,
		KeySize:     keySize,
	}, nil
}

// HexKey returns a volume key as a crypt table has it. Both are the caller's
// to wipe.
func HexKey(volumeKey []byte) []byte {
	return hex.AppendEncode(make([]byte, 0, hex.EncodedLen(len(volumeKey))), volumeKey)
}

// KeyringKey returns a reference to a key of size bytes in the kernel's
// keyring, as a crypt table has it; kind is "logon" or "user".
func KeyringKey(size int, kind, description string) []byte {
	return fmt.Appendf(nil, ":%d:%s:%s", size, kind, description)
}

// CryptTable returns the parameters of the crypt target
// (Documentation/admin-guide/device-mapper/dm-crypt.rst) for a mapping of
// s.Sectors: key is what HexKey or KeyringKey returned, device a path or
// major:minor. Options, such as allow_discards, come on top of those that the
// segment needs. With a HexKey the result is secret, and the caller's to wipe.
func (s Segment) CryptTable(key []byte, device string, options ...string) []byte {
	if s.CryptSector != SectorSize {
		options = append([]string{"sector_size:" + strconv.Itoa(s.CryptSector)}, options...)
	}
	tail := fmt.Sprintf(" %d %s %d", s.IVOffset, device, s.Offset)
	if len(options) > 0 {
		tail += fmt.Sprintf(" %d %s", len(options), strings.Join(options, " "))
	}
	// One allocation of the final size: a growing slice leaves copies behind.
	table := make([]byte, 0, len(s.Cipher)+1+len(key)+len(tail))
	table = append(table, s.Cipher...)
	table = append(table, ' ')
	table = append(table, key...)
	return append(table, tail...)
}
