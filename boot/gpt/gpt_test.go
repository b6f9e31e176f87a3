package gpt

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blocktest"
)

var (
	typeESP  = MustGUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
	typeRoot = MustGUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
	diskGUID = MustGUID("01234567-89ab-cdef-0123-456789abcdef")
)

func uuid(n byte) GUID {
	g := MustGUID("11111111-2222-4333-8444-555555555500")
	g[15] = n
	return g
}

// sample returns a valid table with gaps before, between and behind its
// partitions, whose order on the disk is not that of their numbers.
func sample(sectors uint64, sectorSize int) *Table {
	return &Table{Disk: diskGUID, SectorSize: sectorSize, Sectors: sectors, Partitions: []Partition{
		{Number: 1, Type: typeESP, UUID: uuid(1), First: 2048, Last: 4095, Label: "esp"},
		{Number: 2, Type: typeRoot, UUID: uuid(2), First: 8192, Last: 9000, Attributes: 1<<63 | 1<<60 | 5, Label: "system-a"},
		{Number: 7, Type: typeRoot, UUID: uuid(3), First: 6000, Last: 6000, Label: "größe 🦊 " + strings.Repeat("x", 27)},
	}}
}

func written(t *testing.T, table *Table) *blocktest.Disk {
	t.Helper()
	d := blocktest.New(int64(table.Sectors)*int64(table.SectorSize), blocktest.Hostile)
	if err := table.Write(d); err != nil {
		t.Fatal(err)
	}
	return d
}

func mustRead(t *testing.T, d *blocktest.Disk, sectorSize int) (*Table, Health) {
	t.Helper()
	got, health, err := Read(d, uint64(d.Size())/uint64(sectorSize), sectorSize)
	if err != nil {
		t.Fatal(err)
	}
	return got, health
}

func equal(a, b *Table) bool {
	return a.Disk == b.Disk && a.SectorSize == b.SectorSize && a.Sectors == b.Sectors && slices.Equal(a.Partitions, b.Partitions)
}

func TestGUID(t *testing.T) {
	const text = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	g, err := ParseGUID(strings.ToUpper(text))
	if err != nil {
		t.Fatal(err)
	}
	if g.String() != text {
		t.Errorf("text form is %s", g)
	}
	onDisk := []byte{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}
	if s := g.swapped(); !bytes.Equal(s[:], onDisk) {
		t.Errorf("on disk: %x", s)
	}
	for _, bad := range []string{"", text[1:], text + "0", "{" + text[:34] + "}", strings.ReplaceAll(text, "-", "_"), strings.Replace(text, "c", "g", 1)} {
		if _, err := ParseGUID(bad); err == nil {
			t.Errorf("%q was taken for a GUID", bad)
		}
	}
	r, err := RandomGUID(bytes.NewReader(bytes.Repeat([]byte{0xff}, 16)))
	if err != nil || r.String() != "ffffffff-ffff-4fff-bfff-ffffffffffff" {
		t.Errorf("random GUID %v, %v", r, err)
	}
	if _, err := RandomGUID(bytes.NewReader(make([]byte, 15))); err == nil {
		t.Error("15 bytes were enough for a GUID")
	}
}

func TestRoundTrip(t *testing.T) {
	for _, sectorSize := range []int{512, 4096} {
		want := sample(20000, sectorSize)
		d := written(t, want)
		got, health := mustRead(t, d, sectorSize)
		if !equal(got, want) {
			t.Errorf("sectors of %d: read %+v, wrote %+v", sectorSize, got, want)
		}
		if !health.OK() || health.String() != "both copies are good" {
			t.Errorf("sectors of %d: %v", sectorSize, health)
		}
		again := written(t, want)
		if !bytes.Equal(contents(t, d), contents(t, again)) {
			t.Errorf("sectors of %d: two writes differ", sectorSize)
		}
	}
}

