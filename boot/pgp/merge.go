package pgp

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// A section is one part of a certificate: the primary key, a name or a subkey,
// with the signatures that follow it.
type section struct {
	head       frame
	signatures []frame
}

// sections cuts a certificate whose form was checked.
func sections(all []frame) []section {
	var out []section
	for _, f := range all {
		if f.tag == tagSignature && len(out) > 0 {
			last := &out[len(out)-1]
			last.signatures = append(last.signatures, f)
			continue
		}
		out = append(out, section{head: f})
	}
	return out
}

// Merge returns the certificate with what another copy of it says besides: later
// expiry dates, subkeys, revocations. Nothing is ever taken out. The other copy
// must have the same primary key, and of it only what the primary key signed
// counts, so it may come from anybody. The certificate itself is returned where
// there is nothing to learn.
func (k *Key) Merge(other *Key) (*Key, error) {
	if k.fingerprint != other.fingerprint {
		return nil, fmt.Errorf("OpenPGP key %s is not %s", other.fingerprint, k.fingerprint)
	}
	mine, err := frames(k.binary)
	if err != nil {
		return nil, err
	}
	theirs, err := frames(other.binary)
	if err != nil {
		return nil, err
	}
	entity, err := k.entity()
	if err != nil {
		return nil, err
	}
	out, news := sections(mine), sections(theirs)
	learned := false
	for _, s := range news {
		learned = add(&out, s, entity.PrimaryKey) || learned
	}
	if !learned {
		return k, nil
	}
	var merged bytes.Buffer
	for _, s := range ordered(out) {
		for _, f := range append([]frame{s.head}, s.signatures...) {
			merged.Write(f.encode())
		}
	}
	// Whatever else it is, the result is a certificate that can be read.
	return ParseKey(merged.Bytes())
}

// add puts what is new and genuine of a section into a certificate.
func add(to *[]section, s section, primary *packet.PublicKey) bool {
	at := slices.IndexFunc(*to, func(have section) bool {
		return have.head.tag == s.head.tag && bytes.Equal(have.head.body, s.head.body)
	})
	var fresh []frame
	for _, f := range s.signatures {
		if identity(f.body) == nil {
			continue
		}
		known := at >= 0 && slices.ContainsFunc((*to)[at].signatures, func(have frame) bool {
			return bytes.Equal(identity(have.body), identity(f.body)) && ownSignature(primary, s.head, have)
		})
		same := func(have frame) bool { return bytes.Equal(identity(have.body), identity(f.body)) }
		if !known && !slices.ContainsFunc(fresh, same) && ownSignature(primary, s.head, f) {
			fresh = append(fresh, f)
		}
	}
	if len(fresh) == 0 {
		return false
	}
	if at < 0 {
		*to = append(*to, section{s.head, fresh})
		return true
	}
	(*to)[at].signatures = append((*to)[at].signatures, fresh...)
	return true
}

// ordered returns the primary key, then names, then subkeys, as RFC 9580 has
// them (section 10.1).
func ordered(all []section) []section {
	rank := func(s section) int {
		return slices.Index([]uint8{tagPublicKey, tagUserID, tagUserAttribute, tagPublicSubkey}, s.head.tag)
	}
	out := slices.Clone(all)
	slices.SortStableFunc(out, func(a, b section) int { return rank(a) - rank(b) })
	return out
}

// maxUnsigned bounds the area of a signature that anybody can change, in bytes: it
// holds at most the signature of a subkey over its primary key.
const maxUnsigned = 2 << 10

// identity is what a signature packet of version 4 says: all that it signs of
// itself. Two with the same mean the same, whatever else differs, so that nobody
// can make a certificate grow by copies. It is nil for any other packet.
func identity(body []byte) []byte {
	if len(body) < 6 || body[0] != 4 {
		return nil
	}
	hashed := 6 + int(binary.BigEndian.Uint16(body[4:]))
	if len(body) < hashed+2 || binary.BigEndian.Uint16(body[hashed:]) > maxUnsigned {
		return nil
	}
	return body[:hashed]
}

// ownSignature reports whether a signature is the primary key's over what it
// follows, of a kind that belongs there and with a hash that still counts.
func ownSignature(primary *packet.PublicKey, over, f frame) bool {
	p, err := f.parse()
	if err != nil {
		return false
	}
	sig, ok := p.(*packet.Signature)
	if !ok || sig.Version != 4 {
		return false
	}
	// Whose it is stands in what nothing signs too, and the library passes over one
	// that names another: anyone who changed that would keep the genuine one out for ever.
	if !sig.CheckKeyIdOrFingerprint(primary) || sig.IssuerKeyId == nil || *sig.IssuerKeyId != primary.KeyId {
		return false
	}
	revokes := sig.SigType == packet.SigTypeKeyRevocation || sig.SigType == packet.SigTypeSubkeyRevocation
	if config().RejectHashAlgorithm(sig.Hash) && !(revokes && sig.Hash == crypto.SHA1) { // an old revocation is one all the same
		return false
	}
	switch over.tag {
	case tagPublicKey:
		switch sig.SigType {
		case packet.SigTypeDirectSignature:
			return primary.VerifyDirectKeySignature(sig) == nil
		case packet.SigTypeKeyRevocation:
			return primary.VerifyRevocationSignature(sig) == nil
		}
	case tagUserID:
		switch sig.SigType {
		case packet.SigTypeGenericCert, packet.SigTypePersonaCert, packet.SigTypeCasualCert, packet.SigTypePositiveCert, packet.SigTypeCertificationRevocation:
			return primary.VerifyUserIdSignature(string(over.body), primary, sig) == nil
		}
	case tagPublicSubkey:
		p, err := over.parse()
		subkey, ok := p.(*packet.PublicKey)
		if err != nil || !ok {
			return false
		}
		switch sig.SigType {
		case packet.SigTypeSubkeyBinding:
			return primary.VerifyKeySignature(subkey, sig) == nil
		case packet.SigTypeSubkeyRevocation:
			return primary.VerifySubkeyRevocationSignature(sig, subkey) == nil
		}
	}
	return false
}
