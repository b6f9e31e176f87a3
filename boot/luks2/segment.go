package luks2

import "fmt"

// Segment is where the data is and how it is encrypted, in the terms of the
// kernel's crypt target. The tweak of a sector is its number from the start of
// the segment, in units of 512 bytes.
type Segment struct {
	Offset int64 // on the device, in bytes
	Length int64 // in bytes
	Cipher string
	Sector int // bytes that are encrypted as one
}

// Segment returns the volume's only segment, which reaches to the end of the
// device.
func (h *Header) Segment() (Segment, error) {
	s := Segment{Offset: DataOffset, Length: h.size - DataOffset, Cipher: Cipher, Sector: CryptSector}
	if s.Length%CryptSector != 0 {
		return Segment{}, fmt.Errorf("luks2: %d bytes of data are not whole sectors of %d", s.Length, CryptSector)
	}
	return s, nil
}
