package qemutests

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/microcode"
	"halogenos.internal/boot/microcode/microcodetest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki"
	"halogenos.internal/builder/install/installtest"
	"halogenos.internal/builder/vm"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/enroll"
)

// namedLoader is a loader that is nobody's boot manager, and its hash.
func namedLoader(t testing.TB) (image []byte, digest [32]byte) {
	t.Helper()
	image, err := os.ReadFile(imageFile(t, "testos-1", release.BootManagerFile))
	must(t, err)
	image[binary.LittleEndian.Uint32(image[60:])+imageNumberAt] += 2
	digest, err = authenticode.Digest(image)
	must(t, err)
	return image, digest
}

// A revoker signs a release that names the loader.
type revoker struct {
	*installtest.Signer
	key *pgp.Key
}

func newRevoker(t testing.TB) *revoker {
	t.Helper()
	signer := installtest.NewSigner(t)
	key, err := pgp.ParseKey(signer.Public())
	must(t, err)
	return &revoker{signer, key}
}

// String names the machines of this key.
func (r *revoker) String() string {
	if r == nil {
		return ""
	}
	return fmt.Sprintf("%x", r.key.Fingerprint())
}

// revokes names, where the variant does, the loader, and all that this machine needs: the
// release's own UKI and boot manager, which no publisher is let name, and the fallback.
func (n *newer) revokes(t testing.TB, v variant) {
	t.Helper()
	if v.Revoker == nil {
		return
	}
	_, digest := namedLoader(t)
	fallback, err := authenticode.Digest(espContent(t, v.Revoker.provisioned(t).State, bls.Directory+"/halogen_1.efi"))
	must(t, err)
	named := release.Revocations{Type: "sha256", Entries: []contract.Hex{digest[:], fallback[:]}}
	for _, f := range n.Files {
		if f.Authenticode != nil {
			named.Entries = append(named.Entries, f.Authenticode)
		}
	}
	n.Revocations = []release.Revocations{named}
}

// provisioned is a machine whose system pins the revoker's key; the image's own without one.
func (r *revoker) provisioned(t testing.TB) Provisioned {
	t.Helper()
	if r == nil {
		return provisioned(t)
	}
	image := filepath.Join(t.TempDir(), "disk.img")
	must(t, vm.CopySparse(image, Image(t, "testos-1")))
	made, section := imageUKI(t, "testos-1")
	initrd := section(".initrd")
	facts, err := contract.FromInitrd(initrd)
	must(t, err)
	before, err := contract.Archive(facts)
	must(t, err)
	facts.ReleaseKey = r.key.Bytes()
	after, err := contract.Archive(facts)
	must(t, err)
	d := openDisk(t, image, os.O_RDWR)
	d.putUKI(imageRelease(t, "testos-1"), replaceLast(t, made, ".initrd", append(after, initrd[len(before):]...)))
	must(t, d.Close())
	prepare := func(s vm.State) error { return vm.CopySparse(s.Disk(), image) }
	return Provision(t, Options{Image: "testos-1", Prepare: prepare}, "pins "+r.String(), bringUp)
}

