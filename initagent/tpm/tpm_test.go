package tpm

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
)

func sum(text string) pcr.Digest { return sha256.Sum256([]byte(text)) }

// machine is a provisioned machine.
type machine struct {
	*emulator
	secret *policy.Secret
	index  policy.Index
	sealed *policy.Sealed
	record *policy.Record
}

var volumeKey = bytes.Repeat([]byte{7}, 64)

func branch(b policy.Boot, version, epoch uint64) policy.Branch {
	return policy.Branch{Policy: b.Branch(), Version: version, Epoch: epoch}
}

// provision does what the second boot does: define, write, seal.
func provision(t *testing.T, boots ...string) *machine {
	t.Helper()
	e := startTPM(t)
	e.boot(boots[0])
	return provisionOn(t, e, boots...)
}

func provisionOn(t *testing.T, e *emulator, boots ...string) *machine {
	t.Helper()
	m := &machine{emulator: e, record: &policy.Record{Floor: 1, Volume: policy.VolumeFingerprint(volumeKey)}}
	for i, b := range boots {
		m.record.Branches = append(m.record.Branches, branch(predict(b), uint64(i+1), 1))
	}
	var err error
	if m.secret, err = policy.NewSecret(rand.Reader); err != nil {
		t.Fatal(err)
	}
	key, err := m.secret.WriteKey()
	if err != nil {
		t.Fatal(err)
	}
	c := e.open()
	defer closed(t, c)
	if m.index, err = c.Define(&key.PublicKey); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteRecord(m.index.Handle, key, m.record); err != nil {
		t.Fatal(err)
	}
	if m.sealed, err = c.Seal(m.secret, m.index); err != nil {
		t.Fatal(err)
	}
	return m
}

func closed(t *testing.T, c *TPM) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// unlock unseals and requires the machine's secret.
func (m *machine) unlock(known ...policy.Boot) (*policy.Record, error) {
	m.t.Helper()
	c := m.open()
	defer closed(m.t, c)
	got, record, err := c.Unseal(m.sealed, known...)
	if err != nil {
		if got != nil {
			m.t.Fatal("an error and a secret")
		}
		return nil, err
	}
	if !got.Equal(m.secret) {
		m.t.Fatal("another secret came out")
	}
	return record, nil
}

func (m *machine) write(r *policy.Record) {
	m.t.Helper()
	key, err := m.secret.WriteKey()
	if err != nil {
		m.t.Fatal(err)
	}
	c := m.open()
	defer closed(m.t, c)
	if err := c.WriteRecord(m.index.Handle, key, r); err != nil {
		m.t.Fatal(err)
	}
}

func TestStory(t *testing.T) { // FAULTS 73, 74
	m := provision(t, "uki 1")
	record, err := m.unlock()
	if err != nil {
		t.Fatal(err)
	}
	if record.Floor != 1 || record.Volume != policy.VolumeFingerprint(volumeKey) || len(record.Branches) != 1 {
		t.Errorf("record %+v", record)
	}

	// Staging: release 2 is added, in one write, nothing is resealed.
	m.record.Branches = append(m.record.Branches, branch(predict("uki 2"), 2, 2))
	m.write(m.record)
	if _, err := m.unlock(); err != nil {
		t.Fatalf("the running release after staging: %v", err)
	}
	m.reboot()
	m.boot("uki 2")
	if _, err := m.unlock(); err != nil {
		t.Fatalf("the trial: %v", err)
	}
	m.reboot()
	m.boot("uki 1")
	if _, err := m.unlock(); err != nil {
		t.Fatalf("rolled back: %v", err)
	}

	// Blessed: the floor rises, and release 1 is out.
	m.reboot()
	m.boot("uki 2")
	m.write(&policy.Record{Floor: 2, Volume: m.record.Volume, Branches: m.record.Branches[1:]})
	if record, err = m.unlock(); err != nil || record.Floor != 2 {
		t.Fatalf("%+v, %v", record, err)
	}
	m.reboot()
	m.boot("uki 1")
	_, err = m.unlock(predict("uki 2"))
	mismatch, ok := errors.AsType[*MismatchError](err)
	if !ok || !slices.Equal(mismatch.Explanation.PCRs, []int{11}) || mismatch.Explanation.Allowed != predict("uki 2") {
		t.Fatalf("an old, correctly signed UKI: %v", err)
	}
}

// From the first boot to the second PCR 7 changes; the full record that follows
// binds the very same sealed object to it.
func TestProvisional(t *testing.T) {
	m := provision(t, "uki 1")
	full := m.record
	first := predict("uki 1")
	over, err := first.BranchOver(policy.Provisional())
	if err != nil {
		t.Fatal(err)
	}
	m.write(&policy.Record{Floor: 1, Branches: []policy.Branch{{Policy: over, Version: 1, Epoch: 1}}})
	m.reboot()
	c := m.open()
	for n, text := range map[int]string{7: "other keys", 11: "uki 1"} {
		if err := c.ExtendText(n, text); err != nil {
			t.Fatal(err)
		}
	}
	if record, err := m.unlock(); err != nil || !record.Provisional() {
		t.Fatalf("second boot: %+v, %v", record, err)
	}
	m.write(full)
	if _, err := m.unlock(); !errors.Is(err, ErrPolicy) {
		t.Fatalf("other keys, once there is a volume: %v", err)
	}
}

func TestUnsealTakesTenCommands(t *testing.T) {
	m := provision(t, "uki 1", "uki 2", "uki 3")
	takesTen(t, m)
	full := policy.System{Version: 1, Epoch: 1, Boots: []policy.Boot{predict("uki 1")}}
	for i := range byte(policy.MaxBranches) {
		full.Boots = append(full.Boots, policy.Boot{PCR4: pcr.Digest{i + 1}})
	}
	r, err := policy.Compose(1, m.record.Volume, true, full)
	if err != nil {
		t.Fatal(err)
	}
	m.write(r)
	takesTen(t, m)
}

func takesTen(t *testing.T, m *machine) {
	t.Helper()
	s := &spy{inner: m.raw}
	c := newTPM(s, nil)
	if _, _, err := c.Unseal(m.sealed); err != nil {
		t.Fatal(err)
	}
	closed(t, c)
	want := []tpm2.TPMCC{
		tpm2.TPMCCReadPublic, tpm2.TPMCCStartAuthSession, tpm2.TPMCCNVRead, tpm2.TPMCCPolicyPCR, tpm2.TPMCCPolicyOR,
		tpm2.TPMCCPolicyAuthorizeNV, tpm2.TPMCCLoad, tpm2.TPMCCUnseal, tpm2.TPMCCFlushContext, tpm2.TPMCCFlushContext,
	}
	if !slices.Equal(s.codes, want) {
		t.Errorf("commands %v, want %v", s.codes, want)
	}
}
