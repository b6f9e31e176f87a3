package qemutests

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/verity"
	"halogenos.internal/qemu-tests/testos/protocol"
)

// named is a machine that was cut off as soon as slot A had its tree and its name:
// the firmware is in Setup Mode still, so whatever lies on the disk is started, and
// it is all initagent's to refuse.
func named(t *testing.T) Provisioned {
	t.Helper()
	return Provision(t, Options{Image: "testos-1"}, "named", func(g *Guest) map[string]string {
		g.Expect(`halogen: make-tree \(`)
		return nil
	})
}

// TestVerified looks at a machine that is in use, from inside, by what its third
// boot reported, and, now that it is off, from outside.
// FAULTS 36, 37
func TestVerified(t *testing.T) {
	t.Parallel()
	r := imageRelease(t, "testos-1")
	root := fmt.Sprintf("%x", []byte(r.RootHash))
	for _, p := range []Provisioned{named(t), provisioned(t)} {
		d := openDisk(t, p.State.Disk(), os.O_RDONLY)
		d.checkTable()
		d.checkESP()
		d.checkTree(root)
	}
	report := notedReport(t, provisioned(t), thirdReport)
	want := pcr.Phases(pcr.Digest(r.PCR11), pcr.EnterInitrd, pcr.LeaveInitrd)
	if report.PCRs["11"] != want.String() {
		t.Errorf("PCR 11 is %s, %s was predicted", report.PCRs["11"], want)
	}
	if report.PCRs["12"] != (pcr.Digest{}).String() || report.PCRs["13"] != (pcr.Digest{}).String() {
		t.Errorf("PCR 12 is %s, PCR 13 %s: nothing from outside the UKI was to be measured", report.PCRs["12"], report.PCRs["13"])
	}
	checkRoot(t, report, r)
}

// checkRoot checks that the system is mounted from the verity device of its root
// hash, and that nothing is mounted past a mapped device.
func checkRoot(t *testing.T, report protocol.Report, r *release.Release) {
	t.Helper()
	i := slices.IndexFunc(report.DM, func(d protocol.DM) bool { return d.Name == "system" })
	if i < 0 {
		t.Fatalf("device-mapper has %+v, and no system", report.DM)
	}
	system := report.DM[i]
	table := fmt.Sprintf(` verity 1 \S+ \S+ 4096 4096 %d 1 sha256 %x %x$`, r.ImageSize/verity.BlockSize, []byte(r.RootHash), []byte(r.Salt))
	if len(system.Table) != 1 || !regexp.MustCompile(table).MatchString(system.Table[0]) {
		t.Errorf("table of the system's device: %q; want one line that ends in %q and no options", system.Table, table)
	}
	disk := regexp.MustCompile(`^/dev/(vd|sd|nvme)`)
	for _, m := range report.Mounts {
		if m.Target == "/" && (m.Source != "/dev/"+system.Device || m.Type != "erofs") {
			t.Errorf("/ is %s on %s; want erofs on %s", m.Type, m.Source, system.Device)
		}
		if disk.MatchString(m.Source) {
			t.Errorf("%s is mounted on %s, past verity and encryption", m.Source, m.Target)
		}
	}
}

// TestCorrupt boots a machine with one thing wrong in its slot. The boot stops, and
// says what was found where.
// FAULTS 32, 33, 38
func TestCorrupt(t *testing.T) {
	t.Parallel()
	r := imageRelease(t, "testos-1")
	params := verityParams(r)
	levels, err := verity.Levels(params.DataBlocks)
	if err != nil || len(levels) != 2 {
		t.Fatalf("the tree has %d levels (%v), the test is about one of 2", len(levels), err)
	}
	system, tree := layout.SlotA.System(), layout.SlotA.Verity()
	const otherUKI = "another root hash" // started from power on
	stops := func(where string) string {
		return `RECOVERY: the system image is not what the UKI names: first read through dm-verity: [^\n]+\n +slot a: verity: ` + where + ` is corrupt; and there is no other system`
	}
	tests := []struct {
		name   string
		damage func(t *testing.T, d *disk)
		want   string
	}{
		{"data", func(_ *testing.T, d *disk) { d.flip(system, 1234) }, stops(`data block 0 \(offset 0\)`)},
		{"leaf", func(_ *testing.T, d *disk) { d.flip(tree, levels[0].Offset) }, stops(`hash block 0 of level 0 \(offset 8192\)`)},
		{"top", func(_ *testing.T, d *disk) { d.flip(tree, levels[1].Offset+40) }, stops(`hash block 0 of level 1 \(offset 4096\)`)},
		{"another image and its tree", otherImage, stops(`hash block 0 of level 1 \(offset 4096\)`)},
		{otherUKI, func(t *testing.T, d *disk) { otherRoot(t, d, r) }, stops(`hash block 0 of level 1 \(offset 4096\)`)},
		// The kernel gets none of its parameters from there, nor reads what lies behind.
		{"superblock, salt and tails", func(_ *testing.T, d *disk) {
			for _, offset := range []int64{0, 8, 40, 64, 72, 88, verity.BlockSize - 1, levels[0].Offset + int64(levels[0].Blocks)*verity.BlockSize} {
				d.flip(tree, offset)
			}
			d.flip(system, r.ImageSize)
		}, `halogen: open-verity \([^\n]*\n`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := named(t)
			if tt.name != otherUKI {
				p = atInit(t, "testos-1", "named", p)
			}
			g := newGuest(t, Options{State: p.State})
			tt.damage(t, openDisk(t, g.State().Disk(), os.O_RDWR))
			g.PowerOn()
			g.stopsAt(tt.want)
		})
	}
}

