package tpm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
)

// Every PCR that a boot is bound to, tampered with on its own.
func TestTamperedPCR(t *testing.T) {
	tampered(t, provision(t, "uki 1"), policy.WithoutPrograms())
}

// The same with a record over PCR 4, for which the boot manager counts. FAULTS 94
func TestTamperedPrograms(t *testing.T) {
	m := provision(t, "uki 1")
	r, err := policy.Compose(1, m.record.Volume, true, policy.System{Version: 1, Epoch: 1, Boots: []policy.Boot{predict("uki 1")}})
	if err != nil {
		t.Fatal(err)
	}
	m.write(r)
	m.reboot()
	m.boot("uki 1")
	if got, err := m.unlock(); err != nil || !got.Programs {
		t.Fatalf("%+v, %v", got, err)
	}
	tampered(t, m, policy.Bound())
}

func tampered(t *testing.T, m *machine, bound []int) {
	t.Helper()
	for _, n := range bound {
		m.reboot()
		good := m.boot("uki 1")
		if err := m.open().ExtendText(n, "something else"); err != nil {
			t.Fatal(err)
		}
		_, err := m.unlock(good)
		mismatch, ok := errors.AsType[*MismatchError](err)
		if !ok || !slices.Equal(mismatch.Explanation.PCRs, []int{n}) || !errors.Is(err, ErrPolicy) {
			t.Errorf("PCR %d: %v", n, err)
		}
		_, err = m.unlock() // nothing known
		if mismatch, ok = errors.AsType[*MismatchError](err); !ok {
			t.Fatalf("PCR %d: %v", n, err)
		}
		if found := len(mismatch.Explanation.PCRs) > 0; found != (n >= 12) {
			t.Errorf("PCR %d without a known boot: %v", n, err)
		}
	}
}

