package tpm

import (
	"crypto/rand"
	"errors"
	"reflect"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"halogenos.internal/boot/policy"
)

var errCut = errors.New("the power is gone")

// cutter loses the power at the n-th command, before the TPM has it or before
// its answer comes.
type cutter struct {
	inner transport.TPM
	left  int
	after bool
}

func (c *cutter) Send(command []byte) ([]byte, error) {
	c.left--
	if c.left < 0 || c.left == 0 && !c.after {
		return nil, errCut
	}
	answer, err := c.inner.Send(command)
	if c.left == 0 {
		return nil, errCut
	}
	return answer, err
}

// Wherever a change of the policy is cut, the record is the old one or the new
// one, the running release unlocks, and the change can be made again.
func TestCutPolicyChange(t *testing.T) { // FAULTS 74
	m := provision(t, "uki 1")
	old := *m.record
	staged := policy.Record{Floor: 1, Volume: old.Volume, Branches: append(old.Branches[:1:1], branch(predict("uki 2"), 2, 1))}
	key, err := m.secret.WriteKey()
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for n := 1; ; n++ {
		done := false
		for _, after := range []bool{false, true} {
			m.write(&old)
			c := newTPM(&cutter{inner: m.raw, left: n, after: after}, nil)
			err := c.WriteRecord(m.index.Handle, key, &staged)
			done = err == nil
			m.reboot()
			m.boot("uki 1")
			record, err := m.unlock()
			if err != nil {
				t.Fatalf("cut at command %d, after it %v: %v", n, after, err)
			}
			switch {
			case reflect.DeepEqual(*record, staged):
				changed++
			case !reflect.DeepEqual(*record, old):
				t.Fatalf("cut at command %d, after it %v: %+v", n, after, record)
			}
			if done {
				break
			}
		}
		if done {
			break
		}
		if n > 30 {
			t.Fatal("the change is never done")
		}
	}
	if changed < 2 {
		t.Errorf("%d changes took effect, want the one that was cut afterwards and the whole one", changed)
	}
}

