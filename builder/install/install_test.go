package install

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/install/installtest"
)

const (
	mib      = 1 << 20
	slotSize = installtest.SlotSize
	diskSize = layout.ESPSize + 512*mib
)

func newBuild(t testing.TB, change func(*contract.Contract)) string {
	t.Helper()
	return installtest.Build(t, change)
}

func open(t testing.TB, dir string) *Source {
	t.Helper()
	s, err := FromFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func randomIDs(t testing.TB) IDs {
	t.Helper()
	ids, err := RandomIDs(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// target is a disk without a cache.
type target struct{ *blocktest.Recorder }

func (target) Uncached() error { return nil }

func quiet(string, int64, int64) {}

// fileTarget is a disk in a file.
type fileTarget struct{ *os.File }

func (fileTarget) Uncached() error { return nil }

// What is installed is judged by the tools of others. FAULTS 41
func TestInstall(t *testing.T) {
	for _, tool := range []string{"sgdisk", "fsck.vfat", "mcopy"} {
		testkit.Need(t, tool)
	}
	for _, sector := range []int{512, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			dir := newBuild(t, nil)
			s, ids := open(t, dir), randomIDs(t)
			table, err := Table(s.ESP.Release, ids, uint64(diskSize/sector), sector, nil)
			if err != nil {
				t.Fatal(err)
			}
			disk := filepath.Join(t.TempDir(), "disk")
			f, err := os.Create(disk)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(diskSize); err != nil {
				t.Fatal(err)
			}
			if err := Install(t.Context(), fileTarget{f}, table, s, ids, quiet); err != nil {
				t.Fatal(err)
			}
			if sector == 512 {
				run(t, "sgdisk", "--verify", disk)
				if out := run(t, "sgdisk", "--print", disk); !strings.Contains(out, layout.ESPLabel) || !strings.Contains(out, "system-a") {
					t.Errorf("sgdisk prints:\n%s", out)
				}
			}
			esp := filepath.Join(t.TempDir(), "esp")
			part := make([]byte, layout.ESPSize)
			if _, err := f.ReadAt(part, layout.Align); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(esp, part, 0o600); err != nil {
				t.Fatal(err)
			}
			run(t, "fsck.vfat", "-n", esp)
			got := filepath.Join(t.TempDir(), "uki")
			run(t, "mcopy", "-i", esp, "::EFI/Linux/test_7.efi", got)
			want, err := os.ReadFile(filepath.Join(dir, release.UKIFile))
			if err != nil {
				t.Fatal(err)
			}
			if have, err := os.ReadFile(got); err != nil || !bytes.Equal(have, want) {
				t.Errorf("the UKI on the ESP is another (%v)", err)
			}
		})
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// Cut anywhere, the disk has no partition table or it holds all of the
// installation; and installing again succeeds. What it held before never comes
// back. FAULTS 42
func TestCut(t *testing.T) {
	dir := newBuild(t, nil)
	s, ids := open(t, dir), randomIDs(t)
	table, err := Table(s.ESP.Release, ids, diskSize/512, 512, nil)
	if err != nil {
		t.Fatal(err)
	}
	base := blocktest.New(diskSize, blocktest.Zero)
	old := &gpt.Table{Disk: randomIDs(t).Disk, SectorSize: 512, Sectors: diskSize / 512, Partitions: []gpt.Partition{{
		Number: 1, Type: layout.TypeESP, UUID: ids.ESP, Label: "old", First: 2048, Last: 4095,
	}}}
	if err := old.Write(base); err != nil {
		t.Fatal(err)
	}
	recorder := blocktest.Record(base)
	if err := Install(t.Context(), target{recorder}, table, s, ids, quiet); err != nil {
		t.Fatal(err)
	}
	whole := 0
	states, err := recorder.Cuts(blocktest.Options{}, func(c blocktest.Cut) error {
		have, _, err := gpt.Read(c.Disk, diskSize/512, 512)
		if err != nil {
			return nil // nothing starts it
		}
		if have.Partitions[0].Label == "old" {
			return nil // nothing was written yet, or the erasing of one copy was cut
		}
		whole++
		return installed(c.Disk, have, s)
	})
	if err != nil {
		t.Error(err)
	}
	if whole == 0 {
		t.Error("no state is a whole installation")
	}
	t.Logf("%d states, %d of them whole", states, whole)
	again(t, recorder, states, false)
}

func installed(d *blocktest.Disk, table *gpt.Table, s *Source) error {
	esp, err := section(d, table, layout.ESPNumber)
	if err != nil {
		return err
	}
	if err := s.ESP.check(esp); err != nil {
		return err
	}
	system, err := section(d, table, layout.SlotA.SystemNumber())
	if err != nil {
		return err
	}
	return checkImage(context.Background(), system, s, quiet)
}

// A disk that does not keep what it is told ends without a partition table.
func TestLyingDisk(t *testing.T) {
	dir := newBuild(t, nil)
	s, ids := open(t, dir), randomIDs(t)
	table, err := Table(s.ESP.Release, ids, diskSize/512, 512, nil)
	if err != nil {
		t.Fatal(err)
	}
	recorder := blocktest.Record(blocktest.New(diskSize, blocktest.Zero))
	lying := &forgetful{target{recorder}, layout.Align + layout.ESPSize + mib}
	if err := Install(t.Context(), lying, table, s, ids, quiet); err == nil || !strings.Contains(err.Error(), "failing") {
		t.Errorf("error %v", err)
	}
	if _, _, err := gpt.Read(recorder, diskSize/512, 512); err == nil {
		t.Error("the disk has a partition table")
	}
}

// forgetful loses the write of the byte at an offset.
type forgetful struct {
	target
	at int64
}

func (f *forgetful) WriteAt(p []byte, off int64) (int, error) {
	if off <= f.at && f.at < off+int64(len(p)) {
		p = bytes.Clone(p)
		p[f.at-off] ^= 1
	}
	return f.target.WriteAt(p, off)
}

func TestSourceRefuses(t *testing.T) {
	for _, c := range []struct {
		name, file string
		at         int64
		want       string
	}{
		{"system image", release.ImageFile, 5000, "system.erofs is not the one"},
		{"UKI", release.UKIFile, 600, "uki.efi is not the one"},
		{"boot manager", release.BootManagerFile, 600, "bootx64.efi is not the one"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := newBuild(t, nil)
			flip(t, filepath.Join(dir, c.file), c.at)
			s, err := FromFolder(dir)
			if err == nil {
				defer s.Close()
				_, err = io.Copy(io.Discard, s.Image)
				err = errors.Join(err, s.Finish())
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func flip(t testing.TB, name string, at int64) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 1
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestPlan(t *testing.T) {
	good := Disk{Path: "/dev/sda", Serial: "S1", SectorSize: 512, Sectors: 2 << 30 / 512}
	machine := Facts{Arch: "x86_64", UEFI: true, SetupMode: true, TPM: true}
	for _, c := range []struct {
		name   string
		change func(d *Disk, m *Facts)
		want   string // of the refusal; empty for none
		erase  bool   // was consented to
	}{
		{name: "good"},
		{name: "too small for the image", change: func(d *Disk, _ *Facts) { d.Sectors = 100 << 20 / 512 }, want: "too small"},
		{name: "too small for two slots", change: func(d *Disk, _ *Facts) { d.Sectors = 520 << 20 / 512 }, want: "too small: it has 520 MiB, and this release needs"},
		{name: "odd sectors", change: func(d *Disk, _ *Facts) { d.SectorSize = 2048 }, want: "only 512 and 4096"},
		{name: "mounted", change: func(d *Disk, _ *Facts) { d.Uses = []string{"sda1 is mounted at /mnt"} }, want: "in use: sda1 is mounted at /mnt", erase: true},
		{name: "write-protected", change: func(d *Disk, _ *Facts) { d.ReadOnly = true }, want: "write-protected"},
		// FAULTS 112 (M4)
		{name: "no disk", change: func(d *Disk, _ *Facts) { d.NotADisk = "a boot area of an eMMC" }, want: "/dev/sda is a boot area of an eMMC, which no machine starts from", erase: true},
		{name: "a member of a RAID", change: func(d *Disk, _ *Facts) { d.Uses = []string{"md0 holds sda open"} }, want: "in use: md0 holds sda open", erase: true},
		{name: "20 TB", change: func(d *Disk, _ *Facts) { d.Sectors = 20e12 / 512 }},
		{name: "20 TB, 4096", change: func(d *Disk, _ *Facts) { d.SectorSize, d.Sectors = 4096, 20e12/4096 }},
		{name: "BIOS", change: func(_ *Disk, m *Facts) { m.UEFI = false }, want: "started by a BIOS"},
		{name: "architecture", change: func(_ *Disk, m *Facts) { m.Arch = "aarch64" }, want: "the release is for x86_64, and this machine is aarch64"},
		{name: "no TPM", change: func(_ *Disk, m *Facts) { m.TPM = false }, want: "no TPM 2.0"},
		{name: "foreign system", change: func(d *Disk, _ *Facts) { d.Contents = []string{"an ext file system"} }, want: "all of it will be lost"},
		{name: "foreign system given up", change: func(d *Disk, _ *Facts) { d.Contents = []string{"an ext file system"} }, erase: true},
		{name: "no Setup Mode", change: func(_ *Disk, m *Facts) { m.SetupMode = false }},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, m := good, machine
			if c.change != nil {
				c.change(&d, &m)
			}
			p := NewPlan(open(t, newBuild(t, nil)), d, m, randomIDs(t), Choice{})
			err := p.Err(c.erase)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("refused with %v, want %q", err, c.want)
			}
		})
	}
}

// A folder in the place of /sys and /proc.
func TestUses(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{
		"sys/block/sda/size": "8192", "sys/block/sda/queue/logical_block_size": "512", "sys/block/sda/dev": "8:0",
		"sys/block/sda/device/model": "Disk ", "sys/block/sda/device/serial": "X1",
		"sys/block/sda/sda1/dev": "8:1", "sys/block/sda/sda1/partition": "1", "sys/block/sda/sda2/dev": "8:2", "sys/block/sda/sda3/dev": "8:3",
		"sys/block/sda/sda2/holders/dm-0/x": "", "sys/block/loop0/size": "8",
		"proc/self/mountinfo": "22 1 8:1 / /boot rw - ext4 /dev/sda1 rw\n23 1 9:1 / /home rw - ext4 /dev/x rw\n",
		"proc/swaps":          "Filename Type\n" + root + "/dev/sda3 partition\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	disks, err := Linux{filepath.Join(root, "sys"), filepath.Join(root, "dev"), filepath.Join(root, "proc")}.Disks()
	if err != nil || len(disks) != 1 {
		t.Fatalf("disks %v, %v", disks, err)
	}
	d := disks[0]
	if d.Size() != 4*mib || d.Model != "Disk" || d.Serial != "X1" {
		t.Errorf("disk %+v", d)
	}
	want := "dm-0 holds sda2 open; sda1 is mounted at /boot; sda3 is swapped to"
	if got := strings.Join(d.Uses, "; "); got != want {
		t.Errorf("uses %q, want %q", got, want)
	}
}

func TestContents(t *testing.T) {
	testkit.Need(t, "mkfs.ext4")
	testkit.Need(t, "sgdisk")
	name := filepath.Join(t.TempDir(), "disk")
	make := func(tool string, args ...string) []string {
		if err := errors.Join(os.RemoveAll(name), os.WriteFile(name, nil, 0o600), os.Truncate(name, 8*mib)); err != nil {
			t.Fatal(err)
		}
		if tool != "" {
			run(t, tool, append(args, name)...)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return Contents(f, 8*mib/512, 512)
	}
	if got := make(""); len(got) != 0 {
		t.Errorf("an empty disk holds %v", got)
	}
	if got := make("mkfs.ext4", "-q"); len(got) != 1 || got[0] != "an ext file system" {
		t.Errorf("ext4: %v", got)
	}
	if got := make("sgdisk", "--new=1:2048:4095", "--change-name=1:data"); len(got) != 1 || got[0] != `partition 1 "data" (1 MiB)` {
		t.Errorf("GPT: %v", got)
	}
}

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
		if got := Contents(bytes.NewReader(disk), 8*mib/512, 512); len(got) != 1 || got[0] != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	f, err := os.CreateTemp("/dev/shm", "sda")
	if err != nil {
		t.Skipf("no file can be made below /dev: %v", err)
	}
	defer f.Close()
	defer os.Remove(f.Name())
	if d, err := Open(f.Name()); err == nil || !strings.Contains(err.Error(), "not a block device") {
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
		got := strings.Join(Contents(disk, 8*mib/uint64(other), other), "; ")
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
	disks, err := l.Disks()
	var names []string
	for _, d := range disks {
		names = append(names, filepath.Base(d.Path))
	}
	if want := "mmcblk0 nvme0n1 sda"; err != nil || strings.Join(names, " ") != want {
		t.Errorf("offered %q, %v; want %s", names, err, want)
	}
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
			table, err := Table(s.ESP.Release, randomIDs(t), sectors, size, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := layout.NewPlan(table, s.Contract.SlotSize, rand.Reader); (err == nil) != fits {
				t.Errorf("%d sectors of %d bytes: the first boot says %v", sectors, size, err)
			}
		}
		need := tooSmall(Disk{SectorSize: size, Sectors: high - 1}, s.Contract.SlotSize, nil)
		if least := int64(high) * int64(size); !strings.Contains(need, fmt.Sprintf("needs %d MiB", (least+mib-1)/mib)) {
			t.Errorf("the least disk has %d bytes, and it says: %s", least, need)
		}
	}
}

// efivarfs as files: attributes and content.
func TestBootEntry(t *testing.T) {
	sys := t.TempDir()
	folder := filepath.Join(sys, "firmware/efi/efivars")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, content ...byte) {
		if err := writeVariable(filepath.Join(folder, name+"-"+globalVariables), content); err != nil {
			t.Fatal(err)
		}
	}
	write("Boot0000", 1, 2, 3)
	write("BootOrder", 0, 0)
	l := Linux{Sys: sys}
	for range 2 {
		if notes, err := l.AddBootEntry([]byte("option")); err != nil || len(notes) != 0 {
			t.Fatal(notes, err)
		}
		order, err := readVariable(filepath.Join(folder, "BootOrder-"+globalVariables))
		if err != nil || !bytes.Equal(order, []byte{1, 0, 0, 0}) {
			t.Errorf("order %v, %v", order, err)
		}
		if have, err := readVariable(filepath.Join(folder, "Boot0001-"+globalVariables)); err != nil || string(have) != "option" {
			t.Errorf("option %q, %v", have, err)
		}
	}
	if entries, err := os.ReadDir(folder); err != nil || len(entries) != 3 {
		t.Errorf("%d variables, %v", len(entries), err)
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
			folder := filepath.Join(sys, "firmware/efi/efivars")
			for variable, content := range c.vars {
				path := filepath.Join(folder, variable+"-"+globalVariables)
				err := os.MkdirAll(folder, 0o755)
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
				if !strings.Contains(notes[i], want) {
					t.Errorf("said %q, want %q", notes[i], want)
				}
			}
			order, err := readVariable(filepath.Join(folder, "BootOrder-"+globalVariables))
			if err != nil || !bytes.Equal(order, c.order) {
				t.Errorf("order %v, %v; want %v", order, err, c.order)
			}
			if have, err := readVariable(filepath.Join(folder, c.number+"-"+globalVariables)); err != nil || string(have) != "option" {
				t.Errorf("%s is %q, %v", c.number, have, err)
			}
		})
	}
}

func TestTooLate(t *testing.T) {
	dir := newBuild(t, nil)
	s, ids := open(t, dir), randomIDs(t)
	table, err := Table(s.ESP.Release, ids, diskSize/512, 512, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	<-ctx.Done()
	recorder := blocktest.Record(blocktest.New(diskSize, blocktest.Zero))
	if err := Install(ctx, target{recorder}, table, s, ids, quiet); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

// zeros is an image of so many bytes that nobody keeps in memory.
func zeros(t *testing.T, s *Source, size int64) *Source {
	t.Helper()
	h := sha256.New()
	if _, err := io.CopyN(h, zeroReader{}, size); err != nil {
		t.Fatal(err)
	}
	r := *s.ESP.Release
	r.ImageSize, r.SlotSize = size, size
	r.Files = slices.Clone(r.Files)
	i := slices.IndexFunc(r.Files, func(f release.File) bool { return f.Name == release.ImageFile })
	r.Files[i].Size, r.Files[i].SHA256 = size, h.Sum(nil)
	esp := s.ESP
	esp.Release = &r
	return &Source{ESP: esp, Contract: s.Contract, Image: zeroReader{}, finish: func() error { return nil }, close: func() error { return nil }}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// hole is a disk that keeps what is not zero.
type hole struct{ *blocktest.Disk }

func (hole) Uncached() error { return nil }

func (h hole) WriteAt(p []byte, off int64) (int, error) {
	if block.IsZero(p) {
		return len(p), nil
	}
	return h.Disk.WriteAt(p, off)
}

// What an installation needs of memory does not grow with the image.
func TestBoundedMemory(t *testing.T) {
	s, ids := open(t, newBuild(t, nil)), randomIDs(t)
	used := func(size int64) uint64 {
		source := zeros(t, s, size)
		table, err := Table(source.ESP.Release, ids, (layout.ESPSize+256*mib)/512, 512, nil)
		if err != nil {
			t.Fatal(err)
		}
		d := hole{blocktest.New(layout.ESPSize+256*mib, blocktest.Zero)}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := Install(t.Context(), d, table, source, ids, quiet); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	small, large := used(4*mib), used(200*mib)
	t.Logf("allocates %d KiB for an image of 4 MiB, %d KiB for one of 200 MiB", small>>10, large>>10)
	if large > small+4*mib {
		t.Errorf("an image of 200 MiB takes %d bytes of memory, one of 4 MiB %d", large, small)
	}
}

// A partition table that the disk loses is found out.
func TestLostTable(t *testing.T) {
	s, ids := open(t, newBuild(t, nil)), randomIDs(t)
	table, err := Table(s.ESP.Release, ids, diskSize/512, 512, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{512 + 56, 1024 + 56, diskSize - 512 + 56} { // header, entries, alternate header
		recorder := blocktest.Record(blocktest.New(diskSize, blocktest.Zero))
		err := Install(t.Context(), &forgetful{target{recorder}, at}, table, s, ids, quiet)
		if err == nil || !strings.Contains(err.Error(), "read the partition table back") {
			t.Errorf("byte %d: error %v", at, err)
		}
		s = open(t, newBuild(t, nil))
	}
}
