package tpm

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/policy"
)

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

// An index that looks like ours and has a password keeps none of ours from being found:
// what an earlier secret was sealed to goes.
func TestPlantedIndex(t *testing.T) {
	e := startTPM(t)
	c := e.open()
	defer closed(t, c)
	key := newKey(t)
	ours, err := c.Define(&newKey(t).PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	planted := policy.Index{Handle: ours.Handle + 1, Key: &key.PublicKey}
	public, err := planted.Public(false)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpm2.NVDefineSpace{AuthHandle: owner(tpm2.PasswordAuth(nil)), Auth: tpm2.TPM2BAuth{Buffer: []byte("mine")}, PublicInfo: tpm2.New2B(public)}.Execute(e.raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WriteRecord(planted.Handle, key, &policy.Record{Volume: [32]byte{1}, Branches: []policy.Branch{{Policy: policy.Digest{1}}}}); !isCode(err, tpm2.TPMRCBadAuth, tpm2.TPMRCAuthFail) {
		t.Fatalf("the planted index has a record: %v", err) // it is written before it is read back
	}
	list, err := c.Abandoned()
	if err != nil || len(list) != 1 || list[0].Handle != ours.Handle {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err := c.OfVolume([32]byte{1}); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
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

// What was sealed for a few starts unseals in those, and then no more; a count that
// somebody has raised in the stored object makes it another object. FAULTS 98
func TestSealPCRFor(t *testing.T) {
	e := startTPM(t)
	e.boot("uki 1")
	m, err := policy.NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, boots := range [][]policy.Boot{{predict("uki 1")}, {predict("uki 1"), predict("uki 2")}} {
		c := e.open()
		s, err := c.SealPCRFor(2, m, []int{11, 12, 13}, boots...)
		if err != nil {
			t.Fatal(err)
		}
		closed(t, c)
		text, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if s, err = policy.ParseSealed(text); err != nil {
			t.Fatal(err)
		}
		for start := range 5 {
			c := e.open()
			got, _, err := c.Unseal(s)
			expired, xerr := c.Expired(s)
			if over := start > 2; xerr != nil || expired != over || over != errors.Is(err, ErrExpired) || !over && (err != nil || !got.Equal(m)) {
				t.Errorf("start %d: %v; expired %v, %v", start, err, expired, xerr)
			}
			closed(t, c)
			e.reboot()
			e.boot("uki 1")
		}
		longer := *s
		longer.Resets += 10
		if _, err := longer.Encode(); err == nil {
			t.Error("an object with a raised count is taken for whole")
		}
	}
}
