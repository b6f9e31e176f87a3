package fat

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"testing"

	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/testkit"
)

const (
	oldManager = "EFI/BOOT/BOOTX64.EFI"
	newManager = "EFI/BOOT/HALOGEN.NEW"
)

// volumeOf is a small volume with these files.
func volumeOf(t testing.TB, files ...File) *blocktest.Disk {
	t.Helper()
	d := blocktest.New(tinySize, blocktest.Zero)
	g := tiny
	if err := format(d, &g, sampleOptions(512), files); err != nil {
		t.Fatal(err)
	}
	return d
}

// has reports whether a name has the content that file gave to another.
func has(f *FS, name, content string, n int) error {
	if got, err := f.ReadFile(name); err != nil || !bytes.Equal(got, noise(content, n)) {
		return fmt.Errorf("%s: %d bytes, which are not %s's (%w)", name, len(got), content, err)
	}
	return nil
}

// The name has one whole content or the other, wherever the power is cut. FAULTS 45
func TestExchange(t *testing.T) {
	r := blocktest.Record(volumeOf(t, file(oldManager, 2000), file(newManager, 3000), file("other.conf", 600)))
	if err := Exchange(r, oldManager, newManager, 512); err != nil {
		t.Fatal(err)
	}
	seen := map[bool]int{}
	n, err := r.Cuts(blocktest.Options{}, func(c blocktest.Cut) error {
		f, err := Open(c.Disk)
		if err != nil {
			return err
		}
		before := errors.Join(has(f, oldManager, oldManager, 2000), has(f, newManager, newManager, 3000))
		after := errors.Join(has(f, oldManager, newManager, 3000), has(f, newManager, oldManager, 2000))
		seen[after == nil]++
		if before != nil && after != nil {
			return errors.Join(before, after)
		}
		return has(f, "other.conf", "other.conf", 600)
	})
	if err != nil || seen[true] == 0 || seen[false] == 0 {
		t.Errorf("%d states after a cut, %v: %v", n, seen, err)
	}
	if len(r.Log()) != 2 { // a write of a sector, and a flush
		t.Errorf("%d operations", len(r.Log()))
	}
	if err := Exchange(r, oldManager, newManager, 512); err != nil {
		t.Fatal(err)
	}
	if err := has(mustOpen(t, r.Disk()), oldManager, oldManager, 2000); err != nil {
		t.Errorf("exchanged twice: %v", err)
	}
}

// What one write cannot do, or not safely, is not begun.
func TestExchangeRefuses(t *testing.T) {
	var many []File
	for i := range 20 {
		many = append(many, file(fmt.Sprintf("EFI/BOOT/FILE%d.EFI", i), 10))
	}
	sample := []File{file(oldManager, 2000), file(newManager, 3000), file("EFI/BOOT/EMPTY", 0), file("EFI/OTHER", 600)}
	for name, c := range map[string]struct {
		files []File
		a, b  string
		size  int64
		spoil func(d *blocktest.Disk)
		want  error
		says  string
	}{
		"different sectors": {files: append(append([]File{file(oldManager, 10)}, many...), file(newManager, 10)), want: ErrApart},
		"not there":         {b: "EFI/BOOT/NONE", want: fs.ErrNotExist},
		"the same":          {b: oldManager, want: fs.ErrInvalid},
		"another directory": {b: "EFI/OTHER", want: fs.ErrInvalid},
		"empty":             {b: "EFI/BOOT/EMPTY", says: "is empty"},
		"a directory":       {a: "EFI/BOOT", b: "EFI/OTHER", want: fs.ErrNotExist},
		"small sectors":     {size: 256, says: "sectors of 256 bytes"},
		"odd sectors":       {size: 600, says: "sectors of 600 bytes"},
		"broken":            {spoil: func(d *blocktest.Disk) { setEntry(t, d, 6, 0) }, says: "leads to cluster 0"},
		"shared": {spoil: func(d *blocktest.Disk) {
			clusters, err := mustOpen(t, d).Clusters(newManager)
			if err != nil {
				t.Fatal(err)
			}
			setEntry(t, d, 6, clusters[1])
		}, says: "both have cluster"},
	} {
		if c.files == nil {
			c.files = sample
		}
		d := volumeOf(t, c.files...)
		if c.spoil != nil {
			c.spoil(d)
		}
		a, b, size := oldManager, newManager, int64(512)
		if c.a != "" {
			a = c.a
		}
		if c.b != "" {
			b = c.b
		}
		if c.size != 0 {
			size = c.size
		}
		r := blocktest.Record(d)
		err := Exchange(r, a, b, size)
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || len(r.Log()) != 0 {
			t.Errorf("%s: %v after %d operations", name, err, len(r.Log()))
		}
	}
}

// mtools and fsck.vfat see what we see.
func TestExchangeAgainstTools(t *testing.T) {
	testkit.Need(t, "fsck.vfat")
	testkit.Need(t, "mcopy")
	const size = 100 << 20
	img := imageFile(t, size)
	if err := Format(img, size, sampleOptions(512), []File{file(oldManager, 150_000), file("EFI/BOOT/long name.txt", 10)}); err != nil {
		t.Fatal(err)
	}
	fresh := t.TempDir() + "/HALOGEN.NEW"
	write := exec.Command("sh", "-c", "head -c 170000 /dev/urandom > "+fresh+" && mcopy -i "+img.Name()+" "+fresh+" ::/"+newManager)
	if out, err := write.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := Exchange(deviceOf{img}, oldManager, newManager, 512); err != nil {
		t.Fatal(err)
	}
	fsckIsSilent(t, img.Name())
	for _, compare := range []string{
		"mtype -i " + img.Name() + " ::/" + oldManager + " | cmp - " + fresh,
		"mdel -i " + img.Name() + " ::/" + newManager + " && mtype -i " + img.Name() + " ::/" + oldManager + " | cmp - " + fresh,
	} {
		if out, err := exec.Command("sh", "-c", compare).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", compare, err, out)
		}
	}
	fsckIsSilent(t, img.Name())
}

func FuzzExchange(f *testing.F) {
	image := make([]byte, tinySize)
	if _, err := volumeOf(f, file(oldManager, 2000), file(newManager, 3000)).ReadAt(image, 0); err != nil {
		f.Fatal(err)
	}
	f.Add(image[:20*512], newManager, int64(512))
	f.Fuzz(func(t *testing.T, start []byte, other string, sector int64) {
		d := blocktest.New(tinySize, blocktest.Zero)
		if _, err := d.WriteAt(image, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := d.WriteAt(start[:min(len(start), tinySize)], 0); err != nil {
			t.Fatal(err)
		}
		content := func(name string) []byte {
			v, err := Open(d)
			if err != nil {
				return nil
			}
			b, err := v.ReadFile(name)
			if err != nil {
				return nil
			}
			return b
		}
		first, second := content(oldManager), content(other)
		if Exchange(d, oldManager, other, sector) != nil {
			return
		}
		if a, b := content(oldManager), content(other); !bytes.Equal(a, second) || !bytes.Equal(b, first) {
			t.Fatalf("%s and %s are not exchanged", oldManager, other)
		}
	})
}
