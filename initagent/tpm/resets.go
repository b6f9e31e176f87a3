package tpm

import (
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/policy"
)

// ccPolicyCounterTimer is a command that go-tpm knows the number of and no more.
const ccPolicyCounterTimer = tpm2.TPMCC(0x0000016D)

// resets is how often this TPM was reset since it was cleared: once for each start of
// the machine. It is read without authentication; what is sealed to it proves it.
func (t *TPM) resets() (uint32, error) {
	rsp, err := tpm2.ReadClock{}.Execute(t.t)
	if err != nil {
		return 0, err
	}
	return rsp.CurrentTime.ClockInfo.ResetCount, nil
}

// Expired reports whether the starts that an object was sealed for are over. It says
// what to do, and protects nothing: the TPM does.
func (t *TPM) Expired(s *policy.Sealed) (expired bool, err error) {
	const op = "reading the TPM's count of resets"
	defer fence(op, &err)
	if s.Kind != policy.KindPCR || s.Resets == 0 {
		return false, nil
	}
	now, err := t.resets()
	return now > s.Resets, wrap(op, err)
}

// assertResets has the session say that the count of resets is no more than the
// object's policy wants; nothing, where that wants nothing.
func (t *TPM) assertResets(s *policy.Sealed, session tpm2.Session) error {
	if s.Resets == 0 {
		return nil
	}
	err := t.policyCounterTimer(session.Handle(), s.Resets)
	if isCode(err, tpm2.TPMRCPolicy) {
		return fmt.Errorf("%w (%w)", ErrExpired, err)
	}
	if err != nil {
		return fmt.Errorf("asserting the count of resets: %w", err)
	}
	return nil
}

// policyCounterTimer is TPM2_PolicyCounterTimer (Part 3, 23.10). What something on the
// bus answers in the TPM's place gains nothing: the TPM's own session decides.
func (t *TPM) policyCounterTimer(session tpm2.TPMHandle, limit uint32) error {
	operand, rest := policy.ResetLimit(limit)
	body := binary.BigEndian.AppendUint32(nil, uint32(session))
	body = binary.BigEndian.AppendUint16(body, uint16(len(operand)))
	body = append(append(body, operand...), rest...)
	return t.send(tpm2.TPMSTNoSessions, ccPolicyCounterTimer, body)
}
