package tpm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
)

// Every PCR that a boot is bound to, tampered with on its own.
func TestTamperedPCR(t *testing.T) {
	m := provision(t, "uki 1")
	for _, n := range policy.Bound() {
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
	if err := c.assert(&forged, session, policy.Bound(), record.Digests()); err != nil {
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
	err = c.assert(m.sealed, session, policy.Bound(), []policy.Digest{predictBranch("uki 1"), rogue.Branch()})
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

// A record that a TPM tore, or that a later version wrote, is no policy.
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

func TestSealRefusesUnmeasured(t *testing.T) { // FAULTS 70
	e := startTPM(t)
	m, err := policy.NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := e.open()
	defer closed(t, c)
	index := policy.Index{Handle: firstIndex, Key: &newKey(t).PublicKey}
	for _, step := range []struct {
		extend int
		want   error
	}{{0, policy.ErrUnmeasured}, {7, policy.ErrUnmeasured}, {11, nil}} {
		if err := c.ExtendText(step.extend, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Seal(m, index); !errors.Is(err, step.want) {
			t.Errorf("after PCR %d: %v", step.extend, err)
		}
		if _, err := c.SealPCR(m, policy.Bound(), predict("x")); !errors.Is(err, step.want) {
			t.Errorf("fixed PCRs, after PCR %d: %v", step.extend, err)
		}
	}
	if _, err := c.SealPCR(m, []int{11}, policy.Boot{}); !errors.Is(err, policy.ErrUnmeasured) {
		t.Errorf("for a boot without measurements: %v", err)
	}
}

func TestInactiveBank(t *testing.T) { // FAULTS 70
	m := provision(t, "uki 1")
	// TPM2_PCR_Allocate (Part 3, 22.5): SHA-1 on, SHA-256 off, at the next reset.
	allocate := []byte{0x80, 0x02, 0, 0, 0, 0, 0, 0, 0x01, 0x2B, 0x40, 0, 0, 0x0C, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0}
	allocate = append(allocate, 0, 0, 0, 2, 0, 4, 3, 0xff, 0xff, 0xff, 0, 0x0b, 3, 0, 0, 0)
	allocate[5] = byte(len(allocate))
	answer, err := m.raw.Send(allocate)
	if err != nil || len(answer) < 10 || answer[9] != 0 || answer[8] != 0 {
		t.Fatalf("allocating: %x, %v", answer, err)
	}
	m.reboot()
	c := m.open()
	defer closed(t, c)
	caps, err := c.Capabilities()
	if err != nil || caps.SHA256Active() {
		t.Fatalf("%+v, %v", caps, err)
	}
	if _, err := c.Now(); !errors.Is(err, ErrBankInactive) {
		t.Errorf("reading: %v", err)
	}
	if err := c.ExtendText(11, "uki 1"); err != nil {
		t.Errorf("extending what there is: %v", err)
	}
	if _, err := c.Seal(m.secret, m.index); !errors.Is(err, ErrBankInactive) {
		t.Errorf("sealing: %v", err)
	}
	if _, _, err := c.Unseal(m.sealed); err == nil {
		t.Error("unsealed")
	} else if !errors.Is(err, ErrPolicy) && !isCode(err, tpm2.TPMRCValue) {
		t.Errorf("unsealing: %v", err)
	}
}

func TestOwnerPassword(t *testing.T) {
	e := startTPM(t)
	e.boot("uki 1")
	c := e.open()
	defer closed(t, c)
	if _, err := c.StorageKey(); err != nil { // made while there was no password
		t.Fatal(err)
	}
	if _, err := (tpm2.HierarchyChangeAuth{AuthHandle: owner(tpm2.PasswordAuth(nil)), NewAuth: tpm2.TPM2BAuth{Buffer: []byte("x")}}).Execute(e.raw); err != nil {
		t.Fatal(err)
	}
	caps, err := c.Capabilities()
	if err != nil || !errors.Is(caps.Index(), ErrOwnerAuth) {
		t.Errorf("%+v, %v", caps, err)
	}
	if _, err := c.Define(&newKey(t).PublicKey); !errors.Is(err, ErrOwnerAuth) {
		t.Errorf("%v", err)
	}
	m, err := policy.NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.SealPCR(m, policy.Bound(), predict("uki 1"))
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := c.Unseal(s); err != nil || !got.Equal(m) {
		t.Errorf("%v", err)
	}
	if _, err := (tpm2.EvictControl{Auth: owner(tpm2.PasswordAuth([]byte("x"))), ObjectHandle: tpm2.NamedHandle{Handle: storageHandle, Name: tpmName(c.key.name)}, PersistentHandle: storageHandle}).Execute(e.raw); err != nil {
		t.Fatal(err)
	}
	d := e.open()
	defer closed(t, d)
	if _, err := d.StorageKey(); !errors.Is(err, ErrOwnerAuth) {
		t.Errorf("no key, and none to be made: %v", err)
	}
}

func TestNVFull(t *testing.T) {
	e := startTPM(t)
	e.boot("uki 1")
	c := e.open()
	defer closed(t, c)
	if _, err := c.StorageKey(); err != nil {
		t.Fatal(err)
	}
	size := uint16(2048)
	for i := uint32(0); size > 0; i++ {
		_, err := tpm2.NVDefineSpace{AuthHandle: owner(tpm2.PasswordAuth(nil)), PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex: tpm2.TPMHandle(0x01800000 + i), NameAlg: tpm2.TPMAlgSHA256, DataSize: size,
			Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true},
		})}.Execute(e.raw)
		if isCode(err, tpm2.TPMRCNVSpace) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Define(&newKey(t).PublicKey); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("%v", err)
	}
	caps, err := c.Capabilities()
	if err != nil || len(caps.NVIndexes) < 3 {
		t.Errorf("%+v, %v", caps, err)
	}
	m, err := policy.NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// What is used instead.
	s, err := c.SealPCR(m, policy.Bound(), predict("uki 1"), predict("uki 2"))
	if err != nil {
		t.Fatal(err)
	}
	if got, r, err := c.Unseal(s); err != nil || !got.Equal(m) || r != nil {
		t.Errorf("%v", err)
	}
}

func TestHandlesTaken(t *testing.T) {
	e := startTPM(t)
	c := e.open()
	defer closed(t, c)
	for i := range uint32(indexCount) {
		index, err := c.Define(&newKey(t).PublicKey)
		if isCode(err, tpm2.TPMRCNVSpace) {
			t.Skipf("this TPM has room for %d indexes only", i)
		}
		if err != nil || index.Handle != firstIndex+i {
			t.Fatalf("%#x, %v", index.Handle, err)
		}
		// Something else's index is neither listed nor deleted.
		if i == 0 {
			if err := c.Undefine(index.Handle); err != nil {
				t.Fatal(err)
			}
			_, err := tpm2.NVDefineSpace{AuthHandle: owner(tpm2.PasswordAuth(nil)), PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
				NVIndex: firstIndex, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8, Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true},
			})}.Execute(e.raw)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Undefine(firstIndex); !errors.Is(err, ErrIndexForeign) {
				t.Errorf("deleting a foreign index: %v", err)
			}
			if list, err := c.Indexes(); err != nil || len(list) != 0 {
				t.Errorf("%+v, %v", list, err)
			}
		}
	}
	if _, err := c.Define(&newKey(t).PublicKey); !errors.Is(err, ErrNoSpace) {
		t.Errorf("a seventeenth: %v", err)
	}
}

func TestSealPCR(t *testing.T) {
	e := startTPM(t)
	e.boot("uki 1")
	m, err := policy.NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 2, policy.MaxBranches} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			e.reboot()
			e.boot("uki 1")
			c := e.open()
			defer closed(t, c)
			boots := []policy.Boot{predict("uki 1")}
			for i := 2; i <= n; i++ {
				boots = append(boots, predict(fmt.Sprintf("uki %d", i)))
			}
			s, err := c.SealPCR(m, []int{11, 12, 13}, boots...)
			if err != nil {
				t.Fatal(err)
			}
			// Enrolling the keys changes PCR 7, which is not bound here.
			if err := c.ExtendText(7, "enrolled"); err != nil {
				t.Fatal(err)
			}
			if got, _, err := c.Unseal(s); err != nil || !got.Equal(m) {
				t.Errorf("%v", err)
			}
			if err := c.ExtendText(12, "credential"); err != nil {
				t.Fatal(err)
			}
			_, _, err = c.Unseal(s)
			mismatch, ok := errors.AsType[*MismatchError](err)
			if !ok || !slices.Equal(mismatch.Explanation.PCRs, []int{12}) {
				t.Errorf("%v", err)
			}
		})
	}
}
