package rootpart_test

import (
	"bytes"
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
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
)

// Whatever was written on the way to new keys, and lies in free space: put back, it makes
// no old key count again, under any header of that time. FAULTS 100
func TestOldKeysPutBack(t *testing.T) {
	m, old, states := machinetest.BeganKeys(t)
	m.PowerOn(states[len(states)-1].World)
	m.Typed = nil
	inner, end := m.Recording(m.Run, mrand.New(mrand.NewPCG(63, 64)), "settling; ")
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	m.Must(m.Replaced(old))
	settled := m.World(true, nil)
	found := map[string]map[string]bool{rootpart.ListFile: {}, rootpart.KeysFile: {}, rootpart.NextFile: {}, rootpart.NextKeysFile: {}}
	for _, s := range append(states, inner...) {
		for _, files := range s.Volumes {
			for name := range found {
				if files[name] != nil {
					found[name][string(files[name])] = true
				}
			}
		}
	}
	secret := m.MachineSecret()
	for name, contents := range found {
		for text := range contents {
			keys, err := firstboot.UnwrapKeys(secret, []byte(text))
			if err == nil && keys.DB.Certificate.Equal(old.DB.Certificate) {
				t.Errorf("%s has had the old keys under the new secret", name)
			}
			m.PowerOn(settled)
			maps.DeleteFunc(m.RootFiles(), func(name string, _ []byte) bool { return found[name] != nil })
			m.RootFiles()[name] = []byte(text)
			m.SetupMode()
			m.Owner = true
			m.Boot()
			m.Owner = false
			if m.World(true, nil).Taken(old) < 3 {
				t.Errorf("%s, put back, enrolls an old key:\n%s", name, m.Said.String())
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
	m := machinetest.ProvisionedMachine(t, nil)
	old, err := m.EnrolledSet()
	m.Must(err)
	files := maps.Clone(m.RootFiles())
	s, err := m.Partition(layout.Root)
	m.Must(err)
	header := make([]byte, rootlock.HeaderArea)
	_, err = s.ReadAt(header, 0)
	m.Must(err)
	r, c := m.Asked()
	m.Types("y", m.RecoveryKey())
	m.Works(r.NewSecret(c, true))
	m.Works(r.Lock())
	m.OpensByItself()
	m.Must(m.Replaced(old))
	s, err = m.Partition(layout.Root)
	m.Must(err)
	_, err = s.WriteAt(header, 0)
	m.Must(err)
	m.Must(s.Sync())
	maps.Copy(m.RootFiles(), files)
	m.Typed = nil
	m.Types(m.RecoveryKey())
	if end := m.Boot(); end == "system" || !strings.Contains(m.Said.String(), "not made by this machine") {
		t.Errorf("ends in %s:\n%s", end, m.Said.String())
	}
	delete(m.Vars, nextboot.Variable)
	m.SetupMode()
	m.Typed = nil
	m.Types(m.RecoveryKey(), "y", "")
	m.Ends("system")
	if m.World(true, nil).Taken(old) < 3 || !strings.Contains(m.Printed.String(), "Type the word") {
		t.Errorf("an old key is enrolled:\n%s", m.Printed.String())
	}
}

// A list whose db key has made no owner signature of the volume is refused, no matter who asks, although
// the machine secret opens it; and the machine starts by the recovery key.
func TestListNeedsTheOwnerSignature(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	lock, _, secret := m.Unlocked()
	kept := m.RootFiles()[rootpart.ListFile]
	other := m.OtherKeys()
	wrapped, err := firstboot.WrapKeys(m.Random, secret, other, secureboot.NewList(other, secureboot.Vendor{}))
	m.Must(err)
	m.RootFiles()[rootpart.ListFile] = wrapped
	if keys, err := rootpart.StoredKeys(machinetest.Store{M: m}, secret, lock); err == nil || keys != nil {
		t.Errorf("the keys count: %v", err)
	}
	if list, err := rootpart.StoredList(machinetest.Store{M: m}, secret, lock); err == nil || list != nil {
		t.Errorf("the list counts: %v", err)
	}
	m.Types(m.RecoveryKey())
	m.Ends("system", machinetest.OtherSecret)
	if !strings.Contains(m.Said.String()+m.Printed.String(), "older ones were put back there") {
		t.Errorf("it says nothing of it:\n%s", m.Said.String())
	}
	r, c := m.Asked()
	m.Types("y")
	m.Refuses(r.Reseal(c), "older ones were put back there")
	m.Refuses(r.NewSecret(c, true), "older ones were put back there")
	m.Works(r.Lock())
	m.SetupMode()
	r, c = m.Asked()
	m.Types("y")
	m.Refuses(r.Enroll(c), "older ones were put back there")
	m.Works(r.Lock())
	m.RootFiles()[rootpart.ListFile] = kept
	m.Typed = nil
	m.Owner = true
	m.Ends("system")
	m.Owner = false
	m.OpensByItself()
	m.Must(m.OneSecret())
}

// A change that stops on the way, for as long as it does, starts the machine by itself
// each time, and goes on when it can. FAULTS 42, 100
func TestNewKeysStop(t *testing.T) {
	m, old, states := machinetest.BeganKeys(t)
	for taken := 1; taken < 3; taken++ {
		w := machinetest.StoppedAt(m, old, states, taken)
		m.PowerOn(w)
		m.Refuse = machinetest.ErrNotNow
		for range 6 {
			m.OpensByItself()
		}
		if !strings.Contains(m.Said.String(), "Each start tries again") {
			t.Errorf("%d taken: it does not say what to do:\n%s", taken, m.Said.String())
		}
		m.Refuse = nil
		m.OpensByItself()
		m.Must(m.Replaced(old))
	}
}

// A clock that is behind the firmware's last update keeps no key from it.
func TestNewKeysOldClock(t *testing.T) {
	m, old, states := machinetest.BeganKeys(t)
	late := m.Clock
	defer func() { m.Clock = late }()
	for taken := range 3 {
		m.PowerOn(machinetest.StoppedAt(m, old, states, taken))
		m.Clock = machinetest.BuildDate.AddDate(-30, 0, 0)
		m.OpensByItself()
		m.Must(m.Replaced(old))
	}
}

// The note of the superseded keys is gone, or somebody's. Once the firmware has the new db
// key the change goes on without it; before, nothing vouches for the secret any more: the
// recovery key is asked for, and the way out leads to the new keys.
func TestNewKeysNoteGone(t *testing.T) {
	m, old, states := machinetest.BeganKeys(t)
	for _, text := range [][]byte{nil, []byte("x")} {
		for taken := range 4 {
			m.PowerOn(machinetest.StoppedAt(m, old, states, taken))
			delete(m.RootFiles(), rootpart.NextKeysFile)
			if text != nil {
				m.RootFiles()[rootpart.NextKeysFile] = text
			}
			if taken == 3 {
				m.OpensByItself()
				m.Must(m.Replaced(old))
				continue
			}
			// What is lost has vouched for the secret while the firmware goes by it.
			m.Owner = true
			m.Ends("system", machinetest.OtherSecret)
			m.Owner = false
			if taken < 2 && !strings.Contains(m.Said.String()+m.Printed.String(), "clear the Secure Boot keys in the firmware's setup") {
				t.Errorf("it does not say what to do:\n%s", m.Said.String())
			}
			m.SetupMode()
			m.Owner = true
			m.Ends("system")
			m.Owner = false
			m.OpensByItself()
			m.Must(m.Replaced(old))
		}
	}
}

// The keys are cleared in the middle of a change: the machine gets the new ones, asks for
// the recovery key once, and opens by itself then.
func TestNewKeysSetupMode(t *testing.T) {
	m, old, states := machinetest.BeganKeys(t)
	for taken := range 4 {
		m.PowerOn(machinetest.StoppedAt(m, old, states, taken))
		m.SetupMode()
		m.Owner = true
		m.Printed.Reset()
		m.Ends("system")
		m.Owner = false
		if n := strings.Count(m.Printed.String(), "\nRecovery key"); n != 1 {
			t.Errorf("%d taken: it asks %d times:\n%s", taken, n, m.Printed.String())
		}
		m.OpensByItself()
		m.Must(m.Replaced(old))
	}
}

// Firmware that keeps what it is given in another form: what PCR 7 will be is foretold by
// what it holds in fact, and the machine opens by itself; so it does where its owner has
// cleared the keys.
func TestNewKeysKeptOtherwise(t *testing.T) {
	// An empty signature list behind the others (UEFI 2.10, section 32.4.1).
	empty := append(bytes.Repeat([]byte{7}, 16), 28, 0, 0, 0, 0, 0, 0, 0, 48, 0, 0, 0)
	otherwise := func(content []byte) []byte { return append(bytes.Clone(content), empty...) }
	m := machinetest.ProvisionedMachine(t, nil)
	old, err := m.EnrolledSet()
	m.Must(err)
	m.Keeps = otherwise
	r, c := m.Asked()
	m.Types("y", m.RecoveryKey())
	m.Works(r.NewSecret(c, true))
	m.Works(r.Lock())
	m.OpensByItself()
	m.Must(m.Replaced(old))

	m, old, states := machinetest.BeganKeys(t)
	m.PowerOn(machinetest.StoppedAt(m, old, states, 1))
	m.Keeps = otherwise
	m.SetupMode()
	m.Owner = true
	m.Printed.Reset()
	m.Ends("system")
	m.Owner = false
	if n := strings.Count(m.Printed.String(), "\nRecovery key"); n != 1 {
		t.Errorf("it asks %d times:\n%s", n, m.Printed.String())
	}
	m.OpensByItself()
	m.Must(m.Replaced(old))
}

// Anyone who does not accept what the machine is now gets no new key either, and their data.
func TestNewKeysDeclined(t *testing.T) {
	m, old, states := machinetest.BeganKeys(t)
	for taken := range 3 {
		m.PowerOn(machinetest.StoppedAt(m, old, states, taken))
		m.Extra = "new firmware"
		m.Typed = nil
		m.Types(m.RecoveryKey(), "n")
		m.Ends("system", "waits for a start that the TPM opens, or that its owner accepts")
		if n := m.World(true, nil).Taken(old); n != taken {
			t.Errorf("%d taken: %d are now", taken, n)
		}
		m.Extra = ""
		m.OpensByItself()
		m.Must(m.Replaced(old))
	}
}

// A boot manager that another has replaced does not become good by the new key: it is not
// signed by it, wherever it lies, and still counts as replaced. FAULTS 94
func TestNewKeysReplaced(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	old, err := m.EnrolledSet()
	m.Must(err)
	image := ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("a boot manager of before")})
	digest, err := authenticode.Digest(image)
	m.Must(err)
	signed, err := enroll.DBSigner{Pair: old.DB, Time: old.DB.Certificate.NotBefore}.Sign(image)
	m.Must(err)
	lock, _, secret := m.Unlocked()
	list, err := rootpart.StoredList(machinetest.Store{M: m}, secret, lock)
	m.Must(err)
	list.Allow(digest, host.ManagerPrefix+"test_0.efi")
	list.Replace(digest)
	m.Must(rootpart.KeepList(machinetest.Store{M: m}, m.Random, secret, list))
	const aside = "EFI/old/bootx64.efi"
	m.PutESP(aside, signed)
	r, c := m.Asked()
	good := m.ESP.Files[machinetest.ManagerCopy].Now.Data
	m.PutESP(machinetest.ManagerCopy, signed)
	m.Types("y")
	m.Refuses(r.NewSecret(c, true), "start the system once more")
	m.PutESP(machinetest.ManagerCopy, good)
	m.Types("y", m.RecoveryKey())
	m.Works(r.NewSecret(c, true), "starts no more: another has taken its place")
	m.Works(r.Lock())
	m.OpensByItself()
	m.Must(m.Replaced(old))
	now, err := m.EnrolledSet()
	m.Must(err)
	if authenticode.VerifyOwn(m.ESP.Files[aside].Now.Data, now.DB.Certificate) == nil {
		t.Error("the new key has signed it")
	}
	after, err := m.StoredList()
	m.Must(err)
	if !after.Replaced(digest) || !after.Names("test_1.efi") {
		t.Error("it is good again, or what is this machine's own is not")
	}
	for _, i := range after.Images() {
		if after.Replaced([32]byte(i.Digest)) != bytes.Equal(i.Digest, digest[:]) {
			t.Errorf("%s is replaced, or is not", i.Name)
		}
	}

	// Put in the place of the one that starts the machine, in between: db is not written.
	m = machinetest.ProvisionedMachine(t, nil)
	lock, _, secret = m.Unlocked()
	list, err = rootpart.StoredList(machinetest.Store{M: m}, secret, lock)
	m.Must(err)
	own, err := m.ESP.Get(machinetest.Removable)
	m.Must(err)
	digest, err = authenticode.Digest(own.Now.Data)
	m.Must(err)
	r, c = m.Asked()
	list.Replace(digest)
	keep := m.RootFiles()[rootpart.ListFile]
	m.Must(rootpart.KeepList(machinetest.Store{M: m}, m.Random, secret, list))
	m.Types("y")
	m.Refuses(r.NewSecret(c, true), "an old boot manager, which another is about to replace")
	m.RootFiles()[rootpart.ListFile] = keep
}

// What the machine has is noted by what the new secret was sealed to: a TPM that had no
// room for the record has room by now. Cut anywhere, the note is no less than that.
func TestNewSecretNotesMore(t *testing.T) {
	m := machinetest.New(t, nil)
	m.FillTPM()
	m.Ends("system")
	m.Ends("system")
	m.EmptyTPM()
	r, c := m.Asked()
	m.Types("y", "weaker", m.RecoveryKey())
	states, _ := m.Recording(func() string {
		m.Works(r.NewSecret(c, false))
		return ""
	}, mrand.New(mrand.NewPCG(65, 66)), "")
	more := 0
	for _, s := range states {
		m.PowerOn(s.World)
		lock, _, secret := m.Unlocked()
		if lock.Sealed.Kind != policy.KindNV {
			continue
		}
		m.Must(rootpart.FinishSecret(rootpart.Volume{Machine: m.Agent.Machine, Disk: m.Agent.Disk, Random: m.Random, Lock: lock}, nil, secret))
		if g := rootpart.ReadGuarantees(machinetest.Store{M: m}, secret); !g.Record {
			t.Errorf("%s: guarantees %+v", s.How, g)
		}
		more++
	}
	if more == 0 {
		t.Error("the new secret has no record")
	}
}
