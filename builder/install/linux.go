package install

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/setupmenu"
	"halogenos.internal/boot/sysblock"
	"halogenos.internal/boot/words"
)

// sectorUnit is what sysfs counts sizes in, whatever a disk's sectors are.
const sectorUnit = 512

// A Linux is the running system as far as an installation asks it. The paths
// are /sys, /dev and /proc but in tests.
type Linux struct{ Sys, Dev, Proc string }

// Running is the system that this program runs on.
func Running() Linux { return Linux{"/sys", "/dev", "/proc"} }

// Facts looks at the machine.
func (l Linux) Facts() Facts {
	arch, ok := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	if !ok {
		arch = runtime.GOARCH
	}
	_, err := os.Stat(filepath.Join(l.Sys, "firmware/efi"))
	version := l.text("class/tpm/tpm0/tpm_version_major")
	f := Facts{Arch: arch, UEFI: err == nil, SetupMode: l.flag("SetupMode"), SecureBoot: l.flag("SecureBoot"), TPM: version == "2"}
	if menu, known := setupmenu.Of(os.DirFS(l.Sys)); known {
		f.Menu = menu.Line()
	}
	for _, v := range []secureboot.Variable{secureboot.DB, secureboot.DBDefault} {
		raw, err := readVariable(filepath.Join(l.Sys, "firmware/efi/efivars", v.Name+"-"+v.GUID.String()))
		if err != nil {
			continue // it has none
		}
		if d, err := secureboot.ParseDatabase(raw); err == nil {
			f.Others = secureboot.KnownOthers(slices.Concat(f.Others, d))
		}
	}
	return f
}

// globalVariables is the namespace of the specification's own variables
// (UEFI 2.10, section 3.3).
const globalVariables = "8be4df61-93ca-11d2-aa0d-00e098032b8c"

// flag reads a variable of one byte, behind its four bytes of attributes.
func (l Linux) flag(name string) bool {
	b, err := os.ReadFile(filepath.Join(l.Sys, "firmware/efi/efivars", name+"-"+globalVariables))
	return err == nil && len(b) == 5 && b[4] == 1
}

func (l Linux) text(name string) string {
	b, _ := os.ReadFile(filepath.Join(l.Sys, name)) // absent is empty
	return strings.TrimSpace(string(b))
}

// Disks lists the whole disks that an installation can start from.
func (l Linux) Disks() ([]Disk, error) {
	entries, err := os.ReadDir(filepath.Join(l.Sys, "block"))
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	var disks []Disk
	for _, e := range entries {
		if l.device(e.Name()).NotADisk() != "" {
			continue
		}
		if d, err := l.disk(e.Name()); err == nil && d.Sectors > 0 {
			disks = append(disks, d)
		}
	}
	return disks, nil
}

// Systems are the systems that are on any of the machine's disks.
func (l Linux) Systems() (found []System, err error) {
	disks, err := l.Disks()
	for _, d := range disks {
		found = append(found, d.Systems...)
	}
	return found, err
}

// device is what sysfs says of a block device.
func (l Linux) device(name string) sysblock.Device {
	directory := filepath.Join("block", name)
	place, err := filepath.EvalSymlinks(filepath.Join(l.Sys, directory))
	if err != nil {
		place = "" // its name must do
	}
	return sysblock.Device{
		Name: name, Place: place, Hidden: l.text(filepath.Join(directory, "hidden")) == "1", Zoned: l.text(filepath.Join(directory, "queue/zoned")),
	}
}

// Disk looks at one disk, by its path.
func (l Linux) Disk(path string) (Disk, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return Disk{}, fmt.Errorf("%w: 'halogen install --list' shows the disks", err)
	}
	name := filepath.Base(real)
	if _, err := os.Stat(filepath.Join(l.Sys, "class/block", name, "partition")); err == nil {
		return Disk{}, fmt.Errorf("%s is a partition: name the whole disk", path)
	}
	d, err := l.disk(name)
	if errors.Is(err, errReplaced) {
		return Disk{}, err
	}
	if info, failed := os.Stat(real); err != nil && failed == nil && info.Mode()&fs.ModeDevice == 0 {
		return Disk{}, fmt.Errorf("%s is not a disk but %s: name a whole disk of this machine, such as /dev/nvme0n1 or /dev/sda (lsblk lists them). 'halogen build --disk' writes a file", path, kindOf(info))
	}
	if err != nil {
		return Disk{}, fmt.Errorf("%s is not a disk: %w", path, err)
	}
	d.Path = path
	return d, nil
}

