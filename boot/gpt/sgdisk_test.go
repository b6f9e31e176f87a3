package gpt

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

// imageFile is an image file as a block device.
type imageFile struct{ *os.File }

func newImage(t *testing.T, size int64) imageFile {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return imageFile{f}
}

func noProblems(t *testing.T, path string) {
	t.Helper()
	out := testkit.Run(t, "sgdisk", "-v", path)
	if !strings.Contains(out, "No problems found") || strings.Contains(out, "Warning") {
		t.Errorf("sgdisk -v says:\n%s", out)
	}
}

// facts turns a partition into what `sgdisk -i` says of it.
func facts(p Partition) []string {
	return []string{
		"Partition GUID code: " + strings.ToUpper(p.Type.String()),
		"Partition unique GUID: " + strings.ToUpper(p.UUID.String()),
		fmt.Sprintf("First sector: %d ", p.First),
		fmt.Sprintf("Last sector: %d ", p.Last),
		fmt.Sprintf("Attribute flags: %016X", p.Attributes),
		fmt.Sprintf("Partition name: '%s'", p.Label),
	}
}

func TestSgdiskReadsOurs(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "sgdisk")
	f := newImage(t, diskSectors*512)
	table := sample(diskSectors, 512)
	table.Partitions[2].Label = "größe " + strings.Repeat("x", 30) // sgdisk 1.0.9 garbles what is outside the BMP
	full := Partition{Number: 128, Type: typeRoot, UUID: uuid(128), First: 9001, Last: 19966, Label: "last"}
	table.Partitions = append(table.Partitions, full)
	if err := table.Write(f); err != nil {
		t.Fatal(err)
	}
	noProblems(t, f.Name())
	if out := testkit.Run(t, "sgdisk", "-p", f.Name()); !strings.Contains(out, "Disk identifier (GUID): "+strings.ToUpper(diskGUID.String())) {
		t.Errorf("sgdisk -p says:\n%s", out)
	}
	for _, p := range table.Partitions {
		out := testkit.Run(t, "sgdisk", "-i", fmt.Sprint(p.Number), f.Name())
		for _, fact := range facts(p) {
			if !strings.Contains(out, fact) {
				t.Errorf("partition %d: no %q in\n%s", p.Number, fact, out)
			}
		}
	}
}

func TestWeReadSgdisks(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "sgdisk")
	f := newImage(t, diskSectors*512)
	testkit.Run(t, "sgdisk", "-a", "1", "-U", diskGUID.String(),
		"-n", "1:2048:4095", "-t", "1:"+typeESP.String(), "-u", "1:"+uuid(1).String(), "-c", "1:esp",
		"-n", "2:8192:9000", "-t", "2:"+typeRoot.String(), "-u", "2:"+uuid(2).String(), "-c", "2:system-a",
		"-A", "2:set:63", "-A", "2:set:60", "-A", "2:set:2", "-A", "2:set:0",
		"-n", "7:6000:6000", "-t", "7:"+typeRoot.String(), "-u", "7:"+uuid(3).String(), "-c", "7:größe", f.Name())
	got, health, err := Read(f, diskSectors, 512)
	if err != nil {
		t.Fatal(err)
	}
	want := sample(diskSectors, 512)
	want.Partitions[2].Label = "größe"
	if !health.OK() || !equal(got, want) {
		t.Errorf("read %+v, health %v", got, health)
	}

	// Written back unchanged, it is the same disk to the byte.
	before, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Write(f); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(before, after) {
		t.Error("writing back what was read changed the disk")
	}
}

func TestSgdiskTableOf256Entries(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "sgdisk")
	f := newImage(t, diskSectors*512)
	testkit.Run(t, "sgdisk", "-S", "256", "-n", "200:2048:4095", f.Name())
	got, health, err := Read(f, diskSectors, 512)
	if err != nil || !health.OK() || len(got.Partitions) != 1 || got.Partitions[0].Number != 200 {
		t.Fatalf("read %+v, %v, %v", got, health, err)
	}
	if err := got.Write(f); err == nil || !strings.Contains(err.Error(), "numbers go from 1 to 128") {
		t.Errorf("partition 200 written: %v", err)
	}
}

// FAULTS 41
func TestSgdiskAcceptsWhatWeHealed(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "sgdisk")
	for _, lba := range []int64{1, diskSectors - 1} {
		f := newImage(t, diskSectors*512)
		testkit.Run(t, "sgdisk", "-n", "1:2048:4095", f.Name())
		if _, err := f.WriteAt([]byte{0xff}, lba*512+60); err != nil {
			t.Fatal(err)
		}
		got, health, err := Read(f, diskSectors, 512)
		if err != nil || health.OK() {
			t.Fatalf("header %d damaged: %v, %v", lba, health, err)
		}
		if err := got.Write(f); err != nil {
			t.Fatal(err)
		}
		noProblems(t, f.Name())
	}
}

func TestSgdiskAcceptsAGrownDisk(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "sgdisk")
	f := newImage(t, diskSectors*512)
	if err := sample(diskSectors, 512).Write(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(3 * diskSectors * 512); err != nil {
		t.Fatal(err)
	}
	got, health, err := Read(f, 3*diskSectors, 512)
	if err != nil || !health.Moved {
		t.Fatalf("health %v, %v", health, err)
	}
	p := &got.Partitions[1]
	p.Last = 50000
	if err := got.Write(f); err != nil {
		t.Fatal(err)
	}
	noProblems(t, f.Name())
	if out := testkit.Run(t, "sgdisk", "-i", "2", f.Name()); !strings.Contains(out, "Last sector: 50000 ") {
		t.Errorf("sgdisk -i says:\n%s", out)
	}
}
