package image

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/microcode"
	"halogenos.internal/boot/microcode/microcodetest"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/builder/inspect"
	"halogenos.internal/builder/rootfs"
	"halogenos.internal/builder/rootfs/rootfstest"
)

var (
	coffeeLake = microcode.Processor{Signature: 0x906ea, Platforms: 0x22, Revision: 0xf8}
	broadwell  = microcode.Processor{Signature: 0x406f1, Platforms: 0xef, Revision: 0xb000040}
	zen3       = microcode.Processor{Signature: 0xa20f12, Revision: 0xa201210}
)

func early(t testing.TB, files ...[]byte) []byte {
	t.Helper()
	s := new(microcode.Set)
	for _, f := range files {
		if err := s.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	out, err := s.Archive()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// firmware is a root file system with files of both makers as Debian has them.
func firmware() rootfstest.Files {
	files := rootfstest.Minimal()
	files["usr/lib/firmware/intel-ucode/06-9e-0a"] = microcodetest.Intel(coffeeLake)
	files["usr/lib/firmware/intel-ucode/06-4f-01.initramfs"] = microcodetest.Intel(broadwell)
	files["usr/lib/firmware/amd-ucode/microcode_amd_fam19h.bin"] = microcodetest.AMD(zen3)
	files["usr/lib/firmware/amd-ucode/microcode_amd_fam19h.bin.asc"] = []byte("-----BEGIN PGP SIGNATURE-----\n")
	files["usr/lib/firmware/amd-ucode/README"] = []byte("text\n")
	return files
}

// treeOf stages a root file system.
func treeOf(t *testing.T, files rootfstest.Files) *rootfs.Tree {
	t.Helper()
	text := make(map[string]string)
	for name, data := range files {
		text[name] = string(data)
	}
	return staged(t, text)
}

func TestMicrocode(t *testing.T) {
	var said bytes.Buffer
	o := options(t, firmware().Write(t, false))
	o.Disk, o.Progress = false, NewProgress(&said)
	mustBuild(t, o)
	img, err := uki.Parse(read(t, o.Out, release.UKIFile))
	if err != nil {
		t.Fatal(err)
	}
	want := early(t, microcodetest.Intel(coffeeLake), microcodetest.Intel(broadwell), microcodetest.AMD(zen3))
	if have, _ := img.Section(".ucode"); !bytes.Equal(have, want) {
		t.Errorf("section .ucode has %d bytes, want %d", len(have), len(want))
	}
	if note := "microcode for 1 processors of AMD's and 2 processors of Intel's"; !strings.Contains(said.String(), note) {
		t.Errorf("the build does not say %q:\n%s", note, &said)
	}
	for file, want := range map[string]string{BillFile: `"name": "kernel/x86/microcode/GenuineIntel.bin"`, ProvenanceFile: `"microcode": "auto"`} {
		if text := read(t, o.Out, file); !bytes.Contains(text, []byte(want)) {
			t.Errorf("%s lacks %s", file, want)
		}
	}
	// The same from the other side, and the same bytes.
	report, err := inspect.File(filepath.Join(o.Out, release.UKIFile))
	if err != nil || len(report.EFI.Microcode) != 2 || len(report.EFI.Faults) > 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	again := options(t, firmware().Write(t, true))
	again.Disk = false
	mustBuild(t, again)
	if said, err := sameFile(filepath.Join(o.Out, release.UKIFile), filepath.Join(again.Out, release.UKIFile)); err != nil || said != "" {
		t.Errorf("%s, %v", said, err)
	}
}

// Before systemd 256 no stub hands a section to Linux, which looks at the beginning of the
// initramfs, too. The boot contract comes first there, and what others of these archives
// have is found all the same.
func TestMicrocodeWithAnOldStub(t *testing.T) {
	files := firmware()
	files[layout.SystemStub] = ukitest.Stub("252.39-1~deb12u2")
	o := options(t, files.Write(t, false))
	o.Disk = false
	r := mustBuild(t, o)
	img, err := uki.Parse(read(t, o.Out, release.UKIFile))
	if err != nil {
		t.Fatal(err)
	}
	initrd, _ := img.Section(".initrd")
	want := early(t, microcodetest.Intel(coffeeLake), microcodetest.Intel(broadwell), microcodetest.AMD(zen3))
	if at := bytes.Index(initrd, want); at < 0 || at%16 != 0 {
		t.Errorf("the microcode is at byte %d of the initramfs", at)
	}
	found, _, err := microcode.Find(initrd)
	if err != nil || len(found.Names(microcode.Intel)) != 2 || len(found.Names(microcode.AMD)) != 1 {
		t.Errorf("Linux would find %q and %q, %v", found.Names(microcode.Intel), found.Names(microcode.AMD), err)
	}
	if _, ok := img.Section(".ucode"); ok {
		t.Error("there is a section .ucode that has no effect")
	}
	if c, err := contract.FromInitrd(initrd); err != nil || r.Release.Matches(c) != nil || contract.AbilitiesFromInitrd(initrd) != contract.Own() {
		t.Errorf("boot contract %+v, %v", c, err)
	}
}

func TestMicrocodePlaces(t *testing.T) {
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	older := coffeeLake
	older.Revision = 0xf4
	for name, c := range map[string]struct {
		files      map[string][]byte
		intel, amd []string // processors that there is microcode for
	}{
		"Debian 12":         {map[string][]byte{"lib/firmware/intel-ucode/06-9e-0a": microcodetest.Intel(coffeeLake)}, []string{"06-9e-0a"}, nil},
		"SUSE":              {map[string][]byte{"lib/firmware/intel-ucode/06-4f-01.early": microcodetest.Intel(broadwell)}, []string{"06-4f-01"}, nil},
		"compressed":        {map[string][]byte{"usr/lib/firmware/amd-ucode/microcode_amd.bin.zst": z.EncodeAll(microcodetest.AMD(zen3), nil)}, nil, []string{"19-21-02"}},
		"Gentoo, archives":  {map[string][]byte{"boot/intel-uc.img": early(t, microcodetest.Intel(coffeeLake)), "boot/amd-uc.img": early(t, microcodetest.AMD(zen3))}, []string{"06-9e-0a"}, []string{"19-21-02"}},
		"Arch":              {map[string][]byte{"boot/amd-ucode.img": early(t, microcodetest.AMD(zen3))}, nil, []string{"19-21-02"}},
		"files and archive": {map[string][]byte{"usr/lib/firmware/intel-ucode/06-9e-0a": microcodetest.Intel(coffeeLake), "boot/intel-uc.img": early(t, microcodetest.Intel(older), microcodetest.Intel(broadwell))}, []string{"06-9e-0a"}, nil},
		"none":              {nil, nil, nil},
	} {
		files := rootfstest.Minimal()
		for name, data := range c.files {
			files[name] = data
		}
		tree := treeOf(t, files)
		found, err := findMicrocode(tree)
		if err != nil || !slices.Equal(found.Names(microcode.Intel), c.intel) || !slices.Equal(found.Names(microcode.AMD), c.amd) {
			t.Errorf("%s: %q and %q, %v", name, found.Names(microcode.Intel), found.Names(microcode.AMD), err)
		}
	}
}

// What is damaged is named: Linux would pass over it and what follows.
func TestMicrocodeThatIsDamaged(t *testing.T) {
	damaged := microcodetest.Intel(coffeeLake)
	damaged[1000] = 1
	for name, data := range map[string][]byte{
		"usr/lib/firmware/intel-ucode/06-9e-0a":               damaged,
		"usr/lib/firmware/amd-ucode/microcode_amd.bin":        {},
		"usr/lib/firmware/amd-ucode/microcode_amd.bin.xz":     []byte("no xz"),
		"usr/lib/firmware/amd-ucode/microcode_amd_fam17h.bin": microcodetest.Intel(coffeeLake)[:100],
		"boot/intel-uc.img":                                   early(t, microcodetest.Intel(coffeeLake))[:900],
	} {
		files := rootfstest.Minimal()
		files[name] = data
		_, err := findMicrocode(treeOf(t, files))
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "Microcode=none in [UKI]") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is not named like microcode is not looked at, as a link that leads nowhere.
func TestMicrocodeBesideOthers(t *testing.T) {
	files := rootfstest.Minimal()
	files["usr/lib/firmware/intel-ucode/06-9e-0a"] = microcodetest.Intel(coffeeLake)
	tree := treeOf(t, files)
	if err := tree.AddSymlink("usr/lib/firmware/intel-ucode/README", "../doc/README", rootfstest.Date); err != nil {
		t.Fatal(err)
	}
	if found, err := findMicrocode(tree); err != nil || !found.Has(microcode.Intel) {
		t.Errorf("%+v, %v", found, err)
	}
}

// Before Linux 6.6 a kernel may load one maker's microcode alone.
func TestLacksLoader(t *testing.T) {
	set := new(microcode.Set)
	if err := set.Add(microcodetest.Intel(coffeeLake)); err != nil {
		t.Fatal(err)
	}
	amd := map[string]string{"MICROCODE": "y", "MICROCODE_AMD": "y"}
	for _, c := range []struct {
		config       map[string]string
		kernel, want string
	}{
		{nil, "6.12.1", "MICROCODE"}, {amd, "6.1.0-49-amd64", "MICROCODE_INTEL"}, {amd, "5.15.0", "MICROCODE_INTEL"},
		{amd, "6.6.0", ""}, {amd, "own", ""}, {map[string]string{"MICROCODE": "y", "MICROCODE_INTEL": "y"}, "6.1.0", ""},
	} {
		if got := lacksLoader(c.config, c.kernel, set); got != c.want {
			t.Errorf("kernel %s with %v lacks %q, want %q", c.kernel, c.config, got, c.want)
		}
	}
}

// A kernel that passes over microcode is told.
func TestMicrocodeThatIsPassedOver(t *testing.T) {
	files := firmware()
	dir := "usr/lib/modules/" + rootfstest.Release + "/"
	files[dir+"modules.builtin.modinfo"], files["boot/config-"+rootfstest.Release] = []byte(wholeKernel), []byte(goodConfig)
	var said bytes.Buffer
	o := options(t, files.Write(t, false))
	o.Disk, o.Progress = false, NewProgress(&said)
	mustBuild(t, o)
	const note = "it was built without CONFIG_MICROCODE"
	if !strings.Contains(said.String(), note) {
		t.Errorf("the build does not say %q:\n%s", note, &said)
	}
	files["boot/config-"+rootfstest.Release] = []byte(goodConfig + "CONFIG_MICROCODE=y\n")
	said.Reset()
	o = options(t, files.Write(t, false))
	o.Disk, o.Progress = false, NewProgress(&said)
	if mustBuild(t, o); strings.Contains(said.String(), note) {
		t.Errorf("of a kernel with it the build says\n%s", &said)
	}
}

// Without microcode a build says so, unless none was wanted; a file of the
// configuration's takes the place of the root file system's.
func TestMicrocodeThatIsChosen(t *testing.T) {
	const note = "no microcode in the root file system"
	section := func(o Options) []byte {
		t.Helper()
		mustBuild(t, o)
		img, err := uki.Parse(read(t, o.Out, release.UKIFile))
		if err != nil {
			t.Fatal(err)
		}
		have, _ := img.Section(".ucode")
		return have
	}
	var said bytes.Buffer
	o := options(t, rootfstest.Minimal().Write(t, false))
	o.Disk, o.Progress = false, NewProgress(&said)
	if have := section(o); len(have) > 0 || !strings.Contains(said.String(), note) {
		t.Errorf("%d bytes, and the build says\n%s", len(have), &said)
	}
	said.Reset()
	o = options(t, firmware().Write(t, false))
	o.Config.Microcode = new(microcode.Set)
	o.Disk, o.Progress = false, NewProgress(&said)
	if have := section(o); len(have) > 0 || strings.Contains(said.String(), note) {
		t.Errorf("none: %d bytes, and the build says\n%s", len(have), &said)
	}
	o = options(t, firmware().Write(t, false))
	o.Config.Microcode, o.Config.MicrocodeFile, o.Disk = new(microcode.Set), "own.img", false
	want := early(t, microcodetest.AMD(zen3))
	if err := o.Config.Microcode.Add(want); err != nil {
		t.Fatal(err)
	}
	if have := section(o); !bytes.Equal(have, want) || !bytes.Contains(read(t, o.Out, ProvenanceFile), []byte(`"microcode": "own.img"`)) {
		t.Errorf("of the configuration: %d bytes, want %d", len(have), len(want))
	}
}

// A root file system with Debian's packages of both makers, and systemd-measure and ukify
// of the stub's own release as judges.
func TestMicrocodeOfDebian(t *testing.T) {
	tree := testkit.Tools13(t)
	files := rootfstest.Minimal()
	files[layout.SystemStub] = tree.Read("/" + layout.SystemStub)
	for _, dir := range []string{"usr/lib/firmware/intel-ucode", "usr/lib/firmware/amd-ucode"} {
		list, err := os.ReadDir(tree.Host("/" + dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range list {
			files[dir+"/"+f.Name()] = tree.Read("/" + dir + "/" + f.Name())
		}
	}
	o := options(t, files.Write(t, false))
	o.Disk = false
	o.Config.SlotSize = 64 << 20
	r := mustBuild(t, o)
	image := read(t, o.Out, release.UKIFile)
	img, err := uki.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"calculate", "--bank=sha256", "--phase="}
	build := []string{"build", "--output=" + tree.Path("uki.efi")}
	for _, s := range img.Sections() {
		file := tree.Put(s.Name[1:], s.Data)
		switch s.Name {
		case ".osrel", ".cmdline", ".uname", ".linux", ".initrd", ".ucode", ".sbat":
			args = append(args, "--"+s.Name[1:]+"="+file)
		}
		if option := map[string]string{".osrel": "os-release=@", ".cmdline": "cmdline=@", ".uname": "uname=@", ".linux": "linux=", ".initrd": "initrd=", ".ucode": "microcode="}[s.Name]; option != "" {
			build = append(build, "--"+option+file)
		}
	}
	build = append(build, "--stub="+tree.Put("stub", files[layout.SystemStub]))
	if said := string(tree.Run("/usr/lib/systemd/systemd-measure", args...)); !strings.Contains(said, fmt.Sprintf("%x", r.Release.PCR11)) {
		t.Errorf("systemd-measure does not come to the PCR 11 of release.json, %x:\n%s", r.Release.PCR11, said)
	}
	tree.Run("ukify", build...)
	its, err := uki.Parse(tree.Read(tree.Path("uki.efi")))
	if err != nil {
		t.Fatal(err)
	}
	order := func(img *uki.Image) (names []string) {
		for _, s := range img.Sections() {
			names = append(names, s.Name)
		}
		return names
	}
	if a, b := order(img), order(its); !slices.Equal(a, b) {
		t.Errorf("sections %q, ukify's %q", a, b)
	}
	a, _ := img.Section(".ucode")
	if b, _ := its.Section(".ucode"); !bytes.Equal(a, b) || len(a) < 10<<20 {
		t.Errorf(".ucode has %d bytes, ukify's %d", len(a), len(b))
	}
}
