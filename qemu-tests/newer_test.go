package qemutests

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/verity"
	"halogenos.internal/builder/erofs"
	"halogenos.internal/builder/vm"
	"halogenos.internal/qemu-tests/testos/protocol"
)

// A newer is a release that follows an image's own, made of it: its system image has
// one more block, and its UKI says so.
type newer struct {
	*release.Release
	dir string // holds the release's files, and the tree
}

// A variant is what a newer release has of its own.
type variant struct {
	Epoch    uint64
	Watchdog int    // seconds, 0: as the image has it
	Key      string // release key that the UKI pins, binary; "": the image's
	Manager  bool   // it brings another boot manager
	// Revoker: it is signed by this key, which the system before it pins as well, and names
	// the loader of namedLoader for dbx.
	Revoker *revoker
	// Changed: in each block of a file that lies in the system image without compression a
	// byte differs, and another one for another version.
	Changed bool
	Version contract.Version // 0: 2
	// Modules is the key whose certificate it wants in db for kernel modules; nil for none.
	Modules *modulesKey
	// Extensions are its system extensions.
	Extensions extensionFiles
	// Microcode that it has, and where: "initrd", or "ucode" with the stub of systemd 257.
	Microcode string
}

const treeFile = "tree"

// makeNewer makes version 2, or another, of an image of version 1.
func makeNewer(t testing.TB, image string, v variant) newer {
	t.Helper()
	n := newer{Release: imageRelease(t, image), dir: t.TempDir()}
	n.Version, n.Epoch = cmp.Or(v.Version, 2), v.Epoch
	if v.Revoker != nil {
		v.Key = string(v.Revoker.key.Bytes())
	}
	n.system(t, image, v)
	n.uki(t, image, v)
	n.manager(t, image, v)
	n.revokes(t, v)
	text, err := n.Encode()
	must(t, err)
	must(t, os.WriteFile(n.path(release.FileName), text, 0o644))
	if v.Revoker != nil {
		must(t, os.WriteFile(n.path(release.FileName+".pgp"), v.Revoker.Sign(text), 0o644))
	}
	return n
}

func (n *newer) path(name string) string { return filepath.Join(n.dir, name) }

// describe brings a file's line in the release up to date.
func (n *newer) describe(t testing.TB, name string) {
	t.Helper()
	b, err := os.ReadFile(n.path(name))
	must(t, err)
	i := slices.IndexFunc(n.Files, func(f release.File) bool { return f.Name == name })
	if i < 0 {
		t.Fatalf("the release has no %s", name)
	}
	sum := sha256.Sum256(b)
	n.Files[i].Size, n.Files[i].SHA256 = int64(len(b)), sum[:]
	if name == release.UKIFile || name == release.BootManagerFile {
		digest, err := authenticode.Digest(b)
		must(t, err)
		n.Files[i].Authenticode = digest[:]
	}
}

// system makes the system image and its tree.
func (n *newer) system(t testing.TB, image string, v variant) {
	t.Helper()
	system, err := os.ReadFile(imageFile(t, image, release.ImageFile))
	must(t, err)
	if v.Changed {
		n.changeFile(t, system)
	}
	system = append(system, bytes.Repeat([]byte("2"), verity.BlockSize)...)
	must(t, os.WriteFile(n.path(release.ImageFile), system, 0o644))
	n.ImageSize = int64(len(system))
	n.describe(t, release.ImageFile)
	tree, err := os.Create(n.path(treeFile))
	must(t, err)
	defer tree.Close()
	root, err := verity.Generate(t.Context(), bytes.NewReader(system), verityParams(n.Release), tree, func(int64) {})
	must(t, err)
	n.RootHash = root[:]
}

// changeFile changes the largest kernel module that lies in the image as it is; nothing that
// the test system loads is as large.
func (n *newer) changeFile(t testing.TB, system []byte) {
	t.Helper()
	var largest erofs.File
	err := erofs.Walk(bytes.NewReader(system), func(f erofs.File) error {
		if f.Plain && f.Size > largest.Size && strings.Contains(f.Name, "/kernel/") {
			largest = f
		}
		return nil
	})
	must(t, err)
	if largest.Blocks() < 16 {
		t.Fatalf("%q has %d blocks: too few to be worth a patch", largest.Name, largest.Blocks())
	}
	for i := range largest.Blocks() - 1 {
		system[(int(largest.First)+i)*erofs.BlockSize+100] ^= byte(n.Version)
	}
	t.Logf("%d blocks of %s differ in version %s", largest.Blocks()-1, largest.Name, n.Version)
}

