package tpm

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/policy"
)

// Nothing secret crosses the bus in clear, from provisioning to unlock.
func TestSpyLearnsNothing(t *testing.T) { // FAULTS 68
	e := startTPM(t)
	e.boot("uki 1")
	s := &spy{inner: e.raw}
	c := newTPM(s, nil)
	defer closed(t, c)
	m, err := policy.NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := m.WriteKey()
	if err != nil {
		t.Fatal(err)
	}
	index, err := c.Define(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	now := predict("uki 1")
	record := &policy.Record{Volume: policy.VolumeFingerprint(volumeKey), Branches: []policy.Branch{branch(now, 1, 1)}}
	if err := c.WriteRecord(index.Handle, key, record); err != nil {
		t.Fatal(err)
	}
	sealed, err := c.Seal(m, index)
	if err != nil {
		t.Fatal(err)
	}
	fixed, err := c.SealPCR(m, policy.Bound(), now)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*policy.Sealed{sealed, fixed} {
		got, _, err := c.Unseal(s)
		if err != nil || !got.Equal(m) {
			t.Fatal(err)
		}
	}
	event := policy.VolumeEvent(volumeKey)
	if err := c.Extend(15, event[:]); err != nil {
		t.Fatal(err)
	}
	scalar, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	passphrase := m.LUKSPassphrase()
	raw, err := hex.DecodeString(string(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	for what, secret := range map[string][]byte{
		"machine secret": m.Bytes(), "write key": scalar, "passphrase": passphrase, "passphrase's bytes": raw,
		"volume key": volumeKey, "volume event": event[:],
	} {
		if at := bytes.Index(s.bytes, secret[:16]); at >= 0 {
			t.Errorf("the %s crosses the bus at byte %d of %d", what, at, len(s.bytes))
		}
	}
	// The spy does see what is sent without encryption.
	data, err := record.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(s.bytes, data) {
		t.Error("the spy saw nothing at all")
	}
}

// The premise of the test above: without an encrypting session it would see.
func TestSpySeesUnprotected(t *testing.T) {
	e := startTPM(t)
	s := &spy{inner: e.raw}
	secret := []byte("a secret of 32 bytes, in clear..")
	key, err := newTPM(s, nil).primary()
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpm2.Create{
		ParentHandle: key.parent(tpm2.PasswordAuth(nil)),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret}),
		}},
		InPublic: tpm2.New2B(policy.SealedTemplate(policy.Digest{})),
	}.Execute(s)
	if err != nil || !bytes.Contains(s.bytes, secret) {
		t.Errorf("%v", err)
	}
}

// fakeKey is the public area of a storage key whose private part is known.
func fakeKey(t *testing.T) []byte {
	t.Helper()
	k, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point := k.PublicKey().Bytes()
	public := tpm2.ECCSRKTemplate
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	return tpm2.Marshal(public)
}

// Something in between shows its own storage root key, for the persistent one
// and for one made again, with the right Name beside it or its own.
func TestSwappedStorageKey(t *testing.T) { // FAULTS 69
	m := provision(t, "uki 1")
	fake := fakeKey(t)
	s := &spy{inner: m.raw, after: func(cc tpm2.TPMCC, answer []byte) []byte {
		if cc == tpm2.TPMCCReadPublic || cc == tpm2.TPMCCCreatePrimary {
			// The point is the last part of the public area, 2+32+2+32 bytes,
			// and both answers hold the area whole.
			return bytes.Replace(answer, genuinePoint(t, m), fake[len(fake)-68:], 1)
		}
		return answer
	}}
	c := newTPM(s, nil)
	defer closed(t, c)
	if _, _, err := c.Unseal(m.sealed); !errors.Is(err, ErrChanged) {
		t.Errorf("%v", err)
	}
	if _, err := c.ReadRecord(m.sealed); !errors.Is(err, ErrChanged) {
		t.Errorf("%v", err)
	}
	for _, cc := range []tpm2.TPMCC{tpm2.TPMCCStartAuthSession, tpm2.TPMCCLoad, tpm2.TPMCCUnseal} {
		if slices.Contains(s.codes, cc) {
			t.Errorf("command %#x was sent all the same", uint32(cc))
		}
	}
}

