package tpm

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"halogenos.internal/boot/bootreport"
	"halogenos.internal/boot/policy"
)

// ErrOtherTPM says that a challenge is not for this TPM.
var ErrOtherTPM = errors.New("the challenge is for another TPM")

// Answer decrypts a challenge's answer, which this TPM does only where it holds both the
// endorsement key and the attestation key that the challenge names. Both are made for it
// and flushed. The answer is not a secret of this machine's: it goes to who has asked.
func (t *TPM) Answer(c *bootreport.Challenge) (answer []byte, err error) {
	const op = "answering a challenge"
	defer fence(op, &err)
	template, err := c.EndorsementTemplate()
	if err != nil {
		return nil, err
	}
	key, err := tpm2.CreatePrimary{
		PrimaryHandle: owner(tpm2.PasswordAuth(nil)), InPublic: tpm2.New2B(bootreport.KeyTemplate()),
	}.Execute(t.t)
	if err != nil {
		return nil, wrap("making the attestation key", ownerError(err))
	}
	defer func() { err = errors.Join(err, t.flush(key.ObjectHandle)) }()
	if policy.NameOf(key.OutPublic.Bytes()) != c.Key {
		return nil, fmt.Errorf("%s: %w: its attestation key is not this machine's, whose TPM may have been cleared since that report", op, ErrOtherTPM)
	}
	endorsement, err := t.endorsement(template)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	defer func() { err = errors.Join(err, t.flush(endorsement.ObjectHandle)) }()
	if !bytes.Equal(endorsement.OutPublic.Bytes(), c.Endorsement) {
		return nil, fmt.Errorf("%s: %w: the certificate's endorsement key is not this TPM's", op, ErrOtherTPM)
	}
	rsp, err := tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: key.ObjectHandle, Name: key.Name, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle: tpm2.AuthHandle{
			Handle: endorsement.ObjectHandle, Name: endorsement.Name,
			Auth: tpm2.Policy(tpm2.TPMAlgSHA256, nonceSize, byEndorsement),
		},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.Credential},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: c.Secret},
	}.Execute(t.t)
	if err != nil {
		return nil, wrap(op, err)
	}
	return rsp.CertInfo.Buffer, nil
}

// endorsement makes the endorsement key of a template. The caller flushes it.
func (t *TPM) endorsement(template tpm2.TPMTPublic) (*tpm2.CreatePrimaryResponse, error) {
	key, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)}, InPublic: tpm2.New2B(template),
	}.Execute(t.t)
	if isCode(err, tpm2.TPMRCBadAuth, tpm2.TPMRCAuthFail) {
		return nil, fmt.Errorf("the endorsement hierarchy has a password (`tpm2_changeauth -c endorsement` removes it): %w", err)
	}
	return key, wrap("making the endorsement key", err)
}

// byEndorsement satisfies an endorsement key's policy, which wants the authorisation of
// its hierarchy (TCG EK Credential Profile 2.6, B.3).
func byEndorsement(tpm transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	_, err := tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: session, NonceTPM: nonce,
	}.Execute(tpm)
	return err
}
