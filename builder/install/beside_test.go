package install

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/words"
)

// windowsSize is the size of a disk with Windows on it and free space, in bytes.
const windowsSize = 3 << 30

// windowsTable is how Windows's installer partitions a disk, with its data partition made
// smaller afterwards: the free space lies between that and the recovery partition.
func windowsTable() *gpt.Table {
	t := &gpt.Table{Disk: gpt.GUID{9}, SectorSize: 512, Sectors: windowsSize / 512}
	for i, p := range []struct {
		kind       gpt.GUID
		first, mib uint64
		label      string
	}{
		{layout.TypeESP, 1, 64, "EFI system partition"}, {typeReserved, 65, 16, "Microsoft reserved partition"},
		{typeBasic, 81, 64, "Basic data partition"}, {gpt.MustGUID("de94bba4-06d1-4d40-a16a-bfd50179d6ac"), windowsSize>>20 - 100, 64, "Basic data partition"},
	} {
		t.Partitions = append(t.Partitions, gpt.Partition{Number: i + 1, Type: p.kind, UUID: gpt.GUID{byte(i + 1)}, Attributes: uint64(i) << 60,
			First: p.first << 11, Last: (p.first+p.mib)<<11 - 1, Label: p.label})
	}
	return t
}

// fillWindows writes that table and what Windows and another system have in their
// partitions; what nobody uses of the first 145 MiB is not zero either.
func fillWindows(t testing.TB, d interface {
	io.WriterAt
	io.ReaderAt
	Sync() error
}) *gpt.Table {
	t.Helper()
	table := windowsTable()
	noise := bytes.Repeat([]byte("somebody else's"), 1<<20/15)
	for _, at := range []int64{100 << 10, 65 << 20, 81 << 20, 144 << 20, windowsSize - 101<<20, windowsSize - 100<<20, windowsSize - 37<<20, windowsSize - 30<<20} {
		if _, err := d.WriteAt(noise, at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.WriteAt([]byte("\xeb\x58\x90-FVE-FS-"), 81<<20); err != nil {
		t.Fatal(err)
	}
	var list []fat.File
	for _, name := range []string{windowsManager, "EFI/Microsoft/Boot/BCD", "EFI/debian/shimx64.efi", "EFI/BOOT/BOOTX64.EFI", "EFI/Linux/arch.efi", "EFI/tools/readme.txt"} {
		list = append(list, fat.File{Path: name, Size: 4, Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("loader")), nil }})
	}
	for i := range list {
		list[i].Size = 6
	}
	if err := errors.Join(fat.Format(io.NewOffsetWriter(d, 1<<20), 64<<20, fat.Options{SectorSize: 512, VolumeID: 1, Label: "SYSTEM"}, list), table.Write(d)); err != nil {
		t.Fatal(err)
	}
	return table
}

// windowsDisk is that disk as an installation finds it.
func windowsDisk(t testing.TB, r io.ReaderAt) Disk {
	t.Helper()
	return LookAt(r, Disk{Path: "/dev/sda", Serial: "W1", SectorSize: 512, Sectors: windowsSize / 512})
}

// fenced refuses what is written outside the free space, but for the tables' own sectors.
type fenced struct {
	Target
	free gpt.Extent
}

func (f fenced) WriteAt(p []byte, at int64) (int, error) {
	end := at + int64(len(p))
	inside := func(first, last uint64) bool { return at >= int64(first)*512 && end <= int64(last+1)*512 }
	const sectors = windowsSize / 512
	if !inside(f.free.First, f.free.Last) && !inside(0, 33) && !inside(sectors-33, sectors-1) {
		return 0, fmt.Errorf("bytes %d to %d are somebody else's", at, end)
	}
	return f.Target.WriteAt(p, at)
}