// kindOf says what is not a device.
func kindOf(info fs.FileInfo) string {
	switch {
	case info.IsDir():
		return "a directory"
	case info.Mode().IsRegular():
		return "a file"
	}
	return "neither a device nor a file"
}

// errReplaced is returned for a disk that was not the same one all the time.
var errReplaced = words.Errorf(words.InReplaced)

// disk looks at a disk. Reading a bad one takes seconds, in which another can take its
// name: what was read counts where the disk was the same before and after.
func (l Linux) disk(name string) (Disk, error) {
	directory := filepath.Join("block", name)
	d, err := l.describe(directory)
	if err != nil {
		return Disk{}, err
	}
	// Twice: opening a removable disk can be when the kernel notices that its medium is new.
	for range 2 {
		var failed error
		d.NotADisk = l.device(name).NotADisk()
		d.Uses, failed = l.uses(name)
		look(&d)
		now, err := l.describe(directory)
		if err != nil {
			break // it is gone
		}
		if d.Same(now) == nil {
			return d, failed
		}
		d = now
	}
	return Disk{}, words.Errorf("%s %w", d.Path, errReplaced)
}

// describe tells from a disk's directory in sysfs which one it is, and how large. Its
// number comes first: if that is the same later, so was all that was read meanwhile.
func (l Linux) describe(directory string) (Disk, error) {
	name := filepath.Base(directory)
	sequence, err := strconv.ParseUint(cmp.Or(l.text(filepath.Join(directory, "diskseq")), "0"), 10, 64)
	if err != nil {
		return Disk{}, fmt.Errorf("%s: diskseq: %w", name, err)
	}
	size, err := strconv.ParseUint(l.text(filepath.Join(directory, "size")), 10, 63)
	if err != nil {
		return Disk{}, fmt.Errorf("%s: size: %w", name, err)
	}
	sector, err := strconv.Atoi(l.text(filepath.Join(directory, "queue/logical_block_size")))
	if err != nil || sector < sectorUnit {
		return Disk{}, fmt.Errorf("%s: sector size %d (%w)", name, sector, err)
	}
	return Disk{
		Path: filepath.Join(l.Dev, name), Model: l.text(filepath.Join(directory, "device/model")),
		Serial: l.serial(directory), SectorSize: sector, Sectors: size / uint64(sector/sectorUnit),
		ReadOnly: l.text(filepath.Join(directory, "ro")) == "1", Removable: l.text(filepath.Join(directory, "removable")) == "1",
		Sequence: sequence,
	}, nil
}

// look says what is on a disk. One that cannot be read fails when it is written, if not
// before.
func look(d *Disk) {
	f, err := os.Open(d.Path)
	if err != nil {
		d.Contents = words.List{words.Linef(words.InUnreadable, err)}
		return
	}
	defer f.Close()
	*d = LookAt(f, *d)
}

// LookAt is a disk with what its content says: what is on it, other systems, free space,
// and the root partition that can be kept.
func LookAt(r io.ReaderAt, d Disk) Disk {
	d.Contents = Contents(r, d.Sectors, d.SectorSize)
	if d.table, d.health, d.noTable = gpt.Read(r, d.Sectors, d.SectorSize); d.noTable == nil {
		d.Systems, d.Free = Systems(r, d.table, d.Path), FreeSpace(d.table)
	}
	if d.noTable != nil {
		return d
	}
	root, err := findRoot(r, d.table)
	if err == nil {
		err = alone(d.table)
	}
	switch {
	case err == nil:
		d.Root = root
	case !errors.Is(err, ErrNoRoot):
		d.NoRoot = words.Linef("%v", err)
	}
	return d
}

