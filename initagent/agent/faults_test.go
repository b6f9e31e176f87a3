package agent

import (
	mrand "math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// provisionedMachine is one that has been through its first two boots and an
// ordinary one.
func provisionedMachine(t testing.TB, change func(*contract.Contract)) *machine {
	t.Helper()
	m := newMachine(t, change)
	m.ends("system")
	m.ends("system")
	m.ops = nil
	m.said.Reset()
	m.printed.Reset()
	return m
}

// ends runs the machine and wants it to end so, having said all of this.
func (m *machine) ends(want string, says ...string) {
	m.t.Helper()
	m.said.Reset()
	if end := m.run(); end != want {
		m.t.Fatalf("ends in %s, want %s:\n%s", end, want, m.said.String())
	}
	for _, s := range says {
		if !strings.Contains(m.said.String(), s) {
			m.t.Errorf("says nothing of %q:\n%s", s, m.said.String())
		}
	}
}

// written are the operations so far that contain a word.
func (m *machine) written(word string) (found []string) {
	for _, op := range m.ops {
		if strings.Contains(op, word) {
			found = append(found, op)
		}
	}
	return found
}

// unlocked opens the volume with the recovery key.
func (m *machine) unlocked() (*rootlock.Lock, []byte, *policy.Secret) {
	m.t.Helper()
	return m.unlockedBy(m.recoveryKey())
}

func (m *machine) unlockedBy(recovery string) (*rootlock.Lock, []byte, *policy.Secret) {
	m.t.Helper()
	s, err := m.partition(layout.RootNumber)
	if err != nil {
		m.t.Fatal(err)
	}
	_, lock, err := rootlock.Look(s, s.Size())
	if err != nil {
		m.t.Fatal(err)
	}
	volumeKey, secret, err := lock.OpenRecovery(s, []byte(recovery), 1<<20)
	if err != nil {
		m.t.Fatal(err)
	}
	return lock, volumeKey, secret
}

func (m *machine) recoveryKey() string { return m.shown[len(m.shown)-1] }

func (m *machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// A disk that does not fit is refused before anything is written to it.
func TestDiskRefused(t *testing.T) { // FAULTS 39, 41
	for _, c := range []struct {
		name string
		set  func(m *machine)
		says string
	}{
		{"too small", func(m *machine) { m.powerOn(m.installed(700 * mib)) }, "the largest free space"},
		{"a partition that is not ours", func(m *machine) {
			table, _, err := m.table()
			m.must(err)
			table.Partitions = append(table.Partitions, gpt.Partition{Number: 7, Type: layout.TypeRoot, UUID: gpt.MustGUID("99999999-2222-4333-8444-555555555555"),
				First: table.Sectors - 10000, Last: table.Sectors - 9000, Label: "photos"})
			m.must(table.Write(m.disk))
		}, `"photos"`},
		{"two that look alike", func(m *machine) { m.second = m.disk.now.Overlay() }, "detach the one"},
		{"two that look alike, of which the other was not started from", func(m *machine) {
			m.second = m.disk.now.Overlay()
			m.bootedFrom = []bootoption.Function{{Device: 4}}
			m.pci = [2][]bootoption.Function{{{Device: 3}}, {{Device: 3}}}
		}, "detach the one"},
		{"two that look alike, on two controllers of which none was started from", func(m *machine) {
			m.second = m.disk.now.Overlay()
			m.bootedFrom = []bootoption.Function{{Device: 4}}
			m.pci = [2][]bootoption.Function{{{Device: 3}}, {{Device: 5}}}
		}, "detach the one"},
		{"two that look alike on the controller that was started from", func(m *machine) {
			m.second = m.disk.now.Overlay()
			m.bootedFrom = []bootoption.Function{{Device: 3}}
			m.pci = [2][]bootoption.Function{m.bootedFrom, m.bootedFrom}
		}, "detach the one"},
		{"not in Setup Mode", func(m *machine) {
			sets, err := keySets()
			m.must(err)
			for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB} {
				content, err := sets[0].Wanted(secureboot.Vendor{}).Of(v).Marshal()
				m.must(err)
				m.vars[v.Name] = efiVariable{secureboot.KeyAttributes, content}
			}
			setFlag(m.vars, "SetupMode", 0)
			signer := enroll.DBSigner{Pair: sets[0].DB, Time: buildDate}
			_, err = enroll.SignAll(espDir{m.esp}, enroll.State{}, signer, func(string, []byte) error { return nil })
			m.must(err)
		}, "choose to reset or clear the Secure Boot keys"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t, nil)
			c.set(m)
			m.ops = nil
			m.ends("recovery", c.says)
			if len(m.ops) > 0 {
				t.Errorf("it was written to: %q", m.ops)
			}
		})
	}
}

