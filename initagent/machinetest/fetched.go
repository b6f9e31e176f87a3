package machinetest

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/staging"
	"halogenos.internal/initagent/tpm"
)

// A signer is a distributor's release key.
type Signer struct {
	Entity *openpgp.Entity
	Public []byte
	made   sync.Map // signatures, which are different each time
}

func newSigner(name string, lifetime time.Duration) (*Signer, error) {
	config := &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return BuildDate.AddDate(0, 0, -7) }, KeyLifetimeSecs: uint32(lifetime / time.Second)}
	entity, err := openpgp.NewEntity(name, "", "", config)
	if err != nil {
		return nil, err
	}
	var public bytes.Buffer
	if err := entity.Serialize(&public); err != nil {
		return nil, err
	}
	// Who has the key does not care what its own signature says about its end.
	for _, name := range entity.Identities {
		for _, s := range name.SelfCertifications {
			s.Packet.KeyLifetimeSecs = nil
		}
	}
	for _, s := range entity.DirectSignatures {
		s.Packet.KeyLifetimeSecs = nil
	}
	return &Signer{Entity: entity, Public: public.Bytes()}, nil
}

// distributor signs the releases, stranger is somebody else of the same name, and
// expired had a key until a month after the build.
var Distributor, Stranger, Expired = sync.OnceValues(func() (*Signer, error) { return newSigner("distributor", 0) }),
	sync.OnceValues(func() (*Signer, error) { return newSigner("distributor", 0) }),
	sync.OnceValues(func() (*Signer, error) { return newSigner("distributor", 20*24*time.Hour) })

// Sign makes the OpenPGP signature over a text; the same one each time.
func (s *Signer) Sign(text []byte, at time.Time) ([]byte, error) {
	key := fmt.Sprintf("%s %s", text, at)
	if made, ok := s.made.Load(key); ok {
		return made.([]byte), nil
	}
	var out bytes.Buffer
	err := openpgp.DetachSign(&out, []*openpgp.Entity{s.Entity}, bytes.NewReader(text), &packet.Config{Time: func() time.Time { return at }})
	made, _ := s.made.LoadOrStore(key, out.Bytes())
	return made.([]byte), err
}

// Pinned has the contract pin the distributor's key.
func Pinned(c *contract.Contract) {
	s, err := Distributor()
	if err != nil {
		panic(err)
	}
	c.ReleaseKey = s.Public
}

// A parcel is a release as the fetcher has it: what a test spoils.
type Parcel struct {
	version  contract.Version // as the note and the directory have it
	slot     layout.Slot
	Image    []byte
	Params   verity.Params
	Release  *release.Release
	Text     []byte // release.json, where it is not release's
	Signer   *Signer
	SignedAt time.Time
	Files    map[string][]byte
	Note     string // where it is not the fetcher's
}

// Parcel packs a release for the slot that is not running.
func (m *Machine) Parcel(r *Edition) *Parcel {
	m.T.Helper()
	file := func(name string, content []byte, efi bool) release.File {
		sum := sha256.Sum256(content)
		f := release.File{Name: name, Size: int64(len(content)), SHA256: sum[:]}
		if efi {
			digest, err := authenticode.Digest(content)
			m.Must(err)
			f.Authenticode = digest[:]
		}
		return f
	}
	_, started, err := rootpart.Describe(r.UKI)
	m.Must(err)
	c := r.Contract
	s, err := Distributor()
	m.Must(err)
	manager := r.Manager
	if manager == nil {
		manager = m.Manager
	}
	return &Parcel{
		version: c.Version, slot: m.RunningSlot().Other(), Image: r.Image, Params: c.VerityParams(), Signer: s, SignedAt: BuildDate.AddDate(0, 0, 1),
		Release: &release.Release{
			Format: release.Format, ImageID: c.ImageID, Arch: c.Arch, Version: c.Version, Epoch: c.Epoch,
			RootHash: c.RootHash, Salt: c.Salt, ImageSize: c.ImageSize, SlotSize: c.SlotSize, PCR11: started[:], SourceDate: c.SourceDate,
			Files: []release.File{file(release.UKIFile, r.UKI, true), file(release.BootManagerFile, manager, true), file(release.ImageFile, r.Image, false)},
		},
		Files: map[string][]byte{release.UKIFile: r.UKI, release.BootManagerFile: manager},
	}
}

// RunningSlot is that of the system that ran last.
func (m *Machine) RunningSlot() layout.Slot {
	m.T.Helper()
	table, _, err := m.Table()
	m.Must(err)
	c := m.Agent.Contract
	s, _ := layout.FindSlot(table, layout.SystemUUID(c.Root()), layout.VerityUUID(c.Root()))
	return s
}

