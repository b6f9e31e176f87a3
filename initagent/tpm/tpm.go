// Package tpm is the machine's side of the TPM 2.0: it reads and extends PCRs,
// keeps the policy record in an NV index, and seals and unseals the machine
// secret. What the policies are is decided in boot/policy.
//
// It refuses to seal to PCRs that nothing was measured into, to hand a secret
// to a storage root key that is not the one it was sealed under, to believe an
// answer that carries no proof where a forged one would matter, and to take
// over NV indexes and keys that it did not make.
//
// # Sessions
//
// Between processor and TPM runs a bus that can be listened to and written on.
// Every command that carries a secret, and every one whose answer is believed,
// runs in a session salted to the storage root key, whose Name was compared
// with the recorded one: its parameters are encrypted with AES-128-CFB and its
// answers are authenticated. One parameter is left in clear on purpose, the
// record that an NV write carries, which everybody may read; see WriteRecord.
//
// A TPM value is for one goroutine.
package tpm

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// TPM is a connection to a TPM 2.0.
type TPM struct {
	t              transport.TPM
	sleep          sleeper
	closeTransport func() error

	key     *storageKey  // once it was looked for
	session tpm2.Session // authenticates extends; opened with the first after key is known
	endings []func() error
}

// OpenTransport uses a TPM that somebody else opened and will close.
func OpenTransport(t transport.TPM) *TPM {
	return newTPM(t, time.Sleep)
}

func newTPM(t transport.TPM, sleep sleeper) *TPM {
	return &TPM{t: &patient{inner: t, sleep: sleep}, sleep: sleep, closeTransport: func() error { return nil }}
}

// Close flushes what this value left in the TPM, and closes what Open opened.
func (t *TPM) Close() error {
	var errs []error
	for i := len(t.endings) - 1; i >= 0; i-- {
		errs = append(errs, t.endings[i]())
	}
	t.endings, t.session, t.key = nil, nil, nil
	errs = append(errs, t.closeTransport())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("closing the TPM: %w", err)
	}
	return nil
}

// flush removes a transient object or a session from the TPM.
func (t *TPM) flush(h tpm2.TPMHandle) error {
	_, err := tpm2.FlushContext{FlushHandle: h}.Execute(t.t)
	return wrap("flushing a TPM handle", err)
}

// nonceSize is that of the caller's nonces: the most a SHA-256 session takes
// is 32, and 16 is what its security rests on.
const nonceSize = 16
