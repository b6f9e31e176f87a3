package layout

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/testkit"
)

// machine is a complete table with slots of slotSize bytes on a disk of size bytes.
func machine(t *testing.T, size int64, sector int, slotSize int64) *gpt.Table {
	t.Helper()
	plan, err := NewPlan(installed(size, sector, slotSize), slotSize, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return plan.Table
}

// grown is machine with slots that have grown to a larger size.
func grown(t *testing.T, size int64, from, to int64) *gpt.Table {
	t.Helper()
	g, err := Grow(machine(t, size, 512, from), to, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return g.Table
}

// change changes the partition with the role in a table.
func change(t *gpt.Table, r Role, how func(*gpt.Partition)) {
	i := slices.IndexFunc(t.Partitions, r.is)
	how(&t.Partitions[i])
}

// drop takes the partition with the role out of a table.
func drop(t *gpt.Table, r Role) { t.Partitions = slices.DeleteFunc(t.Partitions, r.is) }

func mustFind(t *testing.T, table *gpt.Table, r Role) gpt.Partition {
	t.Helper()
	p, err := Find(table, r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// checkGrown compares a growth with the table that was there: nothing but the end of the
// root partition has changed, and the slots have the size that was asked for.
func checkGrown(t *testing.T, was *gpt.Table, g *Growth, slotSize int64) {
	t.Helper()
	tree, _ := VeritySize(slotSize)
	for role, want := range map[Role]int64{SystemA: slotSize, SystemB: slotSize, VerityA: tree, VerityB: tree} {
		if size, err := Size(g.Table, role); err != nil || size != want {
			t.Errorf("%s has %d bytes, %v; want %d", role, size, err, want)
		}
	}
	for _, p := range was.Partitions {
		now, _ := g.Table.ByNumber(p.Number)
		if p.Last -= uint64(g.Shrink) / uint64(was.SectorSize); Root.is(p) && now == p {
			continue
		}
		if p, _ := was.ByNumber(p.Number); now != p {
			t.Errorf("partition %+v became %+v", p, now)
		}
	}
	if _, size := g.Table.Bytes(mustFind(t, g.Table, Root)); size != g.RootSize {
		t.Errorf("the root partition has %d bytes, not %d", size, g.RootSize)
	}
	for _, p := range g.Table.Partitions {
		if off, size := g.Table.Bytes(p); p.Type == TypeMore && (off%Align != 0 || size%Align != 0 || p.Attributes != 0) {
			t.Errorf("%+v is not aligned, or has attributes", p)
		}
	}
	if again, err := NewPlan(g.Table, slotSize, rand.Reader); err != nil || len(again.Changes) > 0 {
		t.Errorf("a grown machine is planned again: %+v, %v", again, err)
	}
	if _, err := Grow(g.Table, slotSize, rand.Reader); !errors.Is(err, ErrLargeEnough) {
		t.Errorf("grown again to the same size: %v", err)
	}
}

func TestGrow(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		was := machine(t, 8*gib, sector, gib)
		before := clone(was)
		g, err := Grow(was, gib+gib/2, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(was.Partitions, before.Partitions) {
			t.Error("the table that was given has changed")
		}
		checkGrown(t, was, g, gib+gib/2)
		tree, _ := VeritySize(gib)
		more, _ := VeritySize(gib + gib/2)
		if g.Shrink != 2*(gib/2+more-tree) {
			t.Errorf("shrinks by %d", g.Shrink)
		}
		if len(g.Changes) != 5 || !strings.HasPrefix(g.Changes[0], "shrink partition 6 (root) from ") || !strings.HasPrefix(g.Changes[1], "make partition 7 (system-a-2), 512 MiB") {
			t.Errorf("changes: %q", g.Changes)
		}
		// A release with the small slots, or a machine that has been reset to one, goes on.
		if !complete(g.Table, gib) {
			t.Error("with the old slot size, the table is not complete")
		}
	}
}

// What follows the root partition is used, and a root partition that ends anywhere loses
// no more than what is missing and less than Align.
func TestGrowWithFreeSpace(t *testing.T) {
	for name, c := range map[string]struct {
		sectors uint64 // that the root partition ends earlier
		shrinks bool
	}{
		"all fits": {gib * 5 / 4 / 512, false}, "a part": {gib / 2 / 512, true}, "an odd end": {7, true}, "an odd end and a part": {gib/2/512 + 1, true},
	} {
		was := machine(t, 8*gib, 512, gib)
		change(was, Root, func(p *gpt.Partition) { p.Last -= c.sectors })
		g, err := Grow(was, gib+gib/2, rand.Reader)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		checkGrown(t, was, g, gib+gib/2)
		if c.shrinks != (g.Shrink > 0) {
			t.Errorf("%s: shrinks by %d", name, g.Shrink)
		}
		if got := int64(c.sectors*512) + g.Shrink; c.shrinks && (got < gib || got >= gib+16*Align) {
			t.Errorf("%s: shrinks by %d", name, g.Shrink)
		}
	}
}

// Beside other systems their partitions and the free space behind them stay.
func TestGrowBesideOthers(t *testing.T) {
	plan, err := NewPlan(shared(t, gib), gib, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	g, err := Grow(plan.Table, 2*gib, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	checkGrown(t, plan.Table, g, 2*gib)
	if g.Shrink == 0 {
		t.Error("free space that nobody has asked for was used")
	}
}

func TestGrowRefuses(t *testing.T) {
	few := machine(t, 3*gib+gib/2, 512, gib)
	_, err := Grow(few, 2*gib, rand.Reader)
	room := &RoomError{}
	if !errors.As(err, &room) || !strings.Contains(err.Error(), "MiB are missing") {
		t.Fatalf("no room: %v", err)
	}
	// With what is missing it goes, and with less it does not.
	for extra, ok := range map[int64]bool{AlignUp(room.Missing): true, AlignUp(room.Missing) - Align: false} {
		if _, err := Grow(machine(t, 3*gib+gib/2+extra, 512, gib), 2*gib, rand.Reader); (err == nil) != ok {
			t.Errorf("with %d MiB more: %v", extra>>20, err)
		}
	}
	for name, c := range map[string]struct {
		table *gpt.Table
		size  int64
		want  string
	}{
		"smaller":       {machine(t, 8*gib, 512, gib), gib / 2, "as large as that already"},
		"odd":           {machine(t, 8*gib, 512, gib), 2*gib + 1, "not a multiple"},
		"huge":          {machine(t, 8*gib, 512, gib), MaxSlot + Align, "not a multiple"},
		"negative":      {machine(t, 8*gib, 512, gib), -Align, "not a multiple"},
		"not complete":  {installed(8*gib, 512, gib), 2 * gib, `none has the label "verity-a"`},
		"twice":         {grown(t, 16*gib, gib, 2*gib), 3 * gib, "slots grow once"},
		"two alike":     {withTwo(t), 3 * gib, "could both be"},
		"too many":      {full(t), 2 * gib, "128"},
		"without first": {without(t, SystemB), 2 * gib, `none has the label "system-b"`},
		"without root":  {rootless(t), 2 * gib, `none has the label "root"`},
	} {
		if g, err := Grow(c.table, c.size, rand.Reader); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v; want %q", name, g, err, c.want)
		}
	}
}

// without is a grown machine on which somebody has deleted a partition.
func without(t *testing.T, r Role) *gpt.Table {
	table := grown(t, 16*gib, gib, 2*gib)
	drop(table, r)
	return table
}

// rootless is what is left where somebody has deleted the root partition.
func rootless(t *testing.T) *gpt.Table {
	table := machine(t, 8*gib, 512, gib)
	drop(table, Root)
	return table
}

// withTwo is a grown machine on which another partition looks like a second extent.
func withTwo(t *testing.T) *gpt.Table {
	table := grown(t, 16*gib, gib, 2*gib)
	change(table, Root, func(p *gpt.Partition) { p.Last -= 1 << 20 })
	root := mustFind(t, table, Root)
	Insert(table, MoreSystemA, gpt.GUID{77}, root.Last+1, root.Last+8)
	return table
}

// full is a machine's table that has room for two partitions more.
func full(t *testing.T) *gpt.Table {
	table := machine(t, 16*gib, 512, gib)
	change(table, Root, func(p *gpt.Partition) { p.Last -= 1 << 21 })
	root := mustFind(t, table, Root)
	for i := range uint64(120) {
		Insert(table, Installer, gpt.GUID{99, byte(i)}, root.Last+1+i, root.Last+1+i)
	}
	return table
}

func TestExtents(t *testing.T) {
	table := grown(t, 8*gib, gib, gib+gib/2)
	for _, r := range []Role{SystemA, VerityA, SystemB, VerityB} {
		e, err := Extents(table, r)
		if err != nil || len(e) != 2 || !r.is(e[0]) || !r.More().is(e[1]) || e[1].Label != r.Label()+"-2" {
			t.Errorf("%s: %+v, %v", r, e, err)
		}
	}
	for _, r := range []Role{ESP, Root, MoreSystemA, MoreVerityB} {
		if e, err := Extents(table, r); err != nil || len(e) != 1 || !r.is(e[0]) || r.More() != 0 {
			t.Errorf("%s: %+v, %v", r, e, err)
		}
	}
	if _, err := Extents(table, 0); !errors.Is(err, ErrMissing) {
		t.Errorf("no role: %v", err)
	}
	if _, err := Extents(withTwo(t), SystemA); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("two second extents: %v", err)
	}
	if _, err := Size(without(t, SystemB), SystemB); !errors.Is(err, ErrMissing) {
		t.Errorf("a second extent without the first: %v", err)
	}
	// An image is found by the first extent's UUID, and renaming leaves the second alone.
	named := Rename(table, SlotB, gpt.GUID{81}, gpt.GUID{82})
	if s, tree := FindSlot(named, gpt.GUID{81}, gpt.GUID{82}); s != SlotB || !tree {
		t.Errorf("found %s, %v", s, tree)
	}
	if mustFind(t, named, MoreSystemB) != mustFind(t, table, MoreSystemB) {
		t.Error("renaming changed the second extent")
	}
}

// A machine of small slots goes on with whatever somebody writes into its table as second
// extents, and one that needs them gets an error that says which is missing.
func TestPlanWithStrangeExtents(t *testing.T) {
	short := grown(t, 16*gib, gib, 2*gib)
	change(short, MoreSystemB, func(p *gpt.Partition) { p.Last = p.First })
	for name, c := range map[string]struct {
		table *gpt.Table
		want  string
	}{
		"two alike": {withTwo(t), "could both be"}, "short": {short, "the partitions system-b and system-b-2 have 1024 MiB together, the slot size is 2048 MiB, and there is no free space behind the first"},
		"one vanished": {without(t, MoreSystemA), "partition 2 (system-a) has 1024 MiB, the slot size is 2048 MiB, there is no free space behind it, and no partition system-a-2 adds to it"},
		"tree":         {without(t, MoreVerityB), "no partition verity-b-2 adds to it"},
	} {
		if !complete(c.table, gib) {
			t.Errorf("%s: the first extents do not suffice", name)
		}
		if plan, err := NewPlan(c.table, 2*gib, rand.Reader); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v; want %q", name, plan, err, c.want)
		}
	}
}

// sgdisk and sfdisk find nothing wrong with a grown table, and it reads as it was written.
func TestGrownTableAgainstSgdisk(t *testing.T) {
	table := grown(t, 8*gib, gib, gib+gib/2)
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Truncate(8*gib), table.Write(file{f})); err != nil {
		t.Fatal(err)
	}
	if out := testkit.Run(t, "sgdisk", "-v", path); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk -v: %s", out)
	}
	if out := strings.ToLower(testkit.Run(t, "sgdisk", "-i", "9", path)); !strings.Contains(out, TypeMore.String()) || !strings.Contains(out, "system-b-2") {
		t.Errorf("sgdisk -i 9: %s", out)
	}
	if read, _, err := gpt.Read(f, 8*gib/512, 512); err != nil || !complete(read, gib+gib/2) {
		t.Errorf("%+v, %v", read, err)
	}
}

// What is opened of a slot, and what fits it: a strange second extent takes nothing away
// from the first.
func TestOpenedAndRoom(t *testing.T) {
	small, _ := VeritySize(gib)
	large, _ := VeritySize(2 * gib)
	for name, c := range map[string]struct {
		table   *gpt.Table
		extents int
		want    string // of the error, for what needs both extents
	}{
		"grown":        {grown(t, 16*gib, gib, 2*gib), 2, ""},
		"two alike":    {withTwo(t), 1, "the partition system-a has 1073741824 bytes, the release needs 2147483648: this disk is not laid out for this system: two of its partitions look alike"},
		"one vanished": {without(t, MoreSystemA), 1, "and the disk has no partition system-a-2 that adds to it"},
		"tree":         {without(t, MoreVerityA), 2, "and the disk has no partition verity-a-2 that adds to it"},
		"not grown":    {machine(t, 8*gib, 512, gib), 1, "no partition system-a-2"},
	} {
		if e, err := Opened(c.table, SystemA); err != nil || len(e) != c.extents || !SystemA.is(e[0]) {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
		if err := CheckRoom(c.table, SlotA, gib, small); err != nil {
			t.Errorf("%s: what fits the first extents: %v", name, err)
		}
		if err := CheckRoom(c.table, SlotA, 2*gib, large); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
		if err := CheckRoom(c.table, SlotA, 2*gib+Align, large); err == nil {
			t.Errorf("%s: too large an image fits", name)
		}
	}
	none := without(t, SystemA)
	if _, err := Opened(none, SystemA); !errors.Is(err, ErrMissing) {
		t.Errorf("without the first: %v", err)
	}
	if err := CheckRoom(none, SlotA, gib, small); !errors.Is(err, ErrMissing) {
		t.Errorf("without the first: %v", err)
	}
	// A reinstallation that keeps what lies behind the root partition makes the first of that size.
	plan, err := NewPlan(without(t, SystemB), 2*gib, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if size, err := Size(plan.Table, SystemB); err != nil || size != 2*gib {
		t.Errorf("%d bytes, %v; %q", size, err, plan.Changes)
	}
	// One that has the size of its image only grows into the free space behind it.
	part := without(t, VerityA)
	change(part, SystemA, func(p *gpt.Partition) { p.Last = p.First + 300<<11 - 1 })
	plan, err = NewPlan(part, 2*gib, rand.Reader)
	if err != nil || !complete(plan.Table, 2*gib) || plan.Changes[0] != "grow partition 2 (system-a) from 300 to 1024 MiB" {
		t.Errorf("%+v, %v", plan, err)
	}
}

// Content is both extents' bytes in their order.
func TestContent(t *testing.T) {
	table := grown(t, 8*gib, gib, gib+gib/2)
	disk := blocktest.New(8*gib, blocktest.Zero)
	c, err := Content(disk, table, SystemB)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteAt([]byte("halogen!"), gib-4); err != nil || c.Size() != gib+gib/2 {
		t.Errorf("%d bytes, %v", c.Size(), err)
	}
	for r, at := range map[Role]int64{SystemB: gib - 4, MoreSystemB: 0} {
		off, _ := table.Bytes(mustFind(t, table, r))
		b := make([]byte, 4)
		if _, err := disk.ReadAt(b, off+at); err != nil || !strings.Contains("halogen!", string(b)) {
			t.Errorf("%s has %q, %v", r, b, err)
		}
	}
	if _, err := Content(disk, without(t, SystemB), SystemB); !errors.Is(err, ErrMissing) {
		t.Errorf("without the first: %v", err)
	}
}
