package rootpart

import (
	"errors"
	"fmt"
	"io"

	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/tpm"
)

// phrasePurpose is of the box in which the header keeps the phrase's key.
const phrasePurpose = "phrase"

// errNoPhrase says that there is none yet.
var errNoPhrase = errors.New("this machine has no phrase yet")

// KeptPhrase returns the key of the phrase that the header keeps under the machine secret.
// The caller wipes it.
func KeptPhrase(lock *rootlock.Lock, secret *policy.Secret) (*policy.Secret, error) {
	if lock.Phrase == nil {
		return nil, errors.Join(errNoPhrase, lock.StrangePhrase)
	}
	key, err := secret.Unbox(phrasePurpose, lock.Phrase.Kept)
	if err != nil {
		return nil, err
	}
	return policy.SecretFrom(key)
}

// SealPhrase seals a phrase's key to the boots that an object is released to, and puts it
// under the machine secret. All of it stays the caller's.
func SealPhrase(chip *tpm.TPM, random io.Reader, key, secret *policy.Secret, like *policy.Sealed) (*rootlock.Phrase, error) {
	sealed, err := chip.SealPhrase(key, like)
	if err != nil {
		return nil, err
	}
	plain := key.Bytes()
	defer clear(plain)
	kept, err := secret.Box(random, phrasePurpose, plain)
	if err != nil {
		return nil, err
	}
	return &rootlock.Phrase{Sealed: sealed, Kept: kept}, nil
}

// CarryPhrase has the phrase come with the header that is about to say that the TPM opens by
// sealed, and that the machine secret is now. It is not worth that header: where it fails, the
// next boot that the TPM opens seals it, or makes another one.
func (b Binding) CarryPhrase(random io.Reader, lock *rootlock.Lock, before, now *policy.Secret, sealed *policy.Sealed) {
	if lock.Phrase == nil {
		return
	}
	key, err := KeptPhrase(lock, before)
	if err == nil {
		var p *rootlock.Phrase
		if p, err = SealPhrase(b.TPM, random, key, now, sealed); err == nil {
			lock.CarryPhrase(p)
		}
		key.Wipe()
	}
	if err != nil {
		b.Say("%v", fmt.Errorf("the phrase was not sealed again: %w", err))
	}
}
