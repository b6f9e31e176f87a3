// Package hw is everything that initagent does to a machine: its disks, its
// kernel, its firmware and its power, each behind a small interface, and the
// Linux side of each. It decides nothing.
//
// It refuses to name a device: disks are listed, and anyone who asks finds the
// right one by what is on it.
package hw

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/setupmenu"
	"halogenos.internal/boot/verity"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/tpm"
	"halogenos.internal/initagent/upper"
	"halogenos.internal/initagent/watchdog"
)

// A Machine holds everything with an effect. It is built once, in main, and
// passed on.
type Machine struct {
	Disks    Disks
	Firmware Firmware
	Kernel   Kernel
	Mapper   Mapper
	Mounts   Mounts
	Power    Power
	ESP      ESP
	Store    Store
	TPM      TPM
	Person   Person
	Log      *Log
	// Watchdog opens the machine's hardware watchdog; watchdog.ErrNone where
	// there is none.
	Watchdog func() (name string, t watchdog.Timer, err error)
	// Now is the clock. It may be years off: nothing that matters trusts it.
	Now   func() time.Time
	Sleep func(time.Duration)
	// SetupMenu is where this machine's firmware clears its Secure Boot keys.
	SetupMenu func() (m setupmenu.Menu, known bool)
	// Memory is the machine's, in bytes.
	Memory func() (uint64, error)
	Guards
}

// Guards keep secrets from what runs later, in this process and in others.
type Guards struct {
	// Secretly runs what handles secrets, so that what it leaves in this process can be
	// erased: secretmem.Try.
	Secretly func(f func() error) error
	// Collect erases what handling secrets has left in this process:
	// secretmem.Collect.
	Collect func()
	// HideMemory keeps every program of this boot from reading the kernel's memory:
	// hw.HideMemory.
	HideMemory func() error
	// NoModules keeps this boot from loading further kernel modules: hw.NoModules.
	NoModules func() error
}

// A Disk is a whole disk.
type Disk struct {
	Name       string // the kernel's, such as nvme0n1; good for this boot only
	Model      string
	Serial     string
	SectorSize int
	Sectors    uint64
	ReadOnly   bool // the kernel refuses to write to it
	// ESP is the UUID of the EFI system partition that this system was started from; set
	// by bootdisk.Disk, and zero on any other disk.
	ESP gpt.GUID
	// PCI is the way to the disk's controller; empty where it hangs elsewhere. Few
	// disks have several: NVMe can.
	PCI      Way
	OtherPCI []Way
}

// A Way leads from the root bridge to a controller, one PCI function a bus.
type Way = []bootoption.Function

// At reports whether the disk hangs on the controller that a way leads to.
func (d Disk) At(way Way) bool {
	at := func(have Way) bool { return slices.Equal(have, way) }
	return at(d.PCI) || slices.ContainsFunc(d.OtherPCI, at)
}

// Behind reports whether the disk hangs on that controller or on one that is hidden
// behind it; any disk does without a way.
func (d Disk) Behind(way Way) bool {
	behind := func(have Way) bool { return len(have) >= len(way) && slices.Equal(have[:len(way)], way) }
	return behind(d.PCI) || slices.ContainsFunc(d.OtherPCI, behind)
}

// A File is an open disk or partition.
type File interface {
	block.Device
	io.Closer
}

// Disks is the machine's storage.
type Disks interface {
	// List returns the whole disks present now.
	List() ([]Disk, error)
	// Open opens a whole disk, for its partition table alone: the kernel keeps
	// separate caches for a disk and its partitions.
	Open(d Disk, write bool) (File, error)
	// OpenPartition opens the partition that has a role in the disk's table: of a slot that
	// has grown, the device that joins its two extents (layout.Extents).
	OpenPartition(d Disk, r layout.Role, write bool) (File, error)
	// PartitionPath is the device node of what OpenPartition opens.
	PartitionPath(d Disk, r layout.Role) (string, error)
	// Reread makes the kernel read a disk's partition table again.
	Reread(d Disk) error
}

