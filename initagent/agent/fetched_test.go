package agent

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/staging"
	"halogenos.internal/initagent/tpm"
)

// A signer is a distributor's release key.
type signer struct {
	entity *openpgp.Entity
	public []byte
	made   sync.Map // signatures, which are different each time
}

func newSigner(name string, lifetime time.Duration) (*signer, error) {
	config := &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return buildDate.AddDate(0, 0, -7) }, KeyLifetimeSecs: uint32(lifetime / time.Second)}
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
	return &signer{entity: entity, public: public.Bytes()}, nil
}

// distributor signs the releases, stranger is somebody else of the same name, and
// expired had a key until a month after the build.
var distributor, stranger, expired = sync.OnceValues(func() (*signer, error) { return newSigner("distributor", 0) }),
	sync.OnceValues(func() (*signer, error) { return newSigner("distributor", 0) }),
	sync.OnceValues(func() (*signer, error) { return newSigner("distributor", 20*24*time.Hour) })

func (s *signer) sign(text []byte, at time.Time) ([]byte, error) {
	key := fmt.Sprintf("%s %s", text, at)
	if made, ok := s.made.Load(key); ok {
		return made.([]byte), nil
	}
	var out bytes.Buffer
	err := openpgp.DetachSign(&out, []*openpgp.Entity{s.entity}, bytes.NewReader(text), &packet.Config{Time: func() time.Time { return at }})
	made, _ := s.made.LoadOrStore(key, out.Bytes())
	return made.([]byte), err
}

// pinned has the contract pin the distributor's key.
func pinned(c *contract.Contract) {
	s, err := distributor()
	if err != nil {
		panic(err)
	}
	c.ReleaseKey = s.public
}

// A parcel is a release as the fetcher has it: what a test spoils.
type parcel struct {
	version  contract.Version // as the note and the directory have it
	slot     layout.Slot
	image    []byte
	params   verity.Params
	release  *release.Release
	text     []byte // release.json, where it is not release's
	signer   *signer
	signedAt time.Time
	files    map[string][]byte
	note     string // where it is not the fetcher's
}

// parcel packs a release for the slot that is not running.
func (m *machine) parcel(r *edition) *parcel {
	m.t.Helper()
	file := func(name string, content []byte, efi bool) release.File {
		sum := sha256.Sum256(content)
		f := release.File{Name: name, Size: int64(len(content)), SHA256: sum[:]}
		if efi {
			digest, err := authenticode.Digest(content)
			m.must(err)
			f.Authenticode = digest[:]
		}
		return f
	}
	_, started, err := rootpart.Describe(r.uki)
	m.must(err)
	c := r.contract
	s, err := distributor()
	m.must(err)
	manager := r.manager
	if manager == nil {
		manager = m.manager
	}
	return &parcel{
		version: c.Version, slot: m.runningSlot().Other(), image: r.image, params: c.VerityParams(), signer: s, signedAt: buildDate.AddDate(0, 0, 1),
		release: &release.Release{
			Format: release.Format, ImageID: c.ImageID, Arch: c.Arch, Version: c.Version, Epoch: c.Epoch,
			RootHash: c.RootHash, Salt: c.Salt, ImageSize: c.ImageSize, SlotSize: c.SlotSize, PCR11: started[:], SourceDate: c.SourceDate,
			Files: []release.File{file(release.UKIFile, r.uki, true), file(release.BootManagerFile, manager, true), file(release.ImageFile, r.image, false)},
		},
		files: map[string][]byte{release.UKIFile: r.uki, release.BootManagerFile: manager},
	}
}

// runningSlot is that of the system that ran last.
func (m *machine) runningSlot() layout.Slot {
	m.t.Helper()
	table, _, err := m.table()
	m.must(err)
	c := m.agent.Contract
	s, _ := layout.FindSlot(table, layout.SystemUUID(c.Root()), layout.VerityUUID(c.Root()))
	return s
}

// rootFiles are those of the root partition.
func (m *machine) rootFiles() map[string][]byte {
	for _, files := range m.volumes {
		return files
	}
	return nil
}

