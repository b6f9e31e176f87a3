package qemutests

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
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
	must(t, errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, targetSize)))
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

// outside is all that lies outside the free space of such a disk, but the tables' sectors.
func outside(t testing.TB, path string) (all []byte) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	for _, piece := range [][2]int64{{34 * 512, 317 << 20}, {targetSize - 65<<20, targetSize - 33*512}} {
		content := make([]byte, piece[1]-piece[0])
		_, err := f.ReadAt(content, piece[0])
		must(t, err)
		all = append(all, content...)
	}
	return all
}

// TestFreeSpace installs into the free space of a disk with Windows's partitions. The
// first two starts make this system's own there, it starts with Secure Boot, and every byte
// outside is what it was, but the partition tables. Where the owner lets other systems start,
// the firmware starts Windows's loader by BootNext; where not, it refuses it, which was said
// before anything was written. This system's TPM opens after either.
func TestFreeSpace(t *testing.T) {
	t.Parallel()
	for name, lets := range map[string]bool{"alone": false, "others start": true} {
		t.Run(name, func(t *testing.T) { freeSpace(t, lets) })
	}
}

func freeSpace(t *testing.T, lets bool) {
	path := filepath.Join(t.TempDir(), "windows.img")
	theirs := authority(t)
	loader, err := os.ReadFile(imageFile(t, "testos-1", release.BootManagerFile))
	must(t, err)
	loader, err = authenticode.Sign(loader, theirs.Key, theirs.Certificate, theirs.Certificate.NotBefore)
	must(t, err)
	windowsDisk(t, path, loader)
	before, old := outside(t, path), openDisk(t, path, os.O_RDONLY).table
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
		g.Expect(`Shall other systems, such as Windows, go on starting(?s:.*)Test of the Windows Production PCA(?s:.*)\[y/N\] `)
		g.typeLine("y")
	}
	_, r := g.provision()
	checkSecured(t, "beside Windows", r)
	g.startsWindows(old.Partitions[0], lets)
	if strings.Contains(g.Console().Text(), asksForKeyText) {
		t.Error("the recovery key is asked for")
	}
	g.PowerOff()
	if !bytes.Equal(before, outside(t, g.State().Disk())) {
		t.Error("something outside the free space has changed")
	}
	checkBeside(t, g, old)
}

// startsWindows has the firmware start Windows's loader once, as boot-once does, and this
// system again after that.
func (g *Guest) startsWindows(esp gpt.Partition, lets bool) {
	g.t.Helper()
	option := bootoption.Encode("Windows Boot Manager", esp.Number, esp.First, esp.Last-esp.First+1, esp.UUID, `\`+strings.ReplaceAll(windowsManager, "/", `\`))
	g.variable("Boot00F1"+globalVendor, option)
	g.variable("BootNext"+globalVendor, []byte{0xf1, 0})
	g.Do(nil, "reboot")
	if lets {
		g.Expect(`BdsDxe: starting Boot00F1 "Windows Boot Manager"`)
		g.PowerCut() // the firmware has measured whose loader it was, until the next start
		g.PowerOn()
	} else {
		g.Expect(`BdsDxe: failed to load Boot00F1 "Windows Boot Manager"[^\n]*: Access Denied`)
	}
	checkSecured(g.t, "after Windows", g.Boot())
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
	disk := install.LookAt(f, install.Disk{Path: path, SectorSize: 512, Sectors: targetSize / 512})
	must(t, f.Close())
	p := install.NewPlan(s, disk, install.Facts{}, ids, install.Choice{OtherMachine: true, FreeSpace: true, LetOthersStart: lets})
	must(t, p.Err(false))
	says := "Windows on " + path + " will no longer start"
	if lets {
		says = "Windows on " + path + " goes on starting"
	}
	if !slices.ContainsFunc(p.Findings, func(f install.Finding) bool { return strings.Contains(f.Text, says) }) {
		t.Errorf("nothing is said of Windows: %+v", p.Findings)
	}
	device, err := install.Running().Open(p.Disk)
	must(t, err)
	must(t, errors.Join(p.Install(t.Context(), device, s, func(string, int64, int64) {}), device.Close()))
}

// checkBeside checks the partitions of a machine that is off.
func checkBeside(t *testing.T, g *Guest, old *gpt.Table) {
	t.Helper()
	d := openDisk(t, g.State().Disk(), os.O_RDONLY)
	if !slices.Equal(d.table.Partitions[:4], old.Partitions) || d.table.Disk != old.Disk {
		t.Errorf("the table is %+v, and was %+v", d.table, old)
	}
	for i, role := range []layout.Role{layout.ESP, layout.SystemA, layout.VerityA, layout.SystemB, layout.VerityB, layout.Root} {
		part, err := layout.Find(d.table, role)
		if at, size := d.table.Bytes(part); err != nil || part.Number != 5+i || at < 317<<20 || at+size > targetSize-65<<20 {
			t.Errorf("%s is %+v, %v", role, part, err)
		}
	}
	if _, health, err := gpt.Read(d, targetSize/512, 512); err != nil || !health.OK() {
		t.Errorf("the table: %v, %v", health, err)
	}
	testkit.Run(t, "sgdisk", "--verify", g.State().Disk())
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