func TestWrongImage(t *testing.T) { // FAULTS 38
	m := newMachine(t, nil)
	table, _, err := m.table()
	m.must(err)
	system, _ := table.ByNumber(2)
	_, err = m.disk.WriteAt([]byte("x"), int64(system.First)*sectorSize+5000)
	m.must(err)
	m.ends("recovery", "does not hold the system image of test 1", "install the image again")
	table, _, err = m.table()
	m.must(err)
	c := m.releases[1].contract
	if _, named := layout.FindSlot(table, layout.SystemUUID(c.Root()), layout.VerityUUID(c.Root())); named {
		t.Error("the tree got its name")
	}
}

// What the firmware refuses is said, and tried again at the next start.
func TestFirmwareRefuses(t *testing.T) {
	m := newMachine(t, nil)
	m.refuse = syscall.EACCES
	m.ends("recovery", "were not enrolled", "security violation")
	if m.vars["PK"].data != nil {
		t.Error("PK was written")
	}
	m.refuse = nil
	m.ends("system")
	m.must(m.provisioned())
}

// A TPM without room for the record is used without one, and says so.
func TestNoRoomInTPM(t *testing.T) {
	m := newMachine(t, nil)
	m.fillTPM()
	m.ends("system", "WARNING: this TPM cannot hold the policy record")
	m.printed.Reset()
	m.ends("system")
	if m.printed.Len() > 0 || m.openVolume == nil {
		t.Errorf("the next boot says %s", m.printed.String())
	}
	lock, volumeKey, secret := m.unlocked()
	luks2.Wipe(volumeKey)
	secret.Wipe()
	if lock.Sealed.Kind != policy.KindPCR || !slices.Equal(lock.Sealed.PCRs, policy.WithoutPrograms()) {
		t.Errorf("sealed as %s to PCRs %v", lock.Sealed.Kind, lock.Sealed.PCRs)
	}
}

func noTPMNeeded(c *contract.Contract) { c.TPM = contract.Optional }

// Without a TPM the recovery key opens the root partition, which holds the
// Secure Boot keys from the beginning. Wherever this is cut the keys end up
// enrolled.
func TestNoTPM(t *testing.T) { // FAULTS 71
	m := newMachine(t, noTPMNeeded)
	m.noTPM = tpm.ErrAbsent
	start := m.world(true, nil)
	finish := func(how string) {
		t.Helper()
		for range 8 {
			m.typed = nil
			if len(m.shown) > 0 {
				m.typed = []string{m.recoveryKey(), "y"} // keys are enrolled by their owner's word alone
			}
			switch end := m.boot(); {
			case end == "system" && m.vars["SecureBoot"].data[0] == 1:
				if err := m.checkKeys(); err != nil {
					t.Errorf("%s: %v", how, err)
				}
				return
			case end != "reboot":
				t.Errorf("%s: a boot ends in %s:\n%s", how, end, m.said.String())
				return
			}
		}
		t.Errorf("%s: it never ends:\n%s", how, m.said.String())
	}
	m.powerOn(start)
	finish("without a cut")
	m.powerOn(start)
	states, _ := m.recordOnce(mrand.New(mrand.NewPCG(3, 4)))
	tried := 0
	for _, s := range states {
		if strings.Contains(s.how, "disk write of") { // formatting is cut elsewhere
			continue
		}
		m.powerOn(s.world)
		m.said.Reset()
		finish(s.how)
		tried++
	}
	t.Logf("%d states", tried)
}

// A TPM that did not answer when the boot began may answer what runs later: so
// nothing else runs.
func TestTPMThatCannotBeTold(t *testing.T) { // FAULTS 71, 79
	m := provisionedMachine(t, noTPMNeeded)
	m.noTPM = tpm.ErrBusy
	m.typed = []string{m.recoveryKey()}
	for _, says := range []string{"the machine restarts into the recovery console", "no console: the TPM could not be told"} {
		if end := m.boot(); end != "reboot" || !strings.Contains(strings.ToLower(m.said.String()), strings.ToLower(says)) {
			t.Errorf("ends in %s:\n%s", end, m.said.String())
		}
	}
}

// The recovery console opens over a closed root partition, whatever was open.
func TestConsoleAfterUnlock(t *testing.T) { // FAULTS 77, 79
	m := provisionedMachine(t, nil)
	etc := filepath.Join(m.root, host.SystemDirectory, "etc")
	m.must(os.Remove(etc))
	m.must(os.WriteFile(etc, nil, 0o600))
	m.ends("recovery", "it is no directory in the image") // person.Shell looks at the rest
}

// Every trial of a slot with a corrupt image ends in the other one.
func TestCorruptTrial(t *testing.T) { // FAULTS 32
	m := provisionedMachine(t, nil)
	m.releases[2] = newRelease(t, 2, 5, nil)
	m.stage(m.releases[2], true)
	m.ends("system", "slot b: verity:", "test_2+0-1.efi has no tries left")
	if m.agent.Contract.Version != 1 || m.openVolume == nil {
		t.Errorf("version %s runs", m.agent.Contract.Version)
	}
}

