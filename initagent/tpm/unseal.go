package tpm

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/policy"
)

const (
	// unsealAttempts bounds how often an unseal starts again because a PCR, any
	// PCR, was extended meanwhile (IMA does, in PCR 10).
	unsealAttempts = 5
	unsealPause    = 20 * time.Millisecond
)

// errRace is an unseal that has to start again.
var errRace = errors.New("PCRs changed meanwhile")

// Unseal returns the machine secret, which the caller wipes, and the record
// that allowed it (nil for [policy.KindPCR]). The caller compares the record's
// volume fingerprint once the volume is open, and extends PCR 15.
//
// It takes ten commands when nothing is wrong, in one session. When this boot
// is not allowed the error is a [*MismatchError], which says more when it is
// given boots that are known to have been allowed.
//
// The record's content is authenticated; that it is the machine's own, and not
// one that the owner of the TPM made together with a sealed object, is not
// known here and cannot be. What such a swap gains is bounded by PCR 15 and the
// phases in PCR 11: the real secret cannot be unsealed by what runs afterwards.
//
// An object that asks for a PIN is for UnsealBy.
func (t *TPM) Unseal(s *policy.Sealed, known ...policy.Boot) (m *policy.Secret, r *policy.Record, err error) {
	return t.UnsealBy(s, nil, known...)
}

// UnsealBy is Unseal for an object that may ask for a PIN; nil where there is none. The
// PIN then goes along with the secret, and stays the caller's.
//
// A wrong one is [ErrWrongPIN], which the TPM has counted; one that was not tried any
// more is [ErrLockout] ([TPM.PINTries] says for how long), and none where one is needed
// is [ErrPIN]. A boot that is not allowed costs no try.
func (t *TPM) UnsealBy(s *policy.Sealed, pin *policy.PIN, known ...policy.Boot) (m *policy.Secret, r *policy.Record, err error) {
	const op = "unsealing the machine secret"
	defer fence(op, &err)
	if err := s.Validate(); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", op, err)
	}
	switch {
	case s.PIN == nil:
		pin = nil
	case pin == nil:
		return nil, nil, fmt.Errorf("%s: %w", op, ErrPIN)
	case pin.Stretch() != *s.PIN:
		return nil, nil, fmt.Errorf("%s: %w: the PIN was stretched otherwise than the object says", op, policy.ErrSealed)
	}
	if err := t.UseStorageKey(s.SRKName); err != nil {
		return nil, nil, err
	}
	err = t.undisturbed(op, func() (err error) {
		m, r, err = t.unseal(s, pin, known)
		return err
	})
	return m, r, err
}

