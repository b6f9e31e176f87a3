package image

import (
	"bytes"
	"context"
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
	"halogenos.internal/boot/uki/ukitest"
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

func TestRootFileSystemsThatCannotBeBuilt(t *testing.T) {
	modules := "usr/lib/modules/" + rootfstest.Release + "/"
	efi := "usr/lib/systemd/boot/efi/"
	for _, c := range []struct {
		name   string
		change func(f rootfstest.Files)
		say    []string // all of them
	}{
		{"no kernel", func(f rootfstest.Files) { delete(f, "boot/vmlinuz-"+rootfstest.Release) },
			[]string{"no kernel", "/boot/vmlinuz-*", "/usr/lib/modules/*/vmlinuz"}},
		{"two kernels", func(f rootfstest.Files) { f["boot/vmlinuz-6.13.0"] = rootfstest.Kernel("6.13.0") },
			[]string{"2 kernels", "/boot/vmlinuz-6.13.0 (6.13.0)", "/boot/vmlinuz-" + rootfstest.Release, "Linux= in [UKI]"}},
		{"two kernels of one version", func(f rootfstest.Files) { f[modules+"vmlinuz"] = append(rootfstest.Kernel(rootfstest.Release), 0) },
			[]string{"2 kernels"}},
		{"kernel that is none", func(f rootfstest.Files) { f["boot/vmlinuz-"+rootfstest.Release] = []byte("ELF") },
			[]string{"/boot/vmlinuz-" + rootfstest.Release, "not an x86 kernel"}},
		{"truncated kernel", func(f rootfstest.Files) {
			f["boot/vmlinuz-"+rootfstest.Release] = rootfstest.Kernel(rootfstest.Release)[:0x800]
		}, []string{"does not tell its version"}},
		{"kernel that firmware cannot start", func(f rootfstest.Files) { f["boot/vmlinuz-"+rootfstest.Release][0] = 0 },
			[]string{"CONFIG_EFI_STUB"}},
		{"no stub", func(f rootfstest.Files) { delete(f, efi+"linuxx64.efi.stub") }, []string{"no UKI stub", "/" + efi + "linuxx64.efi.stub"}},
		{"truncated stub", func(f rootfstest.Files) { f[efi+"linuxx64.efi.stub"] = f[efi+"linuxx64.efi.stub"][:700] }, []string{"UKI stub"}},
		{"a stub that was not tried", func(f rootfstest.Files) { f[efi+"linuxx64.efi.stub"] = ukitest.Stub("253.1-1") },
			[]string{"systemd-stub 253.1-1", "was not tried", "252, 254"}},
		{"a boot manager that was not tried", func(f rootfstest.Files) { f[efi+"systemd-bootx64.efi"] = ukitest.Manager("9000") },
			[]string{"systemd-boot 9000", "was not tried"}},
		{"no boot manager", func(f rootfstest.Files) { delete(f, efi+"systemd-bootx64.efi") }, []string{"no boot manager", "/" + efi + "systemd-bootx64.efi"}},
		{"no os-release", func(f rootfstest.Files) { delete(f, "etc/os-release") }, []string{"os-release"}},
		{"no modules for the kernel", func(f rootfstest.Files) { f["boot/vmlinuz-"+rootfstest.Release] = rootfstest.Kernel("6.13.0") },
			[]string{"is 6.13.0", "modules of " + rootfstest.Release + " only"}},
		{"module that is not there", func(f rootfstest.Files) { f[modules+"modules.dep"] = nil }, []string{"no module one"}},
		{"unsigned module", func(f rootfstest.Files) { f[modules+"kernel/fs/one.ko"] = []byte("\x7fELF") }, []string{"one.ko", "not signed"}},
		{"a file where a command belongs", func(f rootfstest.Files) { f["usr/bin/ota"] = nil }, []string{"/bin/ota", "file of its own"}},
		{"image larger than a slot", func(f rootfstest.Files) { f["usr/large"] = noise(17 << 20) }, []string{"does not fit a system partition of 16.0 MiB", "SlotSize", "17.0 MiB  /usr"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := rootfstest.Minimal()
			c.change(files)
			o := options(t, files.Write(t, false))
			_, err := Build(t.Context(), o)
			for _, say := range c.say {
				if err == nil || !strings.Contains(err.Error(), say) {
					t.Errorf("error %v, want one that says %q", err, say)
				}
			}
			if left := listing(t, o.Out); len(left) != 0 {
				t.Errorf("a failed build left %q", left)
			}
		})
	}
}

// noise is data that does not compress.
func noise(n int) []byte {
	out := make([]byte, n)
	x := uint64(88172645463325252)
	for i := range out {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		out[i] = byte(x)
	}
	return out
}

func TestOptionsThatCannotBeBuilt(t *testing.T) {
	source := rootfstest.Minimal().Write(t, false)
	for _, c := range []struct {
		name   string
		change func(o *Options)
		say    string
	}{
		{"disk too small", func(o *Options) { o.DiskSize = 513 << 20 }, "too small"},
		{"disk of an odd size", func(o *Options) { o.DiskSize = 532<<20 + 512 }, "not a multiple"},
		{"no busybox", func(o *Options) { o.Machine = t.TempDir() }, "busybox"},
		{"output in the source", func(o *Options) { o.Out = filepath.Join(source, "out") }, "lies in the root file system"},
		{"output is the source", func(o *Options) { o.Out = source }, "lies in the root file system"},
		{"no source", func(o *Options) { o.RootFS = filepath.Join(source, "none") }, "none"},
		{"kernel that is not there", func(o *Options) { o.Config.Linux = "/boot/other" }, "/boot/other"},
		{"another kernel than was said", func(o *Options) { o.Config.Uname = "6.0.0" }, "Uname of [UKI] is 6.0.0"},
		{"stub that is not there", func(o *Options) { o.Config.Stub = "/stub" }, "looked for /stub"},
		{"root partition's format without its module", func(o *Options) { o.Config.RootPartitionFormat = "btrfs" }, "has no btrfs"},
		{"interrupted", nil, "canceled"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := options(t, source)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.change == nil {
				cancel()
			} else {
				c.change(&o)
			}
			_, err := Build(ctx, o)
			if err == nil || !strings.Contains(err.Error(), c.say) {
				t.Errorf("error %v, want one that says %q", err, c.say)
			}
			if o.Out != source && len(listing(t, o.Out)) != 0 {
				t.Errorf("a failed build left %q", listing(t, o.Out))
			}
		})
	}
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

// What machines have in /var belongs to numbers: an account keeps its own, or the build is
// refused.
func TestMovedAccounts(t *testing.T) {
	files := rootfstest.Minimal()
	files["etc/passwd"] = []byte("root:x:0:0::/root:/bin/sh\nbus:x:101:101::/:/bin/false\n")
	o := options(t, files.Write(t, false))
	o.Disk = false
	mustBuild(t, o)
	build := func(passwd, group string, edit func(o *Options)) (string, error) {
		files["etc/passwd"], files["etc/group"] = []byte(passwd), []byte(group)
		next := options(t, files.Write(t, false))
		var said bytes.Buffer
		next.Disk, next.Version, next.Previous, next.Progress = false, 8, o.Out, NewProgress(&said)
		edit(&next)
		_, err := Build(t.Context(), next)
		return said.String(), err
	}
	const same, moved = "bus:x:101:7::/:\nnew:x:0:0::/:\n", "root:x:0:0::/root:/bin/sh\nbus:x:102:101::/:/bin/false\n"
	if said, err := build(same, "bus:x:9:\n", func(*Options) {}); err != nil || strings.Contains(said, "numbers") {
		t.Errorf("%q, %v", said, err)
	}
	_, err := build(moved, "", func(*Options) {})
	for _, say := range []string{`user "bus" from 101 to 102`, "/var", "useradd --uid", "ACCT_USER_NAME_ID", "--allow-moved-accounts"} {
		if err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("error %v, want one that says %q", err, say)
		}
	}
	if said, err := build(moved, "", func(o *Options) { o.MovedAccounts = true }); err != nil || !strings.Contains(said, `WARNING: other numbers than in the previous build: user "bus" from 101 to 102`) {
		t.Errorf("%q, %v", said, err)
	}
	// An earlier release of halogen wrote no accounts, and a bill may be missing.
	bill := filepath.Join(o.Out, BillFile)
	for _, text := range []string{`{"bomFormat":"CycloneDX","specVersion":"1.6"}`, ""} {
		if err := os.Remove(bill); err != nil {
			t.Fatal(err)
		}
		if text != "" {
			if err := os.WriteFile(bill, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if said, err := build(moved, "", func(*Options) {}); err != nil || !strings.Contains(said, "names no users and groups") {
			t.Errorf("%q: %q, %v", text, said, err)
		}
		if text == "" {
			break
		}
	}
}