// Firmware is what UEFI told the boot manager and the stub.
type Firmware interface {
	// LoaderString reads one of the boot loader interface's string variables
	// (https://systemd.io/BOOT_LOADER_INTERFACE/) that are set in each start; absent
	// is "", and so is one that outlives a restart.
	LoaderString(name string) (string, error)
	// BootedFrom is the way through PCI to the controller that the firmware
	// started from; empty where it does not say.
	BootedFrom() ([]bootoption.Function, error)
	// Flag reads a one-byte variable of the UEFI global namespace, such as
	// SecureBoot; absent is false.
	Flag(name string) (bool, error)
}

// Kernel loads drivers.
type Kernel interface {
	// Coldplug loads the drivers of all devices present now, and reports how
	// many modules it tried for the first time. With a way to a controller, in
	// PCI functions, mass storage on other PCI controllers is left out.
	Coldplug(way []bootoption.Function) (int, error)
	// Hotplug gives devices that appear from now on their drivers, until ctx is done.
	// A TPM gets none: it could be there before anybody had told it that the boot is over.
	Hotplug(ctx context.Context)
	// Load loads one module and what it depends on. A built-in one is fine.
	Load(names ...string) error
	// Messages returns the kernel's own log of this boot.
	Messages() ([]byte, error)
}

// Verity is what a dm-verity device is made from. All of it comes from the
// signed UKI but the two device nodes.
type Verity struct {
	Name                   string // of the device-mapper device
	DataDevice, HashDevice string
	// HashStart is where HashDevice has the tree's superblock, in bytes: 0 where it has nothing
	// else, and the data's size where both are one device.
	HashStart int64
	Params    verity.Params
	Root      verity.Root
	// RestartOnCorruption makes the kernel restart the machine when a block is
	// corrupt, instead of returning an I/O error.
	RestartOnCorruption bool
}

// InSlot returns v for a slot of the disk, whose table is t, with the two devices that it is
// read from. A slot that is too small for it is an error: the kernel's would say nothing.
func (v Verity) InSlot(disks Disks, d Disk, t *gpt.Table, s layout.Slot) (Verity, error) {
	tree, err := verity.TreeSize(v.Params.DataBlocks)
	if err != nil {
		return v, err
	}
	if err := layout.CheckRoom(t, s, int64(v.Params.DataBlocks)*verity.BlockSize, tree); err != nil {
		return v, fmt.Errorf("slot %s of %s: %w", s, d.Name, err)
	}
	if v.DataDevice, err = disks.PartitionPath(d, s.System()); err != nil {
		return v, err
	}
	v.HashDevice, err = disks.PartitionPath(d, s.Verity())
	return v, err
}

// Crypt is what a dm-crypt device is made from.
type Crypt struct {
	Name   string
	UUID   string // device-mapper UUID
	Device string
	Cipher string // such as aes-xts-plain64
	// Offset and Length in bytes. The tweak of the first sector is always 0.
	Offset, Length int64
	SectorSize     int    // of the encryption, bytes
	VolumeKey      []byte // stays the caller's, who wipes it
}

// Mapper is the kernel's device mapper.
type Mapper interface {
	// OpenVerity returns the device node, once its first block was read: a
	// wrong root hash shows there, and nowhere earlier.
	OpenVerity(v Verity) (string, error)
	// OpenCrypt returns the device node.
	OpenCrypt(c Crypt) (string, error)
	// OpenSnapshot returns the device node. A store that has no header is a new one.
	OpenSnapshot(s Snapshot) (string, error)
	// SnapshotUse is how much of its store a snapshot has used, in bytes. The error wraps
	// shrink.ErrOverflow where the kernel has given the snapshot up.
	SnapshotUse(name string) (int64, error)
	Close(name string) error
}

// Mounts is the mount table.
type Mounts interface {
	// Base mounts what every Linux program expects: /proc, /sys, /dev, /run
	// and the kernel's security files.
	Base() error
	// Firmware mounts the firmware's variables, once the kernel can.
	Firmware() error
	Mount(source, target, fstype string, flags uintptr, data string) error
	Unmount(target string) error
	// SwitchRoot moves the base mounts into newRoot, makes it the root, empties
	// the initramfs, and executes init. It returns only an error.
	SwitchRoot(newRoot string, init []string) error
}