func TestPhases(t *testing.T) { // FAULTS 62, 79
	m := provision(t, "uki 1")
	c := m.open()
	if _, _, err := c.Unseal(m.sealed); err != nil {
		t.Fatal(err)
	}
	event := policy.VolumeEvent(volumeKey)
	if err := c.Extend(pcr.SystemID, event[:]); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Unseal(m.sealed); !errors.Is(err, ErrPolicy) {
		t.Errorf("unsealed a second time: %v", err)
	}
	closed(t, c)
	m.reboot()
	m.boot("uki 1")
	c = m.open()
	defer closed(t, c)
	if err := c.ExtendText(pcr.KernelImage, pcr.LeaveInitrd); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Unseal(m.sealed); !errors.Is(err, ErrPolicy) {
		t.Errorf("unsealed after leaving the initramfs: %v", err)
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// undefine deletes the machine's index, as anybody may whose owner
// authorisation is empty.
func (m *machine) undefine() {
	m.t.Helper()
	c := m.open()
	defer closed(m.t, c)
	if err := c.Undefine(m.index.Handle); err != nil {
		m.t.Fatal(err)
	}
}

func TestIndexDeleted(t *testing.T) {
	m := provision(t, "uki 1")
	m.undefine()
	if _, err := m.unlock(); !errors.Is(err, ErrIndexMissing) {
		t.Errorf("%v", err)
	}
}

// Defined again just as it was, the index has no content, and takes none
// without the write key.
func TestIndexRedefinedAlike(t *testing.T) {
	m := provision(t, "uki 1")
	m.undefine()
	c := m.open()
	defer closed(t, c)
	if _, err := c.Define(m.index.Key); err != nil {
		t.Fatal(err)
	}
	if _, err := m.unlock(); !errors.Is(err, ErrIndexUnwritten) {
		t.Errorf("%v", err)
	}
	m.refuseWrites(t)
	if _, err := m.unlock(); !errors.Is(err, ErrIndexUnwritten) {
		t.Errorf("after the attempts: %v", err)
	}
}

// refuseWrites tries every way of writing the index that needs no write key.
func (m *machine) refuseWrites(t *testing.T) {
	t.Helper()
	c := m.open()
	defer closed(t, c)
	if err := c.WriteRecord(m.index.Handle, newKey(t), m.record); !errors.Is(err, ErrIndexForeign) {
		t.Errorf("written with another key: %v", err)
	}
	info, err := c.indexInfo(m.index.Handle)
	if err != nil {
		t.Fatal(err)
	}
	data, err := m.record.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.StorageKey(); err != nil {
		t.Fatal(err)
	}
	// The same without asking whose index it is: the TPM itself refuses.
	if err := c.write(m.index, info.Name, newKey(t), data); !isCode(err, tpm2.TPMRCPolicyFail) {
		t.Errorf("policy signed by another key: %v", err)
	}
	empty, end, err := tpm2.PolicySession(m.raw, tpm2.TPMAlgSHA256, 16)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = end() }()
	for name, auth := range map[string]tpm2.AuthHandle{
		"index password":     {Handle: tpm2.TPMHandle(m.index.Handle), Name: tpmName(info.Name), Auth: tpm2.PasswordAuth(nil)},
		"owner":              owner(tpm2.PasswordAuth(nil)),
		"platform":           {Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)},
		"policy of nothing":  {Handle: tpm2.TPMHandle(m.index.Handle), Name: tpmName(info.Name), Auth: empty},
		"HMAC session empty": {Handle: tpm2.TPMHandle(m.index.Handle), Name: tpmName(info.Name), Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, 16)},
	} {
		_, err := tpm2.NVWrite{AuthHandle: auth, NVIndex: named(m.index.Handle, info.Name), Data: tpm2.TPM2BMaxNVBuffer{Buffer: data}}.Execute(m.raw)
		if _, ok := errors.AsType[tpm2.TPMRC](err); !ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWriteWithoutKey(t *testing.T) {
	m := provision(t, "uki 1")
	m.refuseWrites(t)
	if _, err := m.unlock(); err != nil {
		t.Errorf("after the attempts: %v", err)
	}
}

// Defined again under the attacker's policy and filled with the attacker's
// boot, the index satisfies PolicyAuthorizeNV, but with another Name; what is
// sealed to ours stays closed. This is checked in the TPM itself, without the
// checks that come before.
func TestIndexRedefinedOtherwise(t *testing.T) {
	m := provision(t, "uki 1")
	m.undefine()
	m.reboot()
	rogue := m.boot("rogue uki")
	key := newKey(t)
	c := m.open()
	defer closed(t, c)
	index, err := c.Define(&key.PublicKey)
	if err != nil || index.Handle != m.index.Handle {
		t.Fatalf("%#x, %v", index.Handle, err)
	}
	record := &policy.Record{Branches: []policy.Branch{branch(rogue, 9, 9)}}
	if err := c.WriteRecord(index.Handle, key, record); err != nil {
		t.Fatal(err)
	}
	if _, err := m.unlock(); !errors.Is(err, ErrIndexForeign) {
		t.Errorf("%v", err)
	}
	name, err := index.Name()
	if err != nil {
		t.Fatal(err)
	}
	forged := *m.sealed
	forged.NVName = &name
	if err := forged.Validate(); !errors.Is(err, policy.ErrSealed) {
		t.Errorf("a token that names the attacker's index: %v", err)
	}
	session, end, err := tpm2.PolicySession(c.t, tpm2.TPMAlgSHA256, 16, c.key.salted())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = end() }()
	if err := c.assert(&forged, session, policy.WithoutPrograms(), record.Digests()); err != nil {
		t.Fatalf("the attacker's own policy: %v", err)
	}
	if _, err := c.load(&forged, session); !isCode(err, tpm2.TPMRCPolicyFail) {
		t.Errorf("the TPM: %v", err)
	}
}

// A list of branches that is not the record's, tried against the TPM itself.
func TestAnotherOR(t *testing.T) {
	m := provision(t, "uki 1")
	m.reboot()
	rogue := m.boot("rogue uki")
	c := m.open()
	defer closed(t, c)
	if err := c.UseStorageKey(m.sealed.SRKName); err != nil {
		t.Fatal(err)
	}
	session, end, err := tpm2.PolicySession(c.t, tpm2.TPMAlgSHA256, 16, c.key.salted())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = end() }()
	err = c.assert(m.sealed, session, policy.WithoutPrograms(), []policy.Digest{predictBranch("uki 1"), rogue.Branch()})
	if !errors.Is(err, ErrPolicy) || !isCode(err, tpm2.TPMRCValue, tpm2.TPMRCPolicyFail) {
		t.Errorf("%v", err)
	}
}

func predictBranch(uki string) policy.Digest {
	b := predict(uki)
	return b.Branch()
}

