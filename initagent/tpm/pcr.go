package tpm

import (
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
)

// PCRs reads PCRs of the SHA-256 bank. The answer is not authenticated: it is
// for explanations and for refusing to seal, never a proof.
func (t *TPM) PCRs(which ...int) (values map[int]pcr.Digest, err error) {
	const op = "reading PCRs"
	defer fence(op, &err)
	values = make(map[int]pcr.Digest)
	for len(values) < len(which) {
		var left []uint
		for _, n := range which {
			if n < 0 || n > 23 {
				return nil, fmt.Errorf("%s: PCR %d, there are 0 to 23", op, n)
			}
			if _, ok := values[n]; !ok {
				left = append(left, uint(n))
			}
		}
		before := len(values)
		if err := t.readPCRs(left, values); err != nil {
			return nil, wrap(op, err)
		}
		if len(values) == before {
			return nil, fmt.Errorf("%s %v: %w", op, left, ErrBankInactive)
		}
	}
	return values, nil
}

// readPCRs takes one answer, which holds eight values at most and in the order
// of the PCRs that it names.
func (t *TPM) readPCRs(which []uint, into map[int]pcr.Digest) error {
	rsp, err := tpm2.PCRRead{PCRSelectionIn: selection(which)}.Execute(t.t)
	if err != nil {
		return err
	}
	var named []int
	for _, s := range rsp.PCRSelectionOut.PCRSelections {
		if s.Hash != tpm2.TPMAlgSHA256 {
			return fmt.Errorf("%w: values of bank %#x", ErrMalformed, uint16(s.Hash))
		}
		for i := range min(len(s.PCRSelect), 3) * 8 {
			if s.PCRSelect[i/8]&(1<<(i%8)) != 0 {
				named = append(named, i)
			}
		}
	}
	if len(named) != len(rsp.PCRValues.Digests) {
		return fmt.Errorf("%w: %d values for %d PCRs", ErrMalformed, len(rsp.PCRValues.Digests), len(named))
	}
	asked := make(map[int]bool)
	for _, n := range which {
		asked[int(n)] = true
	}
	for i, n := range named {
		d := rsp.PCRValues.Digests[i].Buffer
		if len(d) != len(pcr.Digest{}) || !asked[n] {
			return fmt.Errorf("%w: PCR %d with %d bytes", ErrMalformed, n, len(d))
		}
		into[n] = pcr.Digest(d)
	}
	return nil
}

func selection(which []uint) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash:      tpm2.TPMAlgSHA256,
		PCRSelect: tpm2.PCClientCompatible.PCRs(which...),
	}}}
}

// Now reads the PCRs that a boot is bound to.
func (t *TPM) Now() (policy.Boot, error) {
	values, err := t.PCRs(policy.Bound()...)
	if err != nil {
		return policy.Boot{}, err
	}
	var b policy.Boot
	for n, d := range values {
		if err := b.Set(n, d); err != nil {
			return policy.Boot{}, err
		}
	}
	return b, nil
}

// maxEvent is the most that TPM2_PCR_Event takes (TPM2B_EVENT, Part 2, 10.4.9).
const maxEvent = 1024

// Extend extends a PCR with the digest of data, in every bank that is active:
// TPM2_PCR_Event lets the TPM itself hash, so that no bank is forgotten whose
// algorithm this program does not know. Data crosses the bus (encrypted once
// the storage root key is known), so it must not be a secret.
//
// Once a storage root key is known the answer is authenticated, so that nobody
// in between can keep a PCR from being capped and report success.
func (t *TPM) Extend(n int, data []byte) (err error) {
	op := fmt.Sprintf("extending PCR %d", n)
	defer fence(op, &err)
	if n < 0 || n > 23 {
		return fmt.Errorf("%s: there are 0 to 23", op)
	}
	if len(data) == 0 || len(data) > maxEvent {
		return fmt.Errorf("%s: %d bytes, want 1 to %d", op, len(data), maxEvent)
	}
	auth := tpm2.PasswordAuth(nil)
	if t.key != nil {
		if err := t.openSession(); err != nil {
			return wrap(op, err)
		}
		auth = t.session
	}
	_, err = tpm2.PCREvent{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(n), Name: tpm2.HandleName(tpm2.TPMHandle(n)), Auth: auth},
		EventData: tpm2.TPM2BEvent{Buffer: append([]byte(nil), data...)},
	}.Execute(t.t)
	return wrap(op, err)
}

// ExtendText extends a PCR with a word, as systemd-pcrphase does for a phase
// ("enter-initrd", "leave-initrd").
func (t *TPM) ExtendText(n int, word string) error { return t.Extend(n, []byte(word)) }

// openSession opens the session that extends are authenticated by, once.
func (t *TPM) openSession() error {
	if t.session != nil {
		return nil
	}
	s, end, err := tpm2.HMACSession(t.t, tpm2.TPMAlgSHA256, nonceSize, t.key.salted(), tpm2.AESEncryption(128, tpm2.EncryptIn))
	if err != nil {
		return err
	}
	t.session = s
	t.endings = append(t.endings, end)
	return nil
}