// ESP is the EFI system partition of a disk.
type ESP interface {
	// Read calls read with the partition's files. Nothing is mounted for it, and
	// a damaged file system is an error and no more.
	Read(d Disk, read func(files fs.FS) error) error
	// Write calls write with the partition mounted, for only so long: a file
	// system that is not mounted cannot be left half written by others.
	Write(d Disk, write func(dir ESPDir) error) error
	// Repair frees what no file has, and returns how many bytes that was. Before
	// that it takes names away whose content is that of another file, and leaves
	// the content alone. While anything else is damaged nothing is freed. The
	// partition must not be mounted.
	Repair(d Disk, names []string) (int64, error)
	// Exchange gives two files of one directory each other's content, at once: a cut
	// leaves both as they were or both changed. It is fat.ErrApart where that cannot
	// be done. The partition must not be mounted.
	Exchange(d Disk, a, b string) error
}

// ESPDir is the mounted ESP.
type ESPDir interface {
	enroll.Dir
	// MakeDirectory makes a directory and those above it, where they are missing.
	MakeDirectory(name string) error
	// Rename gives a file another name in the same directory. When it has returned
	// the name and the content survive a power cut; a cut before that leaves
	// the old name or the new one.
	Rename(from, to string) error
	// FreeBytes is how much room the file system has left.
	FreeBytes() (int64, error)
}

// Store is the root partition's file system, once it is mounted. Names are
// relative to its root.
type Store interface {
	// MakeFileSystem makes a file system of a kind on a device, with the mkfs of
	// the system image that is mounted at system. When it has returned the file
	// system survives a power cut.
	MakeFileSystem(kind, device, system string) error
	// CanResize is the error that Resize would have for a program that the system image at
	// system lacks.
	CanResize(kind, system string) error
	// Resize makes a file system so many bytes long. A btrfs is the mounted one, and a cut
	// leaves its old size or the new one. An ext4 is on a device, is not mounted, and is
	// checked first, by programs of the system image; a cut in it loses what the device holds.
	Resize(kind, device, system string, size int64) error
	// FileSystemEnd is where the file system on a device ends, in bytes, by its superblock.
	FileSystemEnd(kind, device string) (int64, error)
	// Read returns a file of at most limit bytes, or fs.ErrNotExist. The running
	// system has written there: what is not a file, too large, or has a link in its
	// path, is refused with ErrUnfit.
	Read(name string, limit int64) ([]byte, error)
	// OpenImage opens a file of exactly size bytes, or fs.ErrNotExist. The running system has
	// written there: what is no file, has another size, or has a link in its path, is refused
	// with ErrUnfit. Whatever keeps root from writing to it keeps nobody from reading.
	OpenImage(name string, size int64) (Image, error)
	// Keep puts a file there, readable by root alone, in place of what has its
	// name. A cut leaves the old file or the new one; once Keep has returned,
	// the new one. No flag (chattr) and no read-only subvolume keeps it, or what else
	// this interface writes and removes, from that; but those that Carry finds in
	// shared directories stay.
	Keep(name string, content []byte) error
	// Remove takes a file away for good, or what else has its name; one that is not
	// there is fine.
	Remove(name string) error
	// MakeDirectory makes a directory and those above it, where they are missing.
	MakeDirectory(name string, mode fs.FileMode) error
	// Seed makes a directory as a copy of one of the system image, unless it is
	// there. A cut leaves the whole copy or none. With subvolume it is one, where the
	// file system has them. A name with a link in it, or of a link, is refused with
	// ErrUnfit.
	Seed(from, name string, subvolume bool) error
	// Names lists a directory; one that is not there has none.
	Names(name string) ([]string, error)
	// Discard removes a directory with all that is in it, for good. A cut leaves it
	// whole, or without its name.
	Discard(name string) error
	// ClearBut removes what lies in some directories, but for these and what keep says yes
	// to, and returns what cannot be removed (upper.Store.ClearBut). A cut leaves some of
	// it; the same call goes on.
	ClearBut(in []string, keep func(name string) bool) ([]string, error)
	// Disarm has no program in a directory run with more rights than those who start it
	// (upper.Store.Disarm), and returns what it could not change. more is called now and
	// then with the number of files that it has looked at. The same call goes on.
	Disarm(name string, more func(looked int)) ([]string, error)
	// RootsOwn gives a directory to root (upper.Store.RootsOwn).
	RootsOwn(name string, mode fs.FileMode) error
	// Accounts are the account files that a system with this state sees over an image
	// that is mounted (upper.Store.Accounts).
	Accounts(from upper.Source, image string) (map[string][]byte, error)
	// TryPeople finds out whether Carry can give an image an /etc with the accounts of
	// people, and writes nothing (upper.Store.TryPeople).
	TryPeople(ctx context.Context, c upper.Carry) error
	// GiveBack puts the links back that a system has set in shared directories
	// (upper.Store.GiveBack); image is where the running system's image is mounted.
	GiveBack(system, image string) error
	// Carry makes what a system has of its own at its first start (upper.Store.Carry).
	// A cut leaves it whole or without its name.
	Carry(ctx context.Context, c upper.Carry) (*upper.Report, error)
	snapshot.Subvolumes
}