// What a cut between defining and writing leaves.
func TestNeverWritten(t *testing.T) {
	e := startTPM(t)
	e.boot("uki 1")
	m, err := policy.NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := m.WriteKey()
	if err != nil {
		t.Fatal(err)
	}
	c := e.open()
	defer closed(t, c)
	index, err := c.Define(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := c.Seal(m, index)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Unseal(sealed); !errors.Is(err, ErrIndexUnwritten) {
		t.Errorf("%v", err)
	}
	// Provisioning starts over with another secret; what was left is found.
	again, err := c.Define(&newKey(t).PublicKey)
	if err != nil || again.Handle == index.Handle {
		t.Fatalf("%#x, %v", again.Handle, err)
	}
	list, err := c.Indexes()
	if err != nil || len(list) != 2 || list[0].Handle != index.Handle || list[0].Written {
		t.Fatalf("%+v, %v", list, err)
	}
	if err := c.Undefine(index.Handle); err != nil {
		t.Error(err)
	}
	if list, err = c.Indexes(); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
}

// A record that a TPM tore, or that a later version wrote, is not a policy.
func TestTornRecord(t *testing.T) {
	m := provision(t, "uki 1")
	key, err := m.secret.WriteKey()
	if err != nil {
		t.Fatal(err)
	}
	data, err := m.record.Encode()
	if err != nil {
		t.Fatal(err)
	}
	data[60] ^= 1
	c := m.open()
	defer closed(t, c)
	if _, err := c.StorageKey(); err != nil {
		t.Fatal(err)
	}
	name, err := m.index.Name()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.write(m.index, name, key, data); err != nil {
		t.Fatal(err)
	}
	if _, err := m.unlock(); !errors.Is(err, policy.ErrRecord) || !errors.Is(err, ErrPolicy) {
		t.Errorf("%v", err)
	}
	m.write(m.record) // with the key from the escrow
	if _, err := m.unlock(); err != nil {
		t.Error(err)
	}
}

func TestAlteredToken(t *testing.T) { // FAULTS 63
	m := provision(t, "uki 1")
	c := m.open()
	defer closed(t, c)
	for name, change := range map[string]func(s *policy.Sealed){
		"private area": func(s *policy.Sealed) { s.Private[len(s.Private)-1] ^= 1 },
		"unique field": func(s *policy.Sealed) { s.Public[len(s.Public)-1] ^= 1 },
		"index":        func(s *policy.Sealed) { s.NVIndex++ },
		"key's name":   func(s *policy.Sealed) { s.SRKName[5] ^= 1 },
		"policy":       func(s *policy.Sealed) { s.Public[12] ^= 1 },
	} {
		s := *m.sealed
		s.Private, s.Public = slices.Clone(s.Private), slices.Clone(s.Public)
		change(&s)
		got, _, err := c.Unseal(&s)
		if err == nil || got != nil {
			t.Errorf("%s: unsealed", name)
		}
		if !errors.Is(err, policy.ErrSealed) && !errors.Is(err, ErrIndexMissing) && !errors.Is(err, ErrChanged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLockout(t *testing.T) { // FAULTS 71
	m := provision(t, "uki 1")
	// Any key that is protected against guessing will do.
	template := tpm2.ECCSRKTemplate
	template.ObjectAttributes.NoDA = false
	guarded, err := tpm2.CreatePrimary{
		PrimaryHandle: owner(tpm2.PasswordAuth(nil)),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			UserAuth: tpm2.TPM2BAuth{Buffer: []byte("right")},
		}},
		InPublic: tpm2.New2B(template),
	}.Execute(m.raw)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		_, err := tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: guarded.ObjectHandle, Name: guarded.Name, Auth: tpm2.PasswordAuth([]byte("wrong"))},
			InPublic:     tpm2.New2B(policy.SealedTemplate(policy.Digest{})),
		}.Execute(m.raw)
		if isCode(err, tpm2.TPMRCLockout) {
			break
		}
		if i == 100 {
			t.Fatalf("no lockout: %v", err)
		}
	}
	if _, err := (tpm2.FlushContext{FlushHandle: guarded.ObjectHandle}).Execute(m.raw); err != nil {
		t.Fatal(err)
	}
	c := m.open()
	defer closed(t, c)
	caps, err := c.Capabilities()
	if err != nil || !caps.Lockout.Active || caps.Lockout.Failures == 0 {
		t.Fatalf("%+v, %v", caps, err)
	}
	if _, err := m.unlock(); err != nil {
		t.Errorf("unlocking during lockout: %v", err)
	}
	m.record.Floor = 0
	m.write(m.record)
}