func genuinePoint(t *testing.T, m *machine) []byte {
	t.Helper()
	rsp, err := tpm2.ReadPublic{ObjectHandle: storageHandle}.Execute(m.raw)
	if err != nil {
		t.Fatal(err)
	}
	b := rsp.OutPublic.Bytes()
	return b[len(b)-68:]
}

// Something in between that relays the genuine key, and answers an unseal with
// a secret of its own.
func TestForgedAnswers(t *testing.T) { // FAULTS 69
	m := provision(t, "uki 1")
	for cc, name := range map[tpm2.TPMCC]string{
		tpm2.TPMCCUnseal: "unseal", tpm2.TPMCCNVRead: "NV read",
	} {
		s := &spy{inner: m.raw, after: func(got tpm2.TPMCC, answer []byte) []byte {
			if got == cc && len(answer) > 40 {
				answer = bytes.Clone(answer)
				answer[20] ^= 1
			}
			return answer
		}}
		c := newTPM(s, nil)
		if got, _, err := c.Unseal(m.sealed); err == nil || got != nil || !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
		_ = c.Close()
	}
	// A cap that never reaches the TPM is noticed.
	s := &spy{inner: m.raw}
	c := newTPM(s, nil)
	defer closed(t, c)
	if _, _, err := c.Unseal(m.sealed); err != nil {
		t.Fatal(err)
	}
	if err := c.ExtendText(23, "something"); err != nil {
		t.Fatal(err)
	}
	var earlier []byte
	s.after = func(cc tpm2.TPMCC, answer []byte) []byte {
		if cc == tpm2.TPMCCPCREvent {
			earlier = bytes.Clone(answer)
		}
		return answer
	}
	if err := c.ExtendText(23, "something"); err != nil {
		t.Fatal(err)
	}
	s.before = func(cc tpm2.TPMCC, _ []byte) []byte {
		if cc == tpm2.TPMCCPCREvent {
			return earlier
		}
		return nil
	}
	if err := c.ExtendText(11, "leave-initrd"); !errors.Is(err, ErrMalformed) {
		t.Errorf("a dropped extend: %v", err)
	}
}

// The attack that the command's hash in the signature is against: what stands
// in between opens a session of its own, lends us its nonce, and spends our
// signature on a record of its own.
func TestBorrowedSignature(t *testing.T) {
	m := provision(t, "uki 1")
	rogue := &policy.Record{Branches: []policy.Branch{{Policy: policy.Digest{1}}}}
	data, err := rogue.Encode()
	if err != nil {
		t.Fatal(err)
	}
	name, err := m.index.Name()
	if err != nil {
		t.Fatal(err)
	}
	var theirs tpm2.Session
	var spent error
	s := &spy{inner: m.raw}
	s.before = func(cc tpm2.TPMCC, command []byte) []byte {
		switch cc {
		case tpm2.TPMCCStartAuthSession:
			if !slices.Contains(s.codes, tpm2.TPMCCLoadExternal) || theirs != nil {
				return nil
			}
			session, _, err := tpm2.PolicySession(m.raw, tpm2.TPMAlgSHA256, 16)
			if err != nil {
				t.Error(err)
				return nil
			}
			theirs = session
			nonce := session.NonceTPM().Buffer
			answer := append([]byte{0x80, 0x01, 0, 0, 0, byte(16 + len(nonce)), 0, 0, 0, 0},
				byte(session.Handle()>>24), byte(session.Handle()>>16), byte(session.Handle()>>8), byte(session.Handle()),
				0, byte(len(nonce)))
			return append(answer, nonce...)
		case tpm2.TPMCCNVWrite:
			_, spent = tpm2.NVWrite{
				AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(m.index.Handle), Name: tpmName(name), Auth: theirs},
				NVIndex:    named(m.index.Handle, name),
				Data:       tpm2.TPM2BMaxNVBuffer{Buffer: data},
			}.Execute(m.raw)
			return failure(tpm2.TPMRCFailure)
		}
		return nil
	}
	key, err := m.secret.WriteKey()
	if err != nil {
		t.Fatal(err)
	}
	c := newTPM(s, nil)
	defer closed(t, c)
	if err := c.WriteRecord(m.index.Handle, key, m.record); !errors.Is(err, ErrFailed) {
		t.Fatalf("%v", err)
	}
	if theirs == nil || spent == nil {
		t.Fatalf("the attack was not made, or worked: %v", spent)
	}
	if _, ok := errors.AsType[tpm2.TPMRC](spent); !ok {
		t.Fatalf("refused by something else than the TPM: %v", spent)
	}
	if _, err := m.unlock(); err != nil {
		t.Error(err)
	}
}

