package tpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// How a TPM counts wrong PINs once it was told to (CountPINs): so many, and then one more
// for each time that has passed. A PIN of four digits takes more than a year to be found.
const (
	pinTries = 10
	pinHeals = 2 * time.Hour
	// lockoutPause is for how long a wrong lockout authorisation keeps out the right one.
	lockoutPause = 24 * time.Hour
)

// PINsCounted reports whether the TPM counts wrong PINs as it was told to, and its lockout
// authorisation keeps that so. It is not authenticated.
func (t *TPM) PINsCounted() (counted bool, err error) {
	const op = "asking how the TPM counts wrong PINs"
	defer fence(op, &err)
	set, right, _, err := t.counting()
	return set && right, wrap(op, err)
}

// counting reports whether there is a lockout authorisation, whether the parameters are
// ours, and whether anything was counted.
func (t *TPM) counting() (set, right, counted bool, err error) {
	variable, err := t.properties(tpm2.TPMPTPermanent, 32)
	if err != nil {
		return false, false, false, err
	}
	var c Capabilities
	c.fill(nil, variable)
	pause := time.Duration(variable[tpm2.TPMPTLockoutRecovery]) * time.Second
	right = c.Lockout.Limit == pinTries && c.Lockout.Interval == pinHeals && pause == lockoutPause
	return c.LockoutAuth, right, c.Lockout.Active || c.Lockout.Failures > 0, nil
}

// CountPINs has the TPM count wrong PINs, and take no word for it but that of the one who has
// this lockout authorisation: with an empty one, which most machines have, anybody who
// starts a system of their own sets the count back after each try. One that is there
// already and is another is ErrLockoutAuth.
//
// The parameters are set before the authorisation is: cut in between, the next call does it
// again. What passes between processor and TPM does not tell it.
func (t *TPM) CountPINs(auth []byte) (err error) {
	const op = "having the TPM count wrong PINs"
	defer fence(op, &err)
	set, right, _, err := t.counting()
	if err == nil && set && right {
		return wrap(op, t.changeLockoutAuth(auth, auth))
	}
	if err == nil {
		err = t.withoutLockoutAuth(set, auth, t.setCounting)
	}
	return wrap(op, err)
}

// ForgivePINs has the TPM forget the wrong PINs that it has counted.
func (t *TPM) ForgivePINs(auth []byte) (err error) {
	const op = "having the TPM forget wrong PINs"
	defer fence(op, &err)
	set, _, counted, err := t.counting()
	if err == nil && counted {
		err = t.withoutLockoutAuth(set, auth, func() error { return t.lockoutCommand(tpm2.TPMCCDictionaryAttackLockReset) })
	}
	return wrap(op, err)
}

// UncountPINs takes the lockout authorisation away again, for a machine without a PIN.
func (t *TPM) UncountPINs(auth []byte) (err error) {
	const op = "clearing the TPM's lockout authorisation"
	defer fence(op, &err)
	set, _, _, err := t.counting()
	if err == nil && set {
		err = t.changeLockoutAuth(auth, nil)
	}
	return wrap(op, err)
}

func (t *TPM) setCounting() error {
	return t.lockoutCommand(tpm2.TPMCCDictionaryAttackParameters, pinTries, uint32(pinHeals/time.Second), uint32(lockoutPause/time.Second))
}

// withoutLockoutAuth does something while the lockout authorisation is empty, so that it
// needs not pass over the bus, and sets it. set says that there is one.
func (t *TPM) withoutLockoutAuth(set bool, auth []byte, do func() error) error {
	if set {
		if err := t.changeLockoutAuth(auth, nil); err != nil {
			return err
		}
	}
	return errors.Join(do(), t.changeLockoutAuth(nil, auth))
}

// changeLockoutAuth is TPM2_HierarchyChangeAuth (Part 3, 24.8) for the lockout hierarchy.
// The TPM answers by the new authorisation, which go-tpm does not expect: a change from it
// to itself shows that it is in force.
func (t *TPM) changeLockoutAuth(from, to []byte) error {
	if _, err := t.StorageKey(); err != nil {
		return err
	}
	change := func(from, to []byte) error {
		session := tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, t.key.salted(), tpm2.AESEncryption(128, tpm2.EncryptIn), tpm2.Auth(from))
		_, err := tpm2.HierarchyChangeAuth{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: session},
			NewAuth:    tpm2.TPM2BAuth{Buffer: to},
		}.Execute(t.t)
		if isCode(err, tpm2.TPMRCAuthFail, tpm2.TPMRCBadAuth) {
			return fmt.Errorf("%w (%w)", ErrLockoutAuth, err)
		}
		return err
	}
	err := change(from, to)
	if bytes.Equal(from, to) {
		return err
	}
	if _, refused := errors.AsType[tpm2.TPMRC](err); refused || errors.Is(err, errTransport) {
		return err
	}
	return change(to, to)
}

// lockoutCommand sends one of the commands of dictionary attack protection (Part 3, 25),
// which go-tpm knows the numbers of and no more, with an empty lockout authorisation.
func (t *TPM) lockoutCommand(cc tpm2.TPMCC, parameters ...uint32) error {
	password := []byte{0x40, 0, 0, 9, 0, 0, 0, 0, 0} // TPM_RS_PW, no nonce, no attributes, empty
	body := binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHLockout))
	body = binary.BigEndian.AppendUint32(body, uint32(len(password)))
	body = append(body, password...)
	for _, p := range parameters {
		body = binary.BigEndian.AppendUint32(body, p)
	}
	return t.send(tpm2.TPMSTSessions, cc, body)
}

// send sends a command of which the answer says nothing but its code.
func (t *TPM) send(tag tpm2.TPMST, cc tpm2.TPMCC, body []byte) error {
	const head = 10
	command := binary.BigEndian.AppendUint16(nil, uint16(tag))
	command = binary.BigEndian.AppendUint32(command, uint32(head+len(body)))
	command = binary.BigEndian.AppendUint32(command, uint32(cc))
	answer, err := t.t.Send(append(command, body...))
	if err != nil {
		return err
	}
	if len(answer) < head {
		return fmt.Errorf("%w: %d bytes", ErrMalformed, len(answer))
	}
	if code := tpm2.TPMRC(binary.BigEndian.Uint32(answer[6:])); code != tpm2.TPMRCSuccess {
		return code
	}
	return nil
}