// stage puts a release into slot B, as staging would.
func (m *machine) stage(r *edition, corrupt bool) {
	m.t.Helper()
	system, err := m.partition(layout.SlotB.SystemNumber())
	m.must(err)
	_, err = system.WriteAt(r.image, 0)
	m.must(err)
	tree, err := m.partition(layout.SlotB.VerityNumber())
	m.must(err)
	_, err = verity.Generate(m.t.Context(), system, r.contract.VerityParams(), tree, func(int64) {})
	m.must(err)
	if corrupt {
		_, err = system.WriteAt([]byte{0xff}, 12345)
		m.must(err)
	}
	table, _, err := m.table()
	m.must(err)
	m.must(layout.Rename(table, layout.SlotB, layout.SystemUUID(r.contract.Root()), layout.VerityUUID(r.contract.Root())).Write(m.disk))
	_, volumeKey, secret := m.unlocked()
	luks2.Wipe(volumeKey)
	keys, err := firstboot.UnwrapKeys(secret, m.volumes[*m.openVolume][rootpart.ListFile])
	m.must(err)
	signed, err := enroll.DBSigner{Pair: keys.DB, Time: buildDate}.Sign(r.uki)
	m.must(err)
	name := bls.Name{ImageID: "test", Version: r.contract.Version, Counted: true, Left: 3}
	m.esp.files[path.Join(bls.Directory, name.String())] = &espFile{remains{data: signed}, []remains{{data: signed}}}
	m.ops = nil
}

// A system that was replaced for good gets no key and no second chance.
func TestUnderTheFloor(t *testing.T) { // FAULTS 73
	m := provisionedMachine(t, nil)
	lock, volumeKey, secret := m.unlocked()
	key, err := secret.WriteKey()
	m.must(err)
	m.must(tpm.OpenTransport(m.emulator).WriteRecord(lock.Sealed.NVIndex, key, &policy.Record{
		Floor: 9, Volume: policy.VolumeFingerprint(volumeKey), Branches: []policy.Branch{{Policy: policy.Digest{1}, Version: 9, Epoch: 9}},
	}))
	m.chipChanged = true
	m.ends("recovery", "this system's epoch is 5 and the TPM's floor is 9")
	if m.openVolume != nil || m.printed.Len() > 0 {
		t.Errorf("it asks: %s", m.printed.String())
	}
}

// The recovery key accepts a change by one write to the TPM, and nothing else.
func TestAcceptChange(t *testing.T) {
	m := provisionedMachine(t, nil)
	m.extra = "another firmware"
	m.typed = []string{"not a key", m.recoveryKey(), "y"}
	m.ends("system", "PCR 7")
	if got := m.written("tpm"); !slices.Equal(got, []string{"tpm write index"}) {
		t.Errorf("the TPM got %q", got)
	}
	if len(m.written("disk")) > 0 || !strings.Contains(m.printed.String(), "Accepted.") || strings.Contains(m.said.String(), m.recoveryKey()) {
		t.Errorf("it says %s and writes %q", m.printed.String(), m.ops)
	}
	if !slices.Contains(m.kinds(), journal.Accepted) {
		t.Errorf("the journal has %v", m.kinds())
	}
	m.must(m.checkEveryDay())
}

// The recovery key binds the root partition to a TPM that took the place of
// another, and refuses to without a yes.
func TestAnotherTPM(t *testing.T) { // FAULTS 71
	m := provisionedMachine(t, nil)
	m.chipState, m.chipChanged = nil, false
	m.must(os.Remove(filepath.Join(m.emulator.directory, stateFile)))
	m.typed = []string{m.recoveryKey(), ""}
	m.ends("system", "the TPM was cleared, is another one")
	if len(m.written("tpm")) > 0 {
		t.Errorf("without a yes the TPM got %q", m.ops)
	}
	m.typed = []string{m.recoveryKey(), "y", "y"}
	m.ends("system")
	if strings.Contains(m.printed.String(), "Bound to this TPM.") {
		t.Error("it is bound, although nobody knows which systems were replaced")
	}
	m.rebinds()
	if !strings.Contains(m.printed.String(), "Bound to this TPM.") {
		t.Errorf("it says %s", m.printed.String())
	}
	m.must(m.checkRoot())
	m.must(m.checkEveryDay())
}

// An ESP that cannot be written does not keep a machine in use from starting.
func TestReadOnlyESP(t *testing.T) { // FAULTS 47
	m := provisionedMachine(t, nil)
	m.esp.fails = syscall.EROFS
	r := remains{unreadable: true}
	m.esp.files[firstboot.Name(0)] = &espFile{r, []remains{r}}
	m.ends("system", "was not tidied up")
	if m.openVolume == nil {
		t.Error("it runs without its root partition")
	}
}
