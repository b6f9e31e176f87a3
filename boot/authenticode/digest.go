// Package authenticode signs EFI images and verifies their signatures
// (Windows Authenticode Portable Executable Signature Format; UEFI 2.10,
// section 32.2.4). It covers what Secure Boot takes from an owner's own keys:
// SHA-256, RSA, the signer's certificate inside the signature.
//
// It is stricter than firmware. It refuses an image of which any byte is
// neither hashed nor part of the signatures, one of whose signatures any does
// not fit it, signatures without signed attributes or with several signers,
// and signers further from the trusted certificates than issued by one.
// It knows no revocation list and no clock, as firmware does not ask for the
// time either.
package authenticode

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"halogenos.internal/boot/internal/pe"
)

// certificateAlignment is what the certificate table and each signature in it
// start on a multiple of, in bytes.
const certificateAlignment = 8

// Digest returns the SHA-256 PE hash of an image: of all but the checksum and
// what signing adds. So it is the same before and after signing. An unsigned
// image is hashed with the zeros behind it that signing would add to reach a
// multiple of 8 bytes.
func Digest(image []byte) ([sha256.Size]byte, error) {
	file, err := parse(image)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return digest(image, file), nil
}

// Measured returns the SHA-256 PE hash as EDK2 measures an image into PCR 4. It is
// Digest but for an unsigned image whose size is not a multiple of 8: no zeros follow.
func Measured(image []byte) ([sha256.Size]byte, error) {
	file, err := parse(image)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	pad := 0
	if file.CertificateSize != 0 {
		pad = padding(len(unsigned(image, file)))
	}
	return hashed(image, file, pad), nil
}

// parse wants an image whose headers and sections follow each other without a
// gap, since the bytes of a gap would be loaded by nobody and hashed by some.
func parse(image []byte) (*pe.File, error) {
	file, err := pe.Parse(image)
	if err != nil {
		return nil, fmt.Errorf("parse PE image: %w", err)
	}
	end := uint64(file.SizeOfHeaders)
	for _, s := range file.ByOffset() {
		if uint64(s.Offset) != end {
			return nil, fmt.Errorf("parse PE image: %d bytes before section %s belong to nothing", uint64(s.Offset)-end, s.Name)
		}
		end = s.End()
	}
	return file, nil
}

func digest(image []byte, file *pe.File) [sha256.Size]byte {
	return hashed(image, file, padding(len(unsigned(image, file))))
}

// hashed is the PE hash with so many zeros at the end.
func hashed(image []byte, file *pe.File, pad int) (sum [sha256.Size]byte) {
	checksum := file.Optional + pe.OffCheckSum
	directory := file.Optional + pe.OffCertificateDirectory
	content := unsigned(image, file)
	h := sha256.New()
	h.Write(content[:checksum])
	h.Write(content[checksum+4 : directory])
	h.Write(content[directory+8:])
	h.Write(make([]byte, pad))
	h.Sum(sum[:0])
	return sum
}

// unsigned returns the image without its certificate table.
func unsigned(image []byte, file *pe.File) []byte {
	if file.CertificateSize == 0 {
		return image
	}
	return image[:file.CertificateOffset]
}

func padding(size int) int { return -size & (certificateAlignment - 1) }

// Strip returns a copy of an image without its signatures. Its Digest is the
// same.
func Strip(image []byte) ([]byte, error) {
	file, err := parse(image)
	if err != nil {
		return nil, err
	}
	return withTable(unsigned(image, file), file, nil), nil
}

// withTable returns content followed by a certificate table.
func withTable(content []byte, file *pe.File, table []byte) []byte {
	le := binary.LittleEndian
	pad := 0
	if len(table) > 0 {
		pad = padding(len(content))
	}
	out := make([]byte, len(content)+pad+len(table))
	copy(out, content)
	copy(out[len(content)+pad:], table)
	directory := out[file.Optional+pe.OffCertificateDirectory:]
	le.PutUint64(directory, 0)
	if len(table) > 0 {
		le.PutUint32(directory, uint32(len(content)+pad))
		le.PutUint32(directory[4:], uint32(len(table)))
	}
	// Zero says that nobody computed one, which stays true.
	if field := out[file.Optional+pe.OffCheckSum:]; le.Uint32(field) != 0 {
		le.PutUint32(field, 0)
		le.PutUint32(field, checksum(out))
	}
	return out
}

// checksum is the optional header's checksum (PE specification, "CheckSum"),
// with that field itself zero: the 16-bit words added with carry, and the size.
func checksum(image []byte) uint32 {
	var sum uint64
	rest := image
	for ; len(rest) >= 2; rest = rest[2:] {
		sum += uint64(binary.LittleEndian.Uint16(rest))
	}
	if len(rest) == 1 {
		sum += uint64(rest[0])
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint32(sum) + uint32(len(image))
}
