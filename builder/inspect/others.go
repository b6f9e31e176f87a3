package inspect

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// others are files that somebody may give, and that neither the builder makes nor
// machines have, by what they have at a place.
var others = []struct {
	at    int
	magic string
	what  string
}{
	{0, "LUKS\xba\xbe\x00\x01", "a LUKS1 volume, and machines have LUKS2: `cryptsetup luksDump` shows it, `cryptsetup convert --type luks2` makes one of it"},
	{0x202, "HdrS", "a program in the form of a Linux kernel (bzImage) that is not one for EFI, such as ipxe.lkrn or memtest86+ for the BIOS: give its EFI build (ipxe.efi, memtest86+ x64.efi)"},
	{54, "FAT12   ", "a FAT12 file system, and an ESP of machines is FAT32: `mdir -i FILE ::` shows what is in it"},
	{54, "FAT16   ", "a FAT16 file system, and an ESP of machines is FAT32: `mdir -i FILE ::` shows what is in it"},
}

// otherKind says what a file is by its start that is not described here; nil where
// it is not known.
func otherKind(start []byte) error {
	for _, o := range others {
		if len(start) >= o.at && bytes.HasPrefix(start[o.at:], []byte(o.magic)) {
			return errors.New("is " + o.what)
		}
	}
	return nil
}

// otherSecret says what a small file is that looks like a key and is none that is
// described here; nil where it is not known.
func otherSecret(text []byte) error {
	var pfx struct { // RFC 7292, section 4
		Version  int
		AuthSafe struct {
			Type    asn1.ObjectIdentifier
			Content asn1.RawValue `asn1:"explicit,tag:0"`
		}
		Mac asn1.RawValue `asn1:"optional"`
	}
	if _, err := asn1.Unmarshal(text, &pfx); err == nil && pfx.Version == 3 {
		return errors.New("is a PKCS#12 file, a key and certificates behind a password: `openssl pkcs12 -in FILE -nokeys` writes the certificates")
	}
	if block, err := armor.Decode(bytes.NewReader(text)); err == nil && block.Type == "PGP SIGNATURE" {
		return signatureOf(packet.Read(block.Body))
	}
	if len(text) == 0 || text[0]&0x80 == 0 {
		return nil
	}
	return signatureOf(packet.Read(bytes.NewReader(text)))
}

func signatureOf(p packet.Packet, err error) error {
	s, ok := p.(*packet.Signature)
	if err != nil || !ok || s.SigType != packet.SigTypeBinary && s.SigType != packet.SigTypeText {
		return nil
	}
	return fmt.Errorf("is a detached OpenPGP signature, by the key %X, made on %s: gpg --verify FILE WHAT-IT-IS-OVER checks it, and 'halogen release --verify' those of releases",
		s.IssuerFingerprint, s.CreationTime.UTC().Format("2006-01-02 15:04:05"))
}
