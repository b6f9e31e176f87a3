package gpt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/blocktest"
)

const diskSectors = 20000

// patch changes bytes of one copy's header and, when sum is set, makes its
// checksum right again.
func patch(t testing.TB, d *blocktest.Disk, lba int64, off int, value []byte, sum bool) {
	t.Helper()
	sector := make([]byte, 512)
	if _, err := d.ReadAt(sector, lba*512); err != nil {
		t.Fatal(err)
	}
	copy(sector[off:], value)
	if size := binary.LittleEndian.Uint32(sector[12:]); sum && size <= 512 {
		clear(sector[16:20])
		binary.LittleEndian.PutUint32(sector[16:], crc32.ChecksumIEEE(sector[:size]))
	}
	if _, err := d.WriteAt(sector, lba*512); err != nil {
		t.Fatal(err)
	}
}

func le32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
func le64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// FAULTS 41: each fault in one copy is healed from the other, in both refused.
func TestDamagedCopies(t *testing.T) {
	table := sample(diskSectors, 512)
	for _, c := range []struct {
		name  string
		off   int
		value []byte
		sum   bool
		want  string
	}{
		{"signature", 0, []byte("EFI PARK"), true, "no GPT signature"},
		{"header checksum", 16, le32(1), false, "checksum is"},
		{"header of 91 bytes", 12, le32(91), true, "claims 91 bytes"},
		{"header of 4 GiB", 12, le32(1<<32 - 1), true, "claims 4294967295 bytes"},
		{"revision", 8, le32(0x20000), true, "revision 00020000"},
		{"own place", 24, le64(77), true, "made for sector 77"},
		{"other copy beyond the disk", 32, le64(1 << 40), true, "the disk has only 20000"},
		{"other copy among the data", 32, le64(5000), true, "other copy at sector 5000"},
		{"usable beyond the disk", 48, le64(diskSectors), true, "the disk has only 20000"},
		{"usable backwards", 40, le64(19967), true, "usable sectors 19967 to 19966"},
		{"entries over the header", 72, le64(1), true, "do not fit"},
		{"entries at 2^63", 72, le64(1 << 63), true, "do not fit"},
		{"entries over the usable sectors", 72, le64(3), true, "do not fit"},
		{"2^40 bytes of entries", 80, append(le32(1<<31-1), le32(512)...), true, "entries: want 1 to 1024"},
		{"2^32-1 entries", 80, le32(1<<32 - 1), true, "entries: want 1 to 1024"},
		{"no entries", 80, le32(0), true, "0 entries"},
		{"entry size 0", 84, le32(0), true, "entries of 0 bytes"},
		{"entry size 2^31", 84, le32(1 << 31), true, "entries of 2147483648 bytes"},
		{"entry size 192", 84, le32(192), true, "entries of 192 bytes"},
		{"entries checksum", 88, le32(1), true, "entries at sector"},
	} {
		t.Run(c.name, func(t *testing.T) {
			both := written(t, table)
			for _, lba := range []int64{1, diskSectors - 1} {
				d := written(t, table)
				patch(t, d, lba, c.off, c.value, c.sum)
				patch(t, both, lba, c.off, c.value, c.sum)
				got, health := mustRead(t, d, 512)
				bad, good := health.Primary, health.Alternate
				if lba != 1 {
					bad, good = good, bad
				}
				if bad == nil || good != nil || !strings.Contains(bad.Error(), c.want) {
					t.Errorf("sector %d: %v, want %q of one copy", lba, health, c.want)
				}
				if !equal(got, table) {
					t.Errorf("sector %d: read %+v", lba, got)
				}
				if err := got.Write(d); err != nil {
					t.Fatal(err)
				}
				if healed, health := mustRead(t, d, 512); !health.OK() || !equal(healed, table) {
					t.Errorf("sector %d: after Write %v", lba, health)
				}
			}
			if got, _, err := Read(both, diskSectors, 512); err == nil || got != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("both copies: %+v, %v; want a refusal with %q", got, err, c.want)
			}
		})
	}
}