// RootFiles are those of the root partition.
func (m *Machine) RootFiles() map[string][]byte {
	if m.OpenVolume != nil { // a cut while it was made may have left another
		return m.Volumes[*m.OpenVolume]
	}
	for _, files := range m.Volumes {
		return files
	}
	return nil
}

// Deliver does what the fetcher does: it gives the slot up, writes it, and says so.
func (m *Machine) Deliver(p *Parcel) {
	m.T.Helper()
	table, _, err := m.Table()
	m.Must(err)
	for name := range m.ESP.Files {
		if n, err := bls.Parse(path.Base(name)); err == nil && path.Dir(name) == bls.Directory && n.Version != m.Agent.Contract.Version {
			delete(m.ESP.Files, name)
		}
	}
	done := func(what string) {
		if m.watchDelivery != nil {
			m.watchDelivery(what)
		}
	}
	done("the system in the slot was given up")
	random := func() gpt.GUID {
		g, err := gpt.RandomGUID(rand.Reader) // machines in a test share a disk and not a sequence
		m.Must(err)
		return g
	}
	m.Must(layout.Rename(table, p.slot, random(), random()).Write(m.Disk))
	done("the slot lost its name")
	system, err := m.Partition(p.slot.System())
	m.Must(err)
	_, err = system.WriteAt(p.Image, 0)
	m.Must(err)
	tree, err := m.Partition(p.slot.Verity())
	m.Must(err)
	_, err = verity.Generate(m.T.Context(), system, p.Params, tree, func(int64) {})
	m.Must(err)
	m.Must(m.Disk.Sync())
	done("the slot was written")
	files := m.RootFiles()
	put := func(name string, content []byte) {
		files[path.Join(fetched.Directory, p.version.String(), name)] = content
	}
	text := p.Text
	if text == nil {
		text, err = p.Release.Encode()
		m.Must(err)
	}
	put(release.FileName, text)
	if p.Signer != nil {
		signature, err := p.Signer.Sign(text, p.SignedAt)
		m.Must(err)
		put(release.FileName+".pgp", signature)
	}
	for name, content := range p.Files {
		put(name, content)
	}
	done("the files were written")
	note := p.Note
	if note == "" {
		note = fmt.Sprintf(`{"format":1,"version":%q,"slot":%q}`, p.version, p.slot)
	}
	files[staging.NoteFile] = []byte(note)
	m.Ops = nil
}

// Fetch makes a release known and delivers it.
func (m *Machine) Fetch(r *Edition) {
	m.T.Helper()
	m.Releases[r.Contract.Version] = r
	m.Deliver(m.Parcel(r))
}

// Systems are the names of the UKIs on the ESP, sorted.
func (m *Machine) Systems() (names []string) {
	for name, f := range m.ESP.Files {
		if n, err := bls.Parse(path.Base(name)); err == nil && path.Dir(name) == bls.Directory && !f.Now.Absent {
			names = append(names, n.String())
		}
	}
	slices.Sort(names)
	return names
}

// Rename gives a UKI another name, as ota does and as an attacker can.
func (m *Machine) Rename(from, to string) {
	m.T.Helper()
	f, ok := m.ESP.Files[path.Join(bls.Directory, from)]
	if !ok {
		m.T.Fatalf("there is no %s but %q", from, m.Systems())
	}
	delete(m.ESP.Files, path.Join(bls.Directory, from))
	if to != "" {
		m.ESP.Files[path.Join(bls.Directory, to)] = f
	}
}

// Bless does what ota bless does to the running system.
func (m *Machine) Bless() {
	m.T.Helper()
	for _, name := range m.Systems() {
		if n, err := bls.Parse(name); err == nil && n.Version == m.Agent.Contract.Version && n.Counted {
			m.RootFiles()[ownstate.BlessedNote] = []byte(m.Releases[n.Version].Contract.Root().String() + "\n")
			m.Rename(name, n.Blessed().String())
		}
	}
}

// record reads the TPM's record with nothing but the header of the volume.
func (m *Machine) PolicyRecord() *policy.Record {
	m.T.Helper()
	lock, volumeKey, secret := m.Unlocked()
	luks2.Wipe(volumeKey)
	secret.Wipe()
	r, err := tpm.OpenTransport(m.Emulator).ReadRecord(lock.Sealed)
	m.Must(err)
	return r
}

