package qemutests

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/initramfs"
	"halogenos.internal/builder/install"
	builder "halogenos.internal/builder/release"
	"halogenos.internal/builder/vm"
)

// targetSize is the size of disks that are installed to.
const targetSize = 16 << 30

// Places in the live system.
const (
	stickPlace = "/run/stick" // the installer stick's content
	filesPlace = "/run/files" // what else a person brings along
)

// TestLiveDebian installs from a live Debian on three disks, each in another way,
// and starts each of them in a machine of its own.
func TestLiveDebian(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	usb, virtio := filepath.Join(dir, "usb.img"), filepath.Join(dir, "virtio.img")
	var live vm.State // the machine's own disk is at SATA
	if !t.Run("install", func(t *testing.T) {
		d := startLive(t, usb, virtio)
		d.installFromServer("disk0")
		d.refuses()
		d.installAgain("disk0")
		d.installArchive("disk4")
		d.installByHand("disk5")
		d.leave("systemctl poweroff")
		if reason := d.ExpectOff(); reason != "guest-shutdown" {
			t.Fatalf("the machine went off by %s", reason)
		}
		var err error
		live, err = d.State().Clone(filepath.Join(dir, "live"))
		must(t, err)
	}) {
		return
	}
	move := func(from string) func(vm.State) error {
		return func(s vm.State) error { return os.Rename(from, s.Disk()) }
	}
	for _, tt := range []struct {
		name    string
		o       Options
		version string
	}{
		{"sata 512, from a server", Options{State: live, VM: vm.Options{Bus: vm.SATA}}, "2"},
		{"usb 4096, from an archive", Options{Image: "testos-1", Prepare: move(usb), VM: vm.Options{Bus: vm.USB, SectorSize: 4096}}, "1"},
		{"virtio 4096, by hand", Options{Image: "testos-1", Prepare: move(virtio), VM: vm.Options{SectorSize: 4096}}, "1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := Machine(t, tt.o)
			_, r := g.provision()
			checkSecured(t, tt.name, r)
			if !strings.Contains(string(r.Halogen["boot.json"]), `"version":"`+tt.version+`"`) {
				t.Errorf("boot.json is %s; want version %s", r.Halogen["boot.json"], tt.version)
			}
			if entry := strings.Contains(g.Console().Text(), `"HalogenOS"`); entry != (tt.o.State == live) {
				t.Errorf("started by a boot entry: %v; one was made in this machine's firmware: %v", entry, !entry)
			}
			g.PowerOff()
		})
	}
}

// liveGuest is a machine that runs a live Debian, with a shell at the console.
type liveGuest struct {
	*Guest
	signed newer  // what the server has
	server string // address of the image's directory there
	before string // what the machine's own disk held
	log    string // of the writes to it
}

// startLive starts a Debian without any of HalogenOS in its boot: firmware, kernel,
// an initramfs that lays memory over the image, systemd. The disks disk4 and disk5
// are made, and empty; the machine's own holds another system.
func startLive(t *testing.T, disk4, disk5 string) *liveGuest {
	t.Helper()
	dir := t.TempDir()
	key := updateKey(t, "update-1")
	text, err := os.ReadFile(filepath.Join(key, "public.asc"))
	must(t, err)
	pinned, err := pgp.ParseKey(text)
	must(t, err)
	d := &liveGuest{before: filepath.Join(dir, "before.img"), log: filepath.Join(dir, "writes.log"), signed: makeNewer(t, "testos-1", variant{Key: string(pinned.Bytes())})}
	s := Serve(t)
	publishBuild(t, s.Root, d.signed.dir, keyOf(key))
	d.server = s.URL + "/x86_64/halogen"
	for _, path := range []string{disk4, disk5, d.before} {
		must(t, errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, targetSize)))
	}
	testkit.Run(t, "sgdisk", "--new=1:1M:+64M", "--typecode=1:ef00", "--change-name=1:foreign", "--new=2:0:+64M", d.before)
	kernel, initrd := liveKernel(t)
	d.Guest = Machine(t, Options{Image: "testos-1", Prepare: func(s vm.State) error { return vm.CopySparse(s.Disk(), d.before) }, Timeout: 15 * time.Minute, VM: vm.Options{
		Bus: vm.SATA, Memory: 2048, WriteLog: d.log, Network: true, NoReboot: true,
		Disks: []vm.Disk{
			{Path: imageFile(t, "debian-1", release.ImageFile), ReadOnly: true},
			{Path: stick(t, "testos-1"), ReadOnly: true},
			{Path: filesDisk(t, string(text)), ReadOnly: true},
			{Path: disk4, Bus: vm.USB, SectorSize: 4096},
			{Path: disk5, SectorSize: 4096},
		},
		Extra: []string{"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 live=disk1 systemd.gpt_auto=0 loglevel=4 panic=-1"},
	}})
	d.login()
	d.says("mkdir "+stickPlace+" "+filesPlace+" && mount -o ro /dev/disk/by-partlabel/"+layout.InstallerLabel+" "+stickPlace+" && mount -o ro "+d.device("disk3")+" "+filesPlace, "")
	d.says("for i in $(seq 60); do ip route | grep -q ^default && break; sleep 1; done; ip route", "default via ")
	return d
}

