package agent

import (
	"bytes"
	"errors"
	"maps"
	mrand "math/rand/v2"
	"strings"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
)

// errNotNow is a firmware that takes nothing today.
var errNotNow = errors.New("not now")

// beganKeys are the states that a cut leaves while a machine in use gets new keys at the
// console, and the old ones.
func beganKeys(t *testing.T) (m *machine, old *secureboot.KeySet, states []cutState) {
	t.Helper()
	m = provisionedMachine(t, nil)
	old, err := m.enrolledSet()
	m.must(err)
	r, c := m.asked()
	m.types("y", m.recoveryKey())
	states, _ = m.recording(func() string {
		m.works(r.NewSecret(c, true))
		return ""
	}, mrand.New(mrand.NewPCG(61, 62)), "")
	return m, old, states
}

// taken is how many variables of a machine have other keys than the old ones.
func (w *world) taken(old *secureboot.KeySet) (n int) {
	for name, pair := range map[string]secureboot.Pair{"PK": old.PK, "KEK": old.KEK, "db": old.DB} {
		if !bytes.Contains(w.vars[name].data, pair.Certificate.Raw) {
			n++
		}
	}
	return n
}

// stoppedAt is the last state in which the change has begun, and so many variables have the
// new keys.
func stoppedAt(m *machine, old *secureboot.KeySet, states []cutState, taken int) *world {
	m.t.Helper()
	var found *world
	for _, s := range states {
		begun := false
		for _, files := range s.volumes {
			begun = files[rootpart.NextKeysFile] != nil && files[rootpart.NextFile] == nil
		}
		if begun && s.taken(old) == taken && strings.HasSuffix(s.how, "all landed") {
			found = s.world
		}
	}
	if found == nil {
		m.t.Fatalf("no state has %d new keys", taken)
	}
	return found
}

// setupMode clears the firmware's keys, as its owner does in its setup.
func (m *machine) setupMode() {
	for _, name := range []string{"PK", "KEK", "db", "dbx"} {
		delete(m.vars, name)
		delete(m.vars, name+" time")
	}
	setFlag(m.vars, "SetupMode", 1)
}

// Whatever was written on the way to new keys, and lies in free space: put back, it makes
// no old key count again, under any header of that time. FAULTS 100
func TestOldKeysPutBack(t *testing.T) {
	m, old, states := beganKeys(t)
	m.powerOn(states[len(states)-1].world)
	m.typed = nil
	inner, end := m.recording(m.run, mrand.New(mrand.NewPCG(63, 64)), "settling; ")
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	m.must(m.replaced(old))
	settled := m.world(true, nil)
	found := map[string]map[string]bool{rootpart.ListFile: {}, rootpart.KeysFile: {}, rootpart.NextFile: {}, rootpart.NextKeysFile: {}}
	for _, s := range append(states, inner...) {
		for _, files := range s.volumes {
			for name := range found {
				if files[name] != nil {
					found[name][string(files[name])] = true
				}
			}
		}
	}
	secret := m.machineSecret()
	for name, contents := range found {
		for text := range contents {
			keys, err := firstboot.UnwrapKeys(secret, []byte(text))
			if err == nil && keys.DB.Certificate.Equal(old.DB.Certificate) {
				t.Errorf("%s has had the old keys under the new secret", name)
			}
			m.powerOn(settled)
			maps.DeleteFunc(m.rootFiles(), func(name string, _ []byte) bool { return found[name] != nil })
			m.rootFiles()[name] = []byte(text)
			m.setupMode()
			m.owner = true
			m.boot()
			m.owner = false
			if m.world(true, nil).taken(old) < 3 {
				t.Errorf("%s, put back, enrolls an old key:\n%s", name, m.said.String())
			}
		}
	}
	if len(found[rootpart.ListFile]) < 2 || len(found[rootpart.NextKeysFile]) == 0 {
		t.Errorf("%d lists, %d notes", len(found[rootpart.ListFile]), len(found[rootpart.NextKeysFile]))
	}
}

