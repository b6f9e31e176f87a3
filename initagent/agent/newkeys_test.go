package agent

import (
	"crypto/x509"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// enrolledSet is the set that the machine has enrolled, as the firmware's db says.
func (m *machine) enrolledSet() (*secureboot.KeySet, error) {
	sets, err := keySets()
	if err != nil {
		return nil, err
	}
	_, certificates, err := certificatesIn(m.vars)
	if err != nil || len(certificates) != 1 {
		return nil, fmt.Errorf("db has %d certificates (%w)", len(certificates), err)
	}
	for _, s := range sets {
		if s.DB.Certificate.Equal(certificates[0]) {
			return s, nil
		}
	}
	return nil, errors.New("db has a stranger's certificate")
}

func (m *machine) keysUnfinished() bool {
	lock, volumeKey, secret := m.unlocked()
	luks2.Wipe(volumeKey)
	secret.Wipe()
	return rootpart.KeysUnfinished(store{m}, lock)
}

func (m *machine) setNumber(k *secureboot.KeySet) int {
	sets, err := keySets()
	m.must(err)
	return slices.Index(sets[:], k)
}

// replaced reports what is left of the old keys, on a machine that has settled new ones.
func (m *machine) replaced(old *secureboot.KeySet) error {
	if err := m.oneSecret(); err != nil {
		return err
	}
	now, err := m.enrolledSet()
	if err != nil || now.DB.Certificate.Equal(old.DB.Certificate) {
		return fmt.Errorf("the old db key is enrolled: %w", err)
	}
	state, err := enroll.Observe(&firmware{vars: m.vars})
	if err != nil {
		return err
	}
	for _, d := range []struct {
		of   secureboot.Database
		want secureboot.Pair
	}{{state.PK.Content, now.PK}, {state.KEK.Content, now.KEK}, {state.DB.Content, now.DB}} {
		if len(d.of) != 1 || string(d.of[0].Data) != string(d.want.Certificate.Raw) {
			return fmt.Errorf("a variable holds %s", d.of)
		}
	}
	for _, name := range []string{removable, managerCopy, path.Join(bls.Directory, "test_1.efi")} {
		f, err := m.esp.get(name)
		if err == nil {
			err = authenticode.VerifyOwn(f.now.data, now.DB.Certificate)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	lock, volumeKey, secret := m.unlocked()
	defer luks2.Wipe(volumeKey)
	defer secret.Wipe()
	keys, err := rootpart.StoredKeys(store{m}, secret, lock)
	if err != nil {
		return err
	}
	defer keys.Wipe()
	if !keys.DB.Key.Equal(now.DB.Key) || !keys.PK.Key.Equal(now.PK.Key) || !keys.KEK.Key.Equal(now.KEK.Key) {
		return errors.New("the keys that are stored are not those that are enrolled")
	}
	if _, there := m.rootFiles()[rootpart.NextKeysFile]; there || len(lock.NextOwnerSignature) > 0 {
		return errors.New("something is left of the replacement")
	}
	record, err := tpm.OpenTransport(m.emulator).ReadRecord(lock.Sealed)
	if err != nil {
		return err
	}
	start, err := m.agent.ToldBoot()
	if err != nil || !record.Allows(&start) {
		return fmt.Errorf("the record does not have this boot: %w", err)
	}
	for file, f := range m.esp.files {
		if path.Base(file) == "HALOGEN.NEW" && !f.now.absent {
			return fmt.Errorf("%s is left", file)
		}
	}
	return nil
}

// New Secure Boot keys: the firmware enforces them, nothing that the old db key has
// signed starts, and nothing of the old keys is kept. FAULTS 100
func TestNewKeys(t *testing.T) {
	m := provisionedMachine(t, nil)
	old, err := m.enrolledSet()
	m.must(err)
	oldFiles := map[string][]byte{}
	for _, name := range []string{removable, managerCopy, path.Join(bls.Directory, "test_1.efi")} {
		f, err := m.esp.get(name)
		m.must(err)
		oldFiles[name] = f.now.data
	}
	started, err := m.agent.ToldBoot()
	m.must(err)
	r, c := m.asked()
	m.types("y", m.recoveryKey())
	m.works(r.NewSecret(c, true), "The machine has a new secret", "PK gets", "KEK gets", "db gets", "The firmware holds the new Secure Boot keys")
	m.refuses(r.Reseal(c), "the Secure Boot keys are being replaced")
	m.types("y")
	m.works(r.NewSecret(c, true), "going on with that")
	m.works(r.Lock())
	before, err := tpm.OpenTransport(m.emulator).Indexes()
	m.must(err)
	m.opensByItself()
	m.must(m.replaced(old))
	if after, err := tpm.OpenTransport(m.emulator).Indexes(); err != nil || len(after) != 1 || len(before) != 1 {
		t.Errorf("NV indexes %v, %v", after, err)
	}
	lock, _, _ := m.unlocked()
	record, err := tpm.OpenTransport(m.emulator).ReadRecord(lock.Sealed)
	if err != nil || record.Allows(&started) || len(record.Branches) > 2 {
		t.Errorf("the record allows what started by the old keys: %+v, %v", record, err)
	}
	m.opensByItself()
	m.must(m.checkEveryDay())
	for name, data := range oldFiles {
		kept := m.esp.files[name].now
		m.putESP(name, data)
		if end := m.boot(); end != "dead" && name != managerCopy {
			t.Errorf("%s as the old key has signed it: the machine ends in %s", name, end)
		}
		m.putESP(name, kept.data)
	}
	m.opensByItself()
}

// Cut anywhere, the machine starts and opens by itself, and the next start, or the same
// command, brings it to its end. So are the starts that finish it. FAULTS 42, 100
func TestNewKeysCut(t *testing.T) {
	m := provisionedMachine(t, nil)
	old, err := m.enrolledSet()
	m.must(err)
	r, c := m.asked()
	m.types("y", m.recoveryKey())
	states, _ := m.recording(func() string {
		m.works(r.NewSecret(c, true))
		return ""
	}, mrand.New(mrand.NewPCG(41, 42)), "")
	t.Logf("%d operations, %d states after a cut", len(m.ops), len(states))
	olds := m.checkCuts(states, old)
	if olds == 0 || olds == len(states) {
		t.Errorf("the old keys are in force after %d of %d cuts", olds, len(states))
	}
	// The starts that finish it are cut, too.
	random := mrand.New(mrand.NewPCG(43, 44))
	for i := len(states) - 1; i >= 0; i -= 17 {
		m.powerOn(states[i].world)
		m.typed = nil
		inner, end := m.recording(m.run, random, states[i].how+"; then ")
		if end != "system" {
			t.Fatalf("%s: ends in %s", states[i].how, end)
		}
		m.checkCuts(inner, old)
	}
}

// checkCuts starts each of the states, and returns how many have the old keys at the end.
func (m *machine) checkCuts(states []cutState, old *secureboot.KeySet) (olds int) {
	m.t.Helper()
	for i, s := range states {
		m.powerOn(s.world)
		again := i%11 == 5
		if again {
			m.keysNo = m.setNumber(old) // the next ones are others
			r, c := m.asked()
			m.types("y", m.recoveryKey())
			m.works(r.NewSecret(c, true))
			m.works(r.Lock())
		}
		m.opensByItself()
		now, err := m.enrolledSet()
		m.must(err)
		if now.DB.Certificate.Equal(old.DB.Certificate) && !again {
			olds++
			if err := m.oneSecret(); err != nil {
				m.t.Fatalf("%s: %v\n%s", s.how, err, m.said.String())
			}
			continue
		}
		if err := m.replaced(old); err != nil {
			m.t.Fatalf("%s: %v\n%s", s.how, err, m.said.String())
		}
	}
	return olds
}

// Both systems are signed by the new key, and open by themselves.
func TestNewKeysTakeAlong(t *testing.T) {
	m := provisionedMachine(t, pinned)
	old, err := m.enrolledSet()
	m.must(err)
	m.fetch(newRelease(t, 2, 5, pinned))
	m.runs(2)
	m.bless()
	m.runs(2)
	r, c := m.asked()
	m.types("y", m.recoveryKey())
	states, _ := m.recording(func() string {
		m.works(r.NewSecret(c, true))
		return ""
	}, mrand.New(mrand.NewPCG(45, 46)), "")
	for i := len(states) - 1; i >= 0; i -= 6 {
		m.powerOn(states[i].world)
		m.typed = nil
		m.runs(2)
		m.holds(5, 1, 2)
		m.byHand = 1
		m.runs(1)
		m.byHand = 0
		m.holds(5, 1, 2)
		if m.printed.Len() > 0 {
			t.Fatalf("%s: it asks %q", states[i].how, m.printed.String())
		}
	}
	m.powerOn(states[len(states)-1].world)
	m.runs(2)
	if now, err := m.enrolledSet(); err != nil || now.DB.Certificate.Equal(old.DB.Certificate) {
		t.Errorf("the old keys are enrolled (%v)", err)
	}
	m.fetch(newRelease(t, 3, 5, pinned)) // is signed by the new key
	m.runs(3)
}

// A firmware that takes no key from a running system keeps the old ones, with all that
// belongs to them; one that forgets them does not restart for ever.
func TestNewKeysNotTaken(t *testing.T) {
	m := provisionedMachine(t, nil)
	old, err := m.enrolledSet()
	m.must(err)
	r, c := m.asked()
	r.Variables.(*firmware).refuse = errors.New("no")
	m.types("y", m.recoveryKey())
	m.refuses(r.NewSecret(c, true), "the new machine secret is in force; of the Secure Boot keys: the Secure Boot keys stay as they are")
	m.works(r.Lock())
	m.opensByItself()
	m.must(m.oneSecret())
	if now, err := m.enrolledSet(); err != nil || now.DB != old.DB || m.keysUnfinished() {
		t.Errorf("other keys are enrolled, or it is not taken back (%v)", err)
	}

	m = provisionedMachine(t, nil)
	r, c = m.asked()
	vars := cloneVariables(m.vars)
	m.types("y", m.recoveryKey())
	m.works(r.NewSecret(c, true))
	m.works(r.Lock())
	starts := 0
	for ; m.rootFiles()[rootpart.NextKeysFile] != nil && starts < 9; starts++ {
		m.vars = cloneVariables(vars)
		m.typed = nil
		m.boot()
	}
	if starts == 0 || starts > 4 || !strings.Contains(m.said.String(), "forgotten the new keys 3 times") {
		t.Errorf("it gives up after %d starts:\n%s", starts, m.said.String())
	}
	m.opensByItself()
}

// What stands in the file of new keys is anybody's, and an older one of this machine's is
// for keys that it has no more: both are removed. FAULTS 100
func TestForgedNextKeys(t *testing.T) {
	m := provisionedMachine(t, nil)
	old, err := m.enrolledSet()
	m.must(err)
	m.rootFiles()[rootpart.NextKeysFile] = []byte("x")
	m.opensByItself()
	m.must(m.oneSecret())
	if m.rootFiles()[rootpart.NextKeysFile] != nil {
		t.Error("what somebody has written stays")
	}
	r, c := m.asked()
	m.types("y", m.recoveryKey())
	m.works(r.NewSecret(c, true))
	m.works(r.Lock())
	box := m.rootFiles()[rootpart.NextKeysFile]
	m.opensByItself()
	m.must(m.replaced(old))
	ignored := func(what string) {
		t.Helper()
		now, err := m.enrolledSet()
		m.must(err)
		m.rootFiles()[rootpart.NextKeysFile] = box
		m.opensByItself()
		if again, err := m.enrolledSet(); err != nil || again != now || m.rootFiles()[rootpart.NextKeysFile] != nil {
			t.Errorf("%s: it is taken, or stays (%v)", what, err)
		}
	}
	ignored("the one that was settled")

	// The same under a later secret, and for later keys.
	r, c = m.asked()
	m.types("y", m.recoveryKey())
	m.works(r.NewSecret(c, true))
	m.works(r.Lock())
	m.opensByItself()
	m.must(m.replaced(old))
	ignored("one for keys that it has no more")
}

// The owner signature stands for either db while it is replaced, and for no other; so it does where
// the machine is bound to another TPM meanwhile.
func TestTwoOwnerSignatures(t *testing.T) {
	m := provisionedMachine(t, nil)
	old, err := m.enrolledSet()
	m.must(err)
	fresh := m.otherKeys()
	r, c := m.asked()
	r.Variables.(*firmware).refuse = syscall.EACCES // it stops at done = 0, and is cut before it goes back
	m.types("y", m.recoveryKey())
	var before *world
	m.snapshot = func() {
		if len(m.ops) > 0 && m.ops[len(m.ops)-1] == "variable PK" && before == nil {
			before = m.world(true, nil)
		}
	}
	m.refuses(r.NewSecret(c, true), "the Secure Boot keys stay as they are")
	m.snapshot = nil
	m.powerOn(before)
	lock, volumeKey, secret := m.unlocked()
	defer secret.Wipe()
	s, err := m.partition(layout.RootNumber)
	m.must(err)
	both := func(lock *rootlock.Lock) {
		t.Helper()
		sets, err := keySets()
		m.must(err)
		for _, k := range sets {
			is := k.DB.Certificate.Equal(old.DB.Certificate) || k.DB.Certificate.Equal(fresh.DB.Certificate)
			if got := lock.CheckOwnerSignature(volumeKey, []*x509.Certificate{k.DB.Certificate}) == nil; got != is {
				t.Errorf("a db vouches for the volume: %v, want %v", got, is)
			}
		}
	}
	both(lock)
	m.must(lock.Rebind(m.random, s, volumeKey, secret, lock.Sealed, nil))
	_, again, err := rootlock.Look(s, s.Size())
	m.must(err)
	both(again)
	m.must(again.SignAgain(m.random, s, volumeKey, fresh.DB.Key))
	_, again, err = rootlock.Look(s, s.Size())
	m.must(err)
	if again.CheckOwnerSignature(volumeKey, []*x509.Certificate{old.DB.Certificate}) == nil || again.CheckOwnerSignature(volumeKey, []*x509.Certificate{fresh.DB.Certificate}) != nil {
		t.Error("the old owner signature stands still, or the new one does not")
	}
}

// Where the TPM does not open the root partition while the keys are replaced, the recovery
// key does, and the same start goes on; the machine then opens by itself again.
func TestNewKeysByHand(t *testing.T) {
	m := provisionedMachine(t, nil)
	old, err := m.enrolledSet()
	m.must(err)
	r, c := m.asked()
	m.types("y", m.recoveryKey())
	states, _ := m.recording(func() string {
		m.works(r.NewSecret(c, true))
		return ""
	}, mrand.New(mrand.NewPCG(47, 48)), "")
	begun := 0
	for _, s := range states {
		m.powerOn(s.world)
		if m.rootFiles()[rootpart.NextKeysFile] == nil {
			continue
		}
		if begun++; begun%5 != 1 && s.how != states[len(states)-1].how {
			continue
		}
		m.extra = "new firmware"
		// Before the new secret has seen a good boot, no event log says which boot manager
		// the machine had.
		m.typed = []string{"weaker"}
		m.owner = true
		m.printed.Reset()
		m.ends("system")
		if n := strings.Count(m.printed.String(), "\nRecovery key"); n < 1 || n > 2 || !strings.Contains(m.printed.String(), "Accepted.") {
			t.Errorf("%s: asks\n%s", s.how, m.printed.String())
		}
		m.owner = false
		m.opensByItself()
		if err := m.replaced(old); err != nil {
			t.Errorf("%s: %v\n%s", s.how, err, m.said.String())
		}
		m.extra = ""
	}
	if begun < 10 {
		t.Errorf("%d states have new keys", begun)
	}
}

// What is not there for new keys is said before anything of them is written.
func TestNewKeysRefuses(t *testing.T) {
	// A system that may be started would not go on with it.
	m := newMachine(t, pinned)
	m.releases[1] = newReleaseOf(t, 1, 5, contract.Abilities{PolicyRecord: 2, NewSecret: 2}, pinned)
	m.powerOn(m.installed(diskSize))
	m.ends("system")
	m.ends("system")
	m.fetch(newRelease(t, 2, 5, pinned))
	m.runs(2)
	m.bless()
	m.runs(2)
	r, c := m.asked()
	m.types("y", m.recoveryKey())
	m.refuses(r.NewSecret(c, true), "version 1 may still be started, and is of a release that knows nothing of new Secure Boot keys")
	m.works(r.NewSecret(c, false), "The machine has a new secret")
	m.works(r.Lock())
	m.asksForSecret(true)
	m.typed = nil
	m.ends("system", "knows nothing of new Secure Boot keys")
	if m.printed.Len() > 0 && strings.Contains(m.printed.String(), "Recovery key for the new secret") {
		t.Error("it asks for a key in vain")
	}

	// The ESP lays two names apart, has no room, or has a system that is not allowed: the
	// old keys stay, and all that starts by them.
	for _, c := range []struct {
		says   string
		change func(m *machine)
	}{
		{"`esp-rebuild` lays", func(m *machine) { m.esp.apart = true }},
		{"are free", func(m *machine) { m.esp.taken = 1 << 30 }},
		{"it would start no more", func(m *machine) {
			set, err := m.enrolledSet()
			m.must(err)
			stray, err := enroll.DBSigner{Pair: set.DB, Time: set.DB.Certificate.NotBefore}.Sign(newRelease(t, 9, 5, nil).uki)
			m.must(err)
			m.putESP(path.Join(bls.Directory, "test_9+0.efi"), stray)
		}},
	} {
		m := provisionedMachine(t, nil)
		old, err := m.enrolledSet()
		m.must(err)
		r, con := m.asked()
		c.change(m)
		m.types("y", m.recoveryKey())
		m.refuses(r.NewSecret(con, true), c.says)
		m.works(r.Lock())
		m.esp.apart, m.esp.taken = false, 0
		m.typed = nil
		m.ends("system")
		m.must(m.oneSecret())
		if now, err := m.enrolledSet(); err != nil || now != old || m.rootFiles()[rootpart.NextKeysFile] != nil {
			t.Errorf("%s: other keys are enrolled, or it is not taken back (%v)", c.says, err)
		}
	}

	// Firmware whose keys somebody else has changed is not given new ones.
	m = provisionedMachine(t, nil)
	set, err := m.enrolledSet()
	m.must(err)
	r, c = m.asked()
	m.types("y", m.recoveryKey())
	m.works(r.NewSecret(c, false))
	m.types("y", m.recoveryKey())
	w := set.Wanted(secureboot.Vendor{})
	other := m.otherKeys()
	w.KEK = append(w.KEK, secureboot.Certificate(other.Owner, other.KEK.Certificate))
	m.setKeys(w)
	m.refuses(r.NewSecret(c, true), "the firmware's keys are not those that this machine wants")
}