// Admits reports whether the TPM would unseal for this boot, but for the PIN: the error is
// as that of Unseal. Nobody has to be asked for a PIN that opens nothing, and it costs no
// try.
func (t *TPM) Admits(s *policy.Sealed, known ...policy.Boot) (err error) {
	const op = "asking whether this boot may unseal"
	defer fence(op, &err)
	if err := s.Validate(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if err := t.UseStorageKey(s.SRKName); err != nil {
		return err
	}
	return t.undisturbed(op, func() error { return t.admits(s, known) })
}

func (t *TPM) admits(s *policy.Sealed, known []policy.Boot) error {
	session, end, err := tpm2.PolicySession(t.t, tpm2.TPMAlgSHA256, nonceSize, t.key.salted(), tpm2.AESEncryption(128, tpm2.EncryptOut))
	if err != nil {
		return fmt.Errorf("starting a session: %w", err)
	}
	defer func() { _ = end() }()
	record, pcrs, branches, err := t.allowed(s, session)
	if err == nil {
		err = t.assertBoot(s, session, pcrs, branches)
	}
	if err == nil && record == nil && len(branches) == 1 {
		// Nothing was asserted that could fail.
		now, nerr := t.Now()
		if nerr != nil {
			return nerr
		}
		if d, derr := now.BranchOver(pcrs); derr != nil || d != branches[0] {
			err = errMismatch
		}
	}
	return t.explain(err, pcrs, branches, known)
}

// undisturbed does what starts again when PCRs are extended meanwhile.
func (t *TPM) undisturbed(op string, try func() error) error {
	pause := unsealPause
	var err error
	for range unsealAttempts {
		err = try()
		if !errors.Is(err, errRace) && !isCode(err, tpm2.TPMRCPCRChanged) {
			return wrap(op, err)
		}
		t.sleep(pause)
		pause *= 2
	}
	return fmt.Errorf("%s: %w: PCRs changed during each of %d attempts", op, ErrBusy, unsealAttempts)
}

// unseal is one attempt.
func (t *TPM) unseal(s *policy.Sealed, pin *policy.PIN, known []policy.Boot) (*policy.Secret, *policy.Record, error) {
	options := []tpm2.AuthOption{t.key.salted(), tpm2.AESEncryption(128, tpm2.EncryptOut)}
	if pin != nil {
		auth := pin.Auth()
		defer clear(auth)
		options = append(options, tpm2.Auth(auth))
	}
	session, end, err := tpm2.PolicySession(t.t, tpm2.TPMAlgSHA256, nonceSize, options...)
	if err != nil {
		return nil, nil, fmt.Errorf("starting a session: %w", err)
	}
	defer func() { _ = end() }()

	reading := session
	if pin != nil {
		// The session would answer for the index with the PIN, which the index has not.
		reading = nil
	}
	record, pcrs, branches, err := t.allowed(s, reading)
	if err != nil {
		return nil, nil, err
	}
	if err := t.assert(s, session, pcrs, branches); err != nil {
		return nil, nil, t.explain(err, pcrs, branches, known)
	}
	secret, err := t.load(s, session)
	if err != nil {
		return nil, nil, t.explain(err, pcrs, branches, known)
	}
	secret.SetPIN(pin)
	return secret, record, nil
}

// allowed is what the object's policy allows: for an index what its record says, which is
// read in a session, or in one of its own for nil, before any assertion.
func (t *TPM) allowed(s *policy.Sealed, session tpm2.Session) (record *policy.Record, pcrs []int, branches []policy.Digest, err error) {
	if s.Kind != policy.KindNV {
		return nil, s.PCRs, s.Branches, nil
	}
	var data []byte
	if session != nil {
		data, err = t.readIndexWith(s.NVIndex, *s.NVName, session)
	} else {
		data, err = t.readIndex(s.NVIndex, *s.NVName)
	}
	if err != nil {
		return nil, nil, nil, err
	}
	if record, err = policy.DecodeRecord(data); err != nil {
		return nil, nil, nil, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	return record, record.PCRs(), record.Digests(), nil
}

// errMismatch is the TPM's refusal of an assertion about PCRs.
var errMismatch = errors.New("the PCRs satisfy no branch")

// assert brings the session to the sealed object's policy.
func (t *TPM) assert(s *policy.Sealed, session tpm2.Session, pcrs []int, branches []policy.Digest) error {
	if err := t.assertBoot(s, session, pcrs, branches); err != nil {
		return err
	}
	if s.Phrase {
		if _, err := (tpm2.PolicyCommandCode{PolicySession: session.Handle(), Code: tpm2.TPMCCUnseal}).Execute(t.t); err != nil {
			return fmt.Errorf("asserting what the phrase is for: %w", err)
		}
	}
	if s.PIN == nil {
		return nil
	}
	if _, err := (tpm2.PolicyAuthValue{PolicySession: session.Handle()}).Execute(t.t); err != nil {
		return fmt.Errorf("asserting that the PIN is known: %w", err)
	}
	return nil
}

func (t *TPM) assertBoot(s *policy.Sealed, session tpm2.Session, pcrs []int, branches []policy.Digest) error {
	which := make([]uint, len(pcrs))
	for i, n := range pcrs {
		which[i] = uint(n)
	}
	if _, err := (tpm2.PolicyPCR{PolicySession: session.Handle(), Pcrs: selection(which)}).Execute(t.t); err != nil {
		return fmt.Errorf("asserting PCRs: %w", err)
	}
	if s.Kind == policy.KindNV || len(branches) > 1 {
		list, err := policy.ORList(branches)
		if err != nil {
			return err
		}
		or := tpm2.PolicyOr{PolicySession: session.Handle()}
		for _, d := range list {
			or.PHashList.Digests = append(or.PHashList.Digests, tpm2.TPM2BDigest{Buffer: d[:]})
		}
		if _, err := or.Execute(t.t); isCode(err, tpm2.TPMRCValue) {
			return fmt.Errorf("%w (%w)", errMismatch, err)
		} else if err != nil {
			return fmt.Errorf("asserting the allowed boots: %w", err)
		}
	}
	if s.Kind != policy.KindNV {
		return t.assertResets(s, session)
	}
	_, err := tpm2.PolicyAuthorizeNV{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMHandle(s.NVIndex), Name: tpmName(*s.NVName), Auth: tpm2.PasswordAuth(nil)},
		NVIndex:       named(s.NVIndex, *s.NVName),
		PolicySession: session.Handle(),
	}.Execute(t.t)
	if err != nil {
		return fmt.Errorf("%w: it was not taken for the NV index's: %w", ErrPolicy, t.indexError(s.NVIndex, *s.NVName, err))
	}
	return nil
}

// load loads the sealed object and unseals it. The object is encrypted to its
// parent already, and its Name, computed here, is in the hash that the session
// authenticates: another object in its place makes the unseal fail.
func (t *TPM) load(s *policy.Sealed, session tpm2.Session) (*policy.Secret, error) {
	loaded, err := t.loadUnder(t.key, s)
	if isCode(err, tpm2.TPMRCBadAuth, tpm2.TPMRCAuthFail) && t.key.handle == storageHandle {
		// The right key, but somebody keeps it there with a password, which is
		// no part of its Name. Made again it has none.
		key, perr := t.primary()
		if perr != nil {
			return nil, perr
		}
		defer func() { _ = t.flush(key.handle) }()
		loaded, err = t.loadUnder(key, s)
	}
	if isCode(err, tpm2.TPMRCIntegrity) {
		return nil, fmt.Errorf("%w: it was altered, or sealed by another TPM: %w", policy.ErrSealed, err)
	}
	if err != nil {
		return nil, fmt.Errorf("loading the sealed object: %w", err)
	}
	defer func() { _ = t.flush(loaded.ObjectHandle) }()
	rsp, err := tpm2.Unseal{
		ItemHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: tpmName(s.Name()), Auth: session},
	}.Execute(t.t)
	if isCode(err, tpm2.TPMRCPolicyFail) && s.Kind == policy.KindPCR && len(s.Branches) == 1 {
		return nil, fmt.Errorf("%w (%w)", errMismatch, err)
	}
	if isCode(err, tpm2.TPMRCPolicyFail) {
		return nil, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	if s.PIN != nil && isCode(err, tpm2.TPMRCAuthFail, tpm2.TPMRCBadAuth) {
		return nil, fmt.Errorf("%w (%w)", ErrWrongPIN, err)
	}
	if err != nil {
		return nil, err
	}
	return policy.SecretFrom(rsp.OutData.Buffer)
}

func (t *TPM) loadUnder(key *storageKey, s *policy.Sealed) (*tpm2.LoadResponse, error) {
	return tpm2.Load{
		ParentHandle: key.parent(tpm2.PasswordAuth(nil)),
		InPrivate:    tpm2.TPM2BPrivate{Buffer: s.Private},
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](s.Public),
	}.Execute(t.t)
}

// explain turns a mismatch into one that names PCRs. The PCRs are read after
// the fact; if they satisfy a branch now, they changed under our hands.
func (t *TPM) explain(err error, pcrs []int, branches []policy.Digest, known []policy.Boot) error {
	if !errors.Is(err, errMismatch) {
		return err
	}
	now, rerr := t.Now()
	if rerr != nil {
		return fmt.Errorf("%w: %w (reading the PCRs: %w)", ErrPolicy, err, rerr)
	}
	if d, derr := now.BranchOver(pcrs); derr == nil && slices.Contains(branches, d) {
		return errRace
	}
	return &MismatchError{Now: now, Explanation: policy.Explain(pcrs, branches, now, known)}
}
