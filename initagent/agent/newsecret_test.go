package agent

import (
	"bytes"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"syscall"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// asked starts a machine into a console that somebody has asked for, and unlocks there.
func (m *machine) asked() (*recovery.Machine, hw.Console) {
	m.t.Helper()
	m.presses, m.looks = 1, 0
	m.typed = nil
	if end := m.boot(); end != "recovery" {
		m.t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	m.presses = 0
	r, c := m.console()
	m.types(m.recoveryKey())
	m.works(r.Unlock(c))
	return r, c
}

// oneSecret reports what is left of any machine secret but the one that the recovery
// key gives, on a machine that has started.
func (m *machine) oneSecret() error {
	lock, volumeKey, secret := m.unlocked()
	defer luks2.Wipe(volumeKey)
	defer secret.Wipe()
	s, err := m.partition(layout.RootNumber)
	if err != nil {
		return err
	}
	if _, err := lock.OpenTPM(s, secret, 1<<20); err != nil {
		return err
	}
	if lock.Replaced || len(lock.Header.Keyslots()) != 2 || len(lock.Header.Tokens()) != 2 {
		return fmt.Errorf("%d keyslots, %d tokens", len(lock.Header.Keyslots()), len(lock.Header.Tokens()))
	}
	keys, err := rootpart.StoredKeys(store{m}, secret, lock)
	if err != nil || keys == nil {
		return fmt.Errorf("keys %v, %w", keys, err)
	}
	_, certificates, err := certificatesIn(m.vars)
	if err != nil || !keys.DB.Certificate.Equal(certificates[0]) {
		return fmt.Errorf("the db key that is kept is not the one enrolled: %w", err)
	}
	if err := rootlock.CheckOwnerSignature(lock.OwnerSignature, volumeKey, certificates); err != nil {
		return err
	}
	list, err := rootpart.StoredList(store{m}, secret, lock)
	if err != nil || list.Bare || !list.Names("test_1.efi") {
		return fmt.Errorf("list %v, %w", list, err)
	}
	want := rootpart.Guarantees{Format: 1, Floor: 5, Record: true, Programs: true, SecureBoot: true}
	if g := rootpart.ReadGuarantees(store{m}, secret); g != want {
		return fmt.Errorf("guarantees %+v, want %+v", g, want)
	}
	for _, name := range []string{rootpart.NextFile, rootpart.KeysFile} {
		if _, there := m.rootFiles()[name]; there {
			return fmt.Errorf("%s is still there", name)
		}
	}
	chip := tpm.OpenTransport(m.emulator)
	indexes, err := chip.Indexes()
	if err != nil || len(indexes) != 1 || indexes[0].Handle != lock.Sealed.NVIndex {
		return fmt.Errorf("NV indexes %v, %w", indexes, err)
	}
	record, err := chip.ReadRecord(lock.Sealed)
	if err != nil || record.Floor != 5 || !record.Programs {
		return fmt.Errorf("record %+v, %w", record, err)
	}
	return rootlock.CheckFingerprint(record, volumeKey)
}

// A new machine secret: nothing that the old one opened opens by it, and a copy of the
// header that was taken before does. FAULTS 100
func TestNewSecret(t *testing.T) {
	m := provisionedMachine(t, nil)
	before, volumeKey, old := m.unlocked()
	defer luks2.Wipe(volumeKey)
	files := maps.Clone(m.rootFiles())
	s, err := m.partition(layout.RootNumber)
	m.must(err)
	header := make([]byte, rootlock.HeaderArea)
	_, err = s.ReadAt(header, 0)
	m.must(err)

	r, c := m.asked()
	m.rootFiles()[rootpart.KeysFile], _, err = secureboot.SplitList(files[rootpart.ListFile]) // an earlier release has left them
	m.must(err)
	m.types("n")
	m.refuses(r.NewSecret(c, false), "nothing was changed")
	m.types("y", "nonsense", "")
	m.refuses(r.NewSecret(c, false), "nothing was changed")
	if !old.Equal(m.machineSecret()) || !bytes.Equal(m.rootFiles()[rootpart.ListFile], files[rootpart.ListFile]) {
		t.Fatal("a refused one has changed something")
	}
	m.types("y", m.recoveryKey())
	m.works(r.NewSecret(c, false), "The machine has a new secret")
	// What is typed now works with the new one.
	m.types("y")
	m.works(r.Reseal(c), "Accepted.")
	m.works(r.Lock())
	m.opensByItself()
	m.must(m.oneSecret())

	lock, _, fresh := m.unlocked()
	if fresh.Equal(old) {
		t.Fatal("the secret is the old one")
	}
	passphrase := old.LUKSPassphrase()
	var all []int
	for _, k := range lock.Header.Keyslots() {
		all = append(all, k.Number)
	}
	if _, _, err := lock.Header.Unlock(s, passphrase, 1<<20, all...); err == nil {
		t.Error("the old secret opens the volume")
	}
	if _, err := firstboot.UnwrapKeys(old, m.rootFiles()[rootpart.ListFile]); err == nil {
		t.Error("the old secret opens the Secure Boot keys")
	}
	if _, err := old.Unbox("guarantees", m.rootFiles()[rootpart.GuaranteesFile]); err == nil {
		t.Error("the old secret opens the guarantees")
	}
	if _, err := tpm.OpenTransport(m.emulator).ReadRecord(before.Sealed); err == nil {
		t.Error("the old index is still there")
	}
	log := m.agent.LastGood(fresh)
	if log == nil || !log.Authentic {
		t.Error("the event log is not kept under the new secret")
	}
	// The header of before still opens, with the secret and the key of that time: see
	// recovery-key(8) and THREATS.md.
	_, err = s.WriteAt(header, 0)
	m.must(err)
	m.must(s.Sync())
	then, err := m.header()
	m.must(err)
	if _, _, err := then.Unlock(s, passphrase, 1<<20, before.TPMSlot); err != nil {
		t.Errorf("the header of before: %v", err)
	}
	if end := m.boot(); end == "system" {
		t.Error("the TPM releases the old secret")
	}
}

// Cut anywhere, the machine opens by itself, with its keys, its list and its guarantees,
// by one secret, of which the next boot makes sure; so does the console, where the
// command may be given again. FAULTS 42, 100
func TestNewSecretCut(t *testing.T) {
	m := provisionedMachine(t, nil)
	old := m.machineSecret()
	r, c := m.asked()
	m.types("y", m.recoveryKey())
	states, _ := m.recording(func() string {
		m.works(r.NewSecret(c, false))
		return ""
	}, mrand.New(mrand.NewPCG(31, 32)), "")
	t.Logf("%d operations, %d states after a cut", len(m.ops), len(states))
	olds := 0
	for i, s := range states {
		m.powerOn(s.world)
		if i%9 == 4 {
			r, c := m.asked()
			m.types("y", m.recoveryKey())
			m.works(r.NewSecret(c, false))
			m.works(r.Lock())
		}
		m.opensByItself()
		if err := m.oneSecret(); err != nil {
			t.Fatalf("%s: %v\n%s", s.how, err, m.said.String())
		}
		if old.Equal(m.machineSecret()) {
			olds++
		}
	}
	if olds == 0 || olds == len(states) {
		t.Errorf("the old secret is in force after %d of %d cuts", olds, len(states))
	}
	// The boot that finishes it is cut, too.
	r2 := mrand.New(mrand.NewPCG(33, 34))
	for i := 3; i < len(states); i += 7 {
		m.powerOn(states[i].world)
		m.typed = nil
		inner, end := m.recordOnce(r2)
		if end != "system" {
			t.Fatalf("%s: ends in %s", states[i].how, end)
		}
		for _, s := range inner {
			m.powerOn(s.world)
			m.opensByItself()
			if err := m.oneSecret(); err != nil {
				t.Fatalf("%s; then %s: %v\n%s", states[i].how, s.how, err, m.said.String())
			}
		}
	}
}

// A TPM that was cleared, and systems that can be started besides: all of them open by
// the new secret, under the same floor.
func TestNewSecretTakesAlong(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.fetch(newRelease(t, 2, 5, pinned))
	m.runs(2)
	m.bless()
	m.runs(2)
	m.holds(5, 1, 2)
	r, c := m.asked()
	m.types("y", m.recoveryKey())
	m.works(r.NewSecret(c, false))
	m.works(r.Lock())
	m.runs(2)
	m.holds(5, 1, 2)
	m.byHand = 1
	m.runs(1)

	m = inConsole(t, func(m *machine) { m.chipState, m.chipChanged = nil, false })
	r, c = m.console()
	m.types(m.recoveryKey(), "y", "weaker", m.recoveryKey())
	m.works(r.Unlock(c))
	m.works(r.NewSecret(c, false))
	m.works(r.Lock())
	m.opensByItself()
	m.must(m.oneSecret())
}

// A TPM without room for the record: the new secret is bound as the old one was.
func TestNewSecretWithoutRecord(t *testing.T) {
	m := newMachine(t, nil)
	m.fillTPM()
	m.ends("system")
	m.ends("system")
	old := m.machineSecret()
	r, c := m.asked()
	m.types("y", "weaker", m.recoveryKey()) // which systems were replaced, nobody can say here
	states, _ := m.recording(func() string {
		m.works(r.NewSecret(c, false))
		return ""
	}, mrand.New(mrand.NewPCG(35, 36)), "")
	for _, s := range states {
		m.powerOn(s.world)
		m.opensByItself()
		lock, _, secret := m.unlocked()
		if lock.Sealed.Kind != policy.KindPCR || lock.Replaced || len(lock.Header.Keyslots()) != 2 || m.rootFiles()[rootpart.NextFile] != nil {
			t.Errorf("%s: kind %s, keyslots %v", s.how, lock.Sealed.Kind, lock.Header.Keyslots())
		}
		if keys, err := rootpart.StoredKeys(store{m}, secret, lock); err != nil || keys == nil {
			t.Errorf("%s: keys %v, %v", s.how, keys, err)
		}
	}
	if old.Equal(m.machineSecret()) {
		t.Error("the old secret is in force")
	}
}

// reset after a cut leaves no index behind, of neither secret.
func TestNewSecretCutReset(t *testing.T) {
	m := provisionedMachine(t, nil)
	r, c := m.asked()
	m.types("y", m.recoveryKey())
	states, _ := m.recording(func() string {
		m.works(r.NewSecret(c, false))
		return ""
	}, mrand.New(mrand.NewPCG(37, 38)), "")
	two := 0
	for _, s := range states {
		m.powerOn(s.world)
		m.presses, m.looks, m.typed = 1, 0, nil
		m.ends("recovery")
		m.presses = 0
		chip := tpm.OpenTransport(m.emulator)
		if indexes, err := chip.Indexes(); err != nil || len(indexes) < 2 {
			continue
		}
		two++
		if two%4 != 1 {
			continue
		}
		r, c := m.console()
		m.types("test")
		m.works(r.Reset(c), "The root partition is wiped")
		if indexes, err := chip.Indexes(); err != nil || len(indexes) > 0 {
			t.Errorf("%s: NV indexes %v, %v", s.how, indexes, err)
		}
	}
	if two == 0 {
		t.Error("no state has two indexes")
	}
}

// What is not there for a new secret is said before anything is written.
func TestNewSecretRefuses(t *testing.T) {
	m := provisionedMachine(t, pinned)
	files := maps.Clone(m.rootFiles())
	r, c := m.asked()
	unchanged := func(what string) {
		t.Helper()
		if !maps.EqualFunc(m.rootFiles(), files, bytes.Equal) {
			t.Errorf("%s: files have changed", what)
		}
		if indexes, err := tpm.OpenTransport(m.emulator).Indexes(); err != nil || len(indexes) != 1 {
			t.Errorf("%s: NV indexes %v, %v", what, indexes, err)
		}
	}
	// A TPM that has no room for a second index keeps the one that it has.
	m.fillRest()
	files = maps.Clone(m.rootFiles())
	m.types("y", m.recoveryKey(), "weaker")
	m.refuses(r.NewSecret(c, false), "this TPM cannot hold the policy record")
	unchanged("no room")

	// Of a second recovery key nobody knows whether its owner still has it.
	m = provisionedMachine(t, pinned)
	r, c = m.asked()
	lock, volumeKey, secret := m.unlocked()
	second, err := luks2.NewRecoveryKey(m.random)
	m.must(err)
	s, err := m.partition(layout.RootNumber)
	m.must(err)
	m.must(lock.AddRecovery(m.random, s, volumeKey, secret, &second, luks2.Argon2id(64<<10, 1)))
	files = maps.Clone(m.rootFiles())
	m.refuses(r.NewSecret(c, false), "use `recovery-key` first")
	unchanged("two recovery keys")

	// The console goes by a secret that is not in force any more.
	m = provisionedMachine(t, pinned)
	r, c = m.asked()
	files = maps.Clone(m.rootFiles())
	stale, err := r.Keeper.Kept()
	m.must(err)
	m.types("y", m.recoveryKey())
	m.works(r.NewSecret(c, false))
	m.must(r.Keeper.Keep(stale))
	maps.Copy(m.rootFiles(), files)
	m.types("y", "weaker", m.recoveryKey()) // by that secret, the TPM's record is somebody else's
	m.refuses(r.NewSecret(c, false), "the machine secret is another one by now")
	unchanged("a secret of before")

	// A system of an earlier release may still be started.
	m = newMachine(t, pinned)
	m.releases[1] = newReleaseOf(t, 1, 5, contract.Abilities{PolicyRecord: 2}, pinned)
	m.powerOn(m.installed(diskSize))
	m.ends("system")
	m.ends("system")
	m.fetch(newRelease(t, 2, 5, pinned))
	m.runs(2)
	m.bless()
	m.runs(2)
	r, c = m.asked()
	files = maps.Clone(m.rootFiles())
	m.types("y", m.recoveryKey())
	m.refuses(r.NewSecret(c, false), "version 1 may still be started")
	unchanged("an earlier release")
	m.rename("test_1.efi", "test_1+0.efi") // and may not
	m.works(r.NewSecret(c, false))
	m.works(r.Lock())
	m.runs(2)
}

// weakDisk fails at a write of the root partition's header; at none when it is negative.
type weakDisk struct {
	hw.Disks
	failAt *int
}

type weakFile struct {
	hw.File
	failAt *int
}

func (d weakDisk) OpenPartition(disk hw.Disk, number int, write bool) (hw.File, error) {
	f, err := d.Disks.OpenPartition(disk, number, write)
	return weakFile{f, d.failAt}, err
}

func (f weakFile) WriteAt(b []byte, off int64) (int, error) {
	if *f.failAt--; *f.failAt == -1 {
		return 0, syscall.EIO
	}
	return f.File.WriteAt(b, off)
}

// A disk that fails in between: the console no longer goes by either secret, and
// unlocking there, or starting, finishes it.
func TestNewSecretDiskFails(t *testing.T) {
	m := provisionedMachine(t, nil)
	good := m.world(true, nil)
	old := m.machineSecret()
	olds, failed := 0, 0
	for at := 0; ; at++ {
		m.powerOn(good)
		r, c := m.asked()
		failAt := at
		r.Disks = weakDisk{r.Disks, &failAt}
		m.types("y", m.recoveryKey())
		err := r.NewSecret(c, false)
		if failAt >= 0 {
			m.must(err)
			break
		}
		if failed++; err == nil {
			t.Fatalf("write %d fails, and nobody says so", at)
		}
		if at%2 == 0 {
			if _, err := r.Keeper.Kept(); err == nil {
				m.works(r.Lock())
			}
			m.types(m.recoveryKey())
			m.works(r.Unlock(c))
			m.must(m.oneSecret())
			m.works(r.Lock())
		}
		m.opensByItself()
		m.must(m.oneSecret())
		if old.Equal(m.machineSecret()) {
			olds++
		}
	}
	if olds == 0 || olds == failed {
		t.Errorf("the old secret is in force after %d of %d", olds, failed)
	}
}