func TestAlteredWrite(t *testing.T) {
	m := provision(t, "uki 1")
	key, err := m.secret.WriteKey()
	if err != nil {
		t.Fatal(err)
	}
	s := &spy{inner: m.raw}
	s.before = func(cc tpm2.TPMCC, command []byte) []byte {
		if cc == tpm2.TPMCCNVWrite {
			command[len(command)-100] ^= 1
		}
		return nil
	}
	c := newTPM(s, nil)
	defer closed(t, c)
	if err := c.WriteRecord(m.index.Handle, key, m.record); err == nil {
		t.Error("an altered record was written")
	}
	if _, err := m.unlock(); err != nil {
		t.Error(err)
	}
}

func TestCleared(t *testing.T) { // FAULTS 71
	m := provision(t, "uki 1")
	if _, err := (tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}).Execute(m.raw); err != nil {
		t.Fatal(err)
	}
	if _, err := m.unlock(); !errors.Is(err, ErrChanged) {
		t.Errorf("no key: %v", err)
	}
	c := m.open()
	defer closed(t, c)
	if _, err := c.StorageKey(); err != nil { // somebody else made theirs
		t.Fatal(err)
	}
	if _, err := m.unlock(); !errors.Is(err, ErrChanged) {
		t.Errorf("another key: %v", err)
	}
}

func TestOtherTPM(t *testing.T) { // FAULTS 71
	m := provision(t, "uki 1")
	other := provision(t, "uki 1")
	other.sealed = m.sealed
	if _, err := other.unlock(); !errors.Is(err, ErrChanged) {
		t.Errorf("%v", err)
	}
}

// Keys at the persistent handle that are not ours are neither used nor touched.
func TestForeignKey(t *testing.T) { // FAULTS 72
	rsaKey := tpm2.RSASRKTemplate
	signer := tpm2.ECCSRKTemplate
	signer.ObjectAttributes.Decrypt, signer.ObjectAttributes.SignEncrypt = false, true
	signer.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		CurveID: tpm2.TPMECCNistP256,
		Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
	})
	for name, c := range map[string]struct {
		public   tpm2.TPMTPublic
		password string
	}{
		"RSA storage key":           {public: rsaKey},
		"signing key":               {public: signer},
		"our template, a password":  {public: tpm2.ECCSRKTemplate, password: "x"},
		"our template, no password": {public: tpm2.ECCSRKTemplate},
	} {
		t.Run(name, func(t *testing.T) {
			e := startTPM(t)
			e.boot("uki 1")
			made, err := tpm2.CreatePrimary{
				PrimaryHandle: owner(tpm2.PasswordAuth(nil)),
				InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
					UserAuth: tpm2.TPM2BAuth{Buffer: []byte(c.password)},
				}},
				InPublic: tpm2.New2B(c.public),
			}.Execute(e.raw)
			if err != nil {
				t.Fatal(err)
			}
			keep := tpm2.EvictControl{Auth: owner(tpm2.PasswordAuth(nil)), PersistentHandle: storageHandle,
				ObjectHandle: tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}}
			if _, err := keep.Execute(e.raw); err != nil {
				t.Fatal(err)
			}
			m := provisionOn(t, e, "uki 1")
			if _, err := m.unlock(); err != nil {
				t.Fatal(err)
			}
			m.reboot()
			m.boot("uki 1")
			if _, err := m.unlock(); err != nil {
				t.Errorf("at the next boot: %v", err)
			}
			there, err := tpm2.ReadPublic{ObjectHandle: storageHandle}.Execute(m.raw)
			if err != nil || !bytes.Equal(there.Name.Buffer, made.Name.Buffer) {
				t.Errorf("the foreign key is gone: %v", err)
			}
		})
	}
}