func contents(t *testing.T, d *blocktest.Disk) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestValidateRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Table)
		want   string
	}{
		{"sector size", func(t *Table) { t.SectorSize = 1024 }, "sector size of 1024"},
		{"disk too small", func(t *Table) { t.Sectors = 67 }, "a GPT needs 68"},
		{"disk too large", func(t *Table) { t.Sectors = 1 << 55 }, "more than 2^63 bytes"},
		{"no disk GUID", func(t *Table) { t.Disk = GUID{} }, "no GUID"},
		{"number 0", func(t *Table) { t.Partitions[0].Number = 0 }, "numbers go from 1 to 128"},
		{"number 129", func(t *Table) { t.Partitions[0].Number = 129 }, "numbers go from 1 to 128"},
		{"number twice", func(t *Table) { t.Partitions[0].Number = 2 }, "number used twice"},
		{"UUID twice", func(t *Table) { t.Partitions[0].UUID = uuid(2) }, "is partition 1's"},
		{"no UUID", func(t *Table) { t.Partitions[0].UUID = GUID{} }, "no UUID"},
		{"no type", func(t *Table) { t.Partitions[0].Type = GUID{} }, "no type"},
		{"before the usable sectors", func(t *Table) { t.Partitions[0].First = 33 }, "usable are 34 to 19966"},
		{"behind the usable sectors", func(t *Table) { t.Partitions[1].Last = 19967 }, "usable are 34 to 19966"},
		{"backwards", func(t *Table) { t.Partitions[1].Last = 8191 }, "behind its last"},
		{"overlap", func(t *Table) { t.Partitions[0].Last = 6000 }, "partitions 1 and 7 overlap"},
		{"one inside another", func(t *Table) { t.Partitions[0].Last = 9999 }, "partitions 1 and 2 overlap"},
		{"label too long", func(t *Table) { t.Partitions[0].Label = strings.Repeat("🦊", 18) + "x" }, "37 UTF-16 code units"},
		{"label with a NUL", func(t *Table) { t.Partitions[0].Label = "a\x00b" }, "not text"},
		{"label not UTF-8", func(t *Table) { t.Partitions[0].Label = "\xff" }, "not text"},
	} {
		table := sample(20000, 512)
		c.change(table)
		err := table.Validate()
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want %q in one line", c.name, err, c.want)
		}
		r := blocktest.Record(blocktest.New(20000*512, blocktest.Zero))
		if err := table.Write(r); err == nil || len(r.Log()) != 0 {
			t.Errorf("%s: Write returned %v after %d operations, want a refusal and none", c.name, err, len(r.Log()))
		}
	}
}

func TestFree(t *testing.T) {
	table := sample(20000, 512)
	want := []Extent{{34, 2047}, {4096, 5999}, {6001, 8191}, {9001, 19966}}
	if got := table.Free(); !slices.Equal(got, want) {
		t.Errorf("free: %v, want %v", got, want)
	}
	table.Partitions = nil
	if got := table.Free(); !slices.Equal(got, []Extent{{34, 19966}}) {
		t.Errorf("free without partitions: %v", got)
	}
	table.Partitions = []Partition{{Number: 1, First: 34, Last: 19966}}
	if got := table.Free(); len(got) != 0 {
		t.Errorf("free in a full disk: %v", got)
	}
	table.SectorSize = 4096
	if first, last := table.Usable(); first != 6 || last != 19994 {
		t.Errorf("usable with sectors of 4096: %d to %d", first, last)
	}
	table.Sectors = 3
	if got := table.Free(); got != nil {
		t.Errorf("free in a disk too small: %v", got)
	}
}

func TestBytesAndByNumber(t *testing.T) {
	table := sample(20000, 4096)
	p, ok := table.ByNumber(7)
	if !ok || p.First != 6000 || p.Sectors() != 1 {
		t.Fatalf("partition 7: %+v, %v", p, ok)
	}
	if off, size := table.Bytes(p); off != 6000*4096 || size != 4096 {
		t.Errorf("partition 7 at byte %d, %d bytes", off, size)
	}
	if _, ok := table.ByNumber(3); ok {
		t.Error("there is no partition 3")
	}
}

func TestWriteKeepsBootCodeOfAProtectiveMBR(t *testing.T) {
	table := sample(20000, 512)
	d := written(t, table)
	code := bytes.Repeat([]byte{0xc3}, 440)
	if _, err := d.WriteAt(code, 0); err != nil {
		t.Fatal(err)
	}
	if err := table.Write(d); err != nil {
		t.Fatal(err)
	}
	if got := contents(t, d)[:440]; !bytes.Equal(got, code) {
		t.Error("boot code was lost")
	}
}

var _ block.Device = (*blocktest.Disk)(nil)