// uki makes the UKI.
func (n *newer) uki(t testing.TB, image string, v variant) {
	t.Helper()
	made, section := imageUKI(t, image)
	initrd := section(".initrd")
	facts, err := contract.FromInitrd(initrd)
	must(t, err)
	before, err := contract.Archive(facts)
	must(t, err)
	if !bytes.HasPrefix(initrd, before) {
		t.Fatalf("the UKI's first archive is not the %d bytes that its contract encodes to", len(before))
	}
	facts.Version, facts.Epoch, facts.RootHash, facts.ImageSize = n.Version, n.Epoch, n.RootHash, n.ImageSize
	if v.Watchdog > 0 {
		facts.WatchdogSeconds = v.Watchdog
	}
	if v.Key != "" {
		facts.ReleaseKey = []byte(v.Key)
	}
	after, err := contract.Archive(facts)
	must(t, err)
	osrel := bytes.Replace(section(".osrel"), []byte("IMAGE_VERSION=1\n"), []byte("IMAGE_VERSION="+n.Version.String()+"\n"), 1)
	resize(t, made, ".osrel", osrel)
	initramfs := initrd[len(before):]
	if v.Microcode == "initrd" {
		initramfs = slices.Concat(testMicrocode(t), initramfs)
	}
	list, err := contract.ExtensionsArchive(v.Extensions.list())
	must(t, err)
	initramfs = slices.Concat(list, initramfs)
	if v.Modules != nil {
		key, err := contract.ModuleKeyArchive(v.Modules.Certificate.Raw)
		must(t, err)
		initramfs = slices.Concat(key, initramfs)
	}
	made = replaceLast(t, made, ".initrd", append(after, initramfs...))
	if v.Microcode == "ucode" {
		made = withMicrocodeSection(t, made)
	}
	parsed, err := uki.Parse(made)
	must(t, err)
	started, err := pcr.PredictUKI(parsed)
	must(t, err)
	n.PCR11 = started[:]
	must(t, os.WriteFile(n.path(release.UKIFile), made, 0o644))
	n.describe(t, release.UKIFile)
}

// manager makes the boot manager: the image's, or one that differs in its number.
func (n *newer) manager(t testing.TB, image string, v variant) {
	t.Helper()
	made, err := os.ReadFile(imageFile(t, image, release.BootManagerFile))
	must(t, err)
	if v.Manager {
		made[binary.LittleEndian.Uint32(made[60:])+imageNumberAt]++
	}
	must(t, os.WriteFile(n.path(release.BootManagerFile), made, 0o644))
	n.describe(t, release.BootManagerFile)
}

// Of a PE image's headers (PE format, "Optional Header", "Section Table").
const (
	sectionHeader = 40
	virtualSizeAt = 8
	addressAt     = 12
	rawSizeAt     = 16
	rawOffsetAt   = 20
	imageNumberAt = 24 + 44 // MajorImageVersion, from the PE signature
	imageSizeAt   = 24 + 56 // from the PE signature
	peAlignment   = 512
	pePage        = 4096
)

// header finds a section's header, the PE signature, and whether no section follows.
func header(t testing.TB, image []byte, name string) (section, signature []byte, last bool) {
	t.Helper()
	le := binary.LittleEndian
	pe := image[le.Uint32(image[60:]):]
	count, optional := int(le.Uint16(pe[6:])), int(le.Uint16(pe[20:]))
	for i := range count {
		h := pe[24+optional+i*sectionHeader:][:sectionHeader]
		if string(bytes.TrimRight(h[:8], "\x00")) == name {
			return h, pe, i == count-1
		}
	}
	t.Fatalf("the image has no section %s", name)
	return nil, nil, false
}

// resize gives a section other content, in the room it has.
func resize(t testing.TB, image []byte, name string, content []byte) {
	t.Helper()
	le := binary.LittleEndian
	h, _, _ := header(t, image, name)
	room := image[le.Uint32(h[rawOffsetAt:]):][:le.Uint32(h[rawSizeAt:])]
	if len(content) > len(room) {
		t.Fatalf("section %s has room for %d bytes, not for %d", name, len(room), len(content))
	}
	clear(room)
	copy(room, content)
	le.PutUint32(h[virtualSizeAt:], uint32(len(content)))
}

// replaceLast gives the last section other content.
func replaceLast(t testing.TB, image []byte, name string, content []byte) []byte {
	t.Helper()
	le := binary.LittleEndian
	h, pe, last := header(t, image, name)
	if !last {
		t.Fatalf("section %s is not the last", name)
	}
	up := func(n, to int) int { return (n + to - 1) / to * to }
	le.PutUint32(h[virtualSizeAt:], uint32(len(content)))
	le.PutUint32(h[rawSizeAt:], uint32(up(len(content), peAlignment)))
	le.PutUint32(pe[imageSizeAt:], uint32(up(int(le.Uint32(h[addressAt:]))+len(content), pePage)))
	out := append(image[:le.Uint32(h[rawOffsetAt:]):le.Uint32(h[rawOffsetAt:])], content...)
	return append(out, make([]byte, up(len(content), peAlignment)-len(content))...)
}