// The whole header from before, put back with the files of that time: the firmware's db
// does not vouch for it, and where its owner has cleared that, the old keys are enrolled
// for the word alone.
func TestOldHeaderPutBack(t *testing.T) {
	m := provisionedMachine(t, nil)
	old, err := m.enrolledSet()
	m.must(err)
	files := maps.Clone(m.rootFiles())
	s, err := m.partition(layout.RootNumber)
	m.must(err)
	header := make([]byte, rootlock.HeaderArea)
	_, err = s.ReadAt(header, 0)
	m.must(err)
	r, c := m.asked()
	m.types("y", m.recoveryKey())
	m.works(r.NewSecret(c, true))
	m.works(r.Lock())
	m.opensByItself()
	m.must(m.replaced(old))
	s, err = m.partition(layout.RootNumber)
	m.must(err)
	_, err = s.WriteAt(header, 0)
	m.must(err)
	m.must(s.Sync())
	maps.Copy(m.rootFiles(), files)
	m.typed = nil
	m.types(m.recoveryKey())
	if end := m.boot(); end == "system" || !strings.Contains(m.said.String(), "not made by this machine") {
		t.Errorf("ends in %s:\n%s", end, m.said.String())
	}
	delete(m.vars, nextboot.Variable)
	m.setupMode()
	m.typed = nil
	m.types(m.recoveryKey(), "y", "")
	m.ends("system")
	if m.world(true, nil).taken(old) < 3 || !strings.Contains(m.printed.String(), "Type the word") {
		t.Errorf("an old key is enrolled:\n%s", m.printed.String())
	}
}

// A list whose db key has made no owner signature of the volume is refused, whoever asks, although
// the machine secret opens it; and the machine starts by the recovery key.
func TestListNeedsTheOwnerSignature(t *testing.T) {
	m := provisionedMachine(t, nil)
	lock, _, secret := m.unlocked()
	kept := m.rootFiles()[rootpart.ListFile]
	other := m.otherKeys()
	wrapped, err := firstboot.WrapKeys(m.random, secret, other, secureboot.NewList(other, secureboot.Vendor{}))
	m.must(err)
	m.rootFiles()[rootpart.ListFile] = wrapped
	if keys, err := rootpart.StoredKeys(store{m}, secret, lock); err == nil || keys != nil {
		t.Errorf("the keys count: %v", err)
	}
	if list, err := rootpart.StoredList(store{m}, secret, lock); err == nil || list != nil {
		t.Errorf("the list counts: %v", err)
	}
	m.types(m.recoveryKey())
	m.ends("system", otherSecret)
	if !strings.Contains(m.said.String()+m.printed.String(), "older ones were put back there") {
		t.Errorf("it says nothing of it:\n%s", m.said.String())
	}
	r, c := m.asked()
	m.types("y")
	m.refuses(r.Reseal(c), "older ones were put back there")
	m.refuses(r.NewSecret(c, true), "older ones were put back there")
	m.works(r.Lock())
	m.setupMode()
	r, c = m.asked()
	m.types("y")
	m.refuses(r.Enroll(c), "older ones were put back there")
	m.works(r.Lock())
	m.rootFiles()[rootpart.ListFile] = kept
	m.typed = nil
	m.owner = true
	m.ends("system")
	m.owner = false
	m.opensByItself()
	m.must(m.oneSecret())
}

// A change that stops on the way, for as long as it does, starts the machine by itself
// each time, and goes on when it can. FAULTS 42, 100
func TestNewKeysStop(t *testing.T) {
	m, old, states := beganKeys(t)
	for taken := 1; taken < 3; taken++ {
		w := stoppedAt(m, old, states, taken)
		m.powerOn(w)
		m.refuse = errNotNow
		for range 6 {
			m.opensByItself()
		}
		if !strings.Contains(m.said.String(), "Each start tries again") {
			t.Errorf("%d taken: it does not say what to do:\n%s", taken, m.said.String())
		}
		m.refuse = nil
		m.opensByItself()
		m.must(m.replaced(old))
	}
}

