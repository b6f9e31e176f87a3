package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/bootreport"
)

// quoteTries is how often a quote is made again because something has extended a PCR in
// between, as systemd does while the system starts.
const quoteTries = 5

// Quote has the TPM sign a boot report: it fills in the registers, the key, the quote and
// the signature. The key is made for it and flushed; see [bootreport.KeyTemplate]. No
// answer needs a session: what the TPM has signed is proof by itself, and nothing is
// secret.
func (t *TPM) Quote(r *bootreport.Report) (err error) {
	const op = "quoting the PCRs"
	defer fence(op, &err)
	qualifier, err := r.Statement.Qualifier()
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	key, err := tpm2.CreatePrimary{
		PrimaryHandle: owner(tpm2.PasswordAuth(nil)), InPublic: tpm2.New2B(bootreport.KeyTemplate()),
	}.Execute(t.t)
	if err != nil {
		return wrap("making the attestation key", ownerError(err))
	}
	defer func() { err = errors.Join(err, t.flush(key.ObjectHandle)) }()
	r.Format, r.Key = bootreport.Format, key.OutPublic.Bytes()
	if _, err := bootreport.KeyName(r.Key); err != nil {
		return fmt.Errorf("%s: %w: %w", op, ErrMalformed, err)
	}
	for range quoteTries {
		fits, err := t.quote(r, tpm2.NamedHandle{Handle: key.ObjectHandle, Name: key.Name}, qualifier[:])
		if fits || err != nil {
			return wrap(op, err)
		}
	}
	return fmt.Errorf("%s: something extends them all the time: try again", op)
}

// quote makes one quote, and reports whether the registers are still those that were read
// before.
func (t *TPM) quote(r *bootreport.Report, key tpm2.NamedHandle, qualifier []byte) (fits bool, err error) {
	values, err := t.PCRs(bootreport.Quoted()...)
	if err != nil {
		return false, err
	}
	r.PCRs = nil
	for _, n := range bootreport.Quoted() {
		r.PCRs = append(r.PCRs, bootreport.PCR{PCR: n, SHA256: values[n]})
	}
	rsp, err := tpm2.Quote{
		SignHandle:     tpm2.AuthHandle{Handle: key.Handle, Name: key.Name, Auth: tpm2.PasswordAuth(nil)},
		QualifyingData: tpm2.TPM2BData{Buffer: qualifier},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, // the key's
		PCRSelect:      bootreport.Selection(),
	}.Execute(t.t)
	if err != nil {
		return false, err
	}
	r.Quote, r.Signature = rsp.Quoted.Bytes(), tpm2.Marshal(rsp.Signature)
	attest, err := rsp.Quoted.Contents()
	if err != nil {
		return false, err
	}
	info, err := attest.Attested.Quote()
	if err != nil {
		return false, err
	}
	return r.Fits(info.PCRDigest.Buffer), nil
}