// Contents says what is on a disk, for people; nothing when it looks unused. What cannot be
// read is no sign of that.
func Contents(r io.ReaderAt, sectors uint64, sectorSize int) words.List {
	start, tail, failed := ends(r, int64(sectors)*int64(sectorSize))
	raid := raidMember(tail, int64(sectors)*int64(sectorSize), sectorSize)
	if t, _, err := gpt.Read(r, sectors, sectorSize); err == nil {
		return append(partitions(t), raid...)
	}
	// An adapter may show other sectors than the one that the table was made by.
	if other := 512 + 4096 - sectorSize; other == 512 || other == 4096 {
		if t, _, err := gpt.Read(r, sectors*uint64(sectorSize)/uint64(other), other); err == nil {
			made := words.Linef(words.InOtherSectors, other, sectorSize)
			return append(words.List{made}, partitions(t)...)
		}
	}
	if failed != nil {
		return words.List{words.Linef(words.InUnreadable, failed)}
	}
	if what, ok := marked(start, startMarks); ok {
		return append(words.List{words.Fixed(what)}, raid...)
	}
	parts := mbrPartitions(start, sectors, sectorSize)
	switch {
	case len(parts)+len(raid) > 0:
		return append(parts, raid...)
	case len(start) >= 512 && string(start[510:512]) == "\x55\xaa":
		return words.List{words.Fixed(words.InBootSector)}
	case len(bytes.Trim(start, "\x00"))+len(bytes.Trim(tail, "\x00")) > 0:
		return words.List{words.Fixed(words.InUnknownData)}
	}
	return nil
}

// partitions says what partitions there are.
func partitions(t *gpt.Table) (found words.List) {
	for _, p := range t.Partitions {
		_, size := t.Bytes(p)
		found = append(found, words.Linef(words.InPartition, p.Number, p.Label, size>>20))
	}
	if len(found) == 0 {
		return words.List{words.Fixed(words.InEmptyTable)}
	}
	return found
}

// A Device is a disk, opened to be installed to.
type Device struct{ *os.File }

// Open opens a disk for itself alone: a kernel that has something on it open
// refuses. What has taken the disk's name meanwhile is refused, too.
func (l Linux) Open(d Disk) (Device, error) {
	path := d.Path
	f, err := os.OpenFile(path, os.O_RDWR|os.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return Device{}, words.Errorf(words.InOpenInUse, path, err)
	}
	if err != nil {
		return Device{}, err
	}
	// What stands in /dev may be a file that somebody's dd has left there.
	if info, err := f.Stat(); err != nil || strings.HasPrefix(path, "/dev/") && info.Mode().Type() != os.ModeDevice {
		return Device{}, errors.Join(fmt.Errorf("%s is not a block device: nothing was written", path), err, f.Close())
	}
	now, err := l.opened(f, d)
	if err = errors.Join(err, d.Same(now)); err != nil {
		return Device{}, errors.Join(err, f.Close())
	}
	return Device{f}, nil
}

// opened tells which disk was opened, by its device number: its name may be another's
// again. Of a file in its place only the size can be told.
func (l Linux) opened(f *os.File, d Disk) (Disk, error) {
	var s unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &s); err != nil {
		return d, words.Errorf(words.InOnThePath, d.Path, err)
	}
	now := d
	if s.Mode&unix.S_IFMT == unix.S_IFBLK {
		number := fmt.Sprintf("%d:%d", unix.Major(s.Rdev), unix.Minor(s.Rdev))
		var err error
		if now, err = l.describe(filepath.Join("dev/block", number)); err != nil {
			return d, words.Errorf(words.InRemoved, d.Path)
		}
		now.Sequence = sequence(f)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return d, fmt.Errorf("%s: size: %w", d.Path, err)
	}
	if now.SectorSize > 0 {
		now.Sectors = uint64(size) / uint64(now.SectorSize)
	}
	return now, nil
}

// sequence is the disk's number among all that the kernel has seen (BLKGETDISKSEQ of
// linux/fs.h); 0 where the kernel has none.
func sequence(f *os.File) (n uint64) {
	const getDiskSequence = 0x80081280
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), getDiskSequence, uintptr(unsafe.Pointer(&n))); errno != 0 {
		return 0
	}
	return n
}