// A clock that is behind the firmware's last update keeps no key from it.
func TestNewKeysOldClock(t *testing.T) {
	m, old, states := beganKeys(t)
	late := m.clock
	defer func() { m.clock = late }()
	for taken := range 3 {
		m.powerOn(stoppedAt(m, old, states, taken))
		m.clock = buildDate.AddDate(-30, 0, 0)
		m.opensByItself()
		m.must(m.replaced(old))
	}
}

// The note of the superseded keys is gone, or somebody's. Once the firmware has the new db
// key the change goes on without it; before, nothing vouches for the secret any more: the
// recovery key is asked for, and the way out leads to the new keys.
func TestNewKeysNoteGone(t *testing.T) {
	m, old, states := beganKeys(t)
	for _, text := range [][]byte{nil, []byte("x")} {
		for taken := range 4 {
			m.powerOn(stoppedAt(m, old, states, taken))
			delete(m.rootFiles(), rootpart.NextKeysFile)
			if text != nil {
				m.rootFiles()[rootpart.NextKeysFile] = text
			}
			if taken == 3 {
				m.opensByItself()
				m.must(m.replaced(old))
				continue
			}
			// What is lost has vouched for the secret while the firmware goes by it.
			m.owner = true
			m.ends("system", otherSecret)
			m.owner = false
			if taken < 2 && !strings.Contains(m.said.String()+m.printed.String(), "clear the Secure Boot keys in the firmware's setup") {
				t.Errorf("it does not say what to do:\n%s", m.said.String())
			}
			m.setupMode()
			m.owner = true
			m.ends("system")
			m.owner = false
			m.opensByItself()
			m.must(m.replaced(old))
		}
	}
}

// The keys are cleared in the middle of a change: the machine gets the new ones, asks for
// the recovery key once, and opens by itself then.
func TestNewKeysSetupMode(t *testing.T) {
	m, old, states := beganKeys(t)
	for taken := range 4 {
		m.powerOn(stoppedAt(m, old, states, taken))
		m.setupMode()
		m.owner = true
		m.printed.Reset()
		m.ends("system")
		m.owner = false
		if n := strings.Count(m.printed.String(), "\nRecovery key"); n != 1 {
			t.Errorf("%d taken: it asks %d times:\n%s", taken, n, m.printed.String())
		}
		m.opensByItself()
		m.must(m.replaced(old))
	}
}

// Firmware that keeps what it is given in another form: what PCR 7 will be is foretold by
// what it holds in fact, and the machine opens by itself; so it does where its owner has
// cleared the keys.
func TestNewKeysKeptOtherwise(t *testing.T) {
	// An empty signature list behind the others (UEFI 2.10, section 32.4.1).
	empty := append(bytes.Repeat([]byte{7}, 16), 28, 0, 0, 0, 0, 0, 0, 0, 48, 0, 0, 0)
	otherwise := func(content []byte) []byte { return append(bytes.Clone(content), empty...) }
	m := provisionedMachine(t, nil)
	old, err := m.enrolledSet()
	m.must(err)
	m.keeps = otherwise
	r, c := m.asked()
	m.types("y", m.recoveryKey())
	m.works(r.NewSecret(c, true))
	m.works(r.Lock())
	m.opensByItself()
	m.must(m.replaced(old))

	m, old, states := beganKeys(t)
	m.powerOn(stoppedAt(m, old, states, 1))
	m.keeps = otherwise
	m.setupMode()
	m.owner = true
	m.printed.Reset()
	m.ends("system")
	m.owner = false
	if n := strings.Count(m.printed.String(), "\nRecovery key"); n != 1 {
		t.Errorf("it asks %d times:\n%s", n, m.printed.String())
	}
	m.opensByItself()
	m.must(m.replaced(old))
}

// Whoever does not accept what the machine is now gets no new key either, and their data.
func TestNewKeysDeclined(t *testing.T) {
	m, old, states := beganKeys(t)
	for taken := range 3 {
		m.powerOn(stoppedAt(m, old, states, taken))
		m.extra = "new firmware"
		m.typed = nil
		m.types(m.recoveryKey(), "n")
		m.ends("system", "waits for a start that the TPM opens, or that its owner accepts")
		if n := m.world(true, nil).taken(old); n != taken {
			t.Errorf("%d taken: %d are now", taken, n)
		}
		m.extra = ""
		m.opensByItself()
		m.must(m.replaced(old))
	}
}