// Wherever provisioning is cut, it can be started over, and what it left behind
// is found and removed.
func TestCutProvisioning(t *testing.T) {
	e := startTPM(t)
	steps := func(tt transport.TPM) (*policy.Secret, *policy.Sealed, error) {
		m, err := policy.NewSecret(rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		key, err := m.WriteKey()
		if err != nil {
			return nil, nil, err
		}
		c := newTPM(tt, nil)
		index, err := c.Define(&key.PublicKey)
		if err != nil {
			return nil, nil, err
		}
		record := &policy.Record{Volume: sum("volume"), Branches: []policy.Branch{branch(predict("uki 1"), 1, 1)}}
		if err := c.WriteRecord(index.Handle, key, record); err != nil {
			return nil, nil, err
		}
		s, err := c.Seal(m, index)
		return m, s, err
	}
	for n := 1; ; n++ {
		e.reboot()
		e.boot("uki 1")
		_, _, err := steps(&cutter{inner: e.raw, left: n, after: n%2 == 0})
		if err != nil && !errors.Is(err, errCut) {
			t.Fatalf("cut at command %d: %v", n, err)
		}
		e.reboot()
		e.boot("uki 1")
		c := e.open()
		left, err2 := c.Indexes()
		if err2 != nil || len(left) > 1 {
			t.Fatalf("cut at command %d: %+v, %v", n, left, err2)
		}
		for _, l := range left {
			if err := c.Undefine(l.Handle); err != nil {
				t.Fatal(err)
			}
		}
		m, s, err2 := steps(e.raw)
		if err2 != nil {
			t.Fatalf("started over after a cut at command %d: %v", n, err2)
		}
		if got, _, err := c.Unseal(s); err != nil || !got.Equal(m) {
			t.Fatalf("started over after a cut at command %d: %v", n, err)
		}
		if err := c.Undefine(s.NVIndex); err != nil {
			t.Fatal(err)
		}
		closed(t, c)
		if err == nil {
			break
		}
		if n > 60 {
			t.Fatal("provisioning is never done")
		}
	}
}

// After success and after every kind of failure nothing of ours is left in the
// TPM's few places for objects and sessions.
func TestNothingLeft(t *testing.T) {
	m := provision(t, "uki 1")
	check := func(when string) {
		t.Helper()
		for kind, first := range map[string]uint32{"transient object": 0x80000000, "session": 0x02000000, "saved session": 0x03000000} {
			rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 8}.Execute(m.raw)
			if err != nil {
				t.Fatal(err)
			}
			list, err := rsp.CapabilityData.Data.Handles()
			if err != nil || len(list.Handle) > 0 {
				t.Errorf("%s: a %s is left: %v, %v", when, kind, list, err)
			}
		}
	}
	check("provisioned")
	if _, err := m.unlock(); err != nil {
		t.Fatal(err)
	}
	check("unlocked")
	c := m.open()
	for range 2 {
		if _, err := c.ReadRecord(m.sealed); err != nil {
			t.Fatal(err)
		}
		if err := c.ExtendText(12, "x"); err != nil {
			t.Fatal(err)
		}
	}
	closed(t, c)
	check("record read, PCR extended")
	if _, err := m.unlock(); !errors.Is(err, ErrPolicy) {
		t.Fatal(err)
	}
	check("refused")
	m.refuseWrites(t)
	check("writes refused")
	evict := tpm2.EvictControl{Auth: owner(tpm2.PasswordAuth(nil)), PersistentHandle: storageHandle,
		ObjectHandle: tpm2.NamedHandle{Handle: storageHandle, Name: tpmName(m.sealed.SRKName)}}
	if _, err := evict.Execute(m.raw); err != nil {
		t.Fatal(err)
	}
	if _, err := m.unlock(); !errors.Is(err, ErrPolicy) {
		t.Fatal(err)
	}
	check("refused under a transient key")
	m.undefine()
	if _, err := m.unlock(); !errors.Is(err, ErrIndexMissing) {
		t.Fatal(err)
	}
	check("index missing")
}

type panicking struct{}

func (panicking) Send([]byte) ([]byte, error) { panic("index out of range") }

// A panic while an answer is taken apart does not end PID 1.
func TestFence(t *testing.T) { // FAULTS 76
	s := sealedForTest(t)
	key := newKey(t)
	record := &policy.Record{Volume: sum("volume"), Branches: []policy.Branch{{}}}
	m, err := policy.SecretFrom(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	for name, op := range map[string]func(c *TPM) error{
		"capabilities": func(c *TPM) error { _, err := c.Capabilities(); return err },
		"banks":        func(c *TPM) error { _, err := c.Banks(); return err },
		"PCRs":         func(c *TPM) error { _, err := c.Now(); return err },
		"extend":       func(c *TPM) error { return c.ExtendText(1, "x") },
		"storage key":  func(c *TPM) error { _, err := c.StorageKey(); return err },
		"use key":      func(c *TPM) error { return c.UseStorageKey(s.SRKName) },
		"define":       func(c *TPM) error { _, err := c.Define(&key.PublicKey); return err },
		"undefine":     func(c *TPM) error { return c.Undefine(firstIndex) },
		"indexes":      func(c *TPM) error { _, err := c.Indexes(); return err },
		"write":        func(c *TPM) error { return c.WriteRecord(firstIndex, key, record) },
		"read":         func(c *TPM) error { _, err := c.ReadRecord(s); return err },
		"seal": func(c *TPM) error {
			_, err := c.Seal(m, policy.Index{Handle: firstIndex, Key: &key.PublicKey})
			return err
		},
		"seal to PCRs": func(c *TPM) error { _, err := c.SealPCR(m, []int{11}, predict("x")); return err },
		"unseal":       func(c *TPM) error { _, _, err := c.Unseal(s); return err },
	} {
		if err := op(newTPM(panicking{}, nil)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
