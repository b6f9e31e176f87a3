package tpm

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/policy"
)

// storageHandle is where the storage root key is kept (TCG TPM v2.0
// Provisioning Guidance, 7.8, and the Registry of Reserved Handles).
const storageHandle = tpm2.TPMHandle(0x81000001)

// storageKey is the storage root key in use.
type storageKey struct {
	handle tpm2.TPMHandle
	public tpm2.TPMTPublic
	name   policy.Name
}

var (
	errNoKey      = errors.New("no key at the handle")
	errForeignKey = errors.New("not an ECC P-256 storage key of the TCG template")
)

// salted returns the options of a session that only the holder of the storage
// root key's private part can take part in.
func (k *storageKey) salted() tpm2.AuthOption { return tpm2.Salted(k.handle, k.public) }

// parent names the key as the parent of an object.
func (k *storageKey) parent(auth tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: k.handle, Name: tpmName(k.name), Auth: auth}
}

func tpmName(n policy.Name) tpm2.TPM2BName { return tpm2.TPM2BName{Buffer: n[:]} }

// StorageKey finds the storage root key, or makes it and keeps it at its
// persistent handle, and returns its Name. For provisioning: the Name is not
// compared with anything, so what stands in front of the TPM at that moment is
// trusted. Where the handle holds something else, or nothing can be kept there,
// the same key is made again whenever it is needed.
func (t *TPM) StorageKey() (name policy.Name, err error) {
	const op = "finding the storage root key"
	defer fence(op, &err)
	if t.key != nil {
		return t.key.name, nil
	}
	key, err := t.readKey(storageHandle)
	if errors.Is(err, errNoKey) {
		if key, err = t.primary(); err == nil {
			key = t.persist(key)
		}
	} else if errors.Is(err, errForeignKey) {
		if key, err = t.primary(); err == nil {
			t.keepLoaded(key)
		}
	}
	if err != nil {
		return policy.Name{}, wrap(op, err)
	}
	t.key = key
	return key.name, nil
}

// UseStorageKey finds the storage root key of this Name, without making any
// that lasts. Without it the error is [ErrChanged].
func (t *TPM) UseStorageKey(want policy.Name) (err error) {
	const op = "finding the storage root key that sealed"
	defer fence(op, &err)
	if t.key != nil && t.key.name == want {
		return nil
	}
	key, err := t.readKey(storageHandle)
	if err != nil && !errors.Is(err, errNoKey) && !errors.Is(err, errForeignKey) {
		return wrap(op, err)
	}
	if err != nil || key.name != want {
		// Something else at the handle does no harm as long as the TPM still
		// has the seed that the right key comes from.
		if key, err = t.primary(); err != nil {
			return wrap(op, err)
		}
		if key.name != want {
			_ = t.flush(key.handle)
			return fmt.Errorf("%s: %w", op, ErrChanged)
		}
		t.keepLoaded(key)
	}
	// A session of another key proves nothing about this one.
	t.key, t.session = key, nil
	return nil
}

// readKey reads the key at a handle, and refuses one that is not of the
// template: an RSA key, one that signs, one that was imported and so may be
// known outside of the TPM.
func (t *TPM) readKey(h tpm2.TPMHandle) (*storageKey, error) {
	rsp, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(t.t)
	if isCode(err, tpm2.TPMRCHandle, tpm2.TPMRCValue) {
		return nil, errNoKey
	}
	if err != nil {
		return nil, err
	}
	return checkKey(h, rsp.OutPublic.Bytes())
}

// maxPublic bounds the public area of a P-256 key, which has 90 bytes.
const maxPublic = 128

// checkKey compares a public area with the template, all but the point, and
// computes the Name. That which the TPM sends along is not used.
func checkKey(h tpm2.TPMHandle, public []byte) (*storageKey, error) {
	if len(public) > maxPublic {
		return nil, errForeignKey
	}
	parsed, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errForeignKey, err)
	}
	if parsed.Type != tpm2.TPMAlgECC {
		return nil, errForeignKey
	}
	point, err := parsed.Unique.ECC()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errForeignKey, err)
	}
	want := tpm2.ECCSRKTemplate
	want.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, point)
	if !bytes.Equal(tpm2.Marshal(want), public) {
		return nil, errForeignKey
	}
	return &storageKey{handle: h, public: want, name: policy.NameOf(public)}, nil
}

// primary makes the storage root key from the owner seed. It is always the same
// key until the TPM is cleared. The caller flushes it or has it kept: a TPM has
// room for three objects, and the kernel's resource manager brings all that we
// hold back into it for every command.
func (t *TPM) primary() (*storageKey, error) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: owner(tpm2.PasswordAuth(nil)),
		InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
	}.Execute(t.t)
	if err != nil {
		return nil, ownerError(err)
	}
	key, err := checkKey(rsp.ObjectHandle, rsp.OutPublic.Bytes())
	if err != nil {
		_ = t.flush(rsp.ObjectHandle)
		return nil, fmt.Errorf("%w: a primary key other than asked for: %w", ErrMalformed, err)
	}
	return key, nil
}

// keepLoaded leaves a primary key in the TPM until the end.
func (t *TPM) keepLoaded(key *storageKey) {
	t.endings = append(t.endings, func() error { return t.flush(key.handle) })
}

// persist keeps a primary key at the persistent handle, so that later boots
// need not make it. If that fails (no room, say), the transient one serves.
func (t *TPM) persist(key *storageKey) *storageKey {
	_, err := tpm2.EvictControl{
		Auth:             owner(tpm2.PasswordAuth(nil)),
		ObjectHandle:     tpm2.NamedHandle{Handle: key.handle, Name: tpmName(key.name)},
		PersistentHandle: storageHandle,
	}.Execute(t.t)
	if err != nil {
		t.keepLoaded(key)
		return key
	}
	_ = t.flush(key.handle)
	kept := *key
	kept.handle = storageHandle
	return &kept
}

func owner(auth tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: auth}
}

// ownerError recognises that the owner hierarchy has a password.
func ownerError(err error) error {
	if isCode(err, tpm2.TPMRCBadAuth, tpm2.TPMRCAuthFail) {
		return fmt.Errorf("%w (%w)", ErrOwnerAuth, err)
	}
	return err
}