// fetched is a provisioned machine into which a newer release was fetched: slot B
// holds its content, and the next boot will stage it. The content is written from
// outside, as the fetcher leaves it; the files are given to the system to put down.
func fetched(t testing.TB, v variant) Provisioned {
	t.Helper()
	p := v.Revoker.provisioned(t)
	o := Options{Image: "testos-1", State: p.State}
	return Provision(t, o, fmt.Sprintf("fetched-2 %+v", v), func(g *Guest) map[string]string {
		g.PowerCut()
		n := makeNewer(t, "testos-1", v)
		d := openDisk(t, g.State().Disk(), os.O_RDWR)
		d.fill(layout.SlotB.System(), n.path(release.ImageFile))
		d.fill(layout.SlotB.Verity(), n.path(treeFile))
		files := filepath.Join(t.TempDir(), "files.img")
		testkit.Run(t, "mkfs.vfat", "-C", files, "65536")
		names := []string{release.FileName, release.UKIFile, release.BootManagerFile}
		if v.Revoker != nil {
			names = append(names, release.FileName+".pgp")
		}
		for _, name := range names {
			testkit.Run(t, "mcopy", "-i", files, n.path(name), "::"+name)
		}
		g.VM.Disks = []vm.Disk{{Path: files, ReadOnly: true}}
		g.PowerOn()
		g.deliver(names)
		g.PowerOff()
		return p.Notes
	})
}

// deliver has the system put a release's files where the fetcher does.
func (g *Guest) deliver(names []string) {
	g.t.Helper()
	r := g.Boot()
	i := slices.IndexFunc(r.Disks, func(d protocol.Disk) bool { return d.Serial == "disk1" })
	if i < 0 {
		g.t.Fatalf("disks %+v; want one with files", r.Disks)
	}
	const directory = "/var/lib/halogen/fetch/2"
	g.mountFAT("/dev/"+r.Disks[i].Device, "ro")
	g.Do(nil, "mkdir", directory)
	for _, name := range names {
		g.Do(nil, "cp", "/mnt/"+name, directory+"/"+name)
	}
	g.Do(nil, "write", "/var/lib/halogen/staged.json", `{"format":1,"version":"2","slot":"b"}`)
	g.Do(nil, "umount", "/mnt")
}

// mountFAT mounts a FAT file system at /mnt.
func (g *Guest) mountFAT(device string, options ...string) {
	g.t.Helper()
	for _, module := range []string{"nls_cp437", "nls_ascii"} { // the kernel asks for them by a program that is not there
		g.Do(nil, "modprobe", module)
	}
	g.Do(nil, append([]string{"mount", device, "/mnt", "vfat"}, options...)...)
}

// staged is a machine whose next start is the first try of version 2. No power cut on
// the way can leave a part of version 2 under a name that would be started.
func staged(t testing.TB, v variant) Provisioned {
	t.Helper()
	p := fetched(t, v)
	writes := filepath.Join(t.TempDir(), "writes")
	o := Options{Image: "testos-1", State: p.State, VM: vm.Options{NoReboot: true, WriteLog: writes}}
	return Provision(t, o, fmt.Sprintf("staged-2 %+v", v), func(g *Guest) map[string]string {
		if i, match := g.ExpectAny(`halogen: stage \(`, `halogen: stage FAILED[^\n]*`, protocol.Greeting+` \{`, `RECOVERY: [^\n]*`); i != 0 {
			t.Fatalf("the boot came to %.300q; want it to stage version 2", match[0])
		}
		g.endsAtRestart()
		wantUKIs(t, g.State(), "halogen_1.efi", "halogen_2+3.efi")
		cuts := openESPCuts(t, p.State.Disk(), writes)
		cuts.keepsUKIs(1)
		cuts.wholeOrAbsent(2)
		return p.Notes
	})
}

// stagedAtInit is the same machine in its first try (see atInit).
func stagedAtInit(t testing.TB, v variant) Provisioned {
	t.Helper()
	return atInit(t, "testos-1", fmt.Sprintf("staged-2 %+v", v), staged(t, v))
}

// wantUKIs compares the names of the UKIs on the ESP of a machine that is off.
func wantUKIs(t testing.TB, s vm.State, want ...string) {
	t.Helper()
	var got []string
	for _, name := range espFiles(t, s, ".efi") {
		if file, ok := strings.CutPrefix(name, "EFI/Linux/"); ok {
			got = append(got, file)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("UKIs on the ESP: %q, want %q", got, want)
	}
}