// Beside Windows: its partitions and everything else outside the free space stay as they
// are, and other tools read the table. Every partition of ours lies in the free space, also
// those that the first boot makes.
func TestInstallBeside(t *testing.T) {
	testkit.Need(t, "sgdisk")
	s := open(t, newBuild(t, nil))
	name := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(windowsSize); err != nil {
		t.Fatal(err)
	}
	before := fillWindows(t, f)
	free := gpt.Extent{First: 145 << 11, Last: before.Partitions[3].First - 1}
	outside := func() (all []byte) {
		for _, piece := range [][2]int64{{34 * 512, int64(free.First) * 512}, {int64(free.Last+1) * 512, windowsSize - 33*512}} {
			content := make([]byte, piece[1]-piece[0])
			if _, err := f.ReadAt(content, piece[0]); err != nil {
				t.Fatal(err)
			}
			all = append(all, content...)
		}
		return all
	}
	old := outside()
	ids := randomIDs(t)
	p := NewPlan(s, windowsDisk(t, f), Facts{Arch: "x86_64", UEFI: true, TPM: true, SetupMode: true}, ids, Choice{FreeSpace: true})
	if err := p.Err(false); err != nil {
		t.Fatal(err)
	}
	if err := p.Install(t.Context(), fenced{fileTarget{f}, free}, s, quiet); err != nil {
		t.Fatal(err)
	}
	out := run(t, "sgdisk", "--verify", name) + run(t, "sgdisk", "--print", name) + run(t, "sgdisk", "--info=6", name)
	for _, want := range []string{"No problems found", "EFI system partition", "Microsoft reserved", "5 ", "EF00  esp", "8304  system-a", "Attribute flags: 8000000000000000"} {
		if !strings.Contains(out, want) {
			t.Errorf("sgdisk says nothing of %q:\n%s", want, out)
		}
	}
	if !bytes.Equal(old, outside()) {
		t.Error("something changed outside the free space")
	}
	table, health, err := gpt.Read(f, windowsSize/512, 512)
	if err != nil || !health.OK() || !slices.Equal(table.Partitions[:4], before.Partitions) || table.Disk != before.Disk {
		t.Fatalf("the table is %+v, %v, %v", table, health, err)
	}
	full, err := layout.NewPlan(table, slotSize, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range full.Table.Partitions[4:] {
		if part.First < free.First || part.Last > free.Last {
			t.Errorf("the first boot makes %+v outside the free space", part)
		}
	}
	if len(full.Table.Partitions) != 10 {
		t.Errorf("the disk will have %d partitions", len(full.Table.Partitions))
	}
	if esp, err := layout.FindESP(table, ids.ESP); err != nil || esp.Number != 5 {
		t.Errorf("the ESP is %+v, %v", esp, err)
	}
	again := NewPlan(s, windowsDisk(t, f), Facts{}, randomIDs(t), Choice{FreeSpace: true, OtherMachine: true})
	if err := again.Err(true); err == nil || !strings.Contains(err.Error(), `partition 6 is labelled "system-a"`) {
		t.Errorf("a second one on the disk: %v", err)
	}
}

// Cut at any write, the disk has the old table or the new one, whole, and then the system;
// what was there is not touched in any of them.
func TestBesideCut(t *testing.T) {
	s := open(t, newBuild(t, nil))
	base := blocktest.New(windowsSize, blocktest.Zero)
	before := fillWindows(t, base)
	p := NewPlan(s, windowsDisk(t, base), Facts{}, randomIDs(t), Choice{FreeSpace: true, OtherMachine: true, LetOthersStart: true})
	if err := p.Err(false); err != nil {
		t.Fatal(err)
	}
	wish, err := secureboot.EncodeOthers(nil)
	if err != nil {
		t.Fatal(err)
	}
	with := s.ESP
	with.Others = wish
	recorder := blocktest.Record(base)
	free := gpt.Extent{First: 145 << 11, Last: before.Partitions[3].First - 1}
	if err := p.Install(t.Context(), fenced{target{recorder}, free}, s, quiet); err != nil {
		t.Fatal(err)
	}
	old, whole := 0, 0
	states, err := recorder.Cuts(blocktest.Options{}, func(c blocktest.Cut) error {
		have, _, err := gpt.Read(c.Disk, windowsSize/512, 512)
		switch {
		case err != nil:
			return err
		case have.Disk != before.Disk:
			return errors.New("the disk has another GUID")
		case slices.Equal(have.Partitions, before.Partitions):
			old++
			return nil
		case !slices.Equal(have.Partitions, p.Table.Partitions):
			return fmt.Errorf("the table is %+v", have.Partitions)
		}
		whole++
		esp, err := layout.FindESP(have, p.IDs.ESP)
		if err != nil {
			return err
		}
		at, size := have.Bytes(esp)
		return with.check(io.NewSectionReader(c.Disk, at, size))
	})
	if err != nil {
		t.Error(err)
	}
	if old == 0 || whole == 0 {
		t.Errorf("of %d states %d have the old table and %d the new one", states, old, whole)
	}
}

// A table that another program has changed meanwhile stays as it is.
func TestBesideChanged(t *testing.T) {
	s := open(t, newBuild(t, nil))
	d := blocktest.New(windowsSize, blocktest.Zero)
	fillWindows(t, d)
	p := NewPlan(s, windowsDisk(t, d), Facts{}, randomIDs(t), Choice{FreeSpace: true, OtherMachine: true})
	for name, when := range map[string]string{"before it begins": "EFI system partition", "while the image is written": "writing the system image"} {
		t.Run(name, func(t *testing.T) {
			recorder := blocktest.Record(d)
			change := func() {
				table, _, err := gpt.Read(recorder, windowsSize/512, 512)
				if err != nil {
					t.Fatal(err)
				}
				if table.Partitions = table.Partitions[:4]; table.Partitions[3].Label == "changed" {
					table.Partitions[3].Label = ""
				} else {
					table.Partitions[3].Label = "changed"
				}
				if err := table.Write(recorder); err != nil {
					t.Fatal(err)
				}
			}
			source := open(t, newBuild(t, nil))
			done := when == "EFI system partition"
			if done {
				change()
			}
			err := p.Install(t.Context(), target{recorder}, source, func(what string, _, _ int64) {
				if what == when && !done {
					done = true
					change()
				}
			})
			if !errors.Is(err, errChanged) {
				t.Errorf("error %v", err)
			}
			if table, _, err := gpt.Read(recorder, windowsSize/512, 512); err != nil || len(table.Partitions) != 4 {
				t.Errorf("the table is %+v, %v", table, err)
			}
		})
	}
}

// A disk whose free space cannot be taken is refused with the reason.
func TestBesideRefused(t *testing.T) {
	s := open(t, newBuild(t, nil))
	for name, c := range map[string]struct {
		change func(d *blocktest.Disk, t *gpt.Table)
		says   string
	}{
		"no room":             {func(d *blocktest.Disk, t *gpt.Table) { t.Partitions[2].Last += 2200 << 11; _ = t.Write(d) }, "its largest free space has"},
		"one copy is damaged": {func(d *blocktest.Disk, _ *gpt.Table) { _, _ = d.WriteAt(make([]byte, 512), windowsSize-512) }, "needs repair first"},
		"no table": {func(d *blocktest.Disk, _ *gpt.Table) {
			_, _ = d.WriteAt(make([]byte, 1024), 0)
			_, _ = d.WriteAt(make([]byte, 512), windowsSize-512)
		}, "no partition table to add to"},
		"another's root": {func(d *blocktest.Disk, t *gpt.Table) {
			t.Partitions[3].Type, t.Partitions[3].Label = layout.TypeLUKS, "root"
			_ = t.Write(d)
		}, `partition 4 is labelled "root"`},
	} {
		t.Run(name, func(t *testing.T) {
			d := blocktest.New(windowsSize, blocktest.Zero)
			c.change(d, fillWindows(t, d))
			p := NewPlan(s, windowsDisk(t, d), Facts{}, randomIDs(t), Choice{FreeSpace: true, OtherMachine: true})
			if err := p.Err(true); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want %q", err, c.says)
			}
		})
	}
	d := blocktest.New(windowsSize, blocktest.Zero)
	fillWindows(t, d)
	older := *s
	older.Beside = false
	if err := NewPlan(&older, windowsDisk(t, d), Facts{}, randomIDs(t), Choice{FreeSpace: true, OtherMachine: true}).Err(true); err == nil || !strings.Contains(err.Error(), "only on a disk of its own") {
		t.Errorf("a release of an older halogen: %v", err)
	}
}