// ErrUnfit is wrapped by Store's refusals to read what is there.
var ErrUnfit = snapshot.ErrUnfit

// TPM is the machine's TPM and what the firmware measured into it.
type TPM interface {
	// Open opens the TPM; without one the error wraps tpm.ErrAbsent.
	Open() (*tpm.TPM, error)
	// EventLog returns the firmware's event log, at most pcr.MaxLog bytes.
	EventLog() ([]byte, error)
}

// Person stands for the people at the machine.
type Person interface {
	// Listen begins to notice that somebody asks for the recovery console. Having
	// no terminal is fine: then nobody does.
	Listen() Listener
	// Quiet keeps the kernel's messages, but for errors, off the terminals, until
	// restore is called.
	Quiet() (restore func())
	// Keymap has the keys of a screen's keyboard type what a keymap says.
	Keymap(k keyboard.Keymap) error
	// Open opens the terminals for somebody who reads a language, and is quiet until they
	// are closed. Having none is an error.
	Open(words.Language) (Console, error)
	// Shell opens the recovery console on every terminal, and returns when one
	// of them is left.
	Shell() error
	// Program runs a program on every terminal, and returns when it has ended on
	// one of them: with an error unless it ended well. The environment is beside what says
	// which terminal it is.
	Program(environment []string, path string, args ...string) error
}

// Listener notices that somebody asks for the recovery console.
type Listener interface {
	// Asked reports whether somebody has since. It does not wait. It takes what is
	// typed, so that nothing else may ask for anything meanwhile.
	Asked() bool
	// Touched reports whether Asked has found that anything at all was typed.
	Touched() bool
	// Close stops listening, and leaves the terminals as they were.
	Close()
}

// Console is all terminals at once. What is shown or typed is nowhere else.
type Console interface {
	// Language is what the person there reads.
	Language() words.Language
	// Room is how many columns and lines there are for a page, on the smallest terminal that secrets
	// are shown on; 0 columns where that does not matter.
	Room() (columns, lines int)
	Print(text string)
	// PrintSecret shows text that opens something: where there is a screen, on it
	// alone and not on serial lines, which say elsewhere instead.
	PrintSecret(text, elsewhere string)
	// Ask shows a prompt and returns the line that is typed first, without its
	// end. With hidden, what is typed is not shown. The caller wipes an answer
	// that is secret. When nobody answers in time the error is ErrNobody.
	Ask(prompt string, hidden bool, timeout time.Duration) ([]byte, error)
	// Positions has the keys of a screen's keyboard type what a US keyboard has there, whatever
	// keymap is in force, until restore is called: a recovery key is read by where its letters
	// are on the keyboard of each layout. AskKey does it by itself.
	Positions() (restore func())
	// AskKey shows a prompt and returns the recovery key that is typed first, as it
	// was typed. It is shown in its groups, and the wrong ones are pointed at; with
	// checks also those whose check does not hold. Otherwise it is as Ask, but that
	// the time starts again with what is typed, up to three times as much of it.
	AskKey(prompt string, checks bool, timeout time.Duration) ([]byte, error)
	Close() error
}

// AskYes asks a question that "y", or the language's key for it, answers with yes, and
// anything else with no.
func AskYes(c Console, question string, timeout time.Duration) (bool, error) {
	answer, err := c.Ask(question+c.Language().Text(words.YesOrNo), false, timeout)
	return err == nil && c.Language().Yes(string(answer)), err
}

// ErrNobody is returned when nobody answers in time.
var ErrNobody = errors.New("nobody answered at the console")

// Power ends the boot.
type Power interface {
	// Reboot does not return unless the kernel refuses.
	Reboot() error
	PowerOff() error
}