// deliver does what the fetcher does: it gives the slot up, writes it, and says so.
func (m *machine) deliver(p *parcel) {
	m.t.Helper()
	table, _, err := m.table()
	m.must(err)
	for name := range m.esp.files {
		if n, err := bls.Parse(path.Base(name)); err == nil && path.Dir(name) == bls.Directory && n.Version != m.agent.Contract.Version {
			delete(m.esp.files, name)
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
		m.must(err)
		return g
	}
	m.must(layout.Rename(table, p.slot, random(), random()).Write(m.disk))
	done("the slot lost its name")
	system, err := m.partition(p.slot.SystemNumber())
	m.must(err)
	_, err = system.WriteAt(p.image, 0)
	m.must(err)
	tree, err := m.partition(p.slot.VerityNumber())
	m.must(err)
	_, err = verity.Generate(m.t.Context(), system, p.params, tree, func(int64) {})
	m.must(err)
	m.must(m.disk.Sync())
	done("the slot was written")
	files := m.rootFiles()
	put := func(name string, content []byte) {
		files[path.Join(fetched.Directory, p.version.String(), name)] = content
	}
	text := p.text
	if text == nil {
		text, err = p.release.Encode()
		m.must(err)
	}
	put(release.FileName, text)
	if p.signer != nil {
		signature, err := p.signer.sign(text, p.signedAt)
		m.must(err)
		put(release.FileName+".pgp", signature)
	}
	for name, content := range p.files {
		put(name, content)
	}
	done("the files were written")
	note := p.note
	if note == "" {
		note = fmt.Sprintf(`{"format":1,"version":%q,"slot":%q}`, p.version, p.slot)
	}
	files[staging.NoteFile] = []byte(note)
	m.ops = nil
}

// fetch makes a release known and delivers it.
func (m *machine) fetch(r *edition) {
	m.t.Helper()
	m.releases[r.contract.Version] = r
	m.deliver(m.parcel(r))
}

// systems are the names of the UKIs on the ESP, sorted.
func (m *machine) systems() (names []string) {
	for name, f := range m.esp.files {
		if n, err := bls.Parse(path.Base(name)); err == nil && path.Dir(name) == bls.Directory && !f.now.absent {
			names = append(names, n.String())
		}
	}
	slices.Sort(names)
	return names
}

// rename gives a UKI another name, as ota does and as an attacker can.
func (m *machine) rename(from, to string) {
	m.t.Helper()
	f, ok := m.esp.files[path.Join(bls.Directory, from)]
	if !ok {
		m.t.Fatalf("there is no %s but %q", from, m.systems())
	}
	delete(m.esp.files, path.Join(bls.Directory, from))
	if to != "" {
		m.esp.files[path.Join(bls.Directory, to)] = f
	}
}

// bless does what ota bless does to the running system.
func (m *machine) bless() {
	m.t.Helper()
	for _, name := range m.systems() {
		if n, err := bls.Parse(name); err == nil && n.Version == m.agent.Contract.Version && n.Counted {
			m.rootFiles()[ownstate.BlessedNote] = []byte(m.releases[n.Version].contract.Root().String() + "\n")
			m.rename(name, n.Blessed().String())
		}
	}
}

// record reads the TPM's record with nothing but the header of the volume.
func (m *machine) policyRecord() *policy.Record {
	m.t.Helper()
	lock, volumeKey, secret := m.unlocked()
	luks2.Wipe(volumeKey)
	secret.Wipe()
	r, err := tpm.OpenTransport(m.emulator).ReadRecord(lock.Sealed)
	m.must(err)
	return r
}

// holds checks which versions may unlock, and the floor.
func (m *machine) holds(floor uint64, versions ...uint64) {
	m.t.Helper()
	r := m.policyRecord()
	var have []uint64
	for _, b := range r.Branches {
		have = append(have, b.Version)
	}
	slices.Sort(have)
	have = slices.Compact(have) // each may come up in several ways
	if r.Floor != floor || !slices.Equal(have, versions) {
		m.t.Errorf("the record has floor %d and versions %v, want %d and %v", r.Floor, have, floor, versions)
	}
}

// runs boots and wants this version to take over with the root partition open, and
// nobody to be asked anything.
func (m *machine) runs(version contract.Version, says ...string) {
	m.t.Helper()
	m.printed.Reset()
	m.ends("system", says...)
	if m.agent.Contract.Version != version || m.openVolume == nil || m.printed.Len() > 0 {
		m.t.Fatalf("version %s runs, want %s; it asks %q:\n%s", m.agent.Contract.Version, version, m.printed.String(), m.said.String())
	}
}

// wants checks the UKIs on the ESP.
func (m *machine) wants(names ...string) {
	m.t.Helper()
	if got := m.systems(); !slices.Equal(got, names) {
		m.t.Errorf("the ESP has %q, want %q", got, names)
	}
}