// putEntries replaces the array of one copy and fixes both checksums.
func putEntries(t testing.TB, d *blocktest.Disk, lba int64, array []byte) {
	t.Helper()
	var at [8]byte
	if _, err := d.ReadAt(at[:], lba*512+72); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(array, int64(binary.LittleEndian.Uint64(at[:]))*512); err != nil {
		t.Fatal(err)
	}
	patch(t, d, lba, 88, le32(crc32.ChecksumIEEE(array)), true)
}

// FAULTS 41
func TestHostilePartitions(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Table)
		want   string
	}{
		{"overlap", func(t *Table) { t.Partitions[0].Last = 8192 }, "overlap"},
		{"backwards", func(t *Table) { t.Partitions[0].Last = 2047 }, "behind its last"},
		{"over the table itself", func(t *Table) { t.Partitions[0].First = 1 }, "usable are 34"},
		{"beyond the disk", func(t *Table) { t.Partitions[1].Last = 1<<64 - 1 }, "usable are 34"},
	} {
		d := written(t, sample(diskSectors, 512))
		hostile := sample(diskSectors, 512)
		c.change(hostile)
		array, err := hostile.encodeEntries()
		if err != nil {
			t.Fatal(err)
		}
		putEntries(t, d, 1, array)
		if _, health := mustRead(t, d, 512); health.Primary == nil || !strings.Contains(health.Primary.Error(), c.want) {
			t.Errorf("%s in one copy: %v, want %q", c.name, health, c.want)
		}
		putEntries(t, d, diskSectors-1, array)
		if got, _, err := Read(d, diskSectors, 512); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s in both: %+v, %v", c.name, got, err)
		}
	}
}

// FAULTS 40: equal UUIDs can be read, so that they can be told apart again.
func TestEqualUUIDsAreReadAndNotWritten(t *testing.T) {
	d := written(t, sample(diskSectors, 512))
	twins := sample(diskSectors, 512)
	twins.Partitions[0].UUID = uuid(2)
	array, err := twins.encodeEntries()
	if err != nil {
		t.Fatal(err)
	}
	putEntries(t, d, 1, array)
	putEntries(t, d, diskSectors-1, array)
	got, health := mustRead(t, d, 512)
	if !health.OK() || !equal(got, twins) {
		t.Errorf("read %+v, %v", got, health)
	}
	if err := got.Write(d); err == nil {
		t.Error("a table with a UUID used twice was written")
	}
}

func TestCopiesThatDiffer(t *testing.T) {
	d := written(t, sample(diskSectors, 512))
	other := sample(diskSectors, 512)
	other.Partitions[1].UUID = uuid(99)
	array, err := other.encodeEntries()
	if err != nil {
		t.Fatal(err)
	}
	putEntries(t, d, diskSectors-1, array)
	got, health := mustRead(t, d, 512)
	if !equal(got, sample(diskSectors, 512)) {
		t.Error("the primary did not win")
	}
	if health.Primary != nil || health.Alternate == nil || !strings.Contains(health.String(), "partitions differ") {
		t.Errorf("health: %v", health)
	}
	patch(t, d, diskSectors-1, 56, []byte{1, 2, 3}, true)
	if _, health := mustRead(t, d, 512); health.Alternate == nil || !strings.Contains(health.String(), "disk GUID") {
		t.Errorf("another disk GUID: %v", health)
	}
}

func TestDiskThatGrew(t *testing.T) {
	small := sample(diskSectors, 512)
	src := contents(t, written(t, small))
	d := blocktest.New(2*diskSectors*512, blocktest.Hostile)
	if _, err := d.WriteAt(src, 0); err != nil {
		t.Fatal(err)
	}
	got, health := mustRead(t, d, 512)
	if !health.Moved || health.Primary != nil || health.Alternate != nil || health.OK() {
		t.Errorf("health: %v", health)
	}
	if _, last := got.Usable(); last != 2*diskSectors-34 {
		t.Errorf("last usable sector %d", last)
	}
	if err := got.Write(d); err != nil {
		t.Fatal(err)
	}
	again, health := mustRead(t, d, 512)
	if !health.OK() || !slices.Equal(again.Partitions, small.Partitions) {
		t.Errorf("after Write: %v, %+v", health, again)
	}
}