// Uncached implements Target: what is cached of the disk is dropped.
func (d Device) Uncached() error {
	err := unix.IoctlSetInt(int(d.Fd()), unix.BLKFLSBUF, 0)
	if errors.Is(err, unix.ENOTTY) {
		err = unix.Fadvise(int(d.Fd()), 0, 0, unix.FADV_DONTNEED) // a file
	}
	if err != nil {
		return fmt.Errorf("drop what is cached of %s: %w", d.Name(), err)
	}
	return nil
}

// Reread makes the kernel see the new partitions: on a busy machine something may
// look at the old ones for a moment. The installation is complete without it.
func (d Device) Reread() error {
	for try := 0; ; try++ {
		err := unix.IoctlSetInt(int(d.Fd()), unix.BLKRRPART, 0)
		if !errors.Is(err, unix.EBUSY) || try == 50 {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A variable is written with its attributes before it: non-volatile, for boot
// and run time (UEFI 2.10, section 8.2).
const nonVolatile = 7

// AddBootEntry makes a boot option of the firmware and puts it first. An option
// of the same content is not made twice. Variables that cannot be read are passed
// over, and named in what it returns beside the error.
func (l Linux) AddBootEntry(option []byte) (passedOver words.List, err error) {
	directory := filepath.Join(l.Sys, "firmware/efi/efivars")
	for number := range 0x10000 {
		name := fmt.Sprintf("Boot%04X", number)
		path := filepath.Join(directory, name+"-"+globalVariables)
		have, err := readVariable(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if err := writeVariable(path, option); err != nil {
				return passedOver, fmt.Errorf("write %s: %w", name, err)
			}
		case err != nil:
			passedOver = append(passedOver, words.Linef(words.InVariableDamaged, name, err))
			continue
		case !bytes.Equal(have, option):
			continue
		}
		// Cut before this write there is an option that nothing refers to.
		note, err := l.putFirst(directory, uint16(number))
		if !note.IsZero() {
			passedOver = append(passedOver, note)
		}
		return passedOver, err
	}
	return passedOver, words.Errorf(words.InNoEntryRoom)
}

// putFirst writes the order of boot options. Where the old one cannot be read, all
// options that there are keep a place in it.
func (l Linux) putFirst(directory string, number uint16) (note words.Line, err error) {
	path := filepath.Join(directory, "BootOrder-"+globalVariables)
	order, err := readVariable(path)
	if len(order)%2 != 0 {
		err = fmt.Errorf("it has %d bytes, and each entry two", len(order))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		note = words.Linef(words.InOrderDamaged, err)
		if order, err = bootOptions(directory); err != nil {
			return note, err
		}
	}
	fresh := binary.LittleEndian.AppendUint16(nil, number)
	for at := 0; at+2 <= len(order); at += 2 {
		if n := binary.LittleEndian.Uint16(order[at:]); n != number {
			fresh = binary.LittleEndian.AppendUint16(fresh, n)
		}
	}
	if note.IsZero() && bytes.Equal(fresh, order) {
		return note, nil
	}
	if err := writeVariable(path, fresh); err != nil {
		return note, fmt.Errorf("write BootOrder: %w", err)
	}
	return note, nil
}

// bootOptions are the numbers of all options that can be read, in order.
func bootOptions(directory string) (order []byte, err error) {
	paths, err := filepath.Glob(filepath.Join(directory, "Boot[0-9A-F][0-9A-F][0-9A-F][0-9A-F]-"+globalVariables))
	if err != nil {
		return nil, fmt.Errorf("list boot options: %w", err)
	}
	for _, path := range paths {
		number, err := strconv.ParseUint(filepath.Base(path)[4:8], 16, 16)
		if _, rerr := readVariable(path); err == nil && rerr == nil {
			order = binary.LittleEndian.AppendUint16(order, uint16(number))
		}
	}
	return order, nil
}

func readVariable(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(b) < 4 {
		return nil, fmt.Errorf("%d bytes, want 4 for the attributes alone", len(b))
	}
	return b[4:], nil
}

// writeVariable makes one write call, which efivarfs turns into one call of the
// firmware.
func writeVariable(path string, content []byte) error {
	return os.WriteFile(path, append(binary.LittleEndian.AppendUint32(nil, nonVolatile), content...), 0o644)
}