// What is on the machine's disks is seen, and what will no longer start is said.
func TestSystems(t *testing.T) {
	d := blocktest.New(windowsSize, blocktest.Zero)
	fillWindows(t, d)
	disk := windowsDisk(t, d)
	want := []System{{Name: "Windows", Disk: "/dev/sda", Windows: true, BitLocker: true}, {Name: `"arch.efi"`, Disk: "/dev/sda"}, {Name: `"debian"`, Disk: "/dev/sda"}}
	slices.SortFunc(disk.Systems[1:], func(a, b System) int { return strings.Compare(a.Name, b.Name) })
	if !slices.Equal(disk.Systems, want) {
		t.Errorf("systems %+v", disk.Systems)
	}
	// The stick that installs is not a system that would stop starting.
	table, _, err := gpt.Read(d, windowsSize, 512)
	if err != nil {
		t.Fatal(err)
	}
	table.Partitions = slices.DeleteFunc(table.Partitions, func(p gpt.Partition) bool { return p.Type != layout.TypeESP })
	if found := Systems(d, table, "/dev/sdb"); len(found) == 0 {
		t.Error("an ESP alone has no systems")
	}
	layout.Insert(table, layout.Installer, gpt.GUID{77}, table.Free()[0].First, table.Free()[0].First+2047)
	if found := Systems(d, table, "/dev/sdb"); len(found) > 0 {
		t.Errorf("an installer's stick has %+v", found)
	}
	for _, c := range []struct {
		vendor  contract.VendorKeys
		choice  Choice
		on      string
		says    []string
		without string
	}{
		{contract.VendorAuto, Choice{FreeSpace: true}, "/dev/sda", []string{"Windows on /dev/sda will no longer start", "BitLocker is on there", `"debian" on /dev/sda will no longer`}, "will be lost"},
		{contract.VendorMicrosoft, Choice{FreeSpace: true}, "/dev/sda", []string{"Windows on /dev/sda goes on starting", "BitLocker is on there"}, "Windows on /dev/sda will no longer"},
		{contract.VendorMicrosoft, Choice{FreeSpace: true}, "/dev/sda", []string{`"debian" on /dev/sda goes on starting where Microsoft has signed`}, "--let-others-start"},
		{contract.VendorNone, Choice{FreeSpace: true, LetOthersStart: true}, "/dev/sda", []string{"Windows on /dev/sda goes on starting: beside", "PCR 4 and 7", "asks for this once more", "BitLocker is on there", `"debian" on /dev/sda goes on starting where Microsoft has signed`}, "Windows on /dev/sda will no longer"},
		{contract.VendorAuto, Choice{FreeSpace: true}, "/dev/sda", []string{"--let-others-start lets it start"}, "PCR 4 and 7"},
		{contract.VendorAuto, Choice{}, "/dev/sda", []string{"will be lost"}, "will no longer start"},
		{contract.VendorAuto, Choice{}, "/dev/sdb", []string{"Windows on /dev/sdb will no longer start"}, "Windows on /dev/sda will"},
	} {
		s := open(t, newBuild(t, func(k *contract.Contract) { k.VendorKeys = c.vendor }))
		facts := Facts{Arch: "x86_64", UEFI: true, TPM: true, SetupMode: true}
		for _, found := range disk.Systems {
			found.Disk = c.on
			facts.Systems = append(facts.Systems, found)
		}
		var all []string
		p := NewPlan(s, disk, facts, randomIDs(t), c.choice)
		for _, f := range p.Findings {
			all = append(all, f.Text.String())
		}
		stays := c.choice.FreeSpace || c.on != disk.Path
		// What is erased needs no key any more.
		if keep := words.English.List(p.Keep(), "\n"); strings.Contains(keep, "BitLocker's recovery key") != stays || !strings.Contains(keep, "the recovery key that the second start shows") {
			t.Errorf("%s, %+v: to keep: %s", c.on, c.choice, keep)
		}
		// Windows may have it on another disk.
		for i := range facts.Systems {
			facts.Systems[i].BitLocker = false
		}
		if keep := words.English.List(NewPlan(s, disk, facts, randomIDs(t), c.choice).Keep(), "\n"); strings.Contains(keep, "BitLocker's recovery key, if Windows uses it") != stays {
			t.Errorf("%s, %+v, where BitLocker is not seen: to keep: %s", c.on, c.choice, keep)
		}
		if asks := stays && c.vendor != contract.VendorMicrosoft && !c.choice.LetOthersStart; p.AsksOthers != asks || len(p.Staying()) > 0 != stays {
			t.Errorf("%s, %+v: asks %t, %+v stay", c.vendor, c.choice, p.AsksOthers, p.Staying())
		}
		text := strings.Join(all, "\n")
		for _, say := range c.says {
			if !strings.Contains(text, say) {
				t.Errorf("%s, %+v: nothing of %q in\n%s", c.vendor, c.choice, say, text)
			}
		}
		if strings.Contains(text, c.without) {
			t.Errorf("%s, %+v: %q in\n%s", c.vendor, c.choice, c.without, text)
		}
	}
}