// Holds checks which versions may unlock, and the floor.
func (m *Machine) Holds(floor uint64, versions ...uint64) {
	m.T.Helper()
	r := m.PolicyRecord()
	var have []uint64
	for _, b := range r.Branches {
		have = append(have, b.Version)
	}
	slices.Sort(have)
	have = slices.Compact(have) // each may come up in several ways
	if r.Floor != floor || !slices.Equal(have, versions) {
		m.T.Errorf("the record has floor %d and versions %v, want %d and %v", r.Floor, have, floor, versions)
	}
}

// Runs boots and wants this version to take over with the root partition open, and
// nobody to be asked anything.
func (m *Machine) Runs(version contract.Version, says ...string) {
	m.T.Helper()
	m.Printed.Reset()
	m.Ends("system", says...)
	if m.Agent.Contract.Version != version || m.OpenVolume == nil || m.Printed.Len() > 0 {
		m.T.Fatalf("version %s runs, want %s; it asks %q:\n%s", m.Agent.Contract.Version, version, m.Printed.String(), m.Said.String())
	}
}

// Wants checks the UKIs on the ESP.
func (m *Machine) Wants(names ...string) {
	m.T.Helper()
	if got := m.Systems(); !slices.Equal(got, names) {
		m.T.Errorf("the ESP has %q, want %q", got, names)
	}
}

// With is pinned and one more change.
func With(change func(c *contract.Contract)) func(*contract.Contract) {
	return func(c *contract.Contract) {
		Pinned(c)
		change(c)
	}
}

// RefusesRelease boots into the system that runs, which must refuse the staged release
// for this reason and leave everything as it is.
func (m *Machine) RefusesRelease(says string) {
	m.T.Helper()
	table, _, err := m.Table()
	m.Must(err)
	running := m.Agent.Contract.Version
	m.Ops = nil
	m.Runs(running, says)
	if got, _, err := m.Table(); err != nil || !slices.Equal(got.Partitions, table.Partitions) {
		m.T.Errorf("the partition table has changed (%v)", err)
	}
	for _, op := range m.Ops {
		if !strings.HasPrefix(op, "root ") {
			m.T.Errorf("it did: %s", op)
		}
	}
	entries := journal.Parse(m.RootFiles()[bootjournal.File])
	if !slices.ContainsFunc(entries, func(e journal.Entry) bool { return e.Kind == journal.Refused && strings.Contains(e.Reason, says) }) {
		m.T.Errorf("the journal says nothing of %q:\n%s", says, m.RootFiles()[bootjournal.File])
	}
	if _, there := m.RootFiles()[staging.NoteFile]; there {
		m.T.Error("the note is still there")
	}
	m.Runs(running)
	if strings.Contains(m.Said.String(), "stage") {
		m.T.Errorf("it is looked at again:\n%s", m.Said.String())
	}
}

// Again gives the machine this world, in which that version runs.
func (m *Machine) Again(w *World, version contract.Version) {
	m.T.Helper()
	m.PowerOn(w)
	m.Clock, m.ByHand = BuildDate.AddDate(0, 1, 0), 0
	m.Runs(version)
}

// FetchedMachine has version 2 staged, and has not started it yet.
func FetchedMachine(t *testing.T) *Machine {
	t.Helper()
	m := ProvisionedMachine(t, Pinned)
	m.Fetch(NewRelease(t, 2, 5, Pinned))
	if end := m.Boot(); end != "reboot" {
		t.Fatalf("staging ends in %s:\n%s", end, m.Said.String())
	}
	return m
}

// Failed are the versions that the machine does not take again.
func (m *Machine) Failed() map[contract.Version]string {
	return journal.Failures(journal.Parse(m.RootFiles()[bootjournal.File]))
}

// Write adds an entry to the journal, as the running system does.
func (m *Machine) Write(e journal.Entry) {
	m.T.Helper()
	text, err := journal.Append(m.RootFiles()[bootjournal.File], e)
	m.Must(err)
	m.RootFiles()[bootjournal.File] = text
}

// FetchRevoking delivers a release that names what shall not start any more: also what no
// publisher is let name, the release's own programs.
func (m *Machine) FetchRevoking(r *Edition, digests ...[32]byte) {
	m.T.Helper()
	m.Releases[r.Contract.Version] = r
	p := m.Parcel(r)
	named := release.Revocations{Type: "sha256"}
	for _, digest := range digests {
		named.Entries = append(named.Entries, digest[:])
	}
	p.Release.Revocations = []release.Revocations{named}
	m.Deliver(p)
}