// FAULTS 82
func TestDiskThatShrank(t *testing.T) {
	d := written(t, sample(diskSectors, 512))
	_, _, err := Read(d, diskSectors-1, 512)
	if err == nil || !strings.Contains(err.Error(), "the disk has only 19999 sectors") {
		t.Errorf("error %v", err)
	}
}

func TestReadRefusesImpossibleDisks(t *testing.T) {
	for _, c := range []struct {
		sectors    uint64
		sectorSize int
	}{{67, 512}, {11, 4096}, {1 << 63, 512}, {1 << 30, 0}, {1 << 30, 520}} {
		if _, _, err := Read(bytes.NewReader(nil), c.sectors, c.sectorSize); err == nil {
			t.Errorf("%d sectors of %d bytes were read", c.sectors, c.sectorSize)
		}
	}
	if _, _, err := Read(bytes.NewReader(make([]byte, 700)), diskSectors, 512); err == nil || !strings.Contains(err.Error(), "unexpected EOF") {
		t.Errorf("a disk shorter than it claims: %v", err)
	}
}

func TestOtherSectorSizeIsExplained(t *testing.T) {
	for _, size := range []int{512, 4096} {
		d := written(t, sample(diskSectors, size))
		other := 512 + 4096 - size
		_, _, err := Read(d, uint64(d.Size())/uint64(other), other)
		if err == nil || !strings.Contains(err.Error(), "there is a table for sectors of") {
			t.Errorf("sectors of %d read as %d: %v", size, other, err)
		}
	}
}

func TestMBR(t *testing.T) {
	table := sample(diskSectors, 512)
	record := func(d *blocktest.Disk, i int, kind byte) {
		if _, err := d.WriteAt([]byte{kind}, int64(mbrEntries+i*mbrEntrySize+4)); err != nil {
			t.Fatal(err)
		}
	}
	d := written(t, table)
	record(d, 0, 0)
	if _, health := mustRead(t, d, 512); health.MBR == nil || health.OK() {
		t.Errorf("no protective record: %v", health)
	}
	if err := table.Write(d); err != nil {
		t.Fatal(err)
	}
	if _, health := mustRead(t, d, 512); !health.OK() {
		t.Errorf("after Write: %v", health)
	}

	for _, c := range []struct {
		first byte
		want  string
	}{{mbrProtective, "hybrid MBR"}, {0, "none that protects"}} {
		d := written(t, table)
		record(d, 0, c.first)
		record(d, 2, 0x83)
		if _, _, err := Read(d, diskSectors, 512); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("read: %v, want %q", err, c.want)
		}
		r := blocktest.Record(d)
		if err := table.Write(r); err == nil || !strings.Contains(err.Error(), c.want) || len(r.Log()) != 0 {
			t.Errorf("write: %v after %d operations, want %q and none", err, len(r.Log()), c.want)
		}
	}
}

// A table whose entries lie elsewhere leaves room for a boot loader at sector
// 2: it is read, and not replaced.
func TestForeignPlaceOfEntries(t *testing.T) {
	table := sample(diskSectors, 512)
	d := written(t, table)
	array, err := table.encodeEntries()
	if err != nil {
		t.Fatal(err)
	}
	patch(t, d, 1, 72, le64(100), false)
	patch(t, d, 1, 40, le64(132), true)
	putEntries(t, d, 1, array)
	got, health := mustRead(t, d, 512)
	if health.Primary != nil || !equal(got, table) {
		t.Errorf("read %+v, %v", got, health)
	}
	r := blocktest.Record(d)
	if err := got.Write(r); err == nil || !strings.Contains(err.Error(), "entries start at sector 100") || len(r.Log()) != 0 {
		t.Errorf("write: %v after %d operations", err, len(r.Log()))
	}
}

