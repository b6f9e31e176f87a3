package install

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/words"
)

// failing is a disk that cannot be read from a place on.
type failing struct {
	bytes.Reader
	from, to int64
}

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	if off < f.to && off+int64(len(p)) > f.from {
		return 0, errors.New("input/output error")
	}
	return f.Reader.ReadAt(p, off)
}

// A disk that cannot be read does not count as unused, and the person who installs is told.
func TestContentsThatCannotBeRead(t *testing.T) {
	disk := make([]byte, 8*mib)
	for name, at := range map[string][2]int64{"all": {0, 8 * mib}, "the start": {4096, 8192}, "the end": {8*mib - 4096, 8 * mib}} {
		f := &failing{*bytes.NewReader(disk), at[0], at[1]}
		if got := words.English.List(Contents(f, 8*mib/512, 512), "; "); got != "what cannot be read (input/output error)" {
			t.Errorf("%s: %q", name, got)
		}
	}
	d := Disk{Path: filepath.Join(t.TempDir(), "gone")}
	if look(&d); len(d.Contents) != 1 || !strings.HasPrefix(d.Contents[0].String(), "what cannot be read (") {
		t.Errorf("a disk that cannot be opened holds %q", d.Contents)
	}
	p := &Plan{Disk: d}
	if p.checkContents(); len(p.Findings) != 1 || !p.Findings[0].Erases || !strings.Contains(p.Findings[0].Text.String(), "holds what cannot be read (") {
		t.Errorf("findings %v", p.Findings)
	}
}

// What tells of itself at the disk's end alone.
func TestContentsAtTheEnd(t *testing.T) {
	const md = "a member of a RAID (md)"
	for _, c := range []struct {
		name, magic string
		size, at    int64
		sector      int
		want        string
	}{
		{"md 1.0", "\xfc\x4e\x2b\xa9", 8 * mib, 8*mib - 8192, 512, md},
		{"md 1.0, an odd size", "\xfc\x4e\x2b\xa9", 8*mib + 512, 8*mib - 8192, 512, md},
		{"md 0.90", "\xfc\x4e\x2b\xa9", 8 * mib, 8*mib - 65536, 512, md},
		{"md 0.90, an odd size", "\xfc\x4e\x2b\xa9", 8*mib + 5*512, 8*mib - 65536, 512, md},
		{"Intel", "Intel Raid ISM Cfg Sig. 1.3.00", 8 * mib, 8*mib - 1024, 512, "a member of a RAID of Intel's firmware"},
		{"Intel, large sectors", "Intel Raid ISM Cfg Sig. 1.3.00", 8 * mib, 8*mib - 8192, 4096, "a member of a RAID of Intel's firmware"},
		{"DDF", "\xde\x11\xde\x11", 8 * mib, 8*mib - 512, 512, "a member of a RAID of the firmware (DDF)"},
		{"DDF, large sectors", "\xde\x11\xde\x11", 8 * mib, 8*mib - 4096, 4096, "a member of a RAID of the firmware (DDF)"},
		{"something", "x", 8 * mib, 8*mib - 100, 512, "unknown data"},
		{"nothing", "", 8 * mib, 0, 512, ""},
		{"a small disk", "", 4096, 0, 512, ""},
		{"no medium", "", 0, 0, 512, ""},
	} {
		disk := make([]byte, c.size)
		copy(disk[c.at:], c.magic)
		if got := words.English.List(Contents(bytes.NewReader(disk), uint64(c.size)/uint64(c.sector), c.sector), "; "); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// Partitions of an MBR, as sgdisk makes them, and boot sectors of file systems, which have
// code where an MBR has its records.
func TestContentsOfMBR(t *testing.T) {
	testkit.Need(t, "sgdisk")
	name := filepath.Join(t.TempDir(), "disk")
	contents := func() string {
		t.Helper()
		disk, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return words.English.List(Contents(bytes.NewReader(disk), 8*mib/512, 512), "; ")
	}
	if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, 8*mib)); err != nil {
		t.Fatal(err)
	}
	run(t, "sgdisk", "--new=1:2048:6143", "--typecode=1:8300", "--new=2:6144:8191", "--typecode=2:0700", "--gpttombr=1:2", name)
	if got, want := contents(), "MBR partition 1 of type 83 (2 MiB); MBR partition 2 of type 07 (1 MiB)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	testkit.Need(t, "mkfs.vfat")
	if err := errors.Join(os.Remove(name), os.WriteFile(name, nil, 0o600), os.Truncate(name, 8*mib)); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.vfat", "-F", "12", name)
	if got := contents(); got != "a boot sector" {
		t.Errorf("FAT12: %q", got)
	}
}
