package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	mrand "math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/tpm"
)

const (
	mib        = 1 << 20
	diskSize   = 1024 * mib
	slotSize   = 2 * mib
	imageSize  = 64 << 10
	sectorSize = 512
)

var buildDate = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// keySets are made once, since RSA keys take a while; each use gets a copy, for
// it to be wiped.
var keySets = sync.OnceValues(func() (sets [3]*secureboot.KeySet, err error) {
	for i := range sets {
		if sets[i], err = secureboot.Generate(rand.Reader, buildDate); err != nil {
			return sets, err
		}
	}
	return sets, nil
})

func copyKeys(k *secureboot.KeySet) (*secureboot.KeySet, error) {
	key := new([32]byte)
	wrapped, err := secureboot.Wrap(rand.Reader, key, "copy", k)
	if err != nil {
		return nil, err
	}
	return secureboot.Unwrap(key, "copy", wrapped)
}

// release is one version of the system.
type release struct {
	contract *contract.Contract
	image    []byte
	uki      []byte
}

func newRelease(t testing.TB, version, epoch uint64, change func(*contract.Contract)) *release {
	t.Helper()
	r := &release{image: bytes.Repeat([]byte{byte(version), 7, 9, 11}, imageSize/4)}
	c := &contract.Contract{
		Format: contract.Format, ImageID: "test", Arch: "x86_64", Version: contract.Version(version), Epoch: epoch,
		SourceDate: buildDate.Unix(), Salt: []byte("salt"), ImageSize: imageSize, SlotSize: slotSize,
		SecureBoot: contract.Required, TPM: contract.Required, VendorKeys: contract.VendorAuto, RootFileSystem: "ext4",
	}
	params := verity.Params{DataBlocks: imageSize / verity.BlockSize, Salt: c.Salt}
	root, err := verity.Generate(t.Context(), bytes.NewReader(r.image), params, blocktest.New(mib, blocktest.Zero), func(int64) {})
	if err != nil {
		t.Fatal(err)
	}
	c.RootHash = root[:]
	if change != nil {
		change(c)
	}
	text, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	r.contract = c
	r.uki, err = uki.Build(ukitest.Stub("257.13-1"), uki.Payload{
		OSRelease: []byte("ID=test\n"), Cmdline: []byte("quiet"), Linux: ukitest.Stub("kernel"), Initrd: text,
	}.Sections())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// world is what survives a power cut.
type world struct {
	disk    *blocktest.Disk
	esp     map[string]remains
	vars    map[string]efiVariable
	chip    []byte
	volumes map[[32]byte]map[string][]byte // files, by the volume's fingerprint
	shown   []string                       // what the owner has written down, in turn
}

// machine is a running one, and all of its hardware.
type machine struct {
	t        testing.TB
	emulator *emulator
	releases map[contract.Version]*release
	manager  []byte
	espUUID  string
	root     string // the initramfs, and what is mounted in it

	disk    *recordedDisk
	second  *blocktest.Disk // another disk, or nil
	esp     *memESP
	vars    map[string]efiVariable
	refuse  error // of the firmware, for every write
	noTPM   error
	extra   string // measured into PCR 7 besides
	volumes map[[32]byte]map[string][]byte
	shown   []string
	typed   []string // answers to come
	said    bytes.Buffer
	printed bytes.Buffer
	clock   time.Time
	random  io.Reader
	keysNo  int

	agent       *Agent
	log         []byte
	counted     string
	openVolume  *[32]byte
	openVerity  bool
	mounted     []string
	chipState   []byte
	chipChanged bool

	ops      []string
	durable  int // counts what no cut takes back
	snapshot func()
}

// op is called before everything that changes what a cut leaves.
func (m *machine) op(name string) {
	if m.snapshot != nil {
		m.snapshot()
	}
	m.ops = append(m.ops, name)
}

// newMachine is a machine with a disk as an installation leaves it. fill is what
// the disk held before.
func newMachine(t testing.TB, change func(*contract.Contract)) *machine {
	t.Helper()
	if _, err := keySets(); err != nil {
		t.Fatal(err)
	}
	m := &machine{
		t: t, emulator: startEmulator(t), manager: ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("boot manager")}),
		releases: map[contract.Version]*release{1: newRelease(t, 1, 5, change)}, root: t.TempDir(), random: mrand.NewChaCha8([32]byte{1}), clock: buildDate.AddDate(0, 1, 0),
	}
	m.installRoot()
	m.powerOn(m.installed(diskSize))
	return m
}

