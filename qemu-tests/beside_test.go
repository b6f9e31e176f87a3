package qemutests

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/install"
	builtrelease "halogenos.internal/builder/release"
	"halogenos.internal/builder/vm"
)

// windowsManager is where Windows has its boot manager.
const windowsManager = "EFI/Microsoft/Boot/bootmgfw.efi"

// authority is a key that stands for Microsoft's: its certificate has the name by which the
// firmware's defaults are searched.
func authority(t testing.TB) secureboot.Pair {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Unix(1.3e9, 0), NotAfter: time.Unix(2.3e9, 0), IsCA: true, BasicConstraintsValid: true,
		Subject: pkix.Name{Organization: []string{"Microsoft Corporation"}, CommonName: "Test of the Windows Production PCA"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	certificate, err := x509.ParseCertificate(der)
	must(t, err)
	return secureboot.Pair{Key: key, Certificate: certificate}
}

// windowsDisk makes a disk as Windows's installer partitions it, with free space before
// the recovery partition, and something in every partition.
func windowsDisk(t testing.TB, path string, loader []byte) {
	t.Helper()
	must(t, errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, besideSize)))
	testkit.Run(t, "sgdisk", "--new=1:1M:+100M", "--typecode=1:ef00", "--change-name=1:EFI system partition",
		"--new=2:0:+16M", "--typecode=2:0c01", "--change-name=2:Microsoft reserved partition",
		"--new=3:0:+200M", "--typecode=3:0700", "--change-name=3:Basic data partition",
		"--new=4:-65M:-1M", "--typecode=4:2700", "--change-name=4:Basic data partition", path)
	d := openDisk(t, path, os.O_RDWR)
	for _, p := range d.table.Partitions {
		at, size := d.table.Bytes(p)
		if p.Type != layout.TypeESP {
			_, err := d.WriteAt(bytes.Repeat([]byte("somebody else's "), int(size/16)), at)
			must(t, err)
			continue
		}
		file := fat.File{Path: windowsManager, Size: int64(len(loader)), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(loader)), nil }}
		must(t, fat.Format(io.NewOffsetWriter(d, at), size, fat.Options{SectorSize: 512, VolumeID: 7, Label: "SYSTEM"}, []fat.File{file}))
	}
}

// besideSize is the size of a disk with Windows's partitions, of which 30 GiB are free.
const besideSize = 30<<30 + theirFirst + theirLast

// What Windows has at the start of such a disk and at its end, in bytes, with the tables.
const (
	theirFirst = 317 << 20
	theirLast  = 65 << 20
)

// TestFreeSpace installs into the 30 GiB that are free on a disk with Windows's partitions.
// The first two starts make this system's own there, and it starts with Secure Boot. Where
// the owner lets other systems start, the firmware starts Windows's loader by BootNext; where
// not, it refuses it, which was said before anything was written. This system's TPM opens
// after either. So it does after an update to the other slot, and after a rollback; each time
// every byte that is not in a partition of ours is what it was, but for the tables' checksums
// and the entries of our partitions.
func TestFreeSpace(t *testing.T) {
	t.Parallel()
	t.Run("others start", func(t *testing.T) { freeSpace(t, true) })
	t.Run("alone", func(t *testing.T) { freeSpace(t, false) })
}

func freeSpace(t *testing.T, lets bool) {
	path := filepath.Join(t.TempDir(), "windows.img")
	theirs := authority(t)
	loader, err := os.ReadFile(imageFile(t, "testos-1", release.BootManagerFile))
	must(t, err)
	loader, err = authenticode.Sign(loader, theirs.Key, theirs.Certificate, theirs.Certificate.NotBefore)
	must(t, err)
	windowsDisk(t, path, loader)
	before := besideDisk{path: path + ".before", lets: lets}
	must(t, vm.CopySparse(before.path, path))
	before.table = openDisk(t, path, os.O_RDONLY).table
	installBeside(t, path, lets)
	g := Machine(t, Options{Image: "testos-1", Prepare: func(s vm.State) error {
		defaults, err := secureboot.Database{secureboot.Certificate(gpt.GUID{7}, theirs.Certificate)}.Marshal()
		must(t, err)
		f, err := readFirmwareVars(s.Vars())
		must(t, err)
		must(t, f.add(secureboot.DBDefault, secureboot.BootServiceAccess|secureboot.RuntimeAccess, defaults))
		return errors.Join(os.WriteFile(s.Vars(), f.raw, 0o644), os.Rename(path, s.Disk()))
	}})
	if lets {
		g.Expect(`letting other systems start takes \d+ bytes of the firmware's variables, of which \d+ are free`)
		g.Expect(`Shall other systems, such as Windows, go on starting(?s:.*)Test of the Windows Production PCA(?s:.*)\[y/N\] `)
		g.typeLine("y")
	}
	_, r := g.provision()
	checkSecured(t, "beside Windows", r)
	g.startsWindows(before, releaseStick(t))
	g.updatesBeside(before)
}

