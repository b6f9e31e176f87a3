package tpm

import (
	"fmt"
	"math"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/policy"
)

// Seal seals the machine secret to whatever boots the index's record allows,
// now and later. The index must have been defined; sealing before its first
// write is possible, since the policy names it as it will be once written.
//
// It refuses when the SHA-256 bank is not active, or when nothing was measured
// into PCR 7 or 11 in this boot: such a TPM would release the secret to
// anything.
func (t *TPM) Seal(m *policy.Secret, index policy.Index) (s *policy.Sealed, err error) {
	const op = "sealing the machine secret"
	defer fence(op, &err)
	if err := t.measured(policy.Bound()); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	name, err := index.Name()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	s, err = t.create(m, policy.KindNV, policy.AuthorizeNV(name))
	if err != nil {
		return nil, wrap(op, err)
	}
	s.NVIndex, s.NVName = index.Handle, &name
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", op, ErrMalformed, err)
	}
	return s, nil
}

// SealPCR seals the machine secret to a fixed list of boots, by some of the
// PCRs that a boot is bound to, ascending: 11, 12 and 13 between the first and
// the second boot, whose PCR 7 cannot be known yet; all of them where there is
// no NV index to be had. See [policy.KindPCR] for what that does not protect
// from. It refuses as Seal does, and boots in which nothing was measured.
func (t *TPM) SealPCR(m *policy.Secret, pcrs []int, boots ...policy.Boot) (s *policy.Sealed, err error) {
	return t.sealPCR(m, 0, pcrs, boots)
}

// SealPCRFor is SealPCR for this start of the machine and a few more, by the TPM's
// count of resets. Nobody can set that back: anyone who keeps the object has nothing when
// these starts are over. A TPM without the command gives ErrUnsupported.
func (t *TPM) SealPCRFor(starts uint32, m *policy.Secret, pcrs []int, boots ...policy.Boot) (*policy.Sealed, error) {
	const op = "sealing the machine secret for a few starts"
	able, err := t.implements(ccPolicyCounterTimer)
	if err != nil {
		return nil, wrap(op, err)
	}
	if !able {
		return nil, fmt.Errorf("%s: %w: TPM2_PolicyCounterTimer", op, ErrUnsupported)
	}
	now, err := t.resets()
	if err != nil {
		return nil, wrap(op, err)
	}
	if now > math.MaxUint32-starts {
		return nil, fmt.Errorf("%s: %w: its count of resets is at its end", op, ErrUnsupported)
	}
	return t.sealPCR(m, now+starts, pcrs, boots)
}

func (t *TPM) sealPCR(m *policy.Secret, resets uint32, pcrs []int, boots []policy.Boot) (s *policy.Sealed, err error) {
	const op = "sealing the machine secret to PCRs"
	defer fence(op, &err)
	if err := t.measured(pcrs); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	var branches []policy.Digest
	for _, b := range boots {
		for _, n := range []int{7, 11} {
			if v, err := b.Value(n); err == nil && slices.Contains(pcrs, n) && policy.Untouched(v) {
				return nil, fmt.Errorf("%s: PCR %d of an allowed boot: %w", op, n, policy.ErrUnmeasured)
			}
		}
		d, err := b.BranchOver(pcrs)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", op, err)
		}
		if !slices.Contains(branches, d) {
			branches = append(branches, d)
		}
	}
	digest, err := (&policy.Sealed{Kind: policy.KindPCR, Branches: branches, Resets: resets}).Policy()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if s, err = t.create(m, policy.KindPCR, digest); err != nil {
		return nil, wrap(op, err)
	}
	s.PCRs, s.Branches, s.Resets = slices.Clone(pcrs), branches, resets
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	return s, nil
}

// KeepsPhrases reports whether the TPM has the command of a phrase's policy.
func (t *TPM) KeepsPhrases() (able bool, err error) {
	const op = "asking for what a phrase needs"
	defer fence(op, &err)
	able, err = t.implements(tpm2.TPMCCPolicyCommandCode)
	return able, wrap(op, err)
}

