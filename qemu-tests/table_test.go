package qemutests

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/verity"
	"halogenos.internal/builder/vm"
)

// Of a GPT on a disk with sectors of 512 bytes (UEFI 2.10, section 5.3): places are
// in bytes.
const (
	gptHeader     = 512
	gptEntries    = 1024
	gptArray      = 128 * 128
	gptEntrySize  = 128
	gptHeaderSize = 92
)

// sealTable writes an array of partition entries into both copies of the table, with
// the checksums that belong to it, whatever it says.
func (d *disk) sealTable(array []byte) {
	d.t.Helper()
	size := int64(d.table.Sectors) * 512
	for _, at := range []struct{ header, entries int64 }{{gptHeader, gptEntries}, {size - 512, size - 512 - gptArray}} {
		header := make([]byte, gptHeaderSize)
		_, err := d.ReadAt(header, at.header)
		le := binary.LittleEndian
		le.PutUint32(header[88:], crc32.ChecksumIEEE(array))
		le.PutUint32(header[16:], 0)
		le.PutUint32(header[16:], crc32.ChecksumIEEE(header))
		if err == nil {
			_, err = d.WriteAt(header, at.header)
		}
		if err == nil {
			_, err = d.WriteAt(array, at.entries)
		}
		if err != nil {
			d.t.Fatal(err)
		}
	}
}

// array is the primary copy's array of entries.
func (d *disk) array() []byte {
	d.t.Helper()
	array := make([]byte, gptArray)
	if _, err := d.ReadAt(array, gptEntries); err != nil {
		d.t.Fatal(err)
	}
	return array
}

// TestTable starts a machine whose partition table has a fault. Where one copy of it
// can be used the boot goes on and leaves two good ones; else it stops.
// FAULTS 41
func TestTable(t *testing.T) {
	t.Parallel()
	const opened = `halogen: open-verity \([^\n]*\n`
	tests := []struct {
		name   string
		damage func(d *disk)
		want   string
		healed bool
	}{
		{"checksum of the primary header", func(d *disk) { d.flip(0, gptHeader+60) }, opened, true},
		{"checksum of the primary entries", func(d *disk) { d.flip(0, gptEntries+gptEntrySize*4) }, opened, true},
		{"alternate gone", func(d *disk) { d.flip(0, int64(d.table.Sectors)*512-512) }, opened, true},
		// Firmware may restore the copies above by itself; it compares no contents.
		{"alternate of another mind", func(d *disk) {
			primary := d.array()
			other := append([]byte(nil), primary...)
			other[gptEntrySize*4+56] ^= 0x20 // the first letter of partition 5's label
			d.sealTable(other)
			d.restorePrimary(primary)
		}, `halogen: heal \([^\n]*one copy of the partition table is damaged(?s:.*)` + opened, true},
		{"overlapping partitions", func(d *disk) {
			array := d.array()
			copy(array[gptEntrySize*4+32:gptEntrySize*4+40], array[gptEntrySize*3+32:]) // 5 starts where 4 does
			d.sealTable(array)
		}, `RECOVERY: [^\n]*no disk has the partition that this system was started from[^\n]*\n +vda: read partition table: [^\n]*partitions 4 and 5 overlap`, false},
		// Nothing is left that firmware could start.
		{"both checksums", func(d *disk) {
			d.flip(0, gptHeader+60)
			d.flip(0, int64(d.table.Sectors)*512-512+60)
		}, `BdsDxe: failed to load Boot[0-9]+ [^\n]*: Not Found`, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := newGuest(t, Options{State: named(t).State})
			before := tableDigest(t, g.State().Disk())
			d := openDisk(t, g.State().Disk(), os.O_RDWR)
			tt.damage(d)
			broken := tableDigest(t, d.Name())
			g.PowerOn()
			g.stopsAt(tt.want)
			after := tableDigest(t, d.Name())
			if tt.healed {
				d.checkTable()
				t.Logf("restored by the firmware: %v", !strings.Contains(g.Console().Text(), "halogen: heal ("))
			}
			if tt.healed && after != before {
				t.Error("the table is another than before it was damaged")
			}
			if !tt.healed && after != broken {
				t.Error("something was written to a table that cannot be used")
			}
		})
	}
}

// restorePrimary puts an array back into the primary copy alone.
func (d *disk) restorePrimary(array []byte) {
	d.t.Helper()
	size := int64(d.table.Sectors) * 512
	tail := make([]byte, 512+gptArray)
	_, err := d.ReadAt(tail, size-int64(len(tail)))
	if err == nil {
		d.sealTable(array)
		_, err = d.WriteAt(tail, size-int64(len(tail)))
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// tableDigest hashes both copies of the table.
func tableDigest(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	both := make([]byte, 2*(1024+gptArray))
	_, err = f.ReadAt(both[:len(both)/2], 0)
	if err == nil {
		_, err = f.ReadAt(both[len(both)/2:], info.Size()-int64(len(both)/2))
	}
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(both))
}

// TestGrownDisk: a disk that has grown gets its alternate table where it belongs.
func TestGrownDisk(t *testing.T) {
	t.Parallel()
	g := newGuest(t, Options{State: named(t).State})
	info, err := os.Stat(g.State().Disk())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(g.State().Disk(), info.Size()+64<<20); err != nil {
		t.Fatal(err)
	}
	g.PowerOn()
	g.stopsAt(`halogen: open-verity \([^\n]*\n`)
	openDisk(t, g.State().Disk(), os.O_RDONLY).checkTable()
}

// TestOtherDisks starts a new machine with other ones' disks in it, before the machine's
// own and behind it: one with the same labels, types and content, and one that is a copy
// to the last UUID. The disk that the UKI came from is made ready, and nothing is written
// to the others.
// FAULTS 39
func TestOtherDisks(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "sgdisk")
	r := imageRelease(t, "testos-1")
	for _, tt := range []struct {
		name      string
		copyFirst bool
	}{{"another before, copy behind", false}, {"copy before, another behind", true}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := newGuest(t, Options{Image: "testos-1"})
			before, behind := filepath.Join(t.TempDir(), "before.img"), filepath.Join(t.TempDir(), "behind.img")
			another := before
			if tt.copyFirst {
				another = behind
			}
			must(t, vm.CopySparse(before, Image(t, "testos-1")))
			must(t, vm.CopySparse(behind, Image(t, "testos-1")))
			testkit.Run(t, "sgdisk", "--randomize-guids", "--partition-guid=2:"+layout.SystemUUID(verity.Root(r.RootHash)).String(), another)
			was := []string{sparseDigest(t, before), sparseDigest(t, behind)}
			g.VM.NoDisk, g.VM.Disks = true, []vm.Disk{{Path: before}, {Path: g.State().Disk(), BootIndex: 10}, {Path: behind}}
			g.PowerOn()
			if i, match := g.ExpectAny(`halogen: disk vd[a-z]: +(disk[0-2]),`, `RECOVERY: [^\n]*`); i != 0 || match[1] != "disk1" {
				t.Fatalf("the boot came to %q; its own disk is disk1", match[0])
			}
			g.stopsAt(`halogen: make-tree \([^\n]*\n`)
			if sparseDigest(t, before) != was[0] || sparseDigest(t, behind) != was[1] {
				t.Error("another disk was written to")
			}
			openDisk(t, g.State().Disk(), os.O_RDONLY).checkTree(fmt.Sprintf("%x", []byte(r.RootHash)))
		})
	}
}

// sparseDigest hashes a disk's contents.
func sparseDigest(t *testing.T, path string) string {
	t.Helper()
	h := sha256.New()
	if err := hashSparse(h, path); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}