// stopsAt expects a line of the boot, and no system.
func (g *Guest) stopsAt(pattern string) {
	g.t.Helper()
	if i, match := g.ExpectAny(pattern, `RECOVERY: [^\n]*\n[^\n]*\n`, protocol.Greeting+` \{`); i != 0 {
		g.t.Errorf("the boot came to %q; want %q", match[0], pattern)
	}
	g.PowerCut()
}

// otherImage puts a system image into slot A that is not the UKI's, with the tree
// that veritysetup makes of it, under the name of the UKI's.
func otherImage(t *testing.T, d *disk) {
	t.Helper()
	r := imageRelease(t, "testos-1")
	start, size := d.partition(layout.SlotA.System())
	for offset := start; offset < start+min(size, r.ImageSize); offset += 1 << 20 {
		d.flip(0, offset+77)
	}
	tree := filepath.Join(t.TempDir(), "tree")
	data := d.cut(layout.SlotA.System())
	rootOf(t, data, tree, r)
	d.fill(layout.SlotA.Verity(), tree)
}

// otherRoot puts a UKI on the ESP whose boot contract has one bit of the root hash
// flipped, and names slot A by it.
func otherRoot(t *testing.T, d *disk, r *release.Release) {
	t.Helper()
	root := verity.Root(r.RootHash)
	root[9] ^= 0x40
	d.putUKI(r, ukiWithRoot(t, "testos-1", root))
	d.write(layout.Rename(d.table, layout.SlotA, layout.SystemUUID(root), layout.VerityUUID(root)))
}

// rootOf has veritysetup make the tree over a system image, and returns its root hash.
func rootOf(t *testing.T, data, tree string, r *release.Release) string {
	t.Helper()
	said := testkit.Run(t, "veritysetup", "format", "--data-blocks", strconv.FormatInt(r.ImageSize/verity.BlockSize, 10),
		"--salt", fmt.Sprintf("%x", []byte(r.Salt)), data, tree)
	match := regexp.MustCompile(`Root hash:\s+([0-9a-f]{64})`).FindStringSubmatch(said)
	if match == nil {
		t.Fatalf("veritysetup format tells no root hash:\n%s", said)
	}
	return match[1]
}

// TestCorruptInstallation boots a new machine whose system image is not the UKI's:
// no tree is named over it, and both root hashes are told.
// FAULTS 32, 38
func TestCorruptInstallation(t *testing.T) {
	t.Parallel()
	r := imageRelease(t, "testos-1")
	root := verity.Root(r.RootHash)
	flipped := root
	flipped[31] ^= 1
	tests := []struct {
		name   string
		named  verity.Root // by the UKI
		damage func(t *testing.T, d *disk)
	}{
		{"last block of data", root, func(_ *testing.T, d *disk) { d.flip(layout.SlotA.System(), r.ImageSize-1) }},
		{"root hash", flipped, func(t *testing.T, d *disk) { d.putUKI(r, ukiWithRoot(t, "testos-1", flipped)) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := newGuest(t, Options{Image: "testos-1"})
			d := openDisk(t, g.State().Disk(), os.O_RDWR)
			tt.damage(t, d)
			found := rootOf(t, d.cut(layout.SlotA.System()), filepath.Join(t.TempDir(), "tree"), r)
			g.PowerOn()
			g.stopsAt(`RECOVERY: make-tree: partition system-a does not hold the system image of halogen 1: its root hash is ` + found +
				`, the UKI names ` + tt.named.String() + `: install the image again`)
			d = openDisk(t, g.State().Disk(), os.O_RDONLY)
			if p, err := layout.Find(d.table, layout.VerityA); err != nil || p.UUID == layout.VerityUUID(tt.named) || p.UUID == layout.VerityUUID(root) {
				t.Errorf("verity-a is %+v; no name may stand over this tree", p)
			}
		})
	}
}

// TestCorruptLater: a block that nothing reads before the system does is an I/O error
// there, and the device says so.
// FAULTS 32, 36
func TestCorruptLater(t *testing.T) {
	t.Parallel()
	const file = "/usr/sbin/e2fsck"
	g := newGuest(t, Options{State: provisionedAtInit(t).State})
	offset := fileOffset(t, "testos-1", file)
	openDisk(t, g.State().Disk(), os.O_RDWR).flip(layout.SlotA.System(), offset+100)
	g.PowerOn()
	g.Boot()
	if err := g.Try(nil, "sha256", file); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("read of a corrupt file: %v; want an I/O error", err)
	}
	var read struct{ Text string }
	g.Do(&read, "dmesg")
	if want := fmt.Sprintf("data block %d is corrupted", offset/verity.BlockSize); !strings.Contains(read.Text, want) {
		t.Errorf("the kernel log says nothing of %q", want)
	}
	for _, d := range g.Report().DM {
		if d.Name == "system" && (len(d.Status) != 1 || !strings.HasSuffix(d.Status[0], " verity C")) {
			t.Errorf("status of the system's device: %q; want C, for corruption found", d.Status)
		}
	}
	g.PowerOff()
}

// fileOffset is where the first bytes of a file are in an image, as dump.erofs has it.
func fileOffset(t *testing.T, image, file string) int64 {
	t.Helper()
	testkit.Need(t, "dump.erofs")
	said := testkit.Run(t, "dump.erofs", "-e", "--path="+file, imageFile(t, image, release.ImageFile))
	extent := regexp.MustCompile(`(?m)^ *0: .*\| +[0-9]+ : +([0-9]+)\.\.`).FindStringSubmatch(said)
	if extent == nil {
		t.Fatalf("dump.erofs tells no extent of %s:\n%s", file, said)
	}
	offset, err := strconv.ParseInt(extent[1], 10, 64)
	must(t, err)
	return offset
}
