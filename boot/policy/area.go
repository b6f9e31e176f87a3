package policy

import (
	"crypto/ecdsa"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Index is the NV index that holds a [Record]: where it is, and the key that
// may write it.
type Index struct {
	Handle uint32
	Key    *ecdsa.PublicKey
}

// IndexAttributes are those of the NV index. It can be written only whole and
// only under its policy, a signature of the write key; neither the owner nor
// the platform nor an authorisation value writes it. Everybody may read. It is
// exempt from dictionary attack protection, so a lockout does not block it.
//
// The owner can delete it (owner authorisation is often empty) and gains
// nothing: defined again with another policy it has another Name, hence
// another policy digest; defined again as it was it is unwritten, and only the
// write key changes that.
func IndexAttributes(written bool) tpm2.TPMANV {
	return tpm2.TPMANV{
		PolicyWrite: true,
		WriteAll:    true,
		OwnerRead:   true,
		AuthRead:    true,
		NoDA:        true,
		NT:          tpm2.TPMNTOrdinary,
		Written:     written,
	}
}

// Public returns the index's public area, before or after its first write.
func (x Index) Public(written bool) (tpm2.TPMSNVPublic, error) {
	key, err := KeyPublic(x.Key)
	if err != nil {
		return tpm2.TPMSNVPublic{}, err
	}
	policy := Signed(NameOf(tpm2.Marshal(key)))
	return tpm2.TPMSNVPublic{
		NVIndex:    tpm2.TPMHandle(x.Handle),
		NameAlg:    tpm2.TPMAlgSHA256,
		Attributes: IndexAttributes(written),
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policy[:]},
		DataSize:   RecordSize,
	}, nil
}

// Name returns the Name that the index has once it was written, which is the
// one that policies are made with.
func (x Index) Name() (Name, error) {
	public, err := x.Public(true)
	if err != nil {
		return Name{}, err
	}
	return NameOf(tpm2.Marshal(public)), nil
}

// KeyPublic returns the public area under which the TPM loads the write key to
// check its signatures. It enters the policy of the index and is fixed.
func KeyPublic(key *ecdsa.PublicKey) (tpm2.TPMTPublic, error) {
	point, err := key.Bytes()
	if err != nil {
		return tpm2.TPMTPublic{}, fmt.Errorf("NV write key: %w", err)
	}
	if len(point) != 65 {
		return tpm2.TPMTPublic{}, fmt.Errorf("NV write key: a point of %d bytes, want 65 (P-256)", len(point))
	}
	return tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgECC,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{SignEncrypt: true, UserWithAuth: true, NoDA: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]},
			Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		}),
	}, nil
}

// SealedTemplate returns the public area of the sealed object: it stays in this
// TPM under its parent, is exempt from dictionary attack protection, and opens
// under its policy alone, never by an authorisation value.
func SealedTemplate(policy Digest) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgKeyedHash,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM:        true,
			FixedParent:     true,
			AdminWithPolicy: true,
			NoDA:            true,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policy[:]},
	}
}

// GuardedTemplate is SealedTemplate for an object whose policy asks for a PIN: the TPM
// counts wrong ones, and stops answering when there were too many.
func GuardedTemplate(policy Digest) tpm2.TPMTPublic {
	t := SealedTemplate(policy)
	t.ObjectAttributes.NoDA = false
	return t
}
