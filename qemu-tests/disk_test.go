package qemutests

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/verity"
	"halogenos.internal/builder/vm"
)

// imageFile is the path of a file of an image under HALOGEN_IMAGES.
func imageFile(t testing.TB, image, name string) string {
	t.Helper()
	return filepath.Join(filepath.Dir(Image(t, image)), name)
}

// imageRelease is the image's release.json.
func imageRelease(t testing.TB, image string) *release.Release {
	t.Helper()
	text, err := os.ReadFile(imageFile(t, image, release.FileName))
	if err != nil {
		t.Fatal(err)
	}
	r, err := release.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// verityParams are the parameters of the tree over a release's system image.
func verityParams(r *release.Release) verity.Params {
	c := contract.Contract{RootHash: r.RootHash, Salt: r.Salt, ImageSize: r.ImageSize}
	return c.VerityParams()
}

// disk is the disk of a machine that is off, or of an image.
type disk struct {
	*os.File
	t     testing.TB
	table *gpt.Table
}

// openDisk opens a raw disk with sectors of 512 bytes; it is closed when the test
// ends. flag is os.O_RDONLY or os.O_RDWR.
func openDisk(t testing.TB, path string, flag int) *disk {
	t.Helper()
	return openSectors(t, path, 512, flag)
}

// openSectors is openDisk for a disk with sectors of so many bytes.
func openSectors(t testing.TB, path string, sectorSize, flag int) *disk {
	t.Helper()
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	table, _, err := gpt.Read(f, uint64(info.Size())/uint64(sectorSize), sectorSize)
	if err != nil {
		t.Fatal(err)
	}
	return &disk{f, t, table}
}

// partition is the place of a partition in bytes.
func (d *disk) partition(r layout.Role) (offset, size int64) {
	d.t.Helper()
	p, err := layout.Find(d.table, r)
	if err != nil {
		d.t.Fatalf("%s: %v", d.Name(), err)
	}
	return d.table.Bytes(p)
}

// cut copies a partition into a file of its own, with its holes.
func (d *disk) cut(r layout.Role) string {
	d.t.Helper()
	start, size := d.partition(r)
	out, err := os.Create(filepath.Join(d.t.TempDir(), "partition.img"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer out.Close()
	err = out.Truncate(size)
	if err == nil {
		err = vm.DataExtents(d.File, start+size, func(off, length int64) error {
			from, to := max(off, start), off+length
			if to <= from {
				return nil
			}
			_, err := io.Copy(io.NewOffsetWriter(out, from-start), io.NewSectionReader(d, from, to-from))
			return err
		})
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return out.Name()
}

// flip inverts one bit of a partition; no role is the whole disk.
func (d *disk) flip(r layout.Role, offset int64) {
	d.t.Helper()
	if r != 0 {
		start, _ := d.partition(r)
		offset += start
	}
	var b [1]byte
	_, err := d.ReadAt(b[:], offset)
	if err == nil {
		b[0] ^= 0x10
		_, err = d.WriteAt(b[:], offset)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// fill writes a file over the start of a partition.
func (d *disk) fill(r layout.Role, path string) {
	d.t.Helper()
	in, err := os.Open(path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer in.Close()
	start, _ := d.partition(r)
	if _, err := io.Copy(io.NewOffsetWriter(d, start), in); err != nil {
		d.t.Fatal(err)
	}
}

// write writes a partition table.
func (d *disk) write(table *gpt.Table) {
	d.t.Helper()
	if err := table.Write(d); err != nil {
		d.t.Fatal(err)
	}
	d.table = table
}

// putUKI puts a file in the place of the ESP's only UKI, by mtools.
func (d *disk) putUKI(r *release.Release, image []byte) {
	d.t.Helper()
	path := filepath.Join(d.t.TempDir(), "uki.efi")
	if err := os.WriteFile(path, image, 0o644); err != nil {
		d.t.Fatal(err)
	}
	esp := d.cut(layout.ESP)
	name := bls.Name{ImageID: r.ImageID, Version: r.Version}.String()
	testkit.Run(d.t, "mcopy", "-o", "-i", esp, path, "::"+bls.Directory+"/"+name)
	d.fill(layout.ESP, esp)
}

// checkTable asks sgdisk for problems of the partition table.
func (d *disk) checkTable() {
	d.t.Helper()
	out := testkit.Run(d.t, "sgdisk", "-v", d.Name())
	if !strings.Contains(out, "No problems found") || strings.Contains(out, "Warning") || strings.Contains(out, "Caution") {
		d.t.Errorf("sgdisk -v says:\n%s", out)
	}
}

// checkESP asks fsck.vfat for problems of the ESP: it has two lines to say when there
// are none, its name and sums.
func (d *disk) checkESP() {
	d.t.Helper()
	out := testkit.Run(d.t, "fsck.vfat", "-n", d.cut(layout.ESP))
	if strings.Count(strings.TrimSpace(out), "\n") != 1 {
		d.t.Errorf("fsck.vfat -n says:\n%s", out)
	}
}

// checkTree has veritysetup verify slot A against a root hash.
func (d *disk) checkTree(root string) {
	d.t.Helper()
	testkit.Run(d.t, "veritysetup", "verify", d.cut(layout.SlotA.System()), d.cut(layout.SlotA.Verity()), root)
}

// ukiWithRoot returns an image's UKI with another root hash in its boot contract and
// everything else as it was.
func ukiWithRoot(t testing.TB, image string, root verity.Root) []byte {
	t.Helper()
	file, err := os.ReadFile(imageFile(t, image, release.UKIFile))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := uki.Parse(file)
	if err != nil {
		t.Fatal(err)
	}
	initrd, _ := parsed.Section(".initrd")
	c, err := contract.FromInitrd(initrd)
	if err != nil {
		t.Fatal(err)
	}
	before, err := contract.Archive(c)
	if err != nil {
		t.Fatal(err)
	}
	c.RootHash = root[:]
	after, err := contract.Archive(c)
	if err != nil {
		t.Fatal(err)
	}
	if string(initrd[:len(before)]) != string(before) || len(before) != len(after) {
		t.Fatalf("the UKI's first archive is not the %d bytes that its contract encodes to", len(before))
	}
	copy(initrd, after) // the section lies in file
	return file
}
