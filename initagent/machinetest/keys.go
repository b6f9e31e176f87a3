package machinetest

import (
	"bytes"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/keynote"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/lastgood"
	"halogenos.internal/initagent/recoverykey"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// EnrolledSet is the set that the machine has enrolled, as the firmware's db says.
func (m *Machine) EnrolledSet() (*secureboot.KeySet, error) {
	sets, err := KeySets()
	if err != nil {
		return nil, err
	}
	_, certificates, err := CertificatesIn(m.Vars)
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

// KeysUnfinished reports whether an exchange of the Secure Boot keys has not come to its end.
func (m *Machine) KeysUnfinished() bool {
	lock, volumeKey, secret := m.Unlocked()
	luks2.Wipe(volumeKey)
	secret.Wipe()
	return rootpart.KeysUnfinished(Store{m}, lock)
}

// SetNumber is the number of a set of keys among KeySets; -1 for another.
func (m *Machine) SetNumber(k *secureboot.KeySet) int {
	sets, err := KeySets()
	m.Must(err)
	return slices.Index(sets[:], k)
}

// Replaced reports what is left of the old keys, on a machine that has settled new ones.
func (m *Machine) Replaced(old *secureboot.KeySet) error {
	if err := m.OneSecret(); err != nil {
		return err
	}
	now, err := m.EnrolledSet()
	if err != nil || now.DB.Certificate.Equal(old.DB.Certificate) {
		return fmt.Errorf("the old db key is enrolled: %w", err)
	}
	state, err := enroll.Observe(&Firmware{Vars: m.Vars})
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
	for _, name := range []string{Removable, ManagerCopy, path.Join(bls.Directory, "test_1.efi")} {
		f, err := m.ESP.Get(name)
		if err == nil {
			err = authenticode.VerifyOwn(f.Now.Data, now.DB.Certificate)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	lock, volumeKey, secret := m.Unlocked()
	defer luks2.Wipe(volumeKey)
	defer secret.Wipe()
	keys, err := rootpart.StoredKeys(Store{m}, secret, lock)
	if err != nil {
		return err
	}
	defer keys.Wipe()
	if !keys.DB.Key.Equal(now.DB.Key) || !keys.PK.Key.Equal(now.PK.Key) || !keys.KEK.Key.Equal(now.KEK.Key) {
		return errors.New("the keys that are stored are not those that are enrolled")
	}
	if _, there := m.RootFiles()[rootpart.NextKeysFile]; there || len(lock.NextOwnerSignature) > 0 {
		return errors.New("something is left of the replacement")
	}
	record, err := tpm.OpenTransport(m.Emulator).ReadRecord(lock.Sealed)
	if err != nil {
		return err
	}
	start, err := m.Agent.ToldBoot()
	if err != nil || !record.Allows(&start) {
		return fmt.Errorf("the record does not have this boot: %w", err)
	}
	for file, f := range m.ESP.Files {
		if path.Base(file) == "HALOGEN.NEW" && !f.Now.Absent {
			return fmt.Errorf("%s is left", file)
		}
	}
	return nil
}

// OldWantedFile is where an earlier release keeps what the firmware shall hold:
// anybody who is root of the running system can edit it.
const OldWantedFile = "halogen/secure-boot-wanted"

// OtherKeys are a key set that the machine does not use.
func (m *Machine) OtherKeys() *secureboot.KeySet {
	m.T.Helper()
	sets, err := KeySets()
	m.Must(err)
	keys, err := copyKeys(sets[(m.KeysNo+1)%len(sets)])
	m.Must(err)
	return keys
}

// MachineSecret opens the volume by the recovery key, for the test alone.
func (m *Machine) MachineSecret() *policy.Secret {
	m.T.Helper()
	_, volumeKey, secret := m.Unlocked()
	luks2.Wipe(volumeKey)
	return secret
}

// SetKeys puts contents into the firmware's variables.
func (m *Machine) SetKeys(w secureboot.Wanted) {
	m.T.Helper()
	for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB, secureboot.DBX} {
		if content := w.Of(v); len(content) > 0 {
			raw, err := content.Marshal()
			m.Must(err)
			m.Vars[v.Name] = EFIVariable{secureboot.KeyAttributes, raw}
		}
	}
}

// PutESP writes a file to the ESP, from outside.
func (m *Machine) PutESP(name string, data []byte) {
	r := Remains{Data: data}
	m.ESP.Files[name] = &ESPFile{r, []Remains{r}}
}

// EvilMaid gives the firmware somebody else's keys beside the machine's own db
// certificate, signs what the machine starts with them, and forges an event log in
// which these keys were there before.
func (m *Machine) EvilMaid() *secureboot.KeySet {
	m.T.Helper()
	evil := m.OtherKeys()
	own, _, err := CertificatesIn(m.Vars)
	m.Must(err)
	w := evil.Wanted(secureboot.Vendor{})
	w.DB = append(w.DB, own...)
	m.SetKeys(w)
	signer := enroll.DBSigner{Pair: evil.DB, Time: BuildDate}
	for name, plain := range map[string][]byte{Removable: m.Manager, ManagerCopy: m.Manager, path.Join(bls.Directory, "test_1.efi"): m.Releases[1].UKI} {
		signed, err := signer.Sign(plain)
		m.Must(err)
		m.PutESP(name, signed)
	}
	m.Extra = "something harmless"
	m.Must(m.Emulator.PowerOn(m.World(true, nil).Chip))
	_, _, err = m.Start()
	m.Must(err)
	m.PutESP(firstboot.Directory+"/eventlog-9999999999999999999.bin", bytes.Clone(m.Log))
	m.Extra = ""
	return evil
}

// EarlierRelease makes the root partition what an earlier release would have left:
// the keys alone, and beside them, for root to edit, what the firmware shall hold.
func (m *Machine) EarlierRelease() {
	m.T.Helper()
	files := m.RootFiles()
	keys, _, err := secureboot.SplitList(files[rootpart.ListFile])
	m.Must(err)
	state, err := enroll.Observe(&Firmware{Vars: m.Vars})
	m.Must(err)
	files[rootpart.KeysFile] = bytes.Clone(keys)
	delete(files, rootpart.ListFile)
	files[OldWantedFile], err = state.Live().Marshal()
	m.Must(err)
	for name, f := range m.ESP.Files {
		if base := path.Base(name); lastgood.Is(base) && !f.Now.Absent {
			delete(m.ESP.Files, name)
			m.PutESP(path.Join(firstboot.Directory, base[:strings.LastIndexByte(base, '-')]+".bin"), f.Now.Data)
		}
	}
}

// DamageList changes the list of what the firmware shall hold, and leaves the keys.
func (m *Machine) DamageList() {
	m.T.Helper()
	box := bytes.Clone(m.RootFiles()[rootpart.ListFile])
	box[len(box)-1] ^= 1
	m.RootFiles()[rootpart.ListFile] = box
	if _, err := m.StoredList(); err == nil {
		m.T.Fatal("the list is not damaged")
	}
}

// DamageKeyslot makes the area of the TPM's keyslot one that does not open.
func (m *Machine) DamageKeyslot() {
	m.T.Helper()
	lock, volumeKey, secret := m.Unlocked()
	luks2.Wipe(volumeKey)
	secret.Wipe()
	part, err := m.Partition(layout.Root)
	m.Must(err)
	for _, k := range lock.Header.Keyslots() {
		if k.Number == lock.TPMSlot {
			_, err := part.WriteAt(bytes.Repeat([]byte{0xaa}, 4096), k.Offset)
			m.Must(err)
		}
	}
	m.Must(part.Sync())
}

// NameOtherKeyslot has the TPM's token name the recovery key's keyslot.
func (m *Machine) NameOtherKeyslot() {
	m.T.Helper()
	lock, volumeKey, secret := m.Unlocked()
	luks2.Wipe(volumeKey)
	secret.Wipe()
	m.ChangeToken(func(c *luks2.Change, n int, token luks2.Token) error {
		token.Keyslots = []int{lock.Recoveries[0].Keyslot}
		return c.SetToken(n, token)
	})
}

// Notes writes the note of the recovery key, as a first boot or root of the running system.
func (m *Machine) Notes(n keynote.Note) {
	m.T.Helper()
	text, err := n.Encode()
	m.Must(err)
	m.RootFiles()[recoverykey.NoteFile] = text
}

// Note is the one that is there.
func (m *Machine) Note() keynote.Note { return recoverykey.Noted(Store{m}) }

// ErrNotNow is a firmware that takes nothing today.
var ErrNotNow = errors.New("not now")

// BeganKeys are the states that a cut leaves while a machine in use gets new keys at the
// console, and the old ones.
func BeganKeys(t *testing.T) (m *Machine, old *secureboot.KeySet, states []CutState) {
	t.Helper()
	m = ProvisionedMachine(t, nil)
	old, err := m.EnrolledSet()
	m.Must(err)
	r, c := m.Asked()
	m.Types("y", m.RecoveryKey())
	states, _ = m.Recording(func() string {
		m.Works(r.NewSecret(c, true))
		return ""
	}, mrand.New(mrand.NewPCG(61, 62)), "")
	return m, old, states
}

// Taken is how many variables of a machine have other keys than the old ones.
func (w *World) Taken(old *secureboot.KeySet) (n int) {
	for name, pair := range map[string]secureboot.Pair{"PK": old.PK, "KEK": old.KEK, "db": old.DB} {
		if !bytes.Contains(w.Vars[name].Data, pair.Certificate.Raw) {
			n++
		}
	}
	return n
}

// StoppedAt is the last state in which the change has begun, and so many variables have the
// new keys.
func StoppedAt(m *Machine, old *secureboot.KeySet, states []CutState, taken int) *World {
	m.T.Helper()
	var found *World
	for _, s := range states {
		begun := false
		for _, files := range s.Volumes {
			begun = files[rootpart.NextKeysFile] != nil && files[rootpart.NextFile] == nil
		}
		if begun && s.Taken(old) == taken && strings.HasSuffix(s.How, "all landed") {
			found = s.World
		}
	}
	if found == nil {
		m.T.Fatalf("no state has %d new keys", taken)
	}
	return found
}

// SetupMode clears the firmware's keys, as its owner does in its setup.
func (m *Machine) SetupMode() {
	for _, name := range []string{"PK", "KEK", "db", "dbx"} {
		delete(m.Vars, name)
		delete(m.Vars, name+" time")
	}
	SetFlag(m.Vars, "SetupMode", 1)
}