// TestLoaderRevoked: version 2 names a loader for dbx that this machine's key has signed, so
// that the firmware starts it. Once version 2 was blessed it is there, and the firmware does
// not. The running UKI, the fallback and the boot manager, which version 2 names as well, are
// not there. At every start the TPM opens by itself, that of the fallback included.
// FAULTS 110
func TestLoaderRevoked(t *testing.T) {
	t.Parallel()
	loader, digest := namedLoader(t)
	r := newRevoker(t)
	p := r.provisioned(t)
	pair := openRoot(t, p).keys(t).DB
	loader, err := enroll.DBSigner{Pair: pair, Time: pair.Certificate.NotBefore}.Sign(loader)
	must(t, err)
	plant := func(s vm.State) error {
		for _, name := range []string{bootManager, managerCopy} {
			espWrite(t, s, name, loader)
		}
		return nil
	}
	t.Run("before", func(t *testing.T) {
		g := Machine(t, Options{State: p.State, Prepare: plant})
		if i, match := g.ExpectAny(`halogen: `, `BdsDxe: failed to load [^\n]*: Access Denied`); i != 0 {
			t.Fatalf("the firmware does not start it before either: %q", match[0])
		}
	})
	g := onTrial(t, variant{Watchdog: 20, Revoker: r}, tries, vm.Options{})
	g.PowerOn()
	g.bless(g.boots(newSystem()))
	g.restartsUntil("dbx has what release 2 names, 1 more entries")
	for _, name := range []string{"the UKI halogen_1.efi", "the UKI halogen_2.efi", "the boot manager"} {
		if want := " that release 2 names: it would stop " + name + ", which this machine starts"; !strings.Contains(g.Console().Text(), want) {
			t.Errorf("nothing has said %q", want)
		}
	}
	for range 2 {
		g.Do(nil, "reboot")
		g.boots(blessed())
	}
	dbx := g.firmwareHolds(secureboot.DBX)
	if len(dbx) != 1 || dbx[0].Type != secureboot.TypeSHA256 || !bytes.Equal(dbx[0].Data, digest[:]) {
		t.Errorf("dbx holds %v, want the loader's %x", dbx, digest)
	}
	g.PowerOff()
	mtools(t, g.State(), "mren", "::"+bls.Directory+"/halogen_2.efi", "::"+bls.Directory+"/halogen_2+0-3.efi")
	g.PowerOn()
	g.boots(oldSystem())
	g.PowerOff()
	must(t, plant(g.State()))
	g.refusesManager()
}

// testRevision is the revision of testMicrocode.
const testRevision = 0x1234

// testMicrocode is an archive of microcode of both makers, for the processors that QEMU's
// emulator has, among others. No processor takes it.
func testMicrocode(t testing.TB) []byte {
	t.Helper()
	var all []microcode.Processor
	for _, signature := range []uint32{0x663, 0x60fb1, 0x906ea} {
		all = append(all, microcode.Processor{Signature: signature, Platforms: 1, Revision: testRevision})
	}
	set := new(microcode.Set)
	must(t, set.Add(microcodetest.Intel(all[0], all[1:]...)))
	for i := range all {
		all[i].Platforms = 0
	}
	must(t, set.Add(microcodetest.AMD(all...)))
	text, err := set.Archive()
	must(t, err)
	return text
}

// withMicrocodeSection makes a UKI again with the stub of systemd 257, which hands the section
// .ucode to Linux.
func withMicrocodeSection(t testing.TB, made []byte) []byte {
	t.Helper()
	parsed, err := uki.Parse(made)
	must(t, err)
	of := func(name string) []byte {
		b, _ := parsed.Section(name)
		return b
	}
	stub := testkit.Tools13(t).Read("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
	made, err = uki.Build(stub, uki.Payload{
		OSRelease: of(".osrel"), Cmdline: of(".cmdline"), Uname: of(".uname"), Splash: of(".splash"),
		Linux: of(".linux"), Initrd: of(".initrd"), Microcode: testMicrocode(t),
	}.Sections())
	must(t, err)
	return made
}

// TestMicrocode: a UKI with microcode, in the section that systemd's stub has for it since
// 256, and before that in the initramfs. PCR 11 is what was predicted: the TPM opens at the
// release's first start and at the next one. Linux has unpacked it to where it looks.
func TestMicrocode(t *testing.T) {
	t.Parallel()
	for _, place := range []string{"ucode", "initrd"} {
		t.Run(place, func(t *testing.T) {
			g := onTrial(t, variant{Watchdog: 20, Microcode: place}, tries, vm.Options{})
			g.PowerOn()
			r := g.boots(newSystem())
			var boot bootinfo.Report
			must(t, json.Unmarshal(r.Halogen[bootinfo.ReportName], &boot))
			known := []string{microcode.SignatureName(0x663), microcode.SignatureName(0x60fb1)}
			if boot.Processor == nil || slices.Contains(known, boot.Processor.Name) != (boot.Microcode == "0x1234") {
				t.Errorf("the processor is %+v, the microcode for it %q", boot.Processor, boot.Microcode)
			}
			g.bless(r)
			g.Do(nil, "reboot")
			g.boots(blessed())
		})
	}
}