// updatesBeside takes a machine that has started Windows, and has version 2 on a stick, to
// version 2 and back. It starts Windows after either.
func (g *Guest) updatesBeside(before besideDisk) {
	g.t.Helper()
	g.boots(oldSystem())
	g.ota("version 2 is in slot b", "fetch", "--from", "/dev/vdb1")
	g.Do(nil, "reboot")
	g.Expect(`halogen: stage \(`)
	g.boots(newSystem())
	g.ota("", "bless")
	g.startsWindows(before)
	g.boots(blessed())

	g.ota("", "rollback")
	g.startsWindows(before)
	g.boots(oldSystem())
	g.PowerOff()
	wantUKIs(g.t, g.State(), "halogen_1.efi", "halogen_2+0.efi")
	before.unchanged(g)
}

// releaseStick is a stick whose first partition has version 2, as its server would.
func releaseStick(t *testing.T) vm.Disk {
	t.Helper()
	server := t.TempDir()
	publishBuild(t, server, makeNewer(t, "testos-1", variant{}).dir, builtrelease.KeyFile{})
	path := filepath.Join(t.TempDir(), "stick.img")
	must(t, errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 256<<20)))
	testkit.Run(t, "sgdisk", "--new=1:1M:-1M", "--typecode=1:0700", path)
	testkit.Run(t, "mkfs.vfat", "--offset", "2048", path, "250000")
	testkit.Run(t, "mcopy", "-s", "-i", path+"@@1M", filepath.Join(server, "x86_64"), "::")
	return vm.Disk{Path: path, ReadOnly: true}
}

// ota runs the updater in the test system, which has to succeed and say so.
func (g *Guest) ota(says string, words ...string) {
	g.t.Helper()
	for _, module := range []string{"vfat", "nls_cp437", "nls_ascii"} { // the kernel asks for them by a program that is not there
		g.Do(nil, "modprobe", module)
	}
	if r := g.Run("/usr/bin/ota", words...); r.Exit != 0 || !strings.Contains(r.Stdout, says) {
		g.t.Fatalf("ota %q: %+v, want %q", words, r, says)
	}
}

// A besideDisk is a disk as it was before this system came to it.
type besideDisk struct {
	path  string
	table *gpt.Table
	lets  bool // other systems go on starting
}

