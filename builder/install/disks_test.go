package install

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/words"
)

// FAULTS 112 (M4): what a disk is part of is said, and no file is taken for a disk.
func TestContentsOfMembers(t *testing.T) {
	uuid := "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81" // of bcache
	for want, c := range map[string]struct {
		at    int64
		magic string
	}{"a member of a RAID (md)": {4096, "\xfc\x4e\x2b\xa9"}, "a member of a cache (bcache)": {4096 + 24, uuid}, "a volume of BitLocker's": {3, "-FVE-FS-"}} {
		disk := make([]byte, 8*mib)
		copy(disk[510:], "\x55\xaa")
		copy(disk[c.at:], c.magic)
		if got := Contents(bytes.NewReader(disk), 8*mib/512, 512); len(got) != 1 || got[0].String() != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	f, err := os.CreateTemp("/dev/shm", "sda")
	if err != nil {
		t.Skipf("no file can be made below /dev: %v", err)
	}
	defer f.Close()
	defer os.Remove(f.Name())
	if d, err := Running().Open(Disk{Path: f.Name()}); err == nil || !strings.Contains(err.Error(), "not a block device") {
		t.Errorf("a file was opened for a disk: %v, %v", d, err)
	}
}

// FAULTS 112 (M6): a table that was made at another adapter is said to be one.
func TestContentsOfOtherSectors(t *testing.T) {
	for _, size := range []int{512, 4096} {
		disk := make(memory, 8*mib)
		made := &gpt.Table{Disk: gpt.GUID{1}, SectorSize: size, Sectors: 8 * mib / uint64(size), Partitions: []gpt.Partition{{
			Number: 1, Type: gpt.GUID{2}, UUID: gpt.GUID{3}, First: mib / uint64(size), Last: 2*mib/uint64(size) - 1, Label: "data",
		}}}
		if err := made.Write(disk); err != nil {
			t.Fatal(err)
		}
		other := 512 + 4096 - size
		got := words.English.List(Contents(disk, 8*mib/uint64(other), other), "; ")
		if want := fmt.Sprintf("a partition table for sectors of %d bytes, and the disk shows sectors of %d (it was partitioned at another adapter); partition 1 \"data\" (1 MiB)", size, other); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}

// memory is a disk.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error)  { return bytes.NewReader(m).ReadAt(p, off) }
func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }
func (m memory) Sync() error                              { return nil }
func (m memory) Size() int64                              { return int64(len(m)) }

// FAULTS 112 (M3, M4): what the installer offers. Places as kernels give them.
func TestDisksOffered(t *testing.T) {
	root := t.TempDir()
	sys := filepath.Join(root, "sys")
	add := func(place string, attributes map[string]string) {
		t.Helper()
		attributes["queue/logical_block_size"] = "512"
		for name, content := range attributes {
			path := filepath.Join(sys, place, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content+"\n"), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(os.MkdirAll(filepath.Join(sys, "block"), 0o755), os.Symlink("../"+place, filepath.Join(sys, "block", filepath.Base(place)))); err != nil {
			t.Fatal(err)
		}
	}
	const mmc, nvme = "devices/platform/80860F14:00/mmc_host/mmc0/mmc0:0001/block/mmcblk0", "devices/pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0"
	big := map[string]string{"size": "64000000"}
	for _, place := range []string{
		mmc, "devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1", "devices/pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0/block/sda",
		mmc + "/mmcblk0boot0", mmc + "/mmcblk0boot1", "devices/virtual/block/zd0", "devices/virtual/block/md127", "devices/virtual/block/bcache0", "devices/virtual/block/loop0",
		"devices/platform/flash/mtd/mtd0/mtdblock0", "devices/pci0000:00/0000:00:17.0/ata2/host1/target1:0:0/1:0:0:0/block/sr0",
	} {
		add(place, maps.Clone(big))
	}
	add(nvme+"/nvme0c0n1", map[string]string{"size": "64000000", "hidden": "1"})
	add("devices/pci0000:00/0000:00:14.0/usb1/1-3/1-3:1.0/host3/target3:0:0/3:0:0:0/block/sdb", map[string]string{"size": "0", "removable": "1"}) // a card reader
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "proc/self"), 0o755), os.WriteFile(filepath.Join(root, "proc/self/mountinfo"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	l := Linux{sys, "/nowhere", filepath.Join(root, "proc")}
	for path, say := range map[string]string{filepath.Join(root, "proc/self/mountinfo"): "not a disk but a file: name a whole disk", root: "not a disk but a directory"} {
		if _, err := l.Disk(path); err == nil || !strings.Contains(err.Error(), say) || strings.Contains(err.Error(), "strconv") {
			t.Errorf("%s: %v", path, err)
		}
	}
	disks, err := l.Disks()
	var names []string
	for _, d := range disks {
		names = append(names, filepath.Base(d.Path))
	}
	if want := "mmcblk0 nvme0n1 sda"; err != nil || strings.Join(names, " ") != want {
		t.Errorf("offered %q, %v; want %s", names, err, want)
	}
}

// What is shown is of one disk, though another takes its name while it is looked at.
func TestDiskReplacedWhileRead(t *testing.T) {
	for _, c := range []struct {
		name    string
		changes []string // what is sda by the time that its directory in sysfs was read, each time
		numbers bool     // the kernel has them (5.15)
		want    string   // model, serial number, number and contents; or of the error
	}{
		{"the same", []string{"A", "A"}, true, "A AAAA 11 an encrypted volume"},
		{"replaced", []string{"B", "B", "B"}, true, "B BBBB 12 an XFS file system"},
		{"replaced, without numbers", []string{"B", "B", "B"}, false, "B BBBB 0 an XFS file system"},
		{"removed", []string{""}, true, "sda was removed or replaced"},
		{"removed, without numbers", []string{""}, false, "sda was removed or replaced"},
		{"removed later", []string{"B", ""}, true, "sda was removed or replaced"},
		{"replaced again", []string{"B", "A", "A"}, true, "sda was removed or replaced"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newSticks(t, c.numbers)
			served := make(chan error, 1)
			go func() { served <- m.serve(c.changes) }()
			d, err := m.Disk(m.dev)
			have := fmt.Sprint(err)
			if err == nil {
				have = fmt.Sprintf("%s %s %d %s", d.Model, d.Serial, d.Sequence, d.Contents.String())
			}
			if have != c.want && (err == nil || !strings.Contains(have, c.want)) {
				t.Fatalf("shown %q, want %q", have, c.want)
			}
			select {
			case err := <-served:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(10 * time.Second):
				t.Error("it was not looked at again")
			}
		})
	}
}

// sticks is a machine with one of two sticks.
type sticks struct {
	Linux
	directory, dev, last string // sda's directory in sysfs, its device, and what is read last of the directory
	numbers              bool
}

func newSticks(t *testing.T, numbers bool) sticks {
	root := t.TempDir()
	m := sticks{Linux: Linux{filepath.Join(root, "sys"), filepath.Join(root, "dev"), filepath.Join(root, "proc")}, numbers: numbers}
	m.directory, m.dev = filepath.Join(m.Sys, "block/sda"), filepath.Join(m.Dev, "sda")
	m.last = filepath.Join(m.directory, "removable")
	if err := errors.Join(
		os.MkdirAll(filepath.Join(m.directory, "queue"), 0o755), os.MkdirAll(filepath.Join(m.directory, "device"), 0o755), os.Mkdir(m.Dev, 0o755),
		os.MkdirAll(filepath.Join(m.Proc, "self"), 0o755), os.WriteFile(filepath.Join(m.Proc, "self/mountinfo"), nil, 0o644),
		m.plug("A"), unix.Mkfifo(m.last, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	return m
}

// plug makes sda another stick of the same size; none by an empty name.
func (m sticks) plug(model string) error {
	if model == "" {
		return errors.Join(os.RemoveAll(m.directory), os.Remove(m.dev))
	}
	start := map[string]string{"A": "LUKS\xba\xbe", "B": "XFSB"}[model]
	err := errors.Join(os.WriteFile(m.dev, []byte(start), 0o600), os.Truncate(m.dev, 8*mib))
	for name, content := range map[string]string{
		"size": "16384", "queue/logical_block_size": "512", "device/model": model, "serial": strings.Repeat(model, 4), "diskseq": fmt.Sprint(11 + model[0] - 'A'),
	} {
		if name != "diskseq" || m.numbers {
			err = errors.Join(err, os.WriteFile(filepath.Join(m.directory, name), []byte(content+"\n"), 0o644))
		}
	}
	return err
}

// serve changes sticks each time that the last of the directory is about to be read.
func (m sticks) serve(changes []string) error {
	for _, model := range changes {
		f, err := os.OpenFile(m.last, os.O_WRONLY, 0) // waits for the reader
		if err != nil {
			return err
		}
		err = m.plug(model)
		if model != "" { // a pipe of its own for the next reader
			err = errors.Join(err, os.Remove(m.last), unix.Mkfifo(m.last, 0o600))
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// FAULTS 112: exactly the least size, and one sector less, at both sector sizes.
func TestLeastSize(t *testing.T) {
	s := open(t, newBuild(t, nil))
	plan := func(sectors uint64, size int) error {
		d := Disk{Path: "/dev/sda", Serial: "S1", SectorSize: size, Sectors: sectors}
		return NewPlan(s, d, Facts{Arch: "x86_64", UEFI: true, SetupMode: true, TPM: true}, randomIDs(t), Choice{}).Err(false)
	}
	for _, size := range []int{512, 4096} {
		low, high := uint64(0), uint64(64<<30/size)
		for high-low > 1 {
			if middle := (low + high) / 2; plan(middle, size) == nil {
				high = middle
			} else {
				low = middle
			}
		}
		// The first boot judges by the same rule: what is taken has room for all, and
		// what is refused has not.
		for sectors, fits := range map[uint64]bool{high: true, high - 1: false} {
			table, err := Table(s.ESP, randomIDs(t), sectors, size, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := layout.NewPlan(table, s.Contract.SlotSize, rand.Reader); (err == nil) != fits {
				t.Errorf("%d sectors of %d bytes: the first boot says %v", sectors, size, err)
			}
		}
		need := tooSmall(Disk{SectorSize: size, Sectors: high - 1}, layout.ESPSize, s.Contract.SlotSize, nil)
		if least := int64(high) * int64(size); !strings.Contains(need.String(), fmt.Sprintf("needs %d MiB", (least+mib-1)/mib)) {
			t.Errorf("the least disk has %d bytes, and it says: %s", least, need)
		}
	}
}

// FAULTS 112 (M5): what is empty or unreadable among the firmware's options is passed
// over and said. A directory stands for a variable that gives EIO.
func TestBootEntryBroken(t *testing.T) {
	const empty, short, unreadable = "empty", "short", "unreadable"
	for name, c := range map[string]struct {
		vars   map[string]string // content, or how it is broken
		order  []byte
		number string
		notes  []string
	}{
		"an empty option":       {map[string]string{"Boot0000": empty, "Boot0001": "x", "BootOrder": "\x01\x00\x00\x00"}, []byte{2, 0, 1, 0, 0, 0}, "Boot0002", []string{"Boot0000 of the firmware's"}},
		"unreadable options":    {map[string]string{"Boot0000": unreadable, "Boot0001": short, "BootOrder": ""}, []byte{2, 0}, "Boot0002", []string{"Boot0000", "Boot0001"}},
		"an empty order":        {map[string]string{"Boot0000": "x", "Boot000A": "y", "BootOrder": empty}, []byte{1, 0, 0, 0, 10, 0}, "Boot0001", []string{"BootOrder is damaged"}},
		"an odd order":          {map[string]string{"Boot0000": "x", "BootOrder": "\x00\x00\x05"}, []byte{1, 0, 0, 0}, "Boot0001", []string{"BootOrder is damaged, and is made again from its boot options: it has 3 bytes"}},
		"no order":              {map[string]string{"Boot0000": "x"}, []byte{1, 0}, "Boot0001", nil},
		"it is there, no order": {map[string]string{"Boot0000": unreadable, "Boot0001": "option", "BootOrder": short}, []byte{1, 0}, "Boot0001", []string{"Boot0000", "BootOrder"}},
	} {
		t.Run(name, func(t *testing.T) {
			sys := t.TempDir()
			directory := filepath.Join(sys, "firmware/efi/efivars")
			for variable, content := range c.vars {
				path := filepath.Join(directory, variable+"-"+globalVariables)
				err := os.MkdirAll(directory, 0o755)
				switch {
				case content == unreadable:
					err = errors.Join(err, os.Mkdir(path, 0o755))
				case content == empty:
					err = errors.Join(err, os.WriteFile(path, nil, 0o644))
				case content == short:
					err = errors.Join(err, os.WriteFile(path, []byte{7, 0}, 0o644))
				default:
					err = errors.Join(err, writeVariable(path, []byte(content)))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			notes, err := Linux{Sys: sys}.AddBootEntry([]byte("option"))
			if err != nil || len(notes) != len(c.notes) {
				t.Fatalf("said %q, %v", notes, err)
			}
			for i, want := range c.notes {
				if !strings.Contains(notes[i].String(), want) {
					t.Errorf("said %q, want %q", notes[i], want)
				}
			}
			order, err := readVariable(filepath.Join(directory, "BootOrder-"+globalVariables))
			if err != nil || !bytes.Equal(order, c.order) {
				t.Errorf("order %v, %v; want %v", order, err, c.order)
			}
			if have, err := readVariable(filepath.Join(directory, c.number+"-"+globalVariables)); err != nil || string(have) != "option" {
				t.Errorf("%s is %q, %v", c.number, have, err)
			}
		})
	}
}
