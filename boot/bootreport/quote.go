package bootreport

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/policy"
)

// KeyTemplate is that of the attestation key: a primary key of the owner hierarchy, for
// ECDSA over P-256 with SHA-256, restricted to what the TPM itself has put together. The
// TPM makes the same key of it whenever it is asked, until it is cleared, so that there
// is nothing to keep and nothing to lose; and a TPM that was cleared for its next owner
// is another machine from then on, as it is not with a key of the endorsement hierarchy.
func KeyTemplate() tpm2.TPMTPublic {
	label := sha256.Sum256([]byte(domain)) // no other program's key by accident
	return keyAt(label[:], make([]byte, len(label)))
}

func keyAt(x, y []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true,
			Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
			KDF:     tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: y},
		}),
	}
}

// fence turns a panic of the parser, which works by reflection, into an error.
func fence(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("malformed: %v", p)
	}
}

// readKey reads a TPMT_PUBLIC and refuses any but one of the template.
func readKey(public []byte) (key *ecdsa.PublicKey, err error) {
	defer fence(&err)
	parsed, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil {
		return nil, err
	}
	if parsed.Type != tpm2.TPMAlgECC {
		return nil, errors.New("it is not for elliptic curves")
	}
	point, err := parsed.Unique.ECC()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(tpm2.Marshal(keyAt(point.X.Buffer, point.Y.Buffer)), public) {
		return nil, errors.New("it is not of the template for boot reports")
	}
	key = &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int).SetBytes(point.X.Buffer), Y: new(big.Int).SetBytes(point.Y.Buffer)}
	if _, err := key.ECDH(); err != nil { // which a point that is not on the curve has none for
		return nil, fmt.Errorf("it is not a point of P-256: %w", err)
	}
	return key, nil
}

// KeyName returns the Name of an attestation key, by which a machine is known.
func KeyName(public []byte) (policy.Name, error) {
	if _, err := readKey(public); err != nil {
		return policy.Name{}, fmt.Errorf("attestation key: %w", err)
	}
	return policy.NameOf(public), nil
}

// checkSignature verifies the signature over the quote by the report's own key.
func (r *Report) checkSignature() (err error) {
	defer fence(&err)
	key, err := readKey(r.Key)
	if err != nil {
		return fmt.Errorf("the key: %w", err)
	}
	s, err := tpm2.Unmarshal[tpm2.TPMTSignature](r.Signature)
	if err != nil {
		return fmt.Errorf("the signature: %w", err)
	}
	if s.SigAlg != tpm2.TPMAlgECDSA {
		return errors.New("the signature is not ECDSA")
	}
	ecc, err := s.Signature.ECDSA()
	if err != nil || ecc.Hash != tpm2.TPMAlgSHA256 || !bytes.Equal(tpm2.Marshal(*s), r.Signature) {
		return errors.New("the signature is not ECDSA with SHA-256")
	}
	sum := sha256.Sum256(r.Quote)
	if !ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(ecc.SignatureR.Buffer), new(big.Int).SetBytes(ecc.SignatureS.Buffer)) {
		return errors.New("the quote is not signed by the report's key: somebody has changed it")
	}
	return nil
}

// readQuote returns what the quote binds: extraData, and the digest over the registers.
func (r *Report) readQuote() (extra, digest []byte, err error) {
	defer fence(&err)
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](r.Quote)
	if err != nil {
		return nil, nil, err
	}
	// A restricted key signs nothing with this mark but what its TPM has put together.
	if a.Magic != tpm2.TPMGeneratedValue || a.Type != tpm2.TPMSTAttestQuote || !bytes.Equal(tpm2.Marshal(*a), r.Quote) {
		return nil, nil, errors.New("it is not a TPM's quote")
	}
	q, err := a.Attested.Quote()
	if err != nil {
		return nil, nil, err
	}
	if !bytes.Equal(tpm2.Marshal(q.PCRSelect), tpm2.Marshal(Selection())) {
		return nil, nil, fmt.Errorf("it is over other PCRs than %v of the SHA-256 bank", Quoted())
	}
	return a.ExtraData.Buffer, q.PCRDigest.Buffer, nil
}

// Selection is what a TPM is asked to quote.
func Selection() tpm2.TPMLPCRSelection {
	var which []uint
	for _, n := range Quoted() {
		which = append(which, uint(n))
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(which...),
	}}}
}

// checkQuote checks that the TPM has quoted these registers and this statement.
func (r *Report) checkQuote() error {
	extra, digest, err := r.readQuote()
	if err != nil {
		return fmt.Errorf("the quote: %w", err)
	}
	want, err := r.Statement.Qualifier()
	if err != nil {
		return err
	}
	if !bytes.Equal(extra, want[:]) {
		return errors.New("the TPM has quoted for another statement: somebody has changed what the report says of the boot")
	}
	if !r.Fits(digest) {
		return errors.New("the TPM has quoted other values than the report's PCRs: somebody has changed them")
	}
	return nil
}

// Fits reports whether a quote's digest is that of the report's registers.
func (r *Report) Fits(digest []byte) bool {
	h := sha256.New()
	for _, p := range r.PCRs {
		h.Write(p.SHA256[:])
	}
	return bytes.Equal(h.Sum(nil), digest)
}