// liveKernel returns the kernel of the Debian, and an initramfs for it.
func liveKernel(t *testing.T) (kernel, initrd string) {
	t.Helper()
	debian, dir := testkit.Debian(t), t.TempDir()
	kernels, err := filepath.Glob(filepath.Join(debian, "boot", "vmlinuz-*"))
	must(t, err)
	if len(kernels) != 1 {
		t.Fatalf("kernels %q in %s; want one", kernels, debian)
	}
	_, version, _ := strings.Cut(filepath.Base(kernels[0]), "-")
	program := filepath.Join(dir, "init")
	compile := exec.Command("go", "build", "-o", program, "./livedebian")
	compile.Env = append(os.Environ(), "CGO_ENABLED=0", "GOEXPERIMENT="+initramfs.Experiment)
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("build the live system's first process: %v\n%s", err, out)
	}
	b := initramfs.Busybox{Commands: []string{initramfs.Init}}
	b.Program, err = os.ReadFile(program)
	must(t, err)
	files := debianFiles(debian)
	x, err := initramfs.LoadIndex(files, "usr/lib/modules/"+version, version)
	must(t, err)
	modules, err := x.Select([]config.Module{{Name: "virtio_pci"}, {Name: "virtio_blk"}, {Name: "crc32c_generic"}, {Name: "erofs"}, {Name: "overlay"}})
	must(t, err)
	packed, err := initramfs.Build(b, x, files, modules)
	must(t, err)
	initrd = filepath.Join(dir, "initrd")
	must(t, os.WriteFile(initrd, packed, 0o600))
	return kernels[0], initrd
}

// debianFiles reads the files of a Debian in a directory.
type debianFiles string

