package install

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
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
	"halogenos.internal/boot/questions"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/words"
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
	s, err := FromDirectory(dir)
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
			table, err := Table(s.ESP, ids, uint64(diskSize/sector), sector, nil)
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
	table, err := Table(s.ESP, ids, diskSize/512, 512, nil)
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
	again(t, recorder, states, false, newBuild(t, nil))
}

func installed(d *blocktest.Disk, table *gpt.Table, s *Source) error {
	esp, err := layout.Content(d, table, layout.ESP)
	if err != nil {
		return err
	}
	if err := s.ESP.check(esp); err != nil {
		return err
	}
	system, err := layout.Content(d, table, layout.SlotA.System())
	if err != nil {
		return err
	}
	return checkImage(context.Background(), system, s, quiet)
}

// A disk that does not keep what it is told ends without a partition table.
func TestLyingDisk(t *testing.T) {
	dir := newBuild(t, nil)
	s, ids := open(t, dir), randomIDs(t)
	table, err := Table(s.ESP, ids, diskSize/512, 512, nil)
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
			s, err := FromDirectory(dir)
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
		{name: "mounted", change: func(d *Disk, _ *Facts) { d.Uses = words.List{words.Linef(words.InMounted, "sda1", "/mnt")} }, want: "in use: sda1 is mounted at /mnt", erase: true},
		{name: "write-protected", change: func(d *Disk, _ *Facts) { d.ReadOnly = true }, want: "write-protected"},
		// FAULTS 112 (M4)
		{name: "no disk", change: func(d *Disk, _ *Facts) { d.NotADisk = "a boot area of an eMMC" }, want: "/dev/sda is a boot area of an eMMC, which no machine starts from", erase: true},
		{name: "a member of a RAID", change: func(d *Disk, _ *Facts) { d.Uses = words.List{words.Linef(words.InHoldsOpen, "md0", "sda")} }, want: "in use: md0 holds sda open", erase: true},
		{name: "20 TB", change: func(d *Disk, _ *Facts) { d.Sectors = 20e12 / 512 }},
		{name: "20 TB, 4096", change: func(d *Disk, _ *Facts) { d.SectorSize, d.Sectors = 4096, 20e12/4096 }},
		{name: "BIOS", change: func(_ *Disk, m *Facts) { m.UEFI = false }, want: "started by a BIOS"},
		{name: "architecture", change: func(_ *Disk, m *Facts) { m.Arch = "aarch64" }, want: "the release is for x86_64, and this machine is aarch64"},
		{name: "no TPM", change: func(_ *Disk, m *Facts) { m.TPM = false }, want: "no TPM 2.0"},
		{name: "foreign system", change: func(d *Disk, _ *Facts) { d.Contents = words.List{words.Fixed(words.InMarkExt)} }, want: "all of it will be lost"},
		{name: "foreign system given up", change: func(d *Disk, _ *Facts) { d.Contents = words.List{words.Fixed(words.InMarkExt)} }, erase: true},
		{name: "no Setup Mode, and a known menu", change: func(_ *Disk, m *Facts) { m.SetupMode, m.Menu = false, words.Fixed("F2 at power-on") }},
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
			if said := strings.Contains(words.English.List(p.Next(), "\n"), "leave Secure Boot enabled. On this machine, F2 at power-on"); said != !m.Menu.IsZero() {
				t.Errorf("what comes next is %q", p.Next())
			}
		})
	}
}

// Answers that the release could not follow are refused before anything is written: nobody may be
// there to be asked in their place.
func TestPlanWithAnswers(t *testing.T) {
	s := open(t, newBuild(t, nil))
	s.ESP.Setup = []byte(`{"version": 1, "language": "fr_FR.UTF-8"}`)
	plan := func() error {
		return NewPlan(s, Disk{Path: "/dev/sda", SectorSize: 512, Sectors: 2 << 30 / 512}, Facts{Arch: "x86_64", UEFI: true, SetupMode: true, TPM: true}, randomIDs(t), Choice{}).Err(false)
	}
	if err := plan(); err != nil {
		t.Errorf("a release that does not say what it has: %v", err)
	}
	s.Choices = &questions.Choices{Languages: []string{"de_DE.UTF-8"}}
	if err := plan(); err == nil || !strings.Contains(err.Error(), "(--setup) are not for this release, and no machine of it would take them: language: the image has no fr_FR.UTF-8") {
		t.Errorf("a language that it does not have: %v", err)
	}
	s.Choices.Languages = []string{"fr_FR.UTF-8"}
	if err := plan(); err != nil {
		t.Error(err)
	}
	s.ESP.Setup = []byte(`{"version": 2}`)
	if err := plan(); err == nil || !strings.Contains(err.Error(), "has version 2") {
		t.Errorf("answers that are none: %v", err)
	}
}

// A directory in the place of /sys and /proc.
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
	if got := words.English.List(d.Uses, "; "); got != want {
		t.Errorf("uses %q, want %q", got, want)
	}
}

func TestContents(t *testing.T) {
	testkit.Need(t, "mkfs.ext4")
	testkit.Need(t, "sgdisk")
	name := filepath.Join(t.TempDir(), "disk")
	make := func(tool string, args ...string) words.List {
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
	if got := make("mkfs.ext4", "-q"); len(got) != 1 || got[0].String() != "an ext file system" {
		t.Errorf("ext4: %v", got)
	}
	if got := make("sgdisk", "--new=1:2048:4095", "--change-name=1:data"); len(got) != 1 || got[0].String() != `partition 1 "data" (1 MiB)` {
		t.Errorf("GPT: %v", got)
	}
}

// efivarfs as files: attributes and content.
func TestBootEntry(t *testing.T) {
	sys := t.TempDir()
	directory := filepath.Join(sys, "firmware/efi/efivars")
	if err := os.MkdirAll(directory, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, content ...byte) {
		if err := writeVariable(filepath.Join(directory, name+"-"+globalVariables), content); err != nil {
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
		order, err := readVariable(filepath.Join(directory, "BootOrder-"+globalVariables))
		if err != nil || !bytes.Equal(order, []byte{1, 0, 0, 0}) {
			t.Errorf("order %v, %v", order, err)
		}
		if have, err := readVariable(filepath.Join(directory, "Boot0001-"+globalVariables)); err != nil || string(have) != "option" {
			t.Errorf("option %q, %v", have, err)
		}
	}
	if entries, err := os.ReadDir(directory); err != nil || len(entries) != 3 {
		t.Errorf("%d variables, %v", len(entries), err)
	}
}

func TestTooLate(t *testing.T) {
	dir := newBuild(t, nil)
	s, ids := open(t, dir), randomIDs(t)
	table, err := Table(s.ESP, ids, diskSize/512, 512, nil)
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
		table, err := Table(source.ESP, ids, (layout.ESPSize+256*mib)/512, 512, nil)
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
	table, err := Table(s.ESP, ids, diskSize/512, 512, nil)
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