// installRoot makes the folders that the system image brings.
func (m *machine) installRoot() {
	for _, folder := range []string{"halogen", "sysroot/etc", "sysroot/var", "sysroot/home", "sysroot/tmp"} {
		if err := os.MkdirAll(filepath.Join(m.root, folder), 0o755); err != nil {
			m.t.Fatal(err)
		}
	}
}

func (m *machine) installed(size int64) *world {
	m.t.Helper()
	d := blocktest.New(size, blocktest.Hostile) // second-hand
	first := uint64(mib / sectorSize)
	esp := gpt.Partition{Number: layout.ESPNumber, Type: layout.TypeESP, UUID: gpt.MustGUID("11111111-2222-4333-8444-555555555555"),
		First: first, Last: first + layout.ESPSize/sectorSize - 1, Label: layout.ESPLabel}
	system := gpt.Partition{Number: 2, Type: layout.TypeRoot, UUID: layout.SystemUUID(m.releases[1].contract.Root()),
		First: esp.Last + 1, Last: esp.Last + mib/sectorSize, Label: "system-a"}
	table := &gpt.Table{Disk: gpt.MustGUID("aaaaaaaa-2222-4333-8444-555555555555"), SectorSize: sectorSize, Sectors: uint64(size / sectorSize), Partitions: []gpt.Partition{esp, system}}
	if err := table.Write(d); err != nil {
		m.t.Fatal(err)
	}
	if _, err := d.WriteAt(m.releases[1].image, int64(system.First)*sectorSize); err != nil {
		m.t.Fatal(err)
	}
	m.espUUID = esp.UUID.String()
	files := map[string]remains{
		removable: {data: m.manager}, managerCopy: {data: m.manager},
		"loader/loader.conf":                   {data: []byte("timeout 0\n")},
		path.Join(bls.Folder, "test_1.efi"):    {data: m.releases[1].uki},
		path.Join(bls.Folder, "not-an-image"):  {data: []byte("x")},
		path.Join(bls.Folder, "not-image.efi"): {data: []byte("x")},
	}
	return &world{disk: d, esp: files, vars: newVariables(), volumes: map[[32]byte]map[string][]byte{}}
}

// powerOn gives the machine this world; the world stays as it is.
func (m *machine) powerOn(w *world) {
	m.disk = &recordedDisk{m: m, base: w.disk, now: w.disk.Overlay()}
	m.esp = newESP(w.esp, m.op)
	m.vars = cloneVariables(w.vars)
	m.volumes = map[[32]byte]map[string][]byte{}
	for k, v := range w.volumes {
		m.volumes[k] = maps.Clone(v)
	}
	m.shown = slices.Clone(w.shown)
	m.chipState, m.chipChanged = w.chip, false
}

// world returns what a cut leaves now: all of it, what was flushed, or, with r,
// a mixture.
func (m *machine) world(all bool, r *mrand.Rand) *world {
	w := &world{disk: m.disk.after(all, r), esp: m.esp.after(all, r), vars: cloneVariables(m.vars),
		volumes: map[[32]byte]map[string][]byte{}, shown: slices.Clone(m.shown)}
	for k, v := range m.volumes {
		w.volumes[k] = maps.Clone(v)
	}
	if m.chipChanged {
		var err error
		if m.chipState, err = m.emulator.state(); err != nil {
			m.t.Fatal(err)
		}
		m.chipChanged = false
	}
	w.chip = m.chipState
	return w
}

// halt ends a boot from inside the hardware.
type halt struct{ how string }

