package tpm

import (
	"bytes"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/policy"
)

func pinned(t *testing.T, text string) *policy.PIN {
	t.Helper()
	s, err := policy.NewStretch(rand.Reader, 3, policy.MinStretchMemory, 1)
	if err != nil {
		t.Fatal(err)
	}
	return again(t, s, text)
}

func again(t *testing.T, s policy.Stretch, text string) *policy.PIN {
	t.Helper()
	p, err := s.PIN([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// withPIN gives a provisioned machine a PIN.
func (m *machine) withPIN(p *policy.PIN) {
	m.t.Helper()
	m.secret.SetPIN(p)
	c := m.open()
	defer closed(m.t, c)
	var err error
	if m.sealed, err = c.Seal(m.secret, m.index); err != nil {
		m.t.Fatal(err)
	}
	text, err := m.sealed.Encode()
	if err == nil {
		m.sealed, err = policy.ParseSealed(text)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) left() int {
	m.t.Helper()
	c := m.open()
	defer closed(m.t, c)
	tries, err := c.PINTries()
	if err != nil {
		m.t.Fatal(err)
	}
	return tries.Left
}

// forgive is TPM2_DictionaryAttackLockReset (Part 3, 25.2), in place of the time.
func (m *machine) forgive() {
	m.t.Helper()
	reset := []byte{0x80, 0x02, 0, 0, 0, 27, 0, 0, 0x01, 0x39, 0x40, 0, 0, 0x0A, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0}
	if answer, err := m.raw.Send(reset); err != nil || len(answer) < 10 || answer[8] != 0 || answer[9] != 0 {
		m.t.Fatalf("%x, %v", answer, err)
	}
}

func (m *machine) unlockBy(p *policy.PIN) error {
	m.t.Helper()
	c := m.open()
	defer closed(m.t, c)
	got, _, err := c.UnsealBy(m.sealed, p)
	if err != nil {
		return err
	}
	if !got.Equal(m.secret) || got.PIN() == nil || !got.PIN().Equal(p) {
		m.t.Error("another secret came out, or without its PIN")
	}
	return nil
}

// The TPM gives the secret to anyone who knows the PIN, in a boot that is allowed; counts
// wrong ones, locks out, and says what is left. FAULTS 108
func TestPIN(t *testing.T) {
	m := provision(t, "uki 1", "uki 2")
	right := pinned(t, "1234")
	wrong := again(t, right.Stretch(), "1235")
	m.withPIN(right)
	if err := m.unlockBy(right); err != nil {
		t.Fatal(err)
	}
	if _, err := m.unlock(); !errors.Is(err, ErrPIN) {
		t.Errorf("without a PIN: %v", err)
	}
	if err := m.unlockBy(pinned(t, "1234")); !errors.Is(err, policy.ErrSealed) {
		t.Errorf("stretched otherwise: %v", err)
	}
	full := m.left()
	if full < 2 {
		t.Fatalf("%d tries", full)
	}

	// A boot that is not allowed costs no try, and says so before anybody is asked.
	m.reboot()
	m.boot("uki 3")
	c := m.open()
	_, mismatch := errors.AsType[*MismatchError](c.Admits(m.sealed))
	closed(t, c)
	_, refused := errors.AsType[*MismatchError](m.unlockBy(right))
	if !mismatch || !refused || m.left() != full {
		t.Errorf("a boot that is not allowed: %t, %t, %d of %d tries are left", mismatch, refused, m.left(), full)
	}

	// A release is added to the record, and nothing is sealed again.
	m.reboot()
	m.boot("uki 2")
	c = m.open()
	if err := c.Admits(m.sealed); err != nil {
		t.Error(err)
	}
	closed(t, c)
	for n := full - 1; n >= 0; n-- {
		if err := m.unlockBy(wrong); !errors.Is(err, ErrWrongPIN) {
			t.Fatalf("a wrong PIN, %d are left: %v", n, err)
		}
		if got := m.left(); got != n {
			t.Errorf("%d tries are left, want %d", got, n)
		}
	}
	for _, p := range []*policy.PIN{wrong, right} {
		if err := m.unlockBy(p); !errors.Is(err, ErrLockout) {
			t.Errorf("locked out: %v", err)
		}
	}
	c = m.open()
	tries, err := c.PINTries()
	if err != nil || tries.Left != 0 || tries.Wait <= 0 {
		t.Errorf("%+v, %v", tries, err)
	}
	if err := c.Admits(m.sealed); err != nil {
		t.Errorf("whether the boot is allowed can be told all the same: %v", err)
	}
	closed(t, c)
	// Its owner writes on in the record, by the recovery key, and time heals the rest.
	m.write(m.record)
	m.forgive()
	if err := m.unlockBy(right); err != nil || m.left() != full {
		t.Errorf("afterwards: %v", err)
	}
}

// Bound to PCRs alone a PIN counts as well.
func TestPINOverPCRs(t *testing.T) {
	e := startTPM(t)
	e.boot("uki 1")
	m := &machine{emulator: e}
	var err error
	if m.secret, err = policy.NewSecret(rand.Reader); err != nil {
		t.Fatal(err)
	}
	right := pinned(t, "correct horse battery staple")
	m.secret.SetPIN(right)
	for _, boots := range [][]policy.Boot{{predict("uki 1")}, {predict("uki 1"), predict("uki 2")}} {
		for _, starts := range []uint32{0, 2} {
			c := m.open()
			m.sealed, err = c.sealPCR(m.secret, starts, policy.WithoutPrograms(), boots)
			if starts > 0 {
				m.sealed, err = c.SealPCRFor(starts, m.secret, policy.WithoutPrograms(), boots...)
			}
			closed(t, c)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.unlockBy(right); err != nil {
				t.Errorf("%d boots, %d starts: %v", len(boots), starts, err)
			}
			if err := m.unlockBy(again(t, right.Stretch(), "correct horse")); !errors.Is(err, ErrWrongPIN) {
				t.Errorf("%d boots, %d starts, a wrong PIN: %v", len(boots), starts, err)
			}
			m.forgive()
			other := *m.sealed
			e.reboot()
			e.boot("uki 3")
			c = m.open()
			if _, mismatch := errors.AsType[*MismatchError](c.Admits(&other)); !mismatch {
				t.Errorf("%d boots: another boot is admitted", len(boots))
			}
			closed(t, c)
			e.reboot()
			e.boot("uki 1")
		}
	}
}

// Anyone who has the chip in hand resets it apart from the processor, replays what the
// machine measures, and asks for the secret, or has an older boot manager of the
// machine's own do it: the PCRs agree, and without the PIN nothing comes out. What passes
// between processor and TPM tells neither secret nor PIN.
func TestPINAgainstReplay(t *testing.T) {
	m := provision(t, "uki 1")
	right := pinned(t, "1234")
	m.withPIN(right)
	auth, secret := right.Auth(), m.secret.Bytes()
	wire := &spy{inner: m.raw}
	c := OpenTransport(wire)
	if _, _, err := c.UnsealBy(m.sealed, right); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Seal(m.secret, m.index); err != nil {
		t.Fatal(err)
	}
	closed(t, c)
	for name, hidden := range map[string][]byte{"the secret": secret, "the authorisation value": auth} {
		if bytes.Contains(wire.bytes, hidden[:8]) {
			t.Errorf("%s can be heard on the bus", name)
		}
	}

	m.reboot()
	m.boot("uki 1")
	for name, tell := range map[string]bool{"without saying that there is a PIN": false, "with an empty one": true} {
		c := m.open()
		if err := c.UseStorageKey(m.sealed.SRKName); err != nil {
			t.Fatal(err)
		}
		session, end, err := tpm2.PolicySession(m.raw, tpm2.TPMAlgSHA256, nonceSize)
		if err != nil {
			t.Fatal(err)
		}
		plain := *m.sealed
		if !tell {
			plain.PIN = nil
		}
		if err := c.assert(&plain, session, m.record.PCRs(), m.record.Digests()); err != nil {
			t.Fatal(err)
		}
		got, err := c.load(m.sealed, session)
		if err == nil || got != nil {
			t.Errorf("%s the TPM gives the secret", name)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
		closed(t, c)
	}
	if err := m.unlockBy(right); err != nil {
		t.Errorf("its owner: %v", err)
	}
}

// tellLockout sends a command of dictionary attack protection with an empty authorisation,
// as anybody can.
func (m *machine) tellLockout(cc tpm2.TPMCC, parameters ...uint32) error {
	m.t.Helper()
	c := m.open()
	defer closed(m.t, c)
	return c.lockoutCommand(cc, parameters...)
}

// Anyone who can start a system of their own replays a good boot, tries a PIN, and has the TPM
// forget that: it does not, where it was told to count. Counting that somebody has switched
// off before is switched on; what keeps it so does not pass over the bus. FAULTS 108
func TestPINCountIsKept(t *testing.T) {
	m := provision(t, "uki 1")
	right := pinned(t, "1234")
	wrong := again(t, right.Stretch(), "1235")
	m.withPIN(right)
	auth := policy.LockoutAuth(bytes.Repeat([]byte{7}, 64))
	counted := func() bool {
		c := m.open()
		defer closed(t, c)
		yes, err := c.PINsCounted()
		if err != nil {
			t.Fatal(err)
		}
		return yes
	}
	if err := m.tellLockout(tpm2.TPMCCDictionaryAttackParameters, 1<<31, 0, 0); err != nil || counted() {
		t.Fatalf("it is guarded from the first: %v", err)
	}
	wire := &spy{inner: m.raw}
	for range 2 {
		c := OpenTransport(wire)
		if err := c.CountPINs(auth); err != nil {
			t.Fatal(err)
		}
		closed(t, c)
	}
	if !counted() || bytes.Contains(wire.bytes, auth[:8]) {
		t.Fatalf("counted %t; the authorisation can be heard on the bus: %t", counted(), bytes.Contains(wire.bytes, auth[:8]))
	}
	try := func(left int) {
		t.Helper()
		if err := m.unlockBy(wrong); !errors.Is(err, ErrWrongPIN) || m.left() != left {
			t.Fatalf("a wrong PIN: %v, %d are left, want %d", err, m.left(), left)
		}
	}
	try(pinTries - 1)
	try(pinTries - 2)
	c := m.open()
	if err := c.ForgivePINs(auth); err != nil || m.left() != pinTries || !counted() {
		t.Errorf("its owner: %v, %d are left", err, m.left())
	}
	closed(t, c)
	try(pinTries - 1)
	if err := m.tellLockout(tpm2.TPMCCDictionaryAttackLockReset); err == nil {
		t.Error("anybody can have the count set back")
	}
	if err := m.tellLockout(tpm2.TPMCCDictionaryAttackParameters, 1<<31, 0, 0); err == nil {
		t.Error("anybody can have it not counted")
	}
	if m.left() != pinTries-1 || !counted() {
		t.Errorf("%d tries are left, counted %t", m.left(), counted())
	}
	if err := m.unlockBy(right); err != nil {
		t.Error(err)
	}
}

// A lockout authorisation of somebody else's is left alone, and one of one's own goes.
func TestPINCountOfOthers(t *testing.T) {
	m := provision(t, "uki 1")
	c := m.open()
	defer closed(t, c)
	theirs, mine := []byte("theirs"), policy.LockoutAuth(make([]byte, 64))
	for range 2 {
		if err := c.CountPINs(theirs); err != nil {
			t.Fatal(err)
		}
		if err := c.UncountPINs(theirs); err != nil {
			t.Fatal(err)
		}
		if counted, err := c.PINsCounted(); err != nil || counted {
			t.Fatalf("counted %t, %v", counted, err)
		}
	}
	if err := c.CountPINs(theirs); err != nil {
		t.Fatal(err)
	}
	if err := c.CountPINs(mine); !errors.Is(err, ErrLockoutAuth) {
		t.Errorf("another's: %v", err)
	}
}