// ReadFile implements initramfs.Files.
func (d debianFiles) ReadFile(name string, limit int64) ([]byte, error) {
	f, err := os.OpenInRoot(string(d), name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// filesDisk is the image of a disk with an archive of testos-1, the update key, and
// the tools that builder/install/BY-HAND.md wants of a live system, with the steps.
func filesDisk(t *testing.T, key string) string {
	t.Helper()
	dir := t.TempDir()
	directory := filepath.Join(dir, "files")
	for _, tool := range []string{"sgdisk", "mkfs.vfat"} {
		bringTool(t, filepath.Join(directory, "tools"), tool)
	}
	archive := publishBuild(t, filepath.Join(dir, "server"), filepath.Dir(Image(t, "testos-1")), builder.KeyFile{})
	must(t, os.Rename(archive, filepath.Join(directory, "1.tar.gz")))
	must(t, os.WriteFile(filepath.Join(directory, "public.asc"), []byte(key), 0o644))
	_, script := byHand(t)
	must(t, os.WriteFile(filepath.Join(directory, "byhand"), []byte(script), 0o644))
	image := filepath.Join(dir, "files.img")
	testkit.Run(t, "mkfs.erofs", "--quiet", image, directory)
	return image
}

// bringTool copies a program of this machine with its libraries, and makes the
// command that starts it with these.
func bringTool(t *testing.T, directory, tool string) {
	t.Helper()
	path := testkit.Need(t, tool)
	libraries := filepath.Join(directory, "lib")
	must(t, os.MkdirAll(libraries, 0o755))
	said := testkit.Run(t, "ldd", path)
	loader := ""
	for _, match := range regexp.MustCompile(`(?m)(/\S+) \(0x`).FindAllStringSubmatch(said, -1) {
		name := filepath.Base(match[1])
		if strings.HasPrefix(name, "ld-") {
			loader = name
		}
		must(t, vm.CopySparse(filepath.Join(libraries, name), match[1]))
	}
	if loader == "" {
		t.Fatalf("ldd %s tells no loader:\n%s", path, said)
	}
	must(t, vm.CopySparse(filepath.Join(libraries, tool), path))
	must(t, os.Chmod(filepath.Join(libraries, loader), 0o755))
	lib := filesPlace + "/tools/lib/"
	start := fmt.Sprintf("#!/bin/sh\nexec %s --library-path %s %s \"$@\"\n", lib+loader, lib, lib+tool)
	must(t, os.WriteFile(filepath.Join(directory, tool), []byte(start), 0o755))
}

// device is the path of a disk in the live system.
func (d *liveGuest) device(serial string) string {
	d.t.Helper()
	path := d.says("for s in /sys/block/vd*/serial; do [ $(cat $s) = "+serial+" ] && basename ${s%/serial}; done; true", `^vd[a-z]$`)
	return "/dev/" + path
}

// disk is a disk as the installer lists it.
func (d *liveGuest) disk(serial string) install.Disk {
	d.t.Helper()
	var disks []install.Disk
	must(d.t, json.Unmarshal([]byte(d.says(stickPlace+"/halogen install --list --json", `^\[`)), &disks))
	i := slices.IndexFunc(disks, func(d install.Disk) bool { return d.Serial == serial })
	if i < 0 {
		d.t.Fatalf("disks %+v; want one with the serial number %s", disks, serial)
	}
	return disks[i]
}

// install runs the installer on a disk.
func (d *liveGuest) install(disk install.Disk, source string) {
	d.t.Helper()
	began := time.Now()
	d.says(fmt.Sprintf("%s/halogen install --disk %s --yes %s %s 2>&1", stickPlace, disk.Path, disk.Serial, source),
		`(?s)sectors of `+fmt.Sprint(disk.SectorSize)+`.*reading the system image back: 100 %.* is installed on `+disk.Path)
	d.t.Logf("%s is installed after %v", disk.Path, time.Since(began).Round(time.Second))
}

func (d *liveGuest) fromServer() string { return "--key " + filesPlace + "/public.asc " + d.server }

// installFromServer installs what a web server has, signed.
func (d *liveGuest) installFromServer(serial string) {
	d.t.Helper()
	disk := d.disk(serial)
	if text := disk.Contents.String(); !strings.Contains(text, "foreign") {
		d.t.Errorf("%s holds %q; want the foreign system", disk.Path, text)
	}
	d.install(disk, d.fromServer())
}

// refuses tries what must not be done in a live system.
func (d *liveGuest) refuses() {
	d.t.Helper()
	used, empty := d.disk("disk2"), d.disk("disk4")
	for _, try := range []struct{ arguments, why string }{
		{"--disk " + used.Path + " --yes disk2 " + filesPlace + "/1.tar.gz", "mounted at " + stickPlace}, // what it runs from
		{"--disk " + empty.Path + " --yes disk5 " + filesPlace + "/1.tar.gz", "nothing was written"},     // another disk's number
		{"--disk " + empty.Path + " " + filesPlace + "/1.tar.gz </dev/null", "nobody is there to ask"},
		{"--disk " + empty.Path + " --yes disk4 " + d.server, "signed: name the key"},
		{"--disk " + empty.Path + " --yes disk4 --key " + filesPlace + "/public.asc " + filesPlace + "/1.tar.gz", "not signed"},
	} {
		output, status := d.shell(stickPlace + "/halogen install " + try.arguments + " 2>&1")
		if status != "1" || !strings.Contains(output, try.why) {
			d.t.Errorf("halogen install %s: exit status %s, %q; want it refused: %q", try.arguments, status, output, try.why)
		}
	}
}

// installArchive installs an archive that somebody brought along.
func (d *liveGuest) installArchive(serial string) {
	d.t.Helper()
	d.install(d.disk(serial), filesPlace+"/1.tar.gz")
}

// installByHand does what builder/install/BY-HAND.md says.
func (d *liveGuest) installByHand(serial string) {
	d.t.Helper()
	disk := d.device(serial)
	mine := map[string]string{"DISK": disk, "ESP": disk + "1", "SYSTEM": disk + "2", "RELEASE": stickPlace + "/release", "NAME": "halogen_1", "SLOT": "2G"}
	var set []string
	variables, _ := byHand(d.t)
	for _, name := range variables {
		value, ok := mine[name]
		if !ok {
			d.t.Fatalf("builder/install/BY-HAND.md has a variable %s, of which this test knows nothing", name)
		}
		set = append(set, name+"="+value)
	}
	d.says("(PATH=$PATH:"+filesPlace+"/tools; set -e; "+strings.Join(set, " ")+"; . "+filesPlace+"/byhand) 2>&1", "")
}
