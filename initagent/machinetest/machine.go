// Package machinetest is a simulated machine, for the tests of what a boot does: a disk and
// an ESP that lose what was not flushed, firmware with variables and an event log, a TPM
// (swtpm), a person at the console, and releases to be fetched. Boot runs the boot itself
// (initagent/agent) on it. What goes wrong is set in the fields of Machine; a World is what a
// power cut leaves.
//
// No program imports it: boot/imports_test.go.
package machinetest

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
	"halogenos.internal/initagent/agent"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/upper"
)

// Sizes in bytes: of the machine's disk, of a slot, of a system image, of a sector.
const (
	MiB        = 1 << 20
	DiskSize   = 1024 * MiB
	SlotSize   = 2 * MiB
	ImageSize  = 64 << 10
	SectorSize = 512
)

// BuildDate is when the releases were made; the machine's clock starts a month later.
var BuildDate = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// KeySets are made once, since RSA keys take a while; each use gets a copy, for
// it to be wiped.
var KeySets = sync.OnceValues(func() (sets [3]*secureboot.KeySet, err error) {
	for i := range sets {
		if sets[i], err = secureboot.Generate(rand.Reader, BuildDate); err != nil {
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

// Edition is one version of the system.
type Edition struct {
	Contract *contract.Contract
	Image    []byte
	UKI      []byte
	Manager  []byte            // nil for the machine's first one
	Etc      map[string]string // of the image, by path

	Extensions []*Extension // that its UKI lists
	// ModuleKey is the certificate of kernel modules that it wants in db; nil for none.
	ModuleKey []byte
}

// NewRelease is a release of this source tree; change alters its contract, or is nil.
func NewRelease(t testing.TB, version, epoch uint64, change func(*contract.Contract)) *Edition {
	t.Helper()
	return NewReleaseOf(t, version, epoch, contract.Own(), change)
}

// NewReleaseOf is a release of a source tree with these abilities.
func NewReleaseOf(t testing.TB, version, epoch uint64, able contract.Abilities, change func(*contract.Contract)) *Edition {
	t.Helper()
	return newEdition(t, version, epoch, able, bytes.Repeat([]byte{byte(version), 7, 9, 11}, ImageSize/4), change)
}

// NewLargeRelease is NewRelease with an image of so many bytes, of which no two blocks are alike.
func NewLargeRelease(t testing.TB, version, epoch uint64, size int64, change func(*contract.Contract)) *Edition {
	t.Helper()
	image := make([]byte, size)
	_, _ = mrand.NewChaCha8([32]byte{byte(version)}).Read(image) // it never fails
	return newEdition(t, version, epoch, contract.Own(), image, change)
}

func newEdition(t testing.TB, version, epoch uint64, able contract.Abilities, image []byte, change func(*contract.Contract)) *Edition {
	t.Helper()
	r := &Edition{Image: image}
	c := &contract.Contract{
		Format: contract.Format, ImageID: "test", Arch: "x86_64", Version: contract.Version(version), Epoch: epoch,
		SourceDate: BuildDate.Unix(), Salt: []byte("salt"), ImageSize: int64(len(image)), SlotSize: max(SlotSize, int64(len(image))),
		SecureBoot: contract.Required, TPM: contract.Required, VendorKeys: contract.VendorAuto, RootFileSystem: "ext4",
	}
	params := verity.Params{DataBlocks: uint64(len(image)) / verity.BlockSize, Salt: c.Salt}
	root, err := verity.Generate(t.Context(), bytes.NewReader(r.Image), params, blocktest.New(MiB, blocktest.Zero), func(int64) {})
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
	r.Contract = c
	r.UKI, err = uki.Build(ukitest.Stub("257.13-1"), uki.Payload{
		OSRelease: []byte("ID=test\n"), Cmdline: []byte("quiet"), Linux: ukitest.Stub("kernel"), Initrd: initrd,
	}.Sections())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// World is what survives a power cut.
type World struct {
	Disk    *blocktest.Disk
	ESP     map[string]Remains
	Vars    map[string]EFIVariable
	Chip    []byte
	Volumes map[[32]byte]map[string][]byte // files, by the volume's fingerprint
	shown   []string                       // what the owner has written down, in turn
	Record  []byte                         // the TPM's, as it was written last
}

// Machine is a running one, and all of its hardware.
type Machine struct {
	T        testing.TB
	Emulator *emulator
	Releases map[contract.Version]*Edition
	Manager  []byte
	EspUUID  string
	Root     string // the initramfs, and what is mounted in it

	Disk   *recordedDisk
	Second *blocktest.Disk // another disk, or nil
	// bootedFrom is what the firmware says, pci where the disk and the other hang.
	StartsFrom    []bootoption.Function
	Driven        []bootoption.Function // the controller whose driver is loaded; nil for all
	PCI           [2][]bootoption.Function
	ESP           *MemESP
	Vars          map[string]EFIVariable
	Refuse        error                  // of the firmware, for every authenticated write
	RefuseRequest error                  // of writing the request to the next boot
	KeepsAll      bool                   // it says yes to a deletion, and deletes nothing
	Restores      map[string]EFIVariable // what it has again at each start
	Keeps         func([]byte) []byte    // what the firmware makes of a key variable; or nil
	AfterDBX      func([]byte) []byte    // what the firmware makes of dbx; or nil
	// Hardware that reports flushes which it has not made.
	LyingDisk, LyingESP bool
	NoTPM               error
	TpmBusy             int       // openings of the TPM that fail
	Deaf                bool      // the TPM takes no measurements
	TpmPlugs, TpmOpens  int       // loadings of drivers, and openings, before the TPM shows itself
	TpmFrom             time.Time // there is no device for it before
	NoEFI               error     // of mounting the firmware's variables
	Extra               string    // measured into PCR 7 besides
	OptionROM           string    // of a card, which the firmware starts
	VendorLoader        []byte    // a vendor's, on a stick, which starts this machine's boot manager
	StartsUKI           bool      // it starts the UKI by itself
	Extra12, Extra13    string    // into PCR 12 and 13
	Detour              bool      // a boot option failed before
	Code                string    // of the firmware, and its settings: measured into PCR 0 to 3
	CameBack            []byte    // a program that was started before, and came back; or nil
	HidesDBX            bool      // the firmware measures another dbx than can be read
	Unaccounted         bool      // the firmware measures into PCR 4 what nobody knows
	NoLog               bool      // the firmware has no event log
	WrongLog            bool      // its log is not what it has measured
	// What cannot be read or written: a partition, a file of the root partition,
	// the TPM's record.
	Unreadable     layout.Role
	Bad            struct{ From, To int64 } // bytes of the disk
	Worn           struct{ From, To int64 } // those that cannot be written
	UnreadableFile string
	StuckFile      string            // it cannot be removed
	Programs       map[string]uint32 // of the image, which run as the user with a number
	UnfitFile      string            // it is a link, or no file
	NoModule       string            // the kernel lacks it
	NoResize       error             // why the image cannot make a file system smaller
	NoEnd          error             // why nobody can say where the file system ends
	ResizeFails    error             // it does not, for this
	NoInit         bool              // the system's init cannot be read
	NoLoop         bool              // the kernel has no loop devices
	NoOverlay      string            // it lays nothing over this directory
	ListText       string            // the list of extensions in the initramfs, where it is not the release's
	BadFiles       string            // mounting or making what contains it fails: the disk cannot be read
	Messages       string            // the kernel's log
	Plugging       func()            // is called when drivers are loaded
	hotplug        chan struct{}
	NoTerminal     error         // there is none for questions
	FullFile       string        // it cannot be written: the file system is full
	FullRoot       bool          // no file can
	Room           snapshot.Room // of the root partition, where it is not ample
	FullFor        string        // the firmware has no room for this variable
	FirmwareRoom   int64         // in bytes, which the firmware says that it has for variables; 0: it does not say
	RefuseRecord   bool
	ByHand         contract.Version // chosen in the boot manager's menu
	StubSays       string           // StubImageIdentifier, where somebody has written it before
	CountsNothing  bool             // the boot manager cannot rename a file
	NoSecureBoot   bool             // it is switched off, and no keys are enrolled
	NextManager    []byte           // another boot manager that starts, or nil
	Presses        int              // the console is asked for at that look, from 1 on; 0: never
	Looks          int              // at whether it is
	Listening      bool
	WatchdogReset  bool // its watchdog says that it ended the boot before
	BootEntry      bool // the firmware knows the boot manager's other path too
	Foreign        int  // certificates of others that db is to have beside this machine's own
	Volumes        map[[32]byte]map[string][]byte
	Shown          []string
	recordNow      []byte
	watchDelivery  func(done string) // after each step of the fetcher's
	Typed          []string          // answers to come
	Waits          []time.Duration   // how long answers were waited for; 0: for ever
	booting        bool              // initagent runs
	secret         bool              // what runs now leaves nothing in the process that cannot be erased
	hidden         bool              // this boot's kernel shows its memory to nobody
	Stays          []string          // what a root partition does not let go
	quiet          bool              // the kernel keeps its messages off the terminals
	NoModules      bool              // it loads no further module
	collected      bool              // this boot's process has erased what handling secrets left in it
	memory         uint64            // in bytes; a PIN takes more than anything else
	Owner          bool              // has the recovery key, and says yes
	Program        []string          // that an installer stick had run
	Environment    []string          // that it was given
	ProgramEnds    error
	Pulled         string // the plug is, at a prompt that begins so; "" for never
	Echo           bool   // types groups of a new recovery key back
	Later          bool   // and not of the first one
	orderly        bool   // the kernel tells the TPM before it restarts: a PIN that was tried counts as wrong otherwise
	Said           bytes.Buffer
	Printed        bytes.Buffer
	Keymap         string // what the keyboard types; "" for a US one
	NoPhrases      bool   // the TPM lacks TPM2_PolicyCommandCode
	RefusesKeymaps bool   // nor that one
	RefusesKeymap  bool   // the kernel does not take a keymap other than us as a whole
	Absent         bool   // nobody presses Enter when a page was shown
	Clock          time.Time
	Random         io.Reader
	KeysNo         int

	Agent      *agent.Agent
	Log        []byte
	counted    string // path of the UKI that was started, when its tries were counted
	image      string // path of the UKI that was started
	StartFile  string // the boot manager starts this path; or "" for what it chooses
	OpenVolume *[32]byte
	snapshot   *rootSnapshot
	// snapshotMade: in this boot.
	snapshotMade bool
	openVerity   bool
	before       *verity.Root  // of the image that is open beside it
	Carried      []upper.Carry // what systems have taken over
	Mounted      []string
	images       kernelImages
	Overlaid     map[string]map[string]string // what overlays over the system show, by their place and by path
	Laid         map[string][]byte            // the last start's, over the image's, by name
	below        map[string][]byte            // what of the image lies below them, by path; nil for nothing
	ChipState    []byte
	ChipChanged  bool

	Ops      []string
	durable  int // counts what no cut takes back
	Snapshot func()
}

// op is called before everything that changes what a cut leaves.
func (m *Machine) op(name string) {
	if m.Snapshot != nil {
		m.Snapshot()
	}
	m.Ops = append(m.Ops, name)
}

// New is a machine with a disk as an installation leaves it. fill is what
// the disk held before.
func New(t testing.TB, change func(*contract.Contract)) *Machine {
	t.Helper()
	m := newMachine(t, change)
	m.PowerOn(m.Installed(DiskSize))
	return m
}

// newMachine is a machine without a disk, and off.
func newMachine(t testing.TB, change func(*contract.Contract)) *Machine {
	t.Helper()
	if _, err := KeySets(); err != nil {
		t.Fatal(err)
	}
	m := &Machine{
		T: t, Emulator: startEmulator(t), Manager: ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("boot manager")}),
		hotplug: make(chan struct{}), Releases: map[contract.Version]*Edition{1: NewRelease(t, 1, 5, change)}, Root: t.TempDir(), Random: mrand.NewChaCha8([32]byte{1}), Clock: BuildDate.AddDate(0, 1, 0),
	}
	m.installRoot()
	return m
}

// installRoot makes the directories that the system image brings.
func (m *Machine) installRoot() {
	for _, directory := range []string{"halogen", "sysroot/etc", "sysroot/var", "sysroot/home", "sysroot/tmp"} {
		if err := os.MkdirAll(filepath.Join(m.Root, directory), 0o755); err != nil {
			m.T.Fatal(err)
		}
	}
}

// Installed is what an installation of version 1 leaves on a disk of size bytes.
func (m *Machine) Installed(size int64) *World {
	m.T.Helper()
	d := blocktest.New(size, blocktest.Hostile) // second-hand
	first := uint64(MiB / SectorSize)
	esp := gpt.Partition{Number: 1, Type: layout.TypeESP, UUID: gpt.MustGUID("11111111-2222-4333-8444-555555555555"),
		First: first, Last: first + layout.ESPSize/SectorSize - 1, Label: layout.ESPLabel}
	system := gpt.Partition{Number: 2, Type: layout.TypeRoot, UUID: layout.SystemUUID(m.Releases[1].Contract.Root()),
		First: esp.Last + 1, Last: esp.Last + MiB/SectorSize, Label: "system-a"}
	table := &gpt.Table{Disk: gpt.MustGUID("aaaaaaaa-2222-4333-8444-555555555555"), SectorSize: SectorSize, Sectors: uint64(size / SectorSize), Partitions: []gpt.Partition{esp, system}}
	if err := table.Write(d); err != nil {
		m.T.Fatal(err)
	}
	if _, err := d.WriteAt(m.Releases[1].Image, int64(system.First)*SectorSize); err != nil {
		m.T.Fatal(err)
	}
	m.EspUUID = esp.UUID.String()
	files := map[string]Remains{
		Removable: {Data: m.Manager}, ManagerCopy: {Data: m.Manager},
		"loader/loader.conf":                      {Data: []byte("timeout 0\n")},
		path.Join(bls.Directory, "test_1.efi"):    {Data: m.Releases[1].UKI},
		path.Join(bls.Directory, "not-an-image"):  {Data: []byte("x")},
		path.Join(bls.Directory, "not-image.efi"): {Data: []byte("x")},
	}
	return &World{Disk: d, ESP: files, Vars: NewVariables(), Volumes: map[[32]byte]map[string][]byte{}}
}

// PowerOn gives the machine this world; the world stays as it is.
func (m *Machine) PowerOn(w *World) {
	m.Disk = &recordedDisk{m: m, base: w.Disk, Now: w.Disk.Overlay()}
	m.ESP = newESP(w.ESP, m.op)
	m.ESP.Lying = m.LyingESP
	m.Vars = CloneVariables(w.Vars)
	m.Volumes = map[[32]byte]map[string][]byte{}
	for k, v := range w.Volumes {
		m.Volumes[k] = maps.Clone(v)
	}
	m.Shown = slices.Clone(w.shown)
	m.ChipState, m.ChipChanged, m.recordNow = w.Chip, false, w.Record
}

// World returns what a cut leaves now: all of it, what was flushed, or, with r,
// a mixture.
func (m *Machine) World(all bool, r *mrand.Rand) *World {
	w := &World{Disk: m.Disk.after(all, r), ESP: m.ESP.after(all, r), Vars: CloneVariables(m.Vars), Record: m.recordNow,
		Volumes: map[[32]byte]map[string][]byte{}, shown: slices.Clone(m.Shown)}
	for k, v := range m.Volumes {
		w.Volumes[k] = maps.Clone(v)
	}
	if m.ChipChanged {
		var err error
		if m.ChipState, err = m.Emulator.state(); err != nil {
			m.T.Fatal(err)
		}
		m.ChipChanged = false
	}
	w.Chip = m.ChipState
	return w
}

// Halt ends a boot from inside the hardware.
type Halt struct{ How string }

// Boot starts the machine once and returns how it ended: "system", "reboot",
// "recovery", or "dead" with the reason when nothing starts.
func (m *Machine) Boot() (end string) {
	m.T.Helper()
	if m.orderly {
		if _, err := (tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}).Execute(m.Emulator); err != nil {
			m.T.Fatal(err)
		}
		m.ChipChanged = true
	}
	m.World(true, nil) // so that the TPM's state is kept
	if err := m.Emulator.PowerOn(m.ChipState); err != nil {
		m.T.Fatal(err)
	}
	m.ChipChanged = true
	m.before, m.Laid, m.snapshot, m.snapshotMade = nil, nil, nil, false
	m.OpenVolume, m.openVerity, m.Mounted, m.Listening, m.collected, m.hidden, m.NoModules = nil, false, nil, false, false, false, false
	maps.Copy(m.Vars, m.Restores)
	chosen, counted, err := m.Start()
	if err != nil {
		fmt.Fprintf(&m.Said, "DEAD: %v\n", err)
		return "dead"
	}
	m.counted = counted
	text, err := m.Releases[chosen.Version].Contract.Encode()
	if err != nil {
		m.T.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.Root, contract.Path), text, 0o600); err != nil {
		m.T.Fatal(err)
	}
	m.startExtensions(m.Releases[chosen.Version])
	m.installModuleKey(chosen.Version)
	m.booting = true
	defer func() {
		m.booting = false
		m.takeAway()
		switch p := recover().(type) {
		case nil:
		case Halt:
			end = p.How
		default:
			panic(p)
		}
		if end == "death" {
			return
		}
		if m.Agent.Secret != nil || m.Agent.Released && !m.collected {
			m.T.Errorf("a boot that ended in %s still knows the machine secret, or has not erased what it knew", end)
		}
	}()
	m.Agent = &agent.Agent{Host: host.Host{Given: host.Given{
		NewKeys: m.newKeys,
		Machine: hw.Machine{
			Disks: Disks{m}, Firmware: m, Kernel: Kernel{m}, Mapper: mapper{m}, Mounts: mounts{m}, Power: power{m},
			ESP: m.ESP, Store: Store{m}, TPM: chipSeam{m}, Person: person{m: m}, Log: hw.NewLog(&m.Said, io.Discard),
			SetupMenu: func() (setupmenu.Menu, bool) { return setupmenu.For("QEMU", "") },
			Now:       func() time.Time { return m.Clock }, Sleep: func(d time.Duration) { m.Clock = m.Clock.Add(d) },
			Memory:   func() (uint64, error) { return max(m.memory, 128<<10), nil },
			Watchdog: m.watchdog,
			Guards: hw.Guards{
				Secretly: m.secretly, Collect: func() { m.collected = true },
				HideMemory: func() error { m.hidden = true; return nil },
				NoModules:  func() error { m.NoModules = true; return nil },
			},
		},
		Variables: &Firmware{m.Vars, m.op, func() { m.durable++ }, m.Refuse, m.AfterDBX, m.RefuseRequest, m.KeepsAll, m.Keeps, m.FullFor, m.FirmwareRoom}, Random: m.Random, Root: m.Root,
	}}}
	if err := m.Agent.Boot(context.Background()); err != nil {
		m.T.Errorf("Boot returned: %v", err)
	}
	return "returned"
}

// secretly notes that what f leaves in the process can be erased. The erasing itself
// is tested where it is, and would make thousands of starts three times as slow.
func (m *Machine) secretly(f func() error) error {
	m.secret = true
	defer func() { m.secret = false }()
	return f()
}

// Run boots until the machine no longer restarts by itself.
func (m *Machine) Run() (end string) {
	m.T.Helper()
	for range 6 {
		if end = m.Boot(); end != "reboot" {
			return end
		}
	}
	return "endless restarts"
}

func (m *Machine) newKeys(io.Reader, time.Time) (*secureboot.KeySet, error) {
	sets, err := KeySets()
	if err != nil {
		return nil, err
	}
	m.KeysNo++
	return copyKeys(sets[m.KeysNo%len(sets)])
}
