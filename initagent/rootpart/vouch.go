package rootpart

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/hw"
)

// ErrOtherSecret refuses to go by a machine secret that nothing shows to be in force.
var ErrOtherSecret = errors.New("the machine secret that the TPM has released does not open the Secure Boot keys that the firmware enforces, so that it is not the one in force. " +
	"Somebody who was root may have had the TPM bound to another one; or the keys on the root partition are lost. The recovery key opens your data: type it only into the version that this machine ran before. `unlock` and `reseal` at the recovery console bind the machine to its TPM again")

// CheckSecret refuses a secret that does not open the private key of a certificate in
// the firmware's db. The owner signature says of the volume alone that this machine made it: anyone who
// has read the volume key can add a secret of their own beside it, and anyone who knows an
// earlier secret can put its header back. Neither has a file with that key which their
// secret opens, unless they have the key itself.
//
// Each file that may have it is looked at until one has, so that it is found wherever a
// replacement of the secret or of the keys was cut: what a new secret opens is in NextFile
// before the header is for that secret, and keys that give way stay in NextKeysFile until
// the firmware has the new ones.
func CheckSecret(store hw.Store, secret *policy.Secret, s enroll.State, wanted contract.Requirement) error {
	if !OwnEnforced(s, wanted) {
		return nil // no db that could vouch for anything
	}
	h := held{secret: secret, db: Certificates(s)}
	for _, f := range []struct {
		name string
		look func(text []byte)
	}{{ListFile, h.keys}, {KeysFile, h.keys}, {NextFile, h.next}, {NextKeysFile, h.superseded}} {
		text, err := store.Read(f.name, maxNext)
		switch {
		case err == nil:
			f.look(text)
		case !errors.Is(err, fs.ErrNotExist):
			h.failed = errors.Join(h.failed, err)
		}
		if h.found {
			return nil
		}
	}
	if h.failed != nil {
		return fmt.Errorf("%w (%w)", ErrOtherSecret, h.failed)
	}
	return ErrOtherSecret
}

// held is what a secret opens of the root partition's files. What it does not open is
// under another one, or damaged.
type held struct {
	secret *policy.Secret
	db     []*x509.Certificate
	found  bool  // a key that the firmware enforces
	failed error // what could not be read
}

func (h *held) note(db *x509.Certificate, err error) {
	h.found = h.found || err == nil && slices.ContainsFunc(h.db, db.Equal)
}

func (h *held) keys(wrapped []byte) { h.note(firstboot.UnwrapCertificate(h.secret, wrapped)) }

func (h *held) next(box []byte) {
	if n, err := openNext(h.secret, box); err == nil {
		h.keys(n.List)
		h.superseded(n.Superseded)
	}
}

func (h *held) superseded(box []byte) {
	var n nextKeys
	text, err := h.secret.Unbox(nextKeysPurpose, box)
	if err != nil || json.Unmarshal(text, &n) != nil {
		return
	}
	key := h.secret.Key(oldKeysPurpose)
	defer clear(key[:])
	h.note(secureboot.UnwrapCertificate(key, oldKeysPurpose, n.Old))
}