// FuzzRead lays fuzzed headers and entries on a small disk.
func FuzzRead(f *testing.F) {
	const sectors = 80
	for _, size := range []int{512, 4096} {
		table := &Table{Disk: diskGUID, SectorSize: size, Sectors: sectors, Partitions: []Partition{
			{Number: 1, Type: typeESP, UUID: uuid(1), First: 34, Last: 40, Label: "esp"},
			{Number: 2, Type: typeRoot, UUID: uuid(2), First: 41, Last: 46, Label: "system-a"},
		}}
		primary, alternate, err := table.plan()
		if err != nil {
			f.Fatal(err)
		}
		array, head, tail := primary[0].data[:3*entrySize], primary[1].data[:headerSize], alternate[1].data[:headerSize]
		f.Add(head, array, tail, array, size == 4096)
		f.Add(head, array, []byte{}, array[:entrySize], size == 4096)
		f.Add([]byte{}, array[:entrySize], tail, array, size == 4096)
	}
	f.Fuzz(func(t *testing.T, head, array, tail, array2 []byte, large bool) {
		size := int64(512)
		if large {
			size = 4096
		}
		d := blocktest.New(sectors*size, blocktest.Zero)
		for _, w := range []struct {
			data []byte
			lba  int64
			room int64
		}{
			{head, 1, size},
			{tail, sectors - 1, size},
			{array, 2, MaxPartitions * entrySize},
			{array2, sectors - 1 - int64(entrySectors(int(size))), MaxPartitions * entrySize},
		} {
			if _, err := d.WriteAt(w.data[:min(int64(len(w.data)), w.room)], w.lba*size); err != nil {
				t.Fatal(err)
			}
		}
		// Nearly every mutation breaks a checksum; judge what lies behind it.
		fixSums(t, d, 1, size)
		fixSums(t, d, sectors-1, size)
		table, health, err := Read(d, sectors, int(size))
		if err != nil || table.Validate() != nil || table.foreign != "" {
			return
		}
		if err := table.Write(d); err != nil {
			t.Fatalf("valid table with health %v not written: %v", health, err)
		}
		again, health, err := Read(d, sectors, int(size))
		if err != nil || !health.OK() || !equal(table, again) {
			t.Fatalf("wrote %+v, read %+v, %v, %v", table, again, health, err)
		}
	})
}

// fixSums makes the checksums of a copy right where its sizes allow it.
func fixSums(t *testing.T, d *blocktest.Disk, lba, size int64) {
	sector := make([]byte, size)
	if _, err := d.ReadAt(sector, lba*size); err != nil {
		t.Fatal(err)
	}
	entries := binary.LittleEndian.Uint64(sector[72:])
	n := uint64(binary.LittleEndian.Uint32(sector[80:])) * uint64(binary.LittleEndian.Uint32(sector[84:]))
	if entries < 1<<20 && n < 1<<20 {
		array := make([]byte, n)
		if _, err := d.ReadAt(array, int64(entries)*size); err == nil {
			binary.LittleEndian.PutUint32(sector[88:], crc32.ChecksumIEEE(array))
		}
	}
	if h := binary.LittleEndian.Uint32(sector[12:]); int64(h) <= size && h >= 92 {
		clear(sector[16:20])
		binary.LittleEndian.PutUint32(sector[16:], crc32.ChecksumIEEE(sector[:h]))
	}
	if _, err := d.WriteAt(sector, lba*size); err != nil {
		t.Fatal(err)
	}
}

// The primary is damaged, and its entries lie elsewhere: sector 2 may hold a boot loader, so
// the table is not replaced either.
func TestForeignPlaceOfDamagedEntries(t *testing.T) {
	d := written(t, sample(diskSectors, 512))
	patch(t, d, 1, 72, le64(100), false)
	patch(t, d, 1, 40, le64(132), true) // no entries are there
	got, health := mustRead(t, d, 512)
	if health.Primary == nil {
		t.Fatal("the primary is good")
	}
	r := blocktest.Record(d)
	if err := got.Write(r); err == nil || !strings.Contains(err.Error(), "entries start at sector 100") || len(r.Log()) != 0 {
		t.Errorf("write: %v after %d operations", err, len(r.Log()))
	}
}

