package qemutests

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/layout"
	"halogenos.internal/builder/vm"
	"halogenos.internal/qemu-tests/testos/protocol"
)

// startMarks are lines of a start, from the firmware to the system.
func startMarks() []string {
	return []string{`BdsDxe: starting`, `halogen: firmware \(`, `halogen: tpm \(`, `halogen: disk \(`, `halogen: open-verity \(`,
		`halogen: unlock \(`, `halogen: mount-state \(`, protocol.Greeting + ` \{`}
}

// TestStartupCuts pulls the plug again and again while a machine starts, some time
// after each of the marks. Then it starts as if nothing had been.
// FAULTS 49
func TestStartupCuts(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	g := newGuest(t, Options{State: p.State})
	uki, files := theUKI(t, g.State()), bootFilesDigest(t, g.State())
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	marks := startMarks()
	for _, i := range random.Perm(len(marks)) {
		g.PowerOn()
		mark, after := marks[i], time.Duration(random.Int64N(int64(1500*time.Millisecond)))
		if i, match := g.ExpectAny(mark, `RECOVERY: [^\n]*`, asksForKey); i != 0 {
			t.Fatalf("after a cut the boot came to %q", match[0])
		}
		time.Sleep(after)
		g.PowerCut()
		t.Logf("cut %v after %q", after.Round(time.Millisecond), mark)
	}
	g.PowerOn()
	checkSecured(t, "after the cuts", g.Boot())
	for path, text := range keptFiles {
		var read struct{ Text string }
		if g.Do(&read, "read", path); read.Text != text {
			t.Errorf("%s holds %q; %q was written", path, read.Text, text)
		}
	}
	g.PowerOff()
	openDisk(t, g.State().Disk(), os.O_RDONLY).checkTable()
	if now := theUKI(t, g.State()); now != uki || bootFilesDigest(t, g.State()) != files {
		t.Errorf("the ESP has %s, was %s; or another content", now, uki)
	}
}

// TestUnmoved gives a machine three things at once that must not matter to it.
//
// A second disk, seen first, looks like the machine's own to the last UUID and offers a
// newer system, keys and credentials: nothing of it is used, mounted or written to. An
// addon that nobody signed changes nothing. Wrong authorisations of somebody else's
// objects have locked the TPM: what unlocks the root partition takes no part in that.
// FAULTS 39, 56, 71, 80
func TestUnmoved(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	stick, err := p.State.Clone(filepath.Join(t.TempDir(), "stick"))
	must(t, err)
	uki := theUKI(t, stick)
	newer := bls.Name{ImageID: imageRelease(t, "testos-1").ImageID, Version: 9}.String()
	image := espContent(t, stick, uki)
	espWrite(t, stick, bls.Directory+"/"+newer, signByStranger(t, image))
	espWrite(t, stick, "loader/credentials/planted.cred", []byte("planted"))
	d := openDisk(t, stick.Disk(), os.O_RDWR)
	d.flip(layout.SlotA.System(), 4096)
	before := sparseDigest(t, stick.Disk())
	g := newGuest(t, Options{State: p.State})
	plantAddon(t, g.State())
	lockOut(t, g.State())
	g.VM.NoDisk, g.VM.Disks = true, []vm.Disk{{Path: stick.Disk()}, {Path: g.State().Disk(), BootIndex: 10}}
	g.PowerOn()
	r := g.Boot()
	checkSecured(t, "with a hostile stick, an addon, and a TPM in lockout", r)
	if want := notedReport(t, p, thirdReport).Cmdline; r.Cmdline != want {
		t.Errorf("command line %q; want %q", r.Cmdline, want)
	}
	i := slices.IndexFunc(r.Disks, func(d protocol.Disk) bool { return d.Serial == "disk0" })
	if len(r.Disks) != 2 || i < 0 {
		t.Fatalf("disks %+v; want the stick and the machine's own", r.Disks)
	}
	for _, m := range r.Mounts {
		if strings.HasPrefix(m.Source, "/dev/"+r.Disks[i].Device) {
			t.Errorf("of the stick %s is mounted on %s", m.Source, m.Target)
		}
	}
	g.PowerOff()
	if sparseDigest(t, stick.Disk()) != before {
		t.Error("the stick was written to")
	}
}
