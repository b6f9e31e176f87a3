package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/version"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/erofs"
	"halogenos.internal/builder/rootfs/rootfstest"
)

const configuration = "[UKI]\nCmdline=quiet\n[Image]\nImageID=test-os\nEpoch=4\nSlotSize=16M\nReleaseKey=none\n[Initramfs]\nModules=one\n"

// options builds a root file system into a new directory.
func options(t testing.TB, rootfs string) Options {
	t.Helper()
	testkit.Need(t, "mkfs.erofs")
	c, err := config.Parse(configuration, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		Config: c, RootFS: rootfs, Version: 7, Out: filepath.Join(t.TempDir(), "out"), Machine: rootfstest.Machine(t),
		Disk: true, DiskSize: 532 << 20, Progress: NewProgress(io.Discard),
	}
}

func mustBuild(t testing.TB, o Options) *Result {
	t.Helper()
	r, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func read(t testing.TB, dir, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func listing(t testing.TB, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestPartsBelongTogether(t *testing.T) {
	o := options(t, rootfstest.Minimal().Write(t, false))
	r := mustBuild(t, o)
	if have, want := listing(t, o.Out), []string{"bootx64.efi", "disk.img", ProvenanceFile, "release.json", BillFile, "system.erofs", "uki.efi"}; !slices.Equal(have, want) {
		t.Errorf("the output directory has %q, want %q", have, want)
	}
	rel, err := release.Parse(read(t, o.Out, release.FileName))
	if err != nil {
		t.Fatal(err)
	}
	if a, b := mustJSON(t, rel), mustJSON(t, r.Release); a != b {
		t.Errorf("release.json has %s, the result %s", a, b)
	}
	for _, f := range rel.Files {
		if sum, err := hashFile(filepath.Join(o.Out, f.Name)); err != nil || !bytes.Equal(sum, f.SHA256) {
			t.Errorf("%s has the SHA-256 %x, %v; release.json says %x", f.Name, sum, err, f.SHA256)
		}
	}
	// Both papers name the builder by its version: that of a test is not known.
	for _, paper := range []struct{ file, want string }{
		{ProvenanceFile, `"halogen": "` + version.String() + `"`}, {BillFile, `"version": "` + version.String() + `"`},
		{ProvenanceFile, `"` + erofs.Tool + `": "` + erofs.ToolVersion(t.Context()) + `"`},
	} {
		if text := read(t, o.Out, paper.file); !bytes.Contains(text, []byte(paper.want)) {
			t.Errorf("%s lacks %s", paper.file, paper.want)
		}
	}
	img, err := uki.Parse(read(t, o.Out, release.UKIFile))
	if err != nil {
		t.Fatal(err)
	}
	initrd, _ := img.Section(".initrd")
	c, err := contract.FromInitrd(initrd)
	if err != nil {
		t.Fatal(err)
	}
	if err := rel.Matches(c); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{
		".cmdline": "quiet lockdown=integrity module.sig_enforce=1 init_on_free=1 init_on_alloc=1 panic=10 systemd.import_credentials=no systemd.gpt_auto=0",
		".uname":   rootfstest.Release,
		".osrel":   "PRETTY_NAME=\"Test OS\"\nID=test\nIMAGE_ID=test-os\nIMAGE_VERSION=7\n",
		".linux":   string(rootfstest.Kernel(rootfstest.Release)),
	} {
		if have, _ := img.Section(name); string(have) != want {
			t.Errorf("section %s has %q", name, have)
		}
	}
	if rel.SourceDate != rootfstest.Date.Unix() {
		t.Errorf("source date %d, want that of the newest file, %d", rel.SourceDate, rootfstest.Date.Unix())
	}
	checkDisk(t, o, c)
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// checkDisk has others look at the disk.
func checkDisk(t *testing.T, o Options, c *contract.Contract) {
	t.Helper()
	disk := filepath.Join(o.Out, DiskFile)
	if said := testkit.Run(t, "sgdisk", "-v", disk); !strings.Contains(said, "No problems found") {
		t.Errorf("sgdisk -v: %s", said)
	}
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, health, err := gpt.Read(f, uint64(o.DiskSize/512), 512)
	if err != nil || !health.OK() || len(table.Partitions) != 2 {
		t.Fatalf("table %+v, %s, %v", table, health, err)
	}
	system := table.Partitions[1]
	if system.UUID != layout.SystemUUID(c.Root()) || system.Type != layout.TypeRoot || system.Label != "system-a" {
		t.Errorf("partition 2 is %+v", system)
	}
	off, size := table.Bytes(system)
	if size != o.Config.SlotSize {
		t.Errorf("partition 2 has %d bytes, want the slot size %d", size, o.Config.SlotSize)
	}
	image := make([]byte, c.ImageSize)
	if _, err := f.ReadAt(image, off); err != nil || !bytes.Equal(image, read(t, o.Out, release.ImageFile)) {
		t.Errorf("partition 2 does not hold the system image: %v", err)
	}
	esp := extract(t, f, table)
	testkit.Run(t, "fsck.vfat", "-n", esp)
	said := testkit.Run(t, "mdir", "-/", "-b", "-i", esp, "::")
	for _, name := range []string{"EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi", "EFI/Linux/test-os_7.efi", "loader/loader.conf"} {
		if !strings.Contains(said, "::/"+name+"\n") {
			t.Errorf("the ESP has no %s:\n%s", name, said)
		}
	}
	if conf := testkit.Run(t, "mtype", "-i", esp, "::loader/loader.conf"); strings.Contains(conf, "default") {
		t.Errorf("loader.conf names a default entry, which switches counting off:\n%s", conf)
	}
	var stat syscall.Stat_t
	if err := syscall.Stat(disk, &stat); err != nil || stat.Blocks*512 > 64<<20 {
		t.Errorf("a disk with a small system takes %d bytes, %v", stat.Blocks*512, err)
	}
}

// extract copies the ESP into a file of its own.
func extract(t *testing.T, disk io.ReaderAt, table *gpt.Table) string {
	t.Helper()
	off, size := table.Bytes(table.Partitions[0])
	name := filepath.Join(t.TempDir(), "esp")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	piece := make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(len(piece)) {
		if _, err := disk.ReadAt(piece, off+at); err != nil {
			t.Fatal(err)
		}
		if block.IsZero(piece) {
			continue // a hole stays one
		}
		if _, err := f.WriteAt(piece, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	return name
}

// FAULTS 84
func TestSameInputSameBytes(t *testing.T) {
	first := options(t, rootfstest.Minimal().Write(t, false))
	mustBuild(t, first)
	t.Setenv("TZ", "Pacific/Chatham")
	t.Setenv("LC_ALL", "tr_TR.UTF-8")
	t.Setenv("GOMAXPROCS", "1")
	defer syscall.Umask(syscall.Umask(0o077))
	source := rootfstest.Minimal().Write(t, true)
	time.Sleep(1100 * time.Millisecond) // so that a clock that got in would show
	second := options(t, source)
	mustBuild(t, second)
	for _, name := range listing(t, first.Out) {
		a, b := filepath.Join(first.Out, name), filepath.Join(second.Out, name)
		if said, err := sameFile(a, b); err != nil || said != "" {
			t.Errorf("%s: %s, %v", name, said, err)
		}
	}
	// Another version is another image, in everything that names it.
	third := options(t, source)
	third.Version = 8
	mustBuild(t, third)
	for _, name := range []string{release.UKIFile, release.ImageFile} {
		if said, err := sameFile(filepath.Join(first.Out, name), filepath.Join(third.Out, name)); err != nil || said == "" {
			t.Errorf("%s is the same for two versions, %v", name, err)
		}
	}
}

// sameFile says in what two files differ.
func sameFile(a, b string) (string, error) {
	infoA, err := os.Stat(a)
	if err != nil {
		return "", err
	}
	infoB, err := os.Stat(b)
	if err != nil {
		return "", err
	}
	if infoA.Mode() != infoB.Mode() || infoA.Size() != infoB.Size() {
		return infoA.Mode().String() + " and " + infoB.Mode().String() + ", or other sizes", nil
	}
	sumA, err := hashFile(a)
	if err != nil {
		return "", err
	}
	sumB, err := hashFile(b)
	if err != nil || bytes.Equal(sumA, sumB) {
		return "", err
	}
	return "the contents differ", nil
}

func TestSourceDateFromOutside(t *testing.T) {
	source := rootfstest.Minimal().Write(t, false)
	o := options(t, source)
	o.Disk = false
	o.Date = rootfstest.Date.Add(-time.Hour)
	if r := mustBuild(t, o); r.Release.SourceDate != o.Date.Unix() {
		t.Errorf("source date %d, want %d", r.Release.SourceDate, o.Date.Unix())
	}
	if slices.Contains(listing(t, o.Out), DiskFile) {
		t.Error("a disk that was not asked for")
	}
	// The first second is a date, too, which some builds use.
	o = options(t, rootfstest.Minimal().Write(t, false))
	if o.Date = time.Unix(0, 0); mustBuild(t, o).Release.SourceDate != 0 {
		t.Error("source date 0 was not taken")
	}
}

// The source stays as it is, to the last time and mode.
func TestSourceIsNotChanged(t *testing.T) {
	source := rootfstest.Minimal().Write(t, false)
	if err := os.WriteFile(filepath.Join(source, "etc/machine-id"), []byte("0123456789abcdef0123456789abcdef\n"), 0o444); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, source)
	mustBuild(t, options(t, source))
	if after := snapshot(t, source); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		out.WriteString(path + " " + info.Mode().String() + " " + info.ModTime().String() + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// A build that fails leaves what an earlier one made, and one that succeeds
// replaces all of it.
func TestBuildOverABuild(t *testing.T) {
	source := rootfstest.Minimal().Write(t, false)
	o := options(t, source)
	mustBuild(t, o)
	before := read(t, o.Out, release.FileName)
	failing := o
	failing.DiskSize = 513 << 20
	if _, err := Build(t.Context(), failing); err == nil {
		t.Fatal("a disk that is too small was built")
	}
	if after := read(t, o.Out, release.FileName); !bytes.Equal(before, after) {
		t.Error("a failed build changed release.json")
	}
	o.Version = 8
	mustBuild(t, o)
	rel, err := release.Parse(read(t, o.Out, release.FileName))
	if err != nil || rel.Version != 8 || len(listing(t, o.Out)) != 7 {
		t.Errorf("%+v, %v, files %q", rel, err, listing(t, o.Out))
	}
}

func TestKernelsThatAreOne(t *testing.T) {
	files := rootfstest.Minimal()
	files["usr/lib/modules/"+rootfstest.Release+"/vmlinuz"] = rootfstest.Kernel(rootfstest.Release)
	source := files.Write(t, false)
	if err := os.Symlink("vmlinuz-"+rootfstest.Release, filepath.Join(source, "boot/vmlinuz")); err != nil {
		t.Fatal(err)
	}
	mustBuild(t, options(t, source))
}

func TestChosenKernel(t *testing.T) {
	files := rootfstest.Minimal()
	files["boot/vmlinuz-6.13.0"] = rootfstest.Kernel("6.13.0")
	o := options(t, files.Write(t, false))
	o.Config.Linux = "/boot/vmlinuz-" + rootfstest.Release
	mustBuild(t, o)
}

func FuzzKernelRelease(f *testing.F) {
	f.Add(rootfstest.Kernel("6.1.0"))
	f.Add(rootfstest.Kernel("../x"))
	f.Add(rootfstest.Kernel("")[:0x400])
	f.Fuzz(func(t *testing.T, image []byte) {
		if r, err := kernelRelease(image); err == nil && (r == "" || strings.ContainsAny(r, "/ \n") || r[0] == '.') {
			t.Errorf("release %q", r)
		}
	})
}