// boot starts the machine once and returns how it ended: "system", "reboot",
// "recovery", or "dead" with the reason when nothing starts.
func (m *machine) boot() (end string) {
	m.t.Helper()
	m.world(true, nil) // so that the TPM's state is kept
	if err := m.emulator.powerOn(m.chipState); err != nil {
		m.t.Fatal(err)
	}
	m.chipChanged = true
	m.openVolume, m.openVerity, m.mounted = nil, false, nil
	chosen, counted, err := m.start()
	if err != nil {
		fmt.Fprintf(&m.said, "DEAD: %v\n", err)
		return "dead"
	}
	m.counted = counted
	text, err := m.releases[chosen.Version].contract.Encode()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.root, contract.Path), text, 0o600); err != nil {
		m.t.Fatal(err)
	}
	defer func() {
		switch p := recover().(type) {
		case nil:
		case halt:
			end = p.how
		default:
			panic(p)
		}
		if m.agent.secret != nil {
			m.t.Errorf("a boot that ended in %s still knows the machine secret", end)
		}
	}()
	m.agent = &Agent{
		Machine: hw.Machine{
			Disks: disks{m}, Firmware: m, Kernel: kernel{}, Mapper: mapper{m}, Mounts: mounts{m}, Power: power{m},
			ESP: m.esp, Store: store{m}, TPM: chipSeam{m}, Person: person{m}, Log: hw.NewLog(&m.said, io.Discard),
			Now: func() time.Time { return m.clock }, Sleep: func(d time.Duration) { m.clock = m.clock.Add(d) },
			Memory: func() (uint64, error) { return 128 << 10, nil },
		},
		Variables: &firmware{m.vars, m.op, func() { m.durable++ }, m.refuse}, Random: m.random, NewKeys: m.newKeys, Root: m.root,
	}
	if err := m.agent.Boot(context.Background()); err != nil {
		m.t.Errorf("Boot returned: %v", err)
	}
	return "returned"
}

// run boots until the machine no longer restarts by itself.
func (m *machine) run() (end string) {
	m.t.Helper()
	for range 6 {
		if end = m.boot(); end != "reboot" {
			return end
		}
	}
	return "endless restarts"
}

func (m *machine) newKeys(io.Reader, time.Time) (*secureboot.KeySet, error) {
	sets, err := keySets()
	if err != nil {
		return nil, err
	}
	m.keysNo++
	return copyKeys(sets[m.keysNo%len(sets)])
}

// recordedDisk counts and remembers what is written.
type recordedDisk struct {
	m       *machine
	base    *blocktest.Disk // what is safe from a cut, as of the last flush
	pending []blocktest.Op
	now     *blocktest.Disk
}

func (d *recordedDisk) ReadAt(p []byte, off int64) (int, error) { return d.now.ReadAt(p, off) }

func (d *recordedDisk) WriteAt(p []byte, off int64) (int, error) {
	d.m.op(fmt.Sprintf("disk write of %d at %d", len(p), off))
	n, err := d.now.WriteAt(p, off)
	if err == nil {
		d.pending = append(d.pending, blocktest.Op{Off: off, Data: slices.Clone(p)})
	}
	return n, err
}

func (d *recordedDisk) Sync() error {
	d.m.op("disk flush")
	if len(d.pending) > 0 {
		d.base, d.pending = d.now, nil
		d.now = d.base.Overlay()
		d.m.durable++
	}
	return nil
}

// after returns what a cut leaves. Torn writes end between two sectors.
func (d *recordedDisk) after(all bool, r *mrand.Rand) *blocktest.Disk {
	out := d.base.Overlay()
	for _, w := range d.pending {
		data := w.Data
		if !all {
			if r == nil || r.IntN(2) == 0 {
				continue
			}
			if r.IntN(3) == 0 {
				data = data[:len(data)/2/sectorSize*sectorSize]
			}
		}
		if _, err := out.WriteAt(data, w.Off); err != nil {
			d.m.t.Fatal(err)
		}
	}
	return out
}

// disks implements hw.Disks.
type disks struct{ m *machine }

func (d disks) List() ([]hw.Disk, error) {
	list := []hw.Disk{{Name: "disk0", SectorSize: sectorSize, Sectors: uint64(d.m.disk.now.Size() / sectorSize)}}
	if d.m.second != nil {
		list = append(list, hw.Disk{Name: "disk1", SectorSize: sectorSize, Sectors: uint64(d.m.second.Size() / sectorSize)})
	}
	return list, nil
}

type openFile struct{ block.Device }

