package rootpart_test

import (
	"bytes"
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
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// A new machine secret: nothing that the old one opened opens by it, and a copy of the
// header that was taken before does. FAULTS 100
func TestNewSecret(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	before, volumeKey, old := m.Unlocked()
	defer luks2.Wipe(volumeKey)
	files := maps.Clone(m.RootFiles())
	s, err := m.Partition(layout.Root)
	m.Must(err)
	header := make([]byte, rootlock.HeaderArea)
	_, err = s.ReadAt(header, 0)
	m.Must(err)

	r, c := m.Asked()
	m.RootFiles()[rootpart.KeysFile], _, err = secureboot.SplitList(files[rootpart.ListFile]) // an earlier release has left them
	m.Must(err)
	m.Types("n")
	m.Refuses(r.NewSecret(c, false), "nothing was changed")
	m.Types("y", "nonsense", "")
	m.Refuses(r.NewSecret(c, false), "nothing was changed")
	if !old.Equal(m.MachineSecret()) || !bytes.Equal(m.RootFiles()[rootpart.ListFile], files[rootpart.ListFile]) {
		t.Fatal("a refused one has changed something")
	}
	m.Types("y", m.RecoveryKey())
	m.Works(r.NewSecret(c, false), "The machine has a new secret")
	// What is typed now works with the new one.
	m.Types("y")
	m.Works(r.Reseal(c), "Accepted.")
	m.Works(r.Lock())
	m.OpensByItself()
	m.Must(m.OneSecret())

	lock, _, fresh := m.Unlocked()
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
	if _, err := firstboot.UnwrapKeys(old, m.RootFiles()[rootpart.ListFile]); err == nil {
		t.Error("the old secret opens the Secure Boot keys")
	}
	if _, err := old.Unbox("guarantees", m.RootFiles()[rootpart.GuaranteesFile]); err == nil {
		t.Error("the old secret opens the guarantees")
	}
	if _, err := tpm.OpenTransport(m.Emulator).ReadRecord(before.Sealed); err == nil {
		t.Error("the old index is still there")
	}
	log := m.Agent.LastGood(fresh)
	if log == nil || !log.Authentic {
		t.Error("the event log is not kept under the new secret")
	}
	// The header of before still opens, with the secret and the key of that time: see
	// recovery-key(8) and THREATS.md.
	_, err = s.WriteAt(header, 0)
	m.Must(err)
	m.Must(s.Sync())
	then, err := m.Header()
	m.Must(err)
	if _, _, err := then.Unlock(s, passphrase, 1<<20, before.TPMSlot); err != nil {
		t.Errorf("the header of before: %v", err)
	}
	if end := m.Boot(); end == "system" {
		t.Error("the TPM releases the old secret")
	}
}

// Cut anywhere, the machine opens by itself, with its keys, its list and its guarantees,
// by one secret, of which the next boot makes sure; so does the console, where the
// command may be given again. FAULTS 42, 100
func TestNewSecretCut(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	old := m.MachineSecret()
	r, c := m.Asked()
	m.Types("y", m.RecoveryKey())
	states, _ := m.Recording(func() string {
		m.Works(r.NewSecret(c, false))
		return ""
	}, mrand.New(mrand.NewPCG(31, 32)), "")
	t.Logf("%d operations, %d states after a cut", len(m.Ops), len(states))
	olds := 0
	for i, s := range states {
		m.PowerOn(s.World)
		if i%9 == 4 {
			r, c := m.Asked()
			m.Types("y", m.RecoveryKey())
			m.Works(r.NewSecret(c, false))
			m.Works(r.Lock())
		}
		m.OpensByItself()
		if err := m.OneSecret(); err != nil {
			t.Fatalf("%s: %v\n%s", s.How, err, m.Said.String())
		}
		if old.Equal(m.MachineSecret()) {
			olds++
		}
	}
	if olds == 0 || olds == len(states) {
		t.Errorf("the old secret is in force after %d of %d cuts", olds, len(states))
	}
	// The boot that finishes it is cut, too.
	r2 := mrand.New(mrand.NewPCG(33, 34))
	for i := 3; i < len(states); i += 7 {
		m.PowerOn(states[i].World)
		m.Typed = nil
		inner, end := m.RecordOnce(r2)
		if end != "system" {
			t.Fatalf("%s: ends in %s", states[i].How, end)
		}
		for _, s := range inner {
			m.PowerOn(s.World)
			m.OpensByItself()
			if err := m.OneSecret(); err != nil {
				t.Fatalf("%s; then %s: %v\n%s", states[i].How, s.How, err, m.Said.String())
			}
		}
	}
}

// A TPM that was cleared, and systems that can be started besides: all of them open by
// the new secret, under the same floor.
func TestNewSecretTakesAlong(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	m.Holds(5, 1, 2)
	r, c := m.Asked()
	m.Types("y", m.RecoveryKey())
	m.Works(r.NewSecret(c, false))
	m.Works(r.Lock())
	m.Runs(2)
	m.Holds(5, 1, 2)
	m.ByHand = 1
	m.Runs(1)

	m = machinetest.InConsole(t, func(m *machinetest.Machine) { m.ChipState, m.ChipChanged = nil, false })
	r, c = m.Console()
	m.Types(m.RecoveryKey(), "y", "weaker", m.RecoveryKey())
	m.Works(r.Unlock(c))
	m.Works(r.NewSecret(c, false))
	m.Works(r.Lock())
	m.OpensByItself()
	m.Must(m.OneSecret())
}

// A TPM without room for the record: the new secret is bound as the old one was.
func TestNewSecretWithoutRecord(t *testing.T) {
	m := machinetest.New(t, nil)
	m.FillTPM()
	m.Ends("system")
	m.Ends("system")
	old := m.MachineSecret()
	r, c := m.Asked()
	m.Types("y", "weaker", m.RecoveryKey()) // which systems were replaced, nobody can say here
	states, _ := m.Recording(func() string {
		m.Works(r.NewSecret(c, false))
		return ""
	}, mrand.New(mrand.NewPCG(35, 36)), "")
	for _, s := range states {
		m.PowerOn(s.World)
		m.OpensByItself()
		lock, _, secret := m.Unlocked()
		if lock.Sealed.Kind != policy.KindPCR || lock.Replaced || len(lock.Header.Keyslots()) != 2 || m.RootFiles()[rootpart.NextFile] != nil {
			t.Errorf("%s: kind %s, keyslots %v", s.How, lock.Sealed.Kind, lock.Header.Keyslots())
		}
		if keys, err := rootpart.StoredKeys(machinetest.Store{M: m}, secret, lock); err != nil || keys == nil {
			t.Errorf("%s: keys %v, %v", s.How, keys, err)
		}
	}
	if old.Equal(m.MachineSecret()) {
		t.Error("the old secret is in force")
	}
}

// reset after a cut leaves no index behind, of neither secret.
func TestNewSecretCutReset(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	r, c := m.Asked()
	m.Types("y", m.RecoveryKey())
	states, _ := m.Recording(func() string {
		m.Works(r.NewSecret(c, false))
		return ""
	}, mrand.New(mrand.NewPCG(37, 38)), "")
	two := 0
	for _, s := range states {
		m.PowerOn(s.World)
		m.Presses, m.Looks, m.Typed = 1, 0, nil
		m.Ends("recovery")
		m.Presses = 0
		chip := tpm.OpenTransport(m.Emulator)
		if indexes, err := chip.Indexes(); err != nil || len(indexes) < 2 {
			continue
		}
		two++
		if two%4 != 1 {
			continue
		}
		r, c := m.Console()
		m.Types("test")
		m.Works(r.Reset(c), "The root partition is wiped")
		if indexes, err := chip.Indexes(); err != nil || len(indexes) > 0 {
			t.Errorf("%s: NV indexes %v, %v", s.How, indexes, err)
		}
	}
	if two == 0 {
		t.Error("no state has two indexes")
	}
}

// What is not there for a new secret is said before anything is written.
func TestNewSecretRefuses(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	files := maps.Clone(m.RootFiles())
	r, c := m.Asked()
	unchanged := func(what string) {
		t.Helper()
		if !maps.EqualFunc(m.RootFiles(), files, bytes.Equal) {
			t.Errorf("%s: files have changed", what)
		}
		if indexes, err := tpm.OpenTransport(m.Emulator).Indexes(); err != nil || len(indexes) != 1 {
			t.Errorf("%s: NV indexes %v, %v", what, indexes, err)
		}
	}
	// A TPM that has no room for a second index keeps the one that it has.
	m.FillRest()
	files = maps.Clone(m.RootFiles())
	m.Types("y", m.RecoveryKey(), "weaker")
	m.Refuses(r.NewSecret(c, false), "this TPM cannot hold the policy record")
	unchanged("no room")

	// Of a second recovery key nobody knows whether its owner still has it.
	m = machinetest.ProvisionedMachine(t, machinetest.Pinned)
	r, c = m.Asked()
	lock, volumeKey, secret := m.Unlocked()
	second, err := luks2.NewRecoveryKey(m.Random)
	m.Must(err)
	s, err := m.Partition(layout.Root)
	m.Must(err)
	m.Must(lock.AddRecovery(m.Random, s, volumeKey, secret, &second, luks2.Argon2id(64<<10, 1)))
	files = maps.Clone(m.RootFiles())
	m.Refuses(r.NewSecret(c, false), "use `recovery-key` first")
	unchanged("two recovery keys")

	// The console goes by a secret that is not in force any more.
	m = machinetest.ProvisionedMachine(t, machinetest.Pinned)
	r, c = m.Asked()
	files = maps.Clone(m.RootFiles())
	stale, err := r.Keeper.Kept()
	m.Must(err)
	m.Types("y", m.RecoveryKey())
	m.Works(r.NewSecret(c, false))
	m.Must(r.Keeper.Keep(stale))
	maps.Copy(m.RootFiles(), files)
	m.Types("y", "weaker", m.RecoveryKey()) // by that secret, the TPM's record is somebody else's
	m.Refuses(r.NewSecret(c, false), "the machine secret is another one by now")
	unchanged("a secret of before")

	// A system of an earlier release may still be started.
	m = machinetest.New(t, machinetest.Pinned)
	m.Releases[1] = machinetest.NewReleaseOf(t, 1, 5, contract.Abilities{PolicyRecord: 2}, machinetest.Pinned)
	m.PowerOn(m.Installed(machinetest.DiskSize))
	m.Ends("system")
	m.Ends("system")
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	r, c = m.Asked()
	files = maps.Clone(m.RootFiles())
	m.Types("y", m.RecoveryKey())
	m.Refuses(r.NewSecret(c, false), "version 1 may still be started")
	unchanged("an earlier release")
	m.Rename("test_1.efi", "test_1+0.efi") // and may not
	m.Works(r.NewSecret(c, false))
	m.Works(r.Lock())
	m.Runs(2)
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

func (d weakDisk) OpenPartition(disk hw.Disk, r layout.Role, write bool) (hw.File, error) {
	f, err := d.Disks.OpenPartition(disk, r, write)
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
	m := machinetest.ProvisionedMachine(t, nil)
	good := m.World(true, nil)
	old := m.MachineSecret()
	olds, failed := 0, 0
	for at := 0; ; at++ {
		m.PowerOn(good)
		r, c := m.Asked()
		failAt := at
		r.Disks = weakDisk{r.Disks, &failAt}
		m.Types("y", m.RecoveryKey())
		err := r.NewSecret(c, false)
		if failAt >= 0 {
			m.Must(err)
			break
		}
		if failed++; err == nil {
			t.Fatalf("write %d fails, and nobody says so", at)
		}
		if at%2 == 0 {
			if _, err := r.Keeper.Kept(); err == nil {
				m.Works(r.Lock())
			}
			m.Types(m.RecoveryKey())
			m.Works(r.Unlock(c))
			m.Must(m.OneSecret())
			m.Works(r.Lock())
		}
		m.OpensByItself()
		m.Must(m.OneSecret())
		if old.Equal(m.MachineSecret()) {
			olds++
		}
	}
	if olds == 0 || olds == failed {
		t.Errorf("the old secret is in force after %d of %d", olds, failed)
	}
}
