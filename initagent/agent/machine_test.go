package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"maps"
	mrand "math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/setupmenu"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/upper"
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

// edition is one version of the system.
type edition struct {
	contract *contract.Contract
	image    []byte
	uki      []byte
	manager  []byte            // nil for the machine's first one
	etc      map[string]string // of the image, by path
}

func newRelease(t testing.TB, version, epoch uint64, change func(*contract.Contract)) *edition {
	t.Helper()
	return newReleaseOf(t, version, epoch, contract.Own(), change)
}

// newReleaseOf is a release of a source tree with these abilities.
func newReleaseOf(t testing.TB, version, epoch uint64, able contract.Abilities, change func(*contract.Contract)) *edition {
	t.Helper()
	r := &edition{image: bytes.Repeat([]byte{byte(version), 7, 9, 11}, imageSize/4)}
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
	initrd, err := contract.ArchiveWith(c, able)
	if err != nil {
		t.Fatal(err)
	}
	r.contract = c
	r.uki, err = uki.Build(ukitest.Stub("257.13-1"), uki.Payload{
		OSRelease: []byte("ID=test\n"), Cmdline: []byte("quiet"), Linux: ukitest.Stub("kernel"), Initrd: initrd,
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
	record  []byte                         // the TPM's, as it was written last
}

// machine is a running one, and all of its hardware.
type machine struct {
	t        testing.TB
	emulator *emulator
	releases map[contract.Version]*edition
	manager  []byte
	espUUID  string
	root     string // the initramfs, and what is mounted in it

	disk   *recordedDisk
	second *blocktest.Disk // another disk, or nil
	// bootedFrom is what the firmware says, pci where the disk and the other hang.
	bootedFrom    []bootoption.Function
	driven        []bootoption.Function // the controller whose driver is loaded; nil for all
	pci           [2][]bootoption.Function
	esp           *memESP
	vars          map[string]efiVariable
	refuse        error                  // of the firmware, for every authenticated write
	refuseRequest error                  // of writing the request to the next boot
	keepsAll      bool                   // it says yes to a deletion, and deletes nothing
	restores      map[string]efiVariable // what it has again at each start
	keeps         func([]byte) []byte    // what the firmware makes of a key variable; or nil
	afterDBX      func([]byte) []byte    // what the firmware makes of dbx; or nil
	// Hardware that reports flushes which it has not made.
	lyingDisk, lyingESP bool
	noTPM               error
	tpmBusy             int       // openings of the TPM that fail
	deaf                bool      // the TPM takes no measurements
	tpmPlugs, tpmOpens  int       // loadings of drivers, and openings, before the TPM shows itself
	tpmFrom             time.Time // there is no device for it before
	noEFI               error     // of mounting the firmware's variables
	extra               string    // measured into PCR 7 besides
	optionROM           string    // of a card, which the firmware starts
	vendorLoader        []byte    // a vendor's, on a stick, which starts this machine's boot manager
	startsUKI           bool      // it starts the UKI by itself
	extra12, extra13    string    // into PCR 12 and 13
	detour              bool      // a boot option failed before
	code                string    // of the firmware, and its settings: measured into PCR 0 to 3
	cameBack            []byte    // a program that was started before, and came back; or nil
	hidesDBX            bool      // the firmware measures another dbx than can be read
	unaccounted         bool      // the firmware measures into PCR 4 what nobody knows
	noLog               bool      // the firmware has no event log
	wrongLog            bool      // its log is not what it has measured
	// What cannot be read or written: a partition, a file of the root partition,
	// the TPM's record.
	unreadable     int
	bad            struct{ from, to int64 } // bytes of the disk
	worn           struct{ from, to int64 } // those that cannot be written
	unreadableFile string
	stuckFile      string // it cannot be removed
	badFiles       string // mounting or making what contains it fails: the disk cannot be read
	messages       string // the kernel's log
	plugging       func() // is called when drivers are loaded
	hotplug        chan struct{}
	noTerminal     error         // there is none for questions
	fullFile       string        // it cannot be written: the file system is full
	fullRoot       bool          // no file can
	room           snapshot.Room // of the root partition, where it is not ample
	fullFor        string        // the firmware has no room for this variable
	refuseRecord   bool
	byHand         contract.Version // chosen in the boot manager's menu
	stubSays       string           // StubImageIdentifier, where somebody has written it before
	countsNothing  bool             // the boot manager cannot rename a file
	noSecureBoot   bool             // it is switched off, and no keys are enrolled
	nextManager    []byte           // another boot manager that starts, or nil
	presses        int              // the console is asked for at that look, from 1 on; 0: never
	looks          int              // at whether it is
	listening      bool
	watchdogReset  bool // its watchdog says that it ended the boot before
	bootEntry      bool // the firmware knows the boot manager's other path too
	volumes        map[[32]byte]map[string][]byte
	shown          []string
	recordNow      []byte
	watchDelivery  func(done string) // after each step of the fetcher's
	typed          []string          // answers to come
	waits          []time.Duration   // how long answers were waited for; 0: for ever
	booting        bool              // initagent runs
	secret         bool              // what runs now leaves nothing in the process that cannot be erased
	hidden         bool              // this boot's kernel shows its memory to nobody
	stays          []string          // what a root partition does not let go
	quiet          bool              // the kernel keeps its messages off the terminals
	noModules      bool              // it loads no further module
	collected      bool              // this boot's process has erased what handling secrets left in it
	memory         uint64            // in bytes; a PIN takes more than anything else
	owner          bool              // has the recovery key, and says yes
	program        []string          // that an installer stick had run
	programEnds    error
	pulled         string // the plug is, at a prompt that begins so; "" for never
	echo           bool   // types groups of a new recovery key back
	later          bool   // and not of the first one
	orderly        bool   // the kernel tells the TPM before it restarts: a PIN that was tried counts as wrong otherwise
	said           bytes.Buffer
	printed        bytes.Buffer
	clock          time.Time
	random         io.Reader
	keysNo         int

	agent       *Agent
	log         []byte
	counted     string // path of the UKI that was started, when its tries were counted
	image       string // path of the UKI that was started
	startFile   string // the boot manager starts this path; or "" for what it chooses
	openVolume  *[32]byte
	openVerity  bool
	before      *verity.Root  // of the image that is open beside it
	carried     []upper.Carry // what systems have taken over
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
		hotplug: make(chan struct{}), releases: map[contract.Version]*edition{1: newRelease(t, 1, 5, change)}, root: t.TempDir(), random: mrand.NewChaCha8([32]byte{1}), clock: buildDate.AddDate(0, 1, 0),
	}
	m.installRoot()
	m.powerOn(m.installed(diskSize))
	return m
}

// installRoot makes the directories that the system image brings.
func (m *machine) installRoot() {
	for _, directory := range []string{"halogen", "sysroot/etc", "sysroot/var", "sysroot/home", "sysroot/tmp"} {
		if err := os.MkdirAll(filepath.Join(m.root, directory), 0o755); err != nil {
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
		"loader/loader.conf":                      {data: []byte("timeout 0\n")},
		path.Join(bls.Directory, "test_1.efi"):    {data: m.releases[1].uki},
		path.Join(bls.Directory, "not-an-image"):  {data: []byte("x")},
		path.Join(bls.Directory, "not-image.efi"): {data: []byte("x")},
	}
	return &world{disk: d, esp: files, vars: newVariables(), volumes: map[[32]byte]map[string][]byte{}}
}

// powerOn gives the machine this world; the world stays as it is.
func (m *machine) powerOn(w *world) {
	m.disk = &recordedDisk{m: m, base: w.disk, now: w.disk.Overlay()}
	m.esp = newESP(w.esp, m.op)
	m.esp.lying = m.lyingESP
	m.vars = cloneVariables(w.vars)
	m.volumes = map[[32]byte]map[string][]byte{}
	for k, v := range w.volumes {
		m.volumes[k] = maps.Clone(v)
	}
	m.shown = slices.Clone(w.shown)
	m.chipState, m.chipChanged, m.recordNow = w.chip, false, w.record
}

// world returns what a cut leaves now: all of it, what was flushed, or, with r,
// a mixture.
func (m *machine) world(all bool, r *mrand.Rand) *world {
	w := &world{disk: m.disk.after(all, r), esp: m.esp.after(all, r), vars: cloneVariables(m.vars), record: m.recordNow,
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
	if m.orderly {
		if _, err := (tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}).Execute(m.emulator); err != nil {
			m.t.Fatal(err)
		}
		m.chipChanged = true
	}
	m.world(true, nil) // so that the TPM's state is kept
	if err := m.emulator.powerOn(m.chipState); err != nil {
		m.t.Fatal(err)
	}
	m.chipChanged = true
	m.before = nil
	m.openVolume, m.openVerity, m.mounted, m.listening, m.collected, m.hidden, m.noModules = nil, false, nil, false, false, false, false
	maps.Copy(m.vars, m.restores)
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
	m.booting = true
	defer func() {
		m.booting = false
		switch p := recover().(type) {
		case nil:
		case halt:
			end = p.how
		default:
			panic(p)
		}
		if end == "death" {
			return
		}
		if m.agent.Secret != nil || m.agent.Released && !m.collected {
			m.t.Errorf("a boot that ended in %s still knows the machine secret, or has not erased what it knew", end)
		}
	}()
	m.agent = &Agent{Host: host.Host{
		NewKeys: m.newKeys,
		Machine: hw.Machine{
			Disks: disks{m}, Firmware: m, Kernel: kernel{m}, Mapper: mapper{m}, Mounts: mounts{m}, Power: power{m},
			ESP: m.esp, Store: store{m}, TPM: chipSeam{m}, Person: person{m}, Log: hw.NewLog(&m.said, io.Discard),
			SetupMenu: func() (setupmenu.Menu, bool) { return setupmenu.For("QEMU", "") },
			Now:       func() time.Time { return m.clock }, Sleep: func(d time.Duration) { m.clock = m.clock.Add(d) },
			Memory:   func() (uint64, error) { return max(m.memory, 128<<10), nil },
			Watchdog: m.watchdog,
			Secretly: m.secretly, Collect: func() { m.collected = true },
			HideMemory: func() error { m.hidden = true; return nil },
			NoModules:  func() error { m.noModules = true; return nil },
		},
		Variables: &firmware{m.vars, m.op, func() { m.durable++ }, m.refuse, m.afterDBX, m.refuseRequest, m.keepsAll, m.keeps, m.fullFor}, Random: m.random, Root: m.root,
	}}
	if err := m.agent.Boot(context.Background()); err != nil {
		m.t.Errorf("Boot returned: %v", err)
	}
	return "returned"
}

// secretly notes that what f leaves in the process can be erased. The erasing itself
// is tested where it is, and would make thousands of starts three times as slow.
func (m *machine) secretly(f func() error) error {
	m.secret = true
	defer func() { m.secret = false }()
	return f()
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