func (openFile) Close() error { return nil }

type readOnly struct{ block.Device }

func (readOnly) WriteAt([]byte, int64) (int, error) { return 0, fs.ErrPermission }
func (readOnly) Close() error                       { return nil }

func opened(d block.Device, write bool) hw.File {
	if write {
		return openFile{d}
	}
	return readOnly{d}
}

func (d disks) Open(disk hw.Disk, write bool) (hw.File, error) {
	if disk.Name == "disk1" {
		return opened(d.m.second, false), nil
	}
	return opened(d.m.disk, write), nil
}

func (d disks) OpenPartition(_ hw.Disk, number int, write bool) (hw.File, error) {
	s, err := d.m.partition(number)
	if err != nil {
		return nil, err
	}
	return opened(s, write), nil
}

func (m *machine) table() (*gpt.Table, gpt.Health, error) {
	return gpt.Read(m.disk, uint64(m.disk.now.Size()/sectorSize), sectorSize)
}

func (m *machine) partition(number int) (*block.Section, error) {
	t, _, err := m.table()
	if err != nil {
		return nil, err
	}
	p, ok := t.ByNumber(number)
	if !ok {
		return nil, fmt.Errorf("partition %d: %w", number, fs.ErrNotExist)
	}
	at, size := t.Bytes(p)
	return block.NewSection(m.disk, at, size)
}

func (d disks) PartitionPath(_ hw.Disk, number int) (string, error) {
	return fmt.Sprintf("/dev/disk0p%d", number), nil
}

func (disks) Reread(hw.Disk) error { return nil }

type kernel struct{}

func (kernel) Coldplug() (int, error) { return 0, nil }
func (kernel) Load(...string) error   { return nil }

// mapper implements hw.Mapper. What dm-verity finds out in the end it finds out
// at once.
type mapper struct{ m *machine }

func (p mapper) OpenVerity(v hw.Verity) (string, error) {
	numbers := map[string]int{}
	for n := 1; n <= 6; n++ {
		numbers[fmt.Sprintf("/dev/disk0p%d", n)] = n
	}
	data, err := p.m.partition(numbers[v.DataDevice])
	if err != nil {
		return "", err
	}
	tree, err := p.m.partition(numbers[v.HashDevice])
	if err != nil {
		return "", err
	}
	if err := verity.Verify(context.Background(), data, tree, v.Params, v.Root, func(int64) {}); err != nil {
		return "", fmt.Errorf("first read through dm-verity: %w", err)
	}
	p.m.openVerity = true
	return "/dev/dm-0", nil
}

func (p mapper) OpenCrypt(c hw.Crypt) (string, error) {
	header, err := p.m.header()
	if err != nil {
		return "", err
	}
	if err := header.VerifyVolumeKey(c.VolumeKey); err != nil {
		return "", err
	}
	if p.m.openVolume != nil {
		return "", errors.New("a volume is open already")
	}
	id := policy.VolumeFingerprint(c.VolumeKey)
	p.m.openVolume = &id
	return "/dev/dm-1", nil
}

func (p mapper) Close(name string) error {
	if name != rootDevice || p.m.openVolume == nil {
		return fmt.Errorf("no device %s", name)
	}
	if slices.Contains(p.m.mounted, filepath.Join(p.m.root, StateFolder)) {
		return errors.New("device is busy")
	}
	p.m.openVolume = nil
	return nil
}

func (m *machine) header() (*luks2.Header, error) {
	s, err := m.partition(layout.RootNumber)
	if err != nil {
		return nil, err
	}
	header, _, err := luks2.Open(s, s.Size())
	return header, err
}

// mounts implements hw.Mounts.
type mounts struct{ m *machine }

func (mounts) Base() error     { return nil }
func (mounts) Firmware() error { return nil }

func (o mounts) Mount(source, target, fstype string, _ uintptr, _ string) error {
	if source == "/dev/dm-1" && (o.m.openVolume == nil || o.m.volumes[*o.m.openVolume] == nil) {
		return errors.New("there is no file system on it")
	}
	if strings.HasPrefix(target, filepath.Join(o.m.root, systemFolder)) && !o.m.openVerity {
		o.m.t.Errorf("%s was mounted on %s without verity", source, target)
	}
	o.m.mounted = append(o.m.mounted, target)
	return nil
}

