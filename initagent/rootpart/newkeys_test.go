package rootpart_test

import (
	"crypto/x509"
	"errors"
	mrand "math/rand/v2"
	"path"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// New Secure Boot keys: the firmware enforces them, nothing that the old db key has
// signed starts, and nothing of the old keys is kept. FAULTS 100
func TestNewKeys(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	old, err := m.EnrolledSet()
	m.Must(err)
	oldFiles := map[string][]byte{}
	for _, name := range []string{machinetest.Removable, machinetest.ManagerCopy, path.Join(bls.Directory, "test_1.efi")} {
		f, err := m.ESP.Get(name)
		m.Must(err)
		oldFiles[name] = f.Now.Data
	}
	started, err := m.Agent.ToldBoot()
	m.Must(err)
	r, c := m.Asked()
	m.Types("y", m.RecoveryKey())
	m.Works(r.NewSecret(c, true), "The machine has a new secret", "PK gets", "KEK gets", "db gets", "The firmware holds the new Secure Boot keys")
	m.Refuses(r.Reseal(c), "the Secure Boot keys are being replaced")
	m.Types("y")
	m.Works(r.NewSecret(c, true), "going on with that")
	m.Works(r.Lock())
	before, err := tpm.OpenTransport(m.Emulator).Indexes()
	m.Must(err)
	m.OpensByItself()
	m.Must(m.Replaced(old))
	if after, err := tpm.OpenTransport(m.Emulator).Indexes(); err != nil || len(after) != 1 || len(before) != 1 {
		t.Errorf("NV indexes %v, %v", after, err)
	}
	lock, _, _ := m.Unlocked()
	record, err := tpm.OpenTransport(m.Emulator).ReadRecord(lock.Sealed)
	if err != nil || record.Allows(&started) || len(record.Branches) > 2 {
		t.Errorf("the record allows what started by the old keys: %+v, %v", record, err)
	}
	m.OpensByItself()
	m.Must(m.CheckEveryDay())
	for name, data := range oldFiles {
		kept := m.ESP.Files[name].Now
		m.PutESP(name, data)
		if end := m.Boot(); end != "dead" && name != machinetest.ManagerCopy {
			t.Errorf("%s as the old key has signed it: the machine ends in %s", name, end)
		}
		m.PutESP(name, kept.Data)
	}
	m.OpensByItself()
}

// Cut anywhere, the machine starts and opens by itself, and the next start, or the same
// command, brings it to its end. So are the starts that finish it. FAULTS 42, 100
func TestNewKeysCut(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	old, err := m.EnrolledSet()
	m.Must(err)
	r, c := m.Asked()
	m.Types("y", m.RecoveryKey())
	states, _ := m.Recording(func() string {
		m.Works(r.NewSecret(c, true))
		return ""
	}, mrand.New(mrand.NewPCG(41, 42)), "")
	t.Logf("%d operations, %d states after a cut", len(m.Ops), len(states))
	olds := checkCuts(m, states, old)
	if olds == 0 || olds == len(states) {
		t.Errorf("the old keys are in force after %d of %d cuts", olds, len(states))
	}
	// The starts that finish it are cut, too.
	random := mrand.New(mrand.NewPCG(43, 44))
	for i := len(states) - 1; i >= 0; i -= 17 {
		m.PowerOn(states[i].World)
		m.Typed = nil
		inner, end := m.Recording(m.Run, random, states[i].How+"; then ")
		if end != "system" {
			t.Fatalf("%s: ends in %s", states[i].How, end)
		}
		checkCuts(m, inner, old)
	}
}

// checkCuts starts each of the states, and returns how many have the old keys at the end.
func checkCuts(m *machinetest.Machine, states []machinetest.CutState, old *secureboot.KeySet) (olds int) {
	m.T.Helper()
	for i, s := range states {
		m.PowerOn(s.World)
		again := i%11 == 5
		if again {
			m.KeysNo = m.SetNumber(old) // the next ones are others
			r, c := m.Asked()
			m.Types("y", m.RecoveryKey())
			m.Works(r.NewSecret(c, true))
			m.Works(r.Lock())
		}
		m.OpensByItself()
		now, err := m.EnrolledSet()
		m.Must(err)
		if now.DB.Certificate.Equal(old.DB.Certificate) && !again {
			olds++
			if err := m.OneSecret(); err != nil {
				m.T.Fatalf("%s: %v\n%s", s.How, err, m.Said.String())
			}
			continue
		}
		if err := m.Replaced(old); err != nil {
			m.T.Fatalf("%s: %v\n%s", s.How, err, m.Said.String())
		}
	}
	return olds
}

// Both systems are signed by the new key, and open by themselves.
func TestNewKeysTakeAlong(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	old, err := m.EnrolledSet()
	m.Must(err)
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	r, c := m.Asked()
	m.Types("y", m.RecoveryKey())
	states, _ := m.Recording(func() string {
		m.Works(r.NewSecret(c, true))
		return ""
	}, mrand.New(mrand.NewPCG(45, 46)), "")
	for i := len(states) - 1; i >= 0; i -= 6 {
		m.PowerOn(states[i].World)
		m.Typed = nil
		m.Runs(2)
		m.Holds(5, 1, 2)
		m.ByHand = 1
		m.Runs(1)
		m.ByHand = 0
		m.Holds(5, 1, 2)
		if m.Printed.Len() > 0 {
			t.Fatalf("%s: it asks %q", states[i].How, m.Printed.String())
		}
	}
	m.PowerOn(states[len(states)-1].World)
	m.Runs(2)
	if now, err := m.EnrolledSet(); err != nil || now.DB.Certificate.Equal(old.DB.Certificate) {
		t.Errorf("the old keys are enrolled (%v)", err)
	}
	m.Fetch(machinetest.NewRelease(t, 3, 5, machinetest.Pinned)) // is signed by the new key
	m.Runs(3)
}

// A firmware that takes no key from a running system keeps the old ones, with all that
// belongs to them; one that forgets them does not restart for ever.
func TestNewKeysNotTaken(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	old, err := m.EnrolledSet()
	m.Must(err)
	r, c := m.Asked()
	r.Variables.(*machinetest.Firmware).Refuse = errors.New("no")
	m.Types("y", m.RecoveryKey())
	m.Refuses(r.NewSecret(c, true), "the new machine secret is in force; of the Secure Boot keys: the Secure Boot keys stay as they are")
	m.Works(r.Lock())
	m.OpensByItself()
	m.Must(m.OneSecret())
	if now, err := m.EnrolledSet(); err != nil || now.DB != old.DB || m.KeysUnfinished() {
		t.Errorf("other keys are enrolled, or it is not taken back (%v)", err)
	}

	m = machinetest.ProvisionedMachine(t, nil)
	r, c = m.Asked()
	vars := machinetest.CloneVariables(m.Vars)
	m.Types("y", m.RecoveryKey())
	m.Works(r.NewSecret(c, true))
	m.Works(r.Lock())
	starts := 0
	for ; m.RootFiles()[rootpart.NextKeysFile] != nil && starts < 9; starts++ {
		m.Vars = machinetest.CloneVariables(vars)
		m.Typed = nil
		m.Boot()
	}
	if starts == 0 || starts > 4 || !strings.Contains(m.Said.String(), "forgotten the new keys 3 times") {
		t.Errorf("it gives up after %d starts:\n%s", starts, m.Said.String())
	}
	m.OpensByItself()
}

// What stands in the file of new keys is anybody's, and an older one of this machine's is
// for keys that it has no more: both are removed. FAULTS 100
func TestForgedNextKeys(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	old, err := m.EnrolledSet()
	m.Must(err)
	m.RootFiles()[rootpart.NextKeysFile] = []byte("x")
	m.OpensByItself()
	m.Must(m.OneSecret())
	if m.RootFiles()[rootpart.NextKeysFile] != nil {
		t.Error("what somebody has written stays")
	}
	r, c := m.Asked()
	m.Types("y", m.RecoveryKey())
	m.Works(r.NewSecret(c, true))
	m.Works(r.Lock())
	box := m.RootFiles()[rootpart.NextKeysFile]
	m.OpensByItself()
	m.Must(m.Replaced(old))
	ignored := func(what string) {
		t.Helper()
		now, err := m.EnrolledSet()
		m.Must(err)
		m.RootFiles()[rootpart.NextKeysFile] = box
		m.OpensByItself()
		if again, err := m.EnrolledSet(); err != nil || again != now || m.RootFiles()[rootpart.NextKeysFile] != nil {
			t.Errorf("%s: it is taken, or stays (%v)", what, err)
		}
	}
	ignored("the one that was settled")

	// The same under a later secret, and for later keys.
	r, c = m.Asked()
	m.Types("y", m.RecoveryKey())
	m.Works(r.NewSecret(c, true))
	m.Works(r.Lock())
	m.OpensByItself()
	m.Must(m.Replaced(old))
	ignored("one for keys that it has no more")
}

// The owner signature stands for either db while it is replaced, and for no other; so it does where
// the machine is bound to another TPM meanwhile.
func TestTwoOwnerSignatures(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	old, err := m.EnrolledSet()
	m.Must(err)
	fresh := m.OtherKeys()
	r, c := m.Asked()
	r.Variables.(*machinetest.Firmware).Refuse = syscall.EACCES // it stops at done = 0, and is cut before it goes back
	m.Types("y", m.RecoveryKey())
	var before *machinetest.World
	m.Snapshot = func() {
		if len(m.Ops) > 0 && m.Ops[len(m.Ops)-1] == "variable PK" && before == nil {
			before = m.World(true, nil)
		}
	}
	m.Refuses(r.NewSecret(c, true), "the Secure Boot keys stay as they are")
	m.Snapshot = nil
	m.PowerOn(before)
	lock, volumeKey, secret := m.Unlocked()
	defer secret.Wipe()
	s, err := m.Partition(layout.Root)
	m.Must(err)
	both := func(lock *rootlock.Lock) {
		t.Helper()
		sets, err := machinetest.KeySets()
		m.Must(err)
		for _, k := range sets {
			is := k.DB.Certificate.Equal(old.DB.Certificate) || k.DB.Certificate.Equal(fresh.DB.Certificate)
			if got := lock.CheckOwnerSignature(volumeKey, []*x509.Certificate{k.DB.Certificate}) == nil; got != is {
				t.Errorf("a db vouches for the volume: %v, want %v", got, is)
			}
		}
	}
	both(lock)
	m.Must(lock.Rebind(m.Random, s, volumeKey, secret, lock.Sealed, nil))
	_, again, err := rootlock.Look(s, s.Size())
	m.Must(err)
	both(again)
	m.Must(again.SignAgain(m.Random, s, volumeKey, fresh.DB.Key))
	_, again, err = rootlock.Look(s, s.Size())
	m.Must(err)
	if again.CheckOwnerSignature(volumeKey, []*x509.Certificate{old.DB.Certificate}) == nil || again.CheckOwnerSignature(volumeKey, []*x509.Certificate{fresh.DB.Certificate}) != nil {
		t.Error("the old owner signature stands still, or the new one does not")
	}
}

// Where the TPM does not open the root partition while the keys are replaced, the recovery
// key does, and the same start goes on; the machine then opens by itself again.
func TestNewKeysByHand(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	old, err := m.EnrolledSet()
	m.Must(err)
	r, c := m.Asked()
	m.Types("y", m.RecoveryKey())
	states, _ := m.Recording(func() string {
		m.Works(r.NewSecret(c, true))
		return ""
	}, mrand.New(mrand.NewPCG(47, 48)), "")
	begun := 0
	for _, s := range states {
		m.PowerOn(s.World)
		if m.RootFiles()[rootpart.NextKeysFile] == nil {
			continue
		}
		if begun++; begun%5 != 1 && s.How != states[len(states)-1].How {
			continue
		}
		m.Extra = "new firmware"
		// Before the new secret has seen a good boot, no event log says which boot manager
		// the machine had.
		m.Typed = []string{"weaker"}
		m.Owner = true
		m.Printed.Reset()
		m.Ends("system")
		if n := strings.Count(m.Printed.String(), "\nRecovery key"); n < 1 || n > 2 || !strings.Contains(m.Printed.String(), "Accepted.") {
			t.Errorf("%s: asks\n%s", s.How, m.Printed.String())
		}
		m.Owner = false
		m.OpensByItself()
		if err := m.Replaced(old); err != nil {
			t.Errorf("%s: %v\n%s", s.How, err, m.Said.String())
		}
		m.Extra = ""
	}
	if begun < 10 {
		t.Errorf("%d states have new keys", begun)
	}
}

// What is not there for new keys is said before anything of them is written.
func TestNewKeysRefuses(t *testing.T) {
	// A system that may be started would not go on with it.
	m := machinetest.New(t, machinetest.Pinned)
	m.Releases[1] = machinetest.NewReleaseOf(t, 1, 5, contract.Abilities{PolicyRecord: 2, NewSecret: 2}, machinetest.Pinned)
	m.PowerOn(m.Installed(machinetest.DiskSize))
	m.Ends("system")
	m.Ends("system")
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	r, c := m.Asked()
	m.Types("y", m.RecoveryKey())
	m.Refuses(r.NewSecret(c, true), "version 1 may still be started, and is of a release that knows nothing of new Secure Boot keys")
	m.Works(r.NewSecret(c, false), "The machine has a new secret")
	m.Works(r.Lock())
	m.AsksForSecret(true)
	m.Typed = nil
	m.Ends("system", "knows nothing of new Secure Boot keys")
	if m.Printed.Len() > 0 && strings.Contains(m.Printed.String(), "Recovery key for the new secret") {
		t.Error("it asks for a key in vain")
	}

	// The ESP lays two names apart, has no room, or has a system that is not allowed: the
	// old keys stay, and all that starts by them.
	for _, c := range []struct {
		says   string
		change func(m *machinetest.Machine)
	}{
		{"`esp-rebuild` lays", func(m *machinetest.Machine) { m.ESP.Apart = true }},
		{"are free", func(m *machinetest.Machine) { m.ESP.Taken = 1 << 30 }},
		{"it would start no more", func(m *machinetest.Machine) {
			set, err := m.EnrolledSet()
			m.Must(err)
			stray, err := enroll.DBSigner{Pair: set.DB, Time: set.DB.Certificate.NotBefore}.Sign(machinetest.NewRelease(t, 9, 5, nil).UKI)
			m.Must(err)
			m.PutESP(path.Join(bls.Directory, "test_9+0.efi"), stray)
		}},
	} {
		m := machinetest.ProvisionedMachine(t, nil)
		old, err := m.EnrolledSet()
		m.Must(err)
		r, con := m.Asked()
		c.change(m)
		m.Types("y", m.RecoveryKey())
		m.Refuses(r.NewSecret(con, true), c.says)
		m.Works(r.Lock())
		m.ESP.Apart, m.ESP.Taken = false, 0
		m.Typed = nil
		m.Ends("system")
		m.Must(m.OneSecret())
		if now, err := m.EnrolledSet(); err != nil || now != old || m.RootFiles()[rootpart.NextKeysFile] != nil {
			t.Errorf("%s: other keys are enrolled, or it is not taken back (%v)", c.says, err)
		}
	}

	// Firmware whose keys somebody else has changed is not given new ones.
	m = machinetest.ProvisionedMachine(t, nil)
	set, err := m.EnrolledSet()
	m.Must(err)
	r, c = m.Asked()
	m.Types("y", m.RecoveryKey())
	m.Works(r.NewSecret(c, false))
	m.Types("y", m.RecoveryKey())
	w := set.Wanted(secureboot.Vendor{})
	other := m.OtherKeys()
	w.KEK = append(w.KEK, secureboot.Certificate(other.Owner, other.KEK.Certificate))
	m.SetKeys(w)
	m.Refuses(r.NewSecret(c, true), "the firmware's keys are not those that this machine wants")
}
