package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/policy"
)

// What can be wrong with a TPM, for callers that branch on it. An error that
// wraps none of them is a fault that no branch cures.
var (
	ErrAbsent      = errors.New("no TPM 2.0 was found (is it switched on in the firmware setup?)")
	ErrBusy        = errors.New("the TPM stays busy")
	ErrTimeout     = errors.New("the TPM does not answer")
	ErrMalformed   = errors.New("the TPM's answer is malformed")
	ErrFailed      = errors.New("the TPM is in failure mode (a power cycle may cure it)")
	ErrNotStarted  = errors.New("the firmware did not start the TPM")
	ErrLockout     = errors.New("the TPM is locked out after wrong authorisations")
	ErrLockoutAuth = errors.New("the TPM's lockout hierarchy has a password that is not this machine's, so that others may set its count of wrong PINs back (clear the TPM in the firmware setup)")
	ErrOwnerAuth   = errors.New("the TPM's owner hierarchy has a password (clear the TPM in the firmware setup)")
	ErrNoSpace     = errors.New("the TPM has no room for an NV index")
	ErrUnsupported = errors.New("the TPM lacks what is needed")

	ErrBankInactive = errors.New("the TPM's SHA-256 bank is not active")

	ErrChanged        = errors.New("the storage root key is not the one that sealed: the TPM was cleared, is another one, or something stands in between")
	ErrIndexMissing   = errors.New("the NV index is gone")
	ErrIndexForeign   = errors.New("the NV index is not the one that was defined")
	ErrIndexUnwritten = errors.New("the NV index was never written: it was deleted and defined again")
	ErrExpired        = errors.New("it was sealed for a few starts of the machine, and those are over")
	ErrPolicy         = errors.New("the TPM refuses the policy")

	ErrPIN      = errors.New("a PIN is needed")
	ErrWrongPIN = errors.New("this is not the PIN")
)

// MismatchError is why an unlock was refused although the TPM is in order:
// this boot is none of those that are allowed.
type MismatchError struct {
	Now         policy.Boot // what the PCRs hold; read without authentication, for people
	Explanation policy.Explanation
}

// Error implements error.
func (e *MismatchError) Error() string {
	return "this boot may not unlock: " + e.Explanation.String()
}

// Unwrap makes errors.Is(err, ErrPolicy) true.
func (e *MismatchError) Unwrap() error { return ErrPolicy }

// classes maps response codes to the errors that callers branch on.
var classes = []struct {
	code  tpm2.TPMRC
	class error
}{
	{tpm2.TPMRCFailure, ErrFailed},
	{tpm2.TPMRCInitialize, ErrNotStarted},
	{tpm2.TPMRCLockout, ErrLockout},
	{tpm2.TPMRCNVSpace, ErrNoSpace},
	{tpm2.TPMRCNVSize, ErrNoSpace},
	{tpm2.TPMRCCommandCode, ErrUnsupported},
	{tpm2.TPMRCRetry, ErrBusy},
	{tpm2.TPMRCYielded, ErrBusy},
	{tpm2.TPMRCTesting, ErrBusy},
	{tpm2.TPMRCNVRate, ErrBusy},
	{tpm2.TPMRCNVUnavailable, ErrBusy},
}

// wrap names the operation that failed and classifies its error. Errors that
// are neither a response code nor from the transport come from parsing the
// answer, which go-tpm does not mark.
func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	for _, class := range []error{
		ErrAbsent, ErrBusy, ErrTimeout, ErrMalformed, ErrFailed, ErrNotStarted, ErrLockoutAuth, ErrLockout, ErrOwnerAuth, ErrNoSpace,
		ErrUnsupported, ErrBankInactive, ErrChanged, ErrIndexMissing, ErrIndexForeign, ErrIndexUnwritten, ErrExpired, ErrPolicy, ErrPIN, ErrWrongPIN,
		policy.ErrSealed, errTransport,
	} {
		if errors.Is(err, class) {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	for _, c := range classes {
		if errors.Is(err, c.code) {
			return fmt.Errorf("%s: %w (%w)", op, c.class, err)
		}
	}
	if _, ok := errors.AsType[tpm2.TPMRC](err); ok {
		return fmt.Errorf("%s: %w", op, err)
	}
	return fmt.Errorf("%s: %w: %w", op, ErrMalformed, err)
}

// isCode reports whether the TPM answered with one of these codes.
func isCode(err error, codes ...tpm2.TPMRC) bool {
	for _, c := range codes {
		if errors.Is(err, c) {
			return true
		}
	}
	return false
}

// fence turns a panic while an answer is taken apart into an error. go-tpm
// parses by reflection what a device, or something soldered in front of it,
// sent; PID 1 must outlive that.
func fence(op string, err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%s: %w: %v", op, ErrMalformed, p)
	}
}