func (o mounts) Unmount(target string) error {
	at := slices.Index(o.m.mounted, target)
	if at < 0 {
		return fmt.Errorf("%s is not mounted", target)
	}
	for _, later := range o.m.mounted[at+1:] {
		if target == filepath.Join(o.m.root, StateFolder) && later != target {
			return fmt.Errorf("%s is busy: %s", target, later)
		}
	}
	o.m.mounted = slices.Delete(o.m.mounted, at, at+1)
	return nil
}

func (o mounts) SwitchRoot(string, []string) error {
	o.m.nothingUnseals("the system")
	panic(halt{"system"})
}

// nothingUnseals plays what runs after initagent: it asks the TPM for whatever
// lies on the disk.
func (m *machine) nothingUnseals(who string) {
	if m.noTPM != nil {
		return
	}
	var sealed []*policy.Sealed
	if m.agent.lock != nil && m.agent.lock.Sealed != nil {
		sealed = append(sealed, m.agent.lock.Sealed)
	}
	if m.agent.pending != nil {
		if s, err := m.agent.pending.SealedSecret(); err == nil {
			sealed = append(sealed, s)
		}
	}
	for _, s := range sealed {
		if secret, _, err := tpm.OpenTransport(m.emulator).Unseal(s); err == nil {
			secret.Wipe()
			m.t.Errorf("%s unseals the machine secret (FAULTS 62, 79)", who)
		}
	}
}

type power struct{ m *machine }

func (power) Reboot() error   { panic(halt{"reboot"}) }
func (power) PowerOff() error { panic(halt{"off"}) }

// store implements hw.Store: what Keep and Seed have returned for survives.
type store struct{ m *machine }

func (s store) files() map[string][]byte {
	if s.m.openVolume != nil {
		return s.m.volumes[*s.m.openVolume]
	}
	return map[string][]byte{} // in memory
}

func (s store) MakeFileSystem(string, string, string) error {
	s.m.op("mkfs")
	s.m.volumes[*s.m.openVolume] = map[string][]byte{}
	s.m.durable++
	return nil
}

func (s store) Read(name string, _ int64) ([]byte, error) {
	b, ok := s.files()[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return slices.Clone(b), nil
}

func (s store) Keep(name string, content []byte) error {
	s.m.op("root keep " + name)
	s.files()[name] = slices.Clone(content)
	s.m.durable++
	return nil
}

func (s store) MakeFolder(string, fs.FileMode) error { return nil }

func (s store) Seed(_, name string) error {
	if _, ok := s.files()[name]; ok {
		return nil
	}
	s.m.op("root seed " + name)
	s.files()[name] = []byte{}
	s.m.durable++
	return nil
}

type chipSeam struct{ m *machine }

func (c chipSeam) Open() (*tpm.TPM, error)   { return c.m.openTPM() }
func (c chipSeam) EventLog() ([]byte, error) { return c.m.log, nil }

// person writes down every recovery key and types what the test says.
type person struct{ m *machine }

func (p person) Open() (hw.Console, error) { return p, nil }
func (person) Close() error                { return nil }

var keyPattern = regexp.MustCompile(`RECOVERY KEY:\s+(\S+)\s`)

func (p person) Print(text string) {
	p.m.printed.WriteString(text)
	if match := keyPattern.FindStringSubmatch(text); match != nil {
		p.m.shown = append(p.m.shown, match[1])
	}
}

func (p person) Ask(prompt string, _ bool, _ time.Duration) ([]byte, error) {
	p.m.printed.WriteString(prompt)
	if strings.HasPrefix(prompt, "Press Enter") {
		return nil, nil
	}
	if len(p.m.typed) == 0 {
		return nil, hw.ErrNobody
	}
	answer := p.m.typed[0]
	p.m.typed = p.m.typed[1:]
	return []byte(answer), nil
}

func (p person) Shell() error {
	if p.m.openVolume != nil {
		p.m.t.Error("the recovery console opens beside an open root partition")
	}
	p.m.nothingUnseals("the recovery console")
	panic(halt{"recovery"})
}