// startsWindows switches the machine off, and compares its disk. Then it has the firmware
// start Windows's loader once, as boot-once does, and this system again after that, with
// these disks plugged in.
func (g *Guest) startsWindows(before besideDisk, disks ...vm.Disk) {
	g.t.Helper()
	esp := before.table.Partitions[0]
	option := bootoption.Encode("Windows Boot Manager", esp.Number, esp.First, esp.Last-esp.First+1, esp.UUID, `\`+strings.ReplaceAll(windowsManager, "/", `\`))
	g.variable("Boot00F1"+globalVendor, option)
	g.variable("BootNext"+globalVendor, []byte{0xf1, 0})
	g.PowerOff()
	before.unchanged(g)
	g.VM.Disks = disks
	g.PowerOn()
	if !before.lets {
		g.Expect(`BdsDxe: failed to load Boot00F1 "Windows Boot Manager"[^\n]*: Access Denied`)
		return
	}
	g.Expect(`BdsDxe: starting Boot00F1 "Windows Boot Manager"`)
	g.Expect(`Reboot Into Firmware Interface`) // an entry of the boot manager that stands for Windows's
	g.PowerCut()                               // the firmware has measured whose loader it was, until the next start
	g.PowerOn()
}

// installBeside installs into the free space of a disk that is for a machine of the test.
func installBeside(t *testing.T, path string, lets bool) {
	t.Helper()
	s, err := install.FromDirectory(filepath.Dir(Image(t, "testos-1")))
	must(t, err)
	defer s.Close()
	ids, err := install.RandomIDs(rand.Reader)
	must(t, err)
	f, err := os.Open(path)
	must(t, err)
	disk := install.LookAt(f, install.Disk{Path: path, SectorSize: 512, Sectors: besideSize / 512})
	must(t, f.Close())
	p := install.NewPlan(s, disk, install.Facts{}, ids, install.Choice{OtherMachine: true, FreeSpace: true, LetOthersStart: lets})
	must(t, p.Err(false))
	says := "Windows on " + path + " will no longer start"
	if lets {
		says = "Windows on " + path + " goes on starting"
	}
	if !slices.ContainsFunc(p.Findings, func(f install.Finding) bool { return strings.Contains(f.Text.String(), says) }) {
		t.Errorf("nothing is said of Windows: %+v", p.Findings)
	}
	device, err := install.Running().Open(p.Disk)
	must(t, err)
	must(t, errors.Join(p.Install(t.Context(), device, s, func(string, int64, int64) {}), device.Close()))
}

// unchanged compares the disk of a machine that is off.
func (b besideDisk) unchanged(g *Guest) {
	g.t.Helper()
	now := openDisk(g.t, g.State().Disk(), os.O_RDONLY)
	n := len(b.table.Partitions)
	if !slices.Equal(now.table.Partitions[:n], b.table.Partitions) || now.table.Disk != b.table.Disk {
		g.t.Errorf("the table is %+v, and was %+v", now.table, b.table)
	}
	const array, entries = gptArray, gptEntries
	ours := []extent{ // the tables but for the entries of others, and our partitions
		{gptHeader, entries}, {entries + int64(n)*gptEntrySize, entries + array},
		{besideSize - 512 - array + int64(n)*gptEntrySize, besideSize},
	}
	for i, role := range []layout.Role{layout.ESP, layout.SystemA, layout.VerityA, layout.SystemB, layout.VerityB, layout.Root} {
		part, err := layout.Find(now.table, role)
		at, size := now.table.Bytes(part)
		if err != nil || part.Number != n+1+i || at < theirFirst || at+size > besideSize-theirLast {
			g.t.Errorf("%s is %+v, %v", role, part, err)
		}
		ours = append(ours, extent{at, at + size})
	}
	sameOutside(g.t, b.path, now.Name(), ours)
	if _, health, err := gpt.Read(now, besideSize/512, 512); err != nil || !health.OK() {
		g.t.Errorf("the table: %v, %v", health, err)
	}
	testkit.Run(g.t, "sgdisk", "--verify", now.Name())
}

// An extent is a run of a disk's bytes, the end not included.
type extent struct{ first, end int64 }

// sameOutside compares two disks but for what is ours. What neither of their files has data
// for is zero in both.
func sameOutside(t testing.TB, before, after string, ours []extent) {
	t.Helper()
	slices.SortFunc(ours, func(x, y extent) int { return cmp.Compare(x.first, y.first) })
	var theirs []extent
	next := int64(0)
	for _, e := range append(ours, extent{besideSize, besideSize}) {
		theirs, next = append(theirs, extent{next, e.first}), e.end
	}
	a, err := os.Open(before)
	must(t, err)
	defer a.Close()
	b, err := os.Open(after)
	must(t, err)
	defer b.Close()
	for _, f := range []*os.File{a, b} {
		compared := int64(0)
		must(t, vm.DataExtents(f, besideSize, func(off, length int64) error {
			for _, e := range theirs {
				first, end := max(off, e.first), min(off+length, e.end)
				if first >= end {
					continue
				}
				compared += end - first
				if err := sameBytes(a, b, first, end); err != nil {
					return err
				}
			}
			return nil
		}))
		if least := int64(250 << 20); compared < least {
			t.Errorf("only %d bytes of %s were compared, of Windows's partitions alone there are more than %d", compared, f.Name(), least)
		}
	}
}

// sameBytes compares a run of two files.
func sameBytes(a, b io.ReaderAt, first, end int64) error {
	var have, want [1 << 20]byte
	for at := first; at < end; at += int64(len(have)) {
		n := min(end-at, int64(len(have)))
		_, err1 := a.ReadAt(want[:n], at)
		_, err2 := b.ReadAt(have[:n], at)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if !bytes.Equal(have[:n], want[:n]) {
			return fmt.Errorf("within the %d bytes at %d, which are in no partition of ours, the disk has changed", n, at)
		}
	}
	return nil
}

// Two of the certificates that are known by their hash are in the variables that OVMF brings
// with Microsoft's keys; the installer finds them there.
func TestKnownCertificates(t *testing.T) {
	t.Parallel()
	const vars = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"
	f, err := readFirmwareVars(vars)
	if err != nil {
		skip(t, err.Error())
	}
	db, err := f.get(secureboot.DB)
	must(t, err)
	l := install.Linux{Sys: t.TempDir()}
	file := filepath.Join(l.Sys, "firmware/efi/efivars", secureboot.DB.Name+"-"+secureboot.DB.GUID.String())
	must(t, errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, append([]byte{7, 0, 0, 0}, db...), 0o600)))
	found := l.Facts().Others.String()
	for _, want := range []string{"Microsoft Windows Production PCA 2011", "Microsoft Corporation UEFI CA 2011"} {
		if !strings.Contains(found, want) {
			t.Errorf("the certificates of %s are %s, without %s", vars, found, want)
		}
	}
}