// SealPhrase seals the key of a phrase, which goes along with no PIN, to whatever boots the
// machine secret's object is released to, but for that one's PIN. It refuses as Seal does, and a
// TPM without the command of a phrase's policy, with ErrUnsupported.
func (t *TPM) SealPhrase(key *policy.Secret, like *policy.Sealed) (s *policy.Sealed, err error) {
	const op = "sealing the phrase"
	defer fence(op, &err)
	able, err := t.implements(tpm2.TPMCCPolicyCommandCode)
	if err != nil {
		return nil, wrap(op, err)
	}
	if !able {
		return nil, fmt.Errorf("%s: %w: TPM2_PolicyCommandCode", op, ErrUnsupported)
	}
	pcrs := like.PCRs
	if like.Kind == policy.KindNV {
		pcrs = policy.Bound()
	}
	if err := t.measured(pcrs); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	phrase := *like
	phrase.Phrase, phrase.PIN = true, nil
	digest, err := phrase.Policy()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if s, err = t.create(key, like.Kind, digest); err != nil {
		return nil, wrap(op, err)
	}
	s.Phrase, s.NVIndex, s.NVName = true, like.NVIndex, like.NVName
	s.PCRs, s.Branches, s.Resets = slices.Clone(like.PCRs), slices.Clone(like.Branches), like.Resets
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", op, ErrMalformed, err)
	}
	return s, nil
}

// measured refuses a TPM whose PCRs say nothing about what was booted.
func (t *TPM) measured(pcrs []int) error {
	banks, err := t.Banks()
	if err != nil {
		return err
	}
	if !slices.Contains(banks, tpm2.TPMAlgSHA256) {
		return ErrBankInactive
	}
	now, err := t.Now()
	if err != nil {
		return err
	}
	for _, n := range []int{7, 11} {
		if v, err := now.Value(n); err == nil && slices.Contains(pcrs, n) && policy.Untouched(v) {
			return fmt.Errorf("PCR %d holds %s: %w", n, v, policy.ErrUnmeasured)
		}
	}
	return nil
}

// create makes the sealed object. The secret crosses the bus encrypted, and so does the
// authorisation value of one that goes along with a PIN.
func (t *TPM) create(m *policy.Secret, kind policy.Kind, digest policy.Digest) (*policy.Sealed, error) {
	if _, err := t.StorageKey(); err != nil {
		return nil, err
	}
	if m.PIN() != nil {
		digest = policy.AuthValue(digest)
	}
	rsp, err := t.createUnder(t.key, m, digest)
	if isCode(err, tpm2.TPMRCBadAuth, tpm2.TPMRCAuthFail) && t.key.handle == storageHandle {
		// A key of the template, but with a password that its owner knows.
		key, perr := t.primary()
		if perr != nil {
			return nil, perr
		}
		t.keepLoaded(key)
		t.key, t.session = key, nil
		rsp, err = t.createUnder(key, m, digest)
	}
	if err != nil {
		return nil, err
	}
	s := policy.NewSealed(kind, t.key.name, rsp.OutPublic.Bytes(), rsp.OutPrivate.Buffer)
	if pin := m.PIN(); pin != nil {
		s.Guard(pin.Stretch())
	}
	return s, nil
}

func (t *TPM) createUnder(key *storageKey, m *policy.Secret, digest policy.Digest) (*tpm2.CreateResponse, error) {
	secret := m.Bytes()
	defer clear(secret)
	sensitive := &tpm2.TPMSSensitiveCreate{Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret})}
	public := policy.SealedTemplate(digest)
	if pin := m.PIN(); pin != nil {
		auth := pin.Auth()
		defer clear(auth)
		sensitive.UserAuth, public = tpm2.TPM2BAuth{Buffer: auth}, policy.GuardedTemplate(digest)
	}
	return tpm2.Create{
		ParentHandle: key.parent(tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, key.salted(), tpm2.AESEncryption(128, tpm2.EncryptIn))),
		InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: sensitive},
		InPublic:     tpm2.New2B(public),
	}.Execute(t.t)
}
