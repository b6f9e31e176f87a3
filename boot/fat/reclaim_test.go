package fat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/testkit"
)

func TestClusters(t *testing.T) {
	d := tinyVolume(t)
	for path, want := range map[string][]uint32{"EFI/BOOT/BOOTX64.EFI": {5, 6, 7, 8}, "long name.conf": {9, 10}, "EMPTY": nil, "EFI": {3}} {
		if got, err := mustOpen(t, d).Clusters(path); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: clusters %v, %v, want %v", path, got, err, want)
		}
	}
	if _, err := mustOpen(t, d).Clusters("NONE"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such file: %v", err)
	}
	for _, c := range []struct {
		name string
		to   uint32
		want string
	}{
		{"too short", minEnd, "it has 2 clusters, its length needs 4"},
		{"leads nowhere", 0, "leads to cluster 0"},
		{"leads back", 5, "leads back"},
	} {
		d := tinyVolume(t)
		setEntry(t, d, 6, c.to)
		if _, err := mustOpen(t, d).Clusters("EFI/BOOT/BOOTX64.EFI"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// Room that was reserved behind the end is not damage.
	setEntry(t, d, 10, 60)
	setEntry(t, d, 60, minEnd)
	if got, err := mustOpen(t, d).Clusters("long name.conf"); err != nil || !slices.Equal(got, []uint32{9, 10, 60}) {
		t.Errorf("with room behind its end: %v, %v", got, err)
	}
}

// renamed is a volume on which a rename was cut: two names have the clusters of
// one file, as one of them says. Nothing leads to clusters 80 to 83.
func renamed(t testing.TB) *blocktest.Disk {
	t.Helper()
	d := blocktest.New(tinySize, blocktest.Zero)
	g := tiny
	files := []File{file("EFI/Linux/testos_1.efi", 2000), file("EFI/Linux/testos_1+2-1.efi", 2000), file("other.conf", 600)}
	if err := format(d, &g, sampleOptions(512), files); err != nil {
		t.Fatal(err)
	}
	f := mustOpen(t, d)
	from, err := f.lookup("EFI/Linux/testos_1.efi")
	if err != nil {
		t.Fatal(err)
	}
	to, err := f.places(mustLookup(t, f, "EFI/Linux").cluster, "testos_1+2-1.efi")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(binary.LittleEndian.AppendUint16(nil, uint16(from.cluster)), to[len(to)-1]+26); err != nil {
		t.Fatal(err)
	}
	for c := uint32(80); c < 84; c++ {
		setEntry(t, d, c, c+1)
	}
	setEntry(t, d, 84, badCluster)
	return d
}

func mustLookup(t testing.TB, f *FS, path string) *info {
	t.Helper()
	i, err := f.lookup(path)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func mend(d block.Device) error {
	if err := Forget(d, "EFI/Linux/testos_1+2-1.efi"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, err := Reclaim(d)
	return err
}

// The file whose name stays keeps its content, wherever the power is cut; and in
// the end the other name is gone, and nothing is lost or had twice. FAULTS 45, 48
func TestForget(t *testing.T) {
	r := blocktest.Record(renamed(t))
	if err := mend(r); err != nil {
		t.Fatal(err)
	}
	whole := func(d *blocktest.Disk) error {
		f, err := Open(d)
		if err != nil {
			return err
		}
		for path, n := range map[string]int{"EFI/Linux/testos_1.efi": 2000, "other.conf": 600} {
			if got, err := f.ReadFile(path); err != nil || !bytes.Equal(got, noise(path, n)) {
				return fmt.Errorf("%s: %d bytes, %w", path, len(got), err)
			}
		}
		return nil
	}
	n, err := r.Nested(blocktest.Options{}, func(r *blocktest.Recorder) error {
		if err := mend(r); err != nil {
			return err
		}
		f, err := Open(r.Disk())
		if err != nil {
			return err
		}
		entries, err := f.ReadDir("EFI/Linux")
		if err != nil || len(entries) != 1 || entries[0].Name() != "testos_1.efi" {
			return fmt.Errorf("names %v, %w", names(entries), err)
		}
		return nil
	}, func(c blocktest.Cut) error { return whole(c.Disk) })
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d states after a cut", n)
	if f := mustOpen(t, r.Disk()); f.fatEntry(t, 80) != 0 || f.fatEntry(t, 84) != badCluster {
		t.Errorf("cluster 80 is %#x, 84 is %#x", f.fatEntry(t, 80), f.fatEntry(t, 84))
	}
	if err := Forget(r, "EFI/Linux"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory: %v", err)
	}
	if err := Forget(r, "EFI/none/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such directory: %v", err)
	}
}

func (f *FS) fatEntry(t *testing.T, c uint32) uint32 {
	t.Helper()
	e, err := f.entry(c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// Where anything cannot be followed, nothing is freed.
func TestReclaimRefuses(t *testing.T) {
	for name, to := range map[string]uint32{"broken": 0, "a loop": 5, "too short": minEnd} {
		d := tinyVolume(t)
		setEntry(t, d, 6, to)
		setEntry(t, d, 80, minEnd)
		r := blocktest.Record(d)
		if freed, err := Reclaim(r); !errors.Is(err, ErrDamaged) || freed != 0 || len(r.Log()) != 0 {
			t.Errorf("%s: %d bytes freed in %d writes, %v", name, freed, len(r.Log()), err)
		}
	}
	r := blocktest.Record(tinyVolume(t))
	if freed, err := Reclaim(r); err != nil || freed != 0 || len(r.Log()) != 0 {
		t.Errorf("nothing to do: %d bytes freed in %d writes, %v", freed, len(r.Log()), err)
	}
}

// Linux sees the names behind an empty entry, which end a directory for everybody else:
// what they lead to is not free.
// FAULTS 112 (M7): one byte of a directory entry has changed so that it looks like none
// of a file's. Whatever it was keeps its clusters.
func TestReclaimChangedEntry(t *testing.T) {
	for _, c := range []struct {
		path, name string
		at         int64 // in the short entry
		to         byte
	}{
		{"EFI/BOOT/BOOTX64.EFI", "_OOTX64.EFI", 0, '.'}, {"EMPTY/X", "_", 0, '.'}, {"EMPTY/D", "_", 0, '.'}, {"EFI/BOOT", "_OOT", 0, '.'}, {"EFI", "_FI", 0, '.'},
		{"EFI/BOOT/BOOTX64.EFI", "", 11, attrVolumeID}, {"EFI", "", 11, attrDir | attrVolumeID},
	} {
		d := blocktest.New(tinySize, blocktest.Zero)
		g := tiny
		files := []File{file("EFI/BOOT/BOOTX64.EFI", 2000), file("EMPTY/X", 1000), file("EMPTY/D/deep.conf", 1000), file("other.conf", 600)}
		if err := format(d, &g, sampleOptions(512), files); err != nil {
			t.Fatal(err)
		}
		whole := mustOpen(t, d)
		dir, _ := path.Split(c.path)
		directory := whole.root
		if dir != "" {
			directory = mustLookup(t, whole, strings.TrimSuffix(dir, "/")).cluster
		}
		entries, cluster := make([]byte, g.clusterSize()), mustLookup(t, whole, c.path).cluster
		if err := readFull(d, entries, whole.g.cluster(directory)); err != nil {
			t.Fatal(err)
		}
		at := 0
		for entries[at] == '.' || binary.LittleEndian.Uint16(entries[at+26:]) != uint16(cluster) || entries[at+11]&attrLongMask == attrLongName {
			at += dirEntrySize
		}
		if _, err := d.WriteAt([]byte{c.to}, whole.g.cluster(directory)+int64(at)+c.at); err != nil {
			t.Fatal(err)
		}
		r := blocktest.Record(d)
		freed, err := Reclaim(r)
		if freed != 0 || err != nil && !errors.Is(err, ErrDamaged) || slices.ContainsFunc(r.Log(), func(o blocktest.Op) bool { return len(o.Data) > 0 }) {
			t.Errorf("%s, byte %d is %#x: %d bytes freed, %v", c.path, c.at, c.to, freed, err)
		}
		if c.name == "" {
			continue
		}
		// It can be seen, by a name that leads nowhere else.
		if _, err := fs.Stat(mustOpen(t, d), path.Join(dir, c.name)); err != nil {
			t.Errorf("%s, byte %d is %#x: %v", c.path, c.at, c.to, err)
		}
	}
}

func TestReclaimBehindEnd(t *testing.T) {
	d := renamed(t)
	f := mustOpen(t, d)
	gap, err := f.places(mustLookup(t, f, "EFI/Linux").cluster, "testos_1+2-1.efi")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt([]byte{0}, gap[0]); err != nil {
		t.Fatal(err)
	}
	r := blocktest.Record(d)
	if freed, err := Reclaim(r); !errors.Is(err, ErrDamaged) || !errors.Is(err, errBehindEnd) || freed != 0 || len(r.Log()) != 0 {
		t.Errorf("%d bytes freed in %d writes, %v", freed, len(r.Log()), err)
	}
}

// fsck.vfat finds nothing more than a summary that is out of date, which both it
// and Linux compute again.
func TestFsckAfterMending(t *testing.T) {
	testkit.Need(t, "fsck.vfat")
	const size = 100 << 20
	img := imageFile(t, size)
	files := []File{file("EFI/Linux/testos_1.efi", 200_000), file("EFI/Linux/testos_1+2-1.efi", 200_000), file("x/y.conf", 600)}
	if err := Format(img, size, sampleOptions(512), files); err != nil {
		t.Fatal(err)
	}
	f := mustOpen(t, img)
	from := mustLookup(t, f, "EFI/Linux/testos_1.efi").cluster
	to, err := f.places(mustLookup(t, f, "EFI/Linux").cluster, "testos_1+2-1.efi")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := img.WriteAt(binary.LittleEndian.AppendUint16(nil, uint16(from)), to[len(to)-1]+26); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("fsck.vfat", "-n", img.Name()).CombinedOutput(); err == nil {
		t.Fatalf("fsck.vfat finds nothing on a damaged volume:\n%s", out)
	}
	if err := mend(deviceOf{img}); err != nil {
		t.Fatal(err)
	}
	out, _ := exec.Command("fsck.vfat", "-n", img.Name()).CombinedOutput() // not zero for the summary
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "fsck.fat ") && !strings.HasPrefix(line, "Free cluster summary wrong") && !strings.HasPrefix(line, "Auto-correcting") &&
			!strings.HasPrefix(line, "Leaving filesystem unchanged") && !strings.HasPrefix(line, img.Name()) && line != "" {
			t.Errorf("fsck.vfat says: %s", line)
		}
	}
}

// deviceOf makes a disk of a file.
type deviceOf struct{ *os.File }

func FuzzForget(f *testing.F) {
	image := make([]byte, tinySize)
	if _, err := renamed(f).ReadAt(image, 0); err != nil {
		f.Fatal(err)
	}
	f.Add(image[:20*512], "EFI/Linux/testos_1+2-1.efi")
	f.Fuzz(func(t *testing.T, start []byte, name string) {
		d := blocktest.New(tinySize, blocktest.Zero)
		if _, err := d.WriteAt(image, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := d.WriteAt(start[:min(len(start), tinySize)], 0); err != nil {
			t.Fatal(err)
		}
		_ = Forget(d, name)
		freed, err := Reclaim(d)
		if err != nil {
			return
		}
		// What was whole before is whole afterwards: everything can be followed.
		volume, err := Open(d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := volume.used(); err != nil || freed < 0 {
			t.Errorf("%d bytes were freed, and then: %v", freed, err)
		}
	})
}