// What the header keeps out of use stays out of use, when partitions are made and when the
// table is written.
func TestUsableByTheHeader(t *testing.T) {
	table := sample(diskSectors, 512)
	table.first, table.last = 2048, diskSectors-1000
	d := written(t, table)
	got, health := mustRead(t, d, 512)
	if first, last := got.Usable(); !health.OK() || first != 2048 || last != diskSectors-1000 {
		t.Fatalf("usable are %d to %d, %v", first, last, health)
	}
	for _, e := range got.Free() {
		if e.First < 2048 || e.Last > diskSectors-1000 {
			t.Errorf("free are %d to %d", e.First, e.Last)
		}
	}
	if err := got.Write(d); err != nil {
		t.Fatal(err)
	}
	if again, _ := mustRead(t, d, 512); again.first != 2048 || again.last != diskSectors-1000 {
		t.Errorf("written again, usable are %d to %d", again.first, again.last)
	}
}

// A table that was read is written as it was, byte for byte, but for what has changed: the
// boot code in sector 0, and what other tools have left in entries. The active flag there goes,
// with which much firmware finds no GPT, and so does another first sector.
func TestWritesWhatWasThere(t *testing.T) {
	table := sample(diskSectors, 512)
	d := written(t, table)
	array, err := table.encodeEntries()
	if err != nil {
		t.Fatal(err)
	}
	copy(array[56+2*5:], "behind")                 // the first one's name, which ends before
	copy(array[entrySize+56:], []byte{0x00, 0xd8}) // a lone surrogate, in the second one's
	for _, lba := range []int64{1, diskSectors - 1} {
		putEntries(t, d, lba, array)
	}
	if _, err := d.WriteAt([]byte("code"), 0); err != nil {
		t.Fatal(err)
	}
	before := contents(t, d)
	for at, b := range map[int64]byte{mbrEntries: 0x80, mbrEntries + 8: 2} {
		if _, err := d.WriteAt([]byte{b}, at); err != nil {
			t.Fatal(err)
		}
	}
	got, health := mustRead(t, d, 512)
	if !health.OK() {
		t.Fatal(health)
	}
	if err := got.Write(d); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, contents(t, d)) {
		t.Error("the same table gives other bytes")
	}
	got.Partitions[1].Label = "changed"
	if err := got.Write(d); err != nil {
		t.Fatal(err)
	}
	if again, _ := mustRead(t, d, 512); again.Partitions[1].Label != "changed" {
		t.Errorf("partition 2 is %q", again.Partitions[1].Label)
	}
}

// A table whose entries have another size than those that Write makes is read, and never
// replaced: entries would end up in other places than what the other tool expects.
func TestLargerEntries(t *testing.T) {
	for _, size := range []uint32{256, 512} {
		want := sample(diskSectors, 512)
		d := written(t, want)
		array, err := want.encodeEntries()
		if err != nil {
			t.Fatal(err)
		}
		wide := make([]byte, len(array))
		for i := range want.Partitions {
			number := want.Partitions[i].Number
			copy(wide[(number-1)*int(size):], array[(number-1)*entrySize:][:entrySize])
		}
		for _, lba := range []int64{headerLBA, diskSectors - 1} {
			patch(t, d, lba, 80, append(le32(uint32(len(array))/size), le32(size)...), true)
			putEntries(t, d, lba, wide)
		}
		before := contents(t, d)
		got, health := mustRead(t, d, 512)
		if !health.OK() || !equal(got, want) {
			t.Errorf("entries of %d bytes: %v, %+v", size, health, got)
		}
		says := fmt.Sprintf("its entries have %d bytes, and these would have 128", size)
		for _, err := range []error{got.Replaceable(), got.Write(d)} {
			if err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("entries of %d bytes are replaced: %v, want %q", size, err, says)
			}
		}
		if !bytes.Equal(before, contents(t, d)) {
			t.Errorf("entries of %d bytes: something was written", size)
		}
	}
}