// The key deleted from its handle, or another put there, between two boots.
func TestEvictedKey(t *testing.T) { // FAULTS 72
	m := provision(t, "uki 1")
	name := tpmName(m.sealed.SRKName)
	evict := tpm2.EvictControl{Auth: owner(tpm2.PasswordAuth(nil)), PersistentHandle: storageHandle,
		ObjectHandle: tpm2.NamedHandle{Handle: storageHandle, Name: name}}
	if _, err := evict.Execute(m.raw); err != nil {
		t.Fatal(err)
	}
	if _, err := m.unlock(); err != nil {
		t.Errorf("deleted: %v", err)
	}
	other, err := tpm2.CreatePrimary{PrimaryHandle: owner(tpm2.PasswordAuth(nil)), InPublic: tpm2.New2B(tpm2.RSASRKTemplate)}.Execute(m.raw)
	if err != nil {
		t.Fatal(err)
	}
	keep := tpm2.EvictControl{Auth: owner(tpm2.PasswordAuth(nil)), PersistentHandle: storageHandle,
		ObjectHandle: tpm2.NamedHandle{Handle: other.ObjectHandle, Name: other.Name}}
	if _, err := keep.Execute(m.raw); err != nil {
		t.Fatal(err)
	}
	if _, err := m.unlock(); err != nil {
		t.Errorf("replaced: %v", err)
	}
}

// The key at the handle is of RSA and the answer longer than a P-256 key's.
func TestCheckKeyRefuses(t *testing.T) {
	good := fakeKey(t)
	if _, err := checkKey(storageHandle, good); err != nil {
		t.Fatal(err)
	}
	long := tpm2.RSASRKTemplate
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	long.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()})
	for name, b := range map[string][]byte{
		"nothing": nil, "RSA": tpm2.Marshal(long), "cut": good[:len(good)-1], "more": append(bytes.Clone(good), 0),
		"can be duplicated": change(good, 7, 0x02), "can sign": change(good, 5, 0x04), "needs a policy": change(good, 9, 1),
	} {
		if k, err := checkKey(storageHandle, b); err == nil {
			t.Errorf("%s: taken as %s", name, k.name)
		}
	}
}

func change(b []byte, at int, bits byte) []byte {
	b = bytes.Clone(b)
	b[at] ^= bits
	return b
}

// PCRs that change while the policy is being satisfied.
func TestPCRsChange(t *testing.T) {
	m := provision(t, "uki 1")
	times := 0
	limit := 2
	s := &spy{inner: m.raw}
	s.before = func(cc tpm2.TPMCC, _ []byte) []byte {
		if cc == tpm2.TPMCCUnseal && times < limit {
			times++
			if err := m.open().ExtendText(10, "IMA"); err != nil {
				t.Error(err)
			}
		}
		return nil
	}
	sleeps := 0
	c := newTPM(s, sleepCounter(&sleeps))
	defer closed(t, c)
	if got, _, err := c.Unseal(m.sealed); err != nil || !got.Equal(m.secret) {
		t.Fatalf("%v", err)
	}
	if sleeps != 2 {
		t.Errorf("%d pauses, want 2", sleeps)
	}
	times, limit = 0, 1000
	if _, _, err := c.Unseal(m.sealed); !errors.Is(err, ErrBusy) {
		t.Errorf("for ever: %v", err)
	}
	if times != unsealAttempts {
		t.Errorf("%d attempts, want %d", times, unsealAttempts)
	}
}