// A boot manager that another has replaced does not become good by the new key: it is not
// signed by it, wherever it lies, and still counts as replaced. FAULTS 94
func TestNewKeysReplaced(t *testing.T) {
	m := provisionedMachine(t, nil)
	old, err := m.enrolledSet()
	m.must(err)
	image := ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("a boot manager of before")})
	digest, err := authenticode.Digest(image)
	m.must(err)
	signed, err := enroll.DBSigner{Pair: old.DB, Time: old.DB.Certificate.NotBefore}.Sign(image)
	m.must(err)
	lock, _, secret := m.unlocked()
	list, err := rootpart.StoredList(store{m}, secret, lock)
	m.must(err)
	list.Allow(digest, host.ManagerPrefix+"test_0.efi")
	list.Replace(digest)
	m.must(rootpart.KeepList(store{m}, m.random, secret, list))
	const aside = "EFI/old/bootx64.efi"
	m.putESP(aside, signed)
	r, c := m.asked()
	good := m.esp.files[managerCopy].now.data
	m.putESP(managerCopy, signed)
	m.types("y")
	m.refuses(r.NewSecret(c, true), "start the system once more")
	m.putESP(managerCopy, good)
	m.types("y", m.recoveryKey())
	m.works(r.NewSecret(c, true), "starts no more: another has taken its place")
	m.works(r.Lock())
	m.opensByItself()
	m.must(m.replaced(old))
	now, err := m.enrolledSet()
	m.must(err)
	if authenticode.VerifyOwn(m.esp.files[aside].now.data, now.DB.Certificate) == nil {
		t.Error("the new key has signed it")
	}
	after, err := m.storedList()
	m.must(err)
	if !after.Replaced(digest) || !after.Names("test_1.efi") {
		t.Error("it is good again, or what is this machine's own is not")
	}
	for _, i := range after.Images() {
		if after.Replaced([32]byte(i.Digest)) != bytes.Equal(i.Digest, digest[:]) {
			t.Errorf("%s is replaced, or is not", i.Name)
		}
	}

	// Put in the place of the one that starts the machine, in between: db is not written.
	m = provisionedMachine(t, nil)
	lock, _, secret = m.unlocked()
	list, err = rootpart.StoredList(store{m}, secret, lock)
	m.must(err)
	own, err := m.esp.get(removable)
	m.must(err)
	digest, err = authenticode.Digest(own.now.data)
	m.must(err)
	r, c = m.asked()
	list.Replace(digest)
	keep := m.rootFiles()[rootpart.ListFile]
	m.must(rootpart.KeepList(store{m}, m.random, secret, list))
	m.types("y")
	m.refuses(r.NewSecret(c, true), "an old boot manager, which another is about to replace")
	m.rootFiles()[rootpart.ListFile] = keep
}

// What the machine has is noted by what the new secret was sealed to: a TPM that had no
// room for the record has room by now. Cut anywhere, the note is no less than that.
func TestNewSecretNotesMore(t *testing.T) {
	m := newMachine(t, nil)
	m.fillTPM()
	m.ends("system")
	m.ends("system")
	m.emptyTPM()
	r, c := m.asked()
	m.types("y", "weaker", m.recoveryKey())
	states, _ := m.recording(func() string {
		m.works(r.NewSecret(c, false))
		return ""
	}, mrand.New(mrand.NewPCG(65, 66)), "")
	more := 0
	for _, s := range states {
		m.powerOn(s.world)
		lock, _, secret := m.unlocked()
		if lock.Sealed.Kind != policy.KindNV {
			continue
		}
		m.must(rootpart.FinishSecret(m.agent.Machine, m.agent.Disk, m.random, nil, lock, nil, secret))
		if g := rootpart.ReadGuarantees(store{m}, secret); !g.Record {
			t.Errorf("%s: guarantees %+v", s.how, g)
		}
		more++
	}
	if more == 0 {
		t.Error("the new secret has no record")
	}
}
