package fat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/blocktest"
)

// tiny is a volume that Format would refuse for having too few clusters; the
// reader does not mind, and every byte of it can be damaged in a test.
var tiny = geometry{sectorSize: 512, clusterSectors: 1, sectors: 8 + 2 + 100, reserved: 8, fatSectors: 1, fats: 2, clusters: 100}

const tinySize = 110 * 512

func tinyVolume(t testing.TB) *blocktest.Disk {
	t.Helper()
	d := blocktest.New(tinySize, blocktest.Zero)
	g := tiny
	err := format(d, &g, sampleOptions(512), []File{
		file("EFI/BOOT/BOOTX64.EFI", 2000), // clusters 5 to 8
		file("long name.conf", 600),        // 9, 10
		file("EMPTY", 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func setEntry(t testing.TB, d *blocktest.Disk, cluster, to uint32) {
	t.Helper()
	if _, err := d.WriteAt(le32(to), tiny.fat(0)+int64(cluster)*4); err != nil {
		t.Fatal(err)
	}
}

func le32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }

func mustOpen(t testing.TB, r io.ReaderAt) *FS {
	t.Helper()
	f, err := Open(r)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		off   int64
		value []byte
		want  string
	}{
		{"signature", 510, []byte{0}, "no signature"},
		{"sectors of 0 bytes", 11, []byte{0, 0}, "sectors of 0 bytes"},
		{"sectors of 8192 bytes", 11, []byte{0, 0x20}, "sectors of 8192 bytes"},
		{"sectors of 513 bytes", 11, []byte{1, 2}, "sectors of 513 bytes"},
		{"clusters of 0 sectors", 13, []byte{0}, "clusters of 0 sectors"},
		{"clusters of 3 sectors", 13, []byte{3}, "clusters of 3 sectors"},
		{"no FAT", 16, []byte{0}, "0 FATs"},
		{"200 FATs", 16, []byte{200}, "200 FATs"},
		{"nothing reserved", 14, []byte{0, 0}, "0 reserved sectors"},
		{"FAT16", 22, []byte{1, 0}, "not FAT32"},
		{"root entries", 17, []byte{0, 2}, "not FAT32"},
		{"version", 42, []byte{1, 0}, "version 0.1"},
		{"no sectors", 32, le32(0), "0 sectors"},
		{"2^32-1 sectors", 32, le32(1<<32 - 1), "do not fit FATs of 1 sectors"},
		{"FATs of 2^32-1 sectors", 36, le32(1<<32 - 1), "do not fit"},
		{"root at 0", 44, le32(0), "root at cluster 0"},
		{"root at 102", 44, le32(102), "root at cluster 102"},
		{"active FAT", 40, []byte{0x82, 0}, "FAT 3 of 2"},
	} {
		d := tinyVolume(t)
		if _, err := d.WriteAt(c.value, c.off); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(d); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	for _, n := range []int{0, 511, 512, 8*512 + 4} {
		all := make([]byte, tinySize)
		if _, err := tinyVolume(t).ReadAt(all, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(bytes.NewReader(all[:n])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

func TestDirtyAndActiveFAT(t *testing.T) {
	for _, c := range []struct {
		name  string
		off   int64
		value []byte
	}{
		{"mounted", 65, []byte{1}},
		{"not shut down", tiny.fat(0) + 4, le32(0x07ffffff)},
		{"errors", tiny.fat(0) + 4, le32(0x0bffffff)},
	} {
		d := tinyVolume(t)
		if mustOpen(t, d).Info().Dirty {
			t.Fatal("dirty from the start")
		}
		if _, err := d.WriteAt(c.value, c.off); err != nil {
			t.Fatal(err)
		}
		if !mustOpen(t, d).Info().Dirty {
			t.Errorf("%s: not dirty", c.name)
		}
	}
	d := tinyVolume(t)
	if _, err := d.WriteAt([]byte{0x81, 0}, 40); err != nil { // the second FAT alone is kept
		t.Fatal(err)
	}
	setEntry(t, d, 5, 77) // in the first
	if b, err := mustOpen(t, d).ReadFile("EFI/BOOT/BOOTX64.EFI"); err != nil || !bytes.Equal(b, noise("EFI/BOOT/BOOTX64.EFI", 2000)) {
		t.Errorf("read %d bytes, %v", len(b), err)
	}
}

// FAULTS 48: what a break in a chain does not touch can be read.
func TestBrokenChains(t *testing.T) {
	const path = "EFI/BOOT/BOOTX64.EFI"
	for _, c := range []struct {
		name     string
		from, to uint32
		readable int // bytes before the break
		want     string
	}{
		{"ends early", 6, endOfChain, 1024, "unexpected EOF"},
		{"free cluster", 5, 0, 512, "leads to cluster 0"},
		{"cluster 1", 5, 1, 512, "leads to cluster 1:"},
		{"bad cluster", 5, badCluster, 512, "leads to cluster 268435447"},
		{"outside", 7, 102, 1536, "leads to cluster 102"},
		{"itself", 5, 5, 512, "leads back to cluster 5"},
		{"circle", 7, 6, 1536, "leads back to cluster 6"},
	} {
		d := tinyVolume(t)
		setEntry(t, d, c.from, c.to)
		f := mustOpen(t, d)
		file, err := f.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(file)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q and the path", c.name, err, c.want)
		}
		if !bytes.Equal(got, noise(path, 2000)[:c.readable]) {
			t.Errorf("%s: %d bytes read, want the first %d", c.name, len(got), c.readable)
		}
		if n, again := file.Read(make([]byte, 1)); n != 0 || again == nil || again.Error() != err.Error() {
			t.Errorf("%s: after the error %d bytes and %v", c.name, n, again)
		}
		if b, err := f.ReadFile("long name.conf"); err != nil || !bytes.Equal(b, noise("long name.conf", 600)) {
			t.Errorf("%s: the other file: %d bytes, %v", c.name, len(b), err)
		}
	}
}

// rootEntry returns the offset of the root's short entry of that name.
func rootEntry(t *testing.T, d *blocktest.Disk, short string) int64 {
	t.Helper()
	root := make([]byte, 512)
	if _, err := d.ReadAt(root, tiny.cluster(2)); err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(root, []byte(short))
	if at < 0 || at%dirEntrySize != 0 {
		t.Fatalf("no entry %q", short)
	}
	return tiny.cluster(2) + int64(at)
}

func TestHostileEntries(t *testing.T) {
	for _, c := range []struct {
		name, short string
		off         int64
		value       []byte
		path, want  string
	}{
		{"size of 4 GiB", "EMPTY", 28, le32(1<<32 - 1), "EMPTY", "claims 4294967295 bytes"},
		{"content at cluster 0", "LONGNA~1", 26, []byte{0, 0}, "long name.conf", "begins at cluster 0"},
		{"content outside", "LONGNA~1", 20, []byte{1, 0}, "long name.conf", "begins at cluster 65545"},
		{"directory at cluster 0", "EFI     ", 26, []byte{0, 0}, "EFI/BOOT", "begins at cluster 0"},
		{"directory is the root", "EFI     ", 26, []byte{2, 0}, "EFI/EFI", "contains itself"},
		{"directory that is a file", "EFI     ", 11, []byte{attrArchive}, "EFI/BOOT", "does not exist"},
	} {
		d := tinyVolume(t)
		if _, err := d.WriteAt(c.value, rootEntry(t, d, c.short)+c.off); err != nil {
			t.Fatal(err)
		}
		f := mustOpen(t, d)
		if _, err := f.ReadFile(c.path); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if _, err := f.ReadDir("."); err != nil {
			t.Errorf("%s: the root: %v", c.name, err)
		}
	}
}

func names(entries []fs.DirEntry) (list []string) {
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestNamesOfDamagedEntries(t *testing.T) {
	long := func(d *blocktest.Disk) int64 { return rootEntry(t, d, "LONGNA~1") - 2*dirEntrySize }
	for _, c := range []struct {
		name   string
		at     func(*blocktest.Disk) int64
		value  []byte
		listed string
	}{
		{"as it was", long, nil, "long name.conf"},
		{"wrong checksum", func(d *blocktest.Disk) int64 { return long(d) + 13 }, []byte{0}, "LONGNA~1.CON"},
		{"first part deleted", long, []byte{0xe5}, "LONGNA~1.CON"},
		{"wrong order", func(d *blocktest.Disk) int64 { return long(d) + dirEntrySize }, []byte{2}, "LONGNA~1.CON"},
		{"order 0", long, []byte{lastLong}, "LONGNA~1.CON"},
		{"order 63", long, []byte{lastLong | 63}, "LONGNA~1.CON"},
		{"a slash in it", func(d *blocktest.Disk) int64 { return long(d) + dirEntrySize + 1 }, []byte{'/', 0}, "_ong name.conf"},
		{"an escape in it", func(d *blocktest.Disk) int64 { return long(d) + dirEntrySize + 1 }, []byte{0x1b, 0}, "_ong name.conf"},
		{"nothing in it", func(d *blocktest.Disk) int64 { return long(d) + dirEntrySize + 1 }, []byte{0, 0}, "LONGNA~1.CON"},
		{"another short name", func(d *blocktest.Disk) int64 { return rootEntry(t, d, "LONGNA~1") }, []byte("X/\x05\x1b"), "X___NA~1.CON"},
		{"deleted", func(d *blocktest.Disk) int64 { return rootEntry(t, d, "LONGNA~1") }, []byte{0xe5}, ""},
	} {
		d := tinyVolume(t)
		if _, err := d.WriteAt(c.value, c.at(d)); err != nil {
			t.Fatal(err)
		}
		entries, err := mustOpen(t, d).ReadDir(".")
		want := []string{"EFI", "EMPTY", c.listed}
		if c.listed == "" {
			want = want[:2]
		}
		slices.Sort(want)
		if got := names(entries); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, want)
		}
	}
}

// FAULTS 48
func TestDamagedDirectory(t *testing.T) {
	d := blocktest.New(64<<20, blocktest.Zero)
	if err := Format(d, 64<<20, sampleOptions(512), asFiles(sampleFiles())); err != nil {
		t.Fatal(err)
	}
	f := mustOpen(t, d)
	whole, err := f.ReadDir("many")
	if err != nil || len(whole) != 150 {
		t.Fatalf("%d entries, %v", len(whole), err)
	}
	i, err := f.lookup("many")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(le32(0), f.g.fat(0)+int64(i.cluster+9)*4); err != nil {
		t.Fatal(err)
	}
	f = mustOpen(t, d) // it may keep what it read of the FAT
	part, err := f.ReadDir("many")
	if err == nil || len(part) < 20 || len(part) > 100 {
		t.Errorf("%d entries before the break, %v", len(part), err)
	}
	if _, err := f.Stat("many/" + part[0].Name()); err != nil {
		t.Errorf("before the break: %v", err)
	}
	if _, err := f.Stat("many/file number 149.data"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("behind the break it may or may not exist, but: %v", err)
	}
	dir, err := f.Open("many")
	if err != nil {
		t.Fatal(err)
	}
	if some, err := dir.(fs.ReadDirFile).ReadDir(-1); err == nil || len(some) != len(part) {
		t.Errorf("opened: %d entries, %v", len(some), err)
	}
	problems := 0
	if err := f.Walk(func(path string, _ fs.FileInfo, err error) error {
		if err != nil {
			problems++
			if path != "many" || !strings.Contains(err.Error(), "leads to cluster 0") {
				t.Errorf("%s: %v", path, err)
			}
		}
		return nil
	}); err != nil || problems != 1 {
		t.Errorf("walk: %d problems, %v", problems, err)
	}
}

func TestWalk(t *testing.T) {
	d := tinyVolume(t)
	var got []string
	f := mustOpen(t, d)
	note := func(path string, i fs.FileInfo, err error) error {
		if err != nil {
			path += ": " + err.Error()
		}
		got = append(got, fmt.Sprint(path, " ", i.IsDir()))
		return nil
	}
	if err := f.Walk(note); err != nil {
		t.Fatal(err)
	}
	want := []string{". true", "EFI true", "EFI/BOOT true", "EFI/BOOT/BOOTX64.EFI false", "EMPTY false", "long name.conf false"}
	if !slices.Equal(got, want) {
		t.Errorf("walk: %q", got)
	}

	// The directory BOOT becomes its own parent: the walk ends.
	if _, err := d.WriteAt([]byte{3, 0}, tiny.cluster(3)+2*dirEntrySize+26); err != nil {
		t.Fatal(err)
	}
	got = nil
	if err := f.Walk(note); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(got, "EFI/BOOT: EFI/BOOT: is the directory EFI again true") {
		t.Errorf("walk in a circle: %q", got)
	}
	stop := errors.New("enough")
	if err := f.Walk(func(path string, _ fs.FileInfo, _ error) error {
		if path == "EFI" {
			return stop
		}
		return nil
	}); err != stop {
		t.Errorf("walk that was stopped: %v", err)
	}
}

// A directory whose chain never ends, and a file whose size is the whole volume:
// memory stays in bounds.
func TestEndlessDirectory(t *testing.T) {
	d := blocktest.New(128<<20, blocktest.Zero)
	if err := Format(d, 128<<20, sampleOptions(512), nil); err != nil {
		t.Fatal(err)
	}
	f := mustOpen(t, d)
	for c := uint32(2); c < 8000; c++ { // 4 MB of directory, all of it deleted files
		if _, err := d.WriteAt(le32(c+1), f.g.fat(0)+int64(c)*4); err != nil {
			t.Fatal(err)
		}
		if _, err := d.WriteAt(bytes.Repeat([]byte{0xe5}, 512), f.g.cluster(c)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := mustOpen(t, d).ReadDir("."); err == nil || !strings.Contains(err.Error(), "more than 65536 directory entries") {
		t.Errorf("error %v", err)
	}
}

// FuzzOpen lays a fuzzed boot sector, FAT and data on a small volume and reads
// all of it.
func FuzzOpen(f *testing.F) {
	all := make([]byte, tinySize)
	if _, err := tinyVolume(f).ReadAt(all, 0); err != nil {
		f.Fatal(err)
	}
	boot, table, data := all[:90], all[tiny.fat(0):tiny.fat(0)+44], all[tiny.cluster(2):tiny.cluster(5)]
	f.Add(boot, table, data)
	f.Add(boot, table[:24], data[:512])
	f.Add(boot, bytes.Repeat([]byte{3, 0, 0, 0}, 20), data)
	f.Fuzz(func(t *testing.T, boot, table, data []byte) {
		d := blocktest.New(tinySize, blocktest.Hostile)
		for _, w := range []struct {
			b         []byte
			off, room int64
		}{{boot, 0, 510}, {[]byte{0x55, 0xaa}, 510, 2}, {table, tiny.fat(0), 512}, {data, tiny.cluster(2), 100 * 512}} {
			if _, err := d.WriteAt(w.b[:min(int64(len(w.b)), w.room)], w.off); err != nil {
				t.Fatal(err)
			}
		}
		f, err := Open(d)
		if err != nil {
			return
		}
		var total int64
		_ = f.Walk(func(path string, i fs.FileInfo, err error) error {
			if !fs.ValidPath(path) {
				t.Fatalf("path %q", path)
			}
			if err != nil || i.IsDir() {
				return nil
			}
			b, err := f.ReadFile(path)
			if total += int64(len(b)); total > 64<<20 {
				return errors.New("enough")
			}
			if err == nil && int64(len(b)) > f.Info().Size {
				t.Fatalf("%q: %d bytes on a volume of %d", path, len(b), f.Info().Size)
			}
			return nil
		})
	})
}
