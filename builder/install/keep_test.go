package install

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/rootheader"
	"halogenos.internal/boot/words"
)

// tokens are those of a finished root partition.
func tokens() []luks2.Token {
	return []luks2.Token{
		{Type: rootheader.TPMToken, Keyslots: []int{0}},
		{Type: luks2.RecoveryTokenType, Keyslots: []int{0}, Fields: map[string]json.RawMessage{rootheader.EscrowField: []byte(`"AA=="`)}},
	}
}

// inUse is a disk with a provisioned HalogenOS on it, whose root partition has these
// tokens; without any, there is no volume in it.
func inUse(t testing.TB, label string, tokens ...luks2.Token) (*blocktest.Disk, *gpt.Table) {
	t.Helper()
	dir := newBuild(t, nil)
	s, ids := open(t, dir), randomIDs(t)
	table, err := Table(s.ESP, ids, diskSize/512, 512, nil)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := layout.NewPlan(table, slotSize, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d := blocktest.New(diskSize, blocktest.Zero)
	if err := plan.Table.Write(d); err != nil {
		t.Fatal(err)
	}
	if len(tokens) > 0 {
		formatRoot(t, d, plan.Table, label, tokens)
	}
	return d, plan.Table
}

func formatRoot(t testing.TB, d block.Device, table *gpt.Table, label string, tokens []luks2.Token) {
	t.Helper()
	root, err := layout.Content(d, table, layout.Root)
	if err != nil {
		t.Fatal(err)
	}
	format(t, root, label, tokens)
}

func format(t testing.TB, d *block.Joined, label string, tokens []luks2.Token) {
	t.Helper()
	o := luks2.Options{UUID: "01234567-89ab-cdef-0123-456789abcdef", Label: label, Size: d.Size()}
	_, _, err := luks2.Format(rand.Reader, d, o, func(c *luks2.Change, volumeKey []byte) error {
		_, err := c.AddKeyslot(volumeKey, []byte("passphrase"), luks2.PBKDF2())
		for _, token := range tokens {
			_, terr := c.AddToken(token)
			err = errors.Join(err, terr)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A root partition that only looks like ours is not kept.
func TestFindRoot(t *testing.T) {
	recovery, escrow := tokens()[1], tokens()[1]
	recovery.Fields = nil
	escrow.Keyslots = []int{}
	for _, c := range []struct {
		name, label string
		tokens      []luks2.Token
		change      func(t *gpt.Table)
		want        string // empty: it is kept
	}{
		{name: "ours", label: rootheader.Label, tokens: tokens()},
		{name: "another label", label: "data", tokens: tokens(), want: `labelled "data"`},
		{name: "another distribution's", label: rootheader.Label, tokens: []luks2.Token{recovery}, want: "no recovery key of this system's"},
		{name: "without its recovery key", label: rootheader.Label, tokens: []luks2.Token{tokens()[0], escrow}, want: "no recovery key of this system's"},
		{name: "unfinished", label: rootheader.Label, tokens: append(tokens(), luks2.Token{Type: rootheader.UnfinishedToken, Keyslots: []int{}}), want: "nothing is on it"},
		{name: "no volume", want: "not a LUKS volume"},
		{name: "another partition", label: rootheader.Label, tokens: tokens(), change: func(t *gpt.Table) { t.Partitions[5].Label = "data" }, want: ErrNoRoot.Error()},
		{name: "another number", label: rootheader.Label, tokens: tokens(), change: func(t *gpt.Table) { t.Partitions[5].Number = 7 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, table := inUse(t, c.label, c.tokens...)
			if c.change != nil {
				c.change(table)
				if err := table.Write(d); err != nil {
					t.Fatal(err)
				}
			}
			root, err := FindRoot(d, diskSize/512, 512)
			if c.want == "" && (err != nil || root.Partition != table.Partitions[5] || root.Size < layout.MinRoot) {
				t.Errorf("root %+v, %v", root, err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// plan plans an installation on a disk in memory.
func plan(t testing.TB, s *Source, d block.Device, keep bool) *Plan {
	t.Helper()
	disk := Disk{Path: "/dev/sda", Serial: "S1", SectorSize: 512, Sectors: diskSize / 512, Contents: Contents(d, diskSize/512, 512)}
	root, err := FindRoot(d, diskSize/512, 512)
	if disk.Root = root; err != nil && !errors.Is(err, ErrNoRoot) {
		disk.NoRoot = words.Linef("%v", err)
	}
	return NewPlan(s, disk, Facts{Arch: "x86_64", UEFI: true, SetupMode: true, TPM: true}, randomIDs(t), Choice{KeepRoot: keep})
}

func TestPlanKeeps(t *testing.T) {
	d, table := inUse(t, rootheader.Label, tokens()...)
	s := open(t, newBuild(t, nil))
	p := plan(t, s, d, true)
	if err := p.Err(true); err != nil {
		t.Fatal(err)
	}
	if kept, err := layout.Find(p.Table, layout.Root); err != nil || kept != table.Partitions[5] || len(p.Table.Partitions) != 3 {
		t.Errorf("table %+v", p.Table)
	}
	if !strings.Contains(p.Loss().String(), "but its root partition") || p.Err(false) == nil {
		t.Errorf("%s; without consent: %v", p.Loss(), p.Err(false))
	}
	if p = plan(t, s, d, false); len(p.Table.Partitions) != 2 || p.Kept != nil {
		t.Errorf("keeps without being asked: %+v", p.Table)
	}
	p.Disk.Root.Partition.First -= 1 << 11
	if err := NewPlan(s, p.Disk, p.Machine, p.IDs, Choice{KeepRoot: true}).Err(true); err == nil || !strings.Contains(err.Error(), "cannot be kept: this release needs the first 5") {
		t.Errorf("a root partition that lies in the way: %v", err)
	}
	empty := blocktest.New(diskSize, blocktest.Zero)
	if err := plan(t, s, empty, true).Err(true); err == nil || !strings.Contains(err.Error(), "no root partition of /dev/sda can be kept") {
		t.Errorf("an empty disk: %v", err)
	}
	foreign, _ := inUse(t, "data", tokens()...)
	if err := plan(t, s, foreign, true).Err(true); err == nil || !strings.Contains(err.Error(), `labelled "data"`) {
		t.Errorf("a foreign volume: %v", err)
	}
	if p := plan(t, s, foreign, false); p.Err(true) != nil || !slices.ContainsFunc(p.Findings, func(f Finding) bool { return strings.Contains(f.Text.String(), `labelled "data"`) }) {
		t.Errorf("a foreign volume that goes: %+v", p.Findings)
	}
}

// The disk is another one than the one that was looked at.
func TestKeepLooksAgain(t *testing.T) {
	d, _ := inUse(t, rootheader.Label, tokens()...)
	s := open(t, newBuild(t, nil))
	p := plan(t, s, d, true)
	moved := *p.Table
	moved.Partitions = append(moved.Partitions[:2:2], p.Kept.Partition)
	moved.Partitions[2].Last -= 8
	recorder := blocktest.Record(d)
	for name, disk := range map[string]*blocktest.Recorder{"another root partition": recorder, "none": blocktest.Record(blocktest.New(diskSize, blocktest.Zero))} {
		if err := Install(t.Context(), target{disk}, &moved, s, p.IDs, quiet); err == nil || !strings.Contains(err.Error(), "keep the root partition") {
			t.Errorf("%s: %v", name, err)
		}
		if n := len(disk.Log()); n > 0 {
			t.Errorf("%s: %d writes and flushes", name, n)
		}
	}
}

// A partition that somebody has made since the disk was looked at is not written over.
func TestKeepSeesNewPartitions(t *testing.T) {
	d, table := inUse(t, rootheader.Label, tokens()...)
	s := open(t, newBuild(t, nil))
	p := plan(t, s, d, true)
	now := *table
	now.Partitions = slices.Clone(table.Partitions)
	root := &now.Partitions[5]
	now.Partitions[4] = gpt.Partition{Number: 5, Type: typeReserved, UUID: randomIDs(t).Disk, First: now.Partitions[4].First, Last: now.Partitions[4].Last, Label: "somebody's"}
	if err := now.Write(d); err != nil || root.Number != 6 {
		t.Fatal(root.Number, err)
	}
	recorder := blocktest.Record(d)
	if err := Install(t.Context(), target{recorder}, p.Table, s, p.IDs, quiet); err == nil || !strings.Contains(err.Error(), `without partition 5 ("somebody's")`) {
		t.Errorf("error %v", err)
	}
	if n := len(recorder.Log()); n > 0 {
		t.Errorf("%d writes and flushes", n)
	}
}

// Cut anywhere, the table has the root partition in its place, nothing was written to
// it, and the disk starts the old system, nothing, or all of the new one. After ten of
// the cuts the installation is made again. FAULTS 42, 43
func TestCutKeeps(t *testing.T) {
	for name, damaged := range map[string]int64{"whole table": -1, "primary table damaged": 512, "alternate table damaged": diskSize - 512} {
		t.Run(name, func(t *testing.T) { cutKeeps(t, damaged) })
	}
}

// cutKeeps is TestCutKeeps on a disk with a damaged sector; -1 for none.
func cutKeeps(t *testing.T, damaged int64) {
	base, table := inUse(t, rootheader.Label, tokens()...)
	if damaged >= 0 {
		if err := block.Zero(base, damaged, 512); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, newBuild(t, nil))
	p := plan(t, s, base, true)
	recorder := blocktest.Record(base)
	if err := Install(t.Context(), target{recorder}, p.Table, s, p.IDs, quiet); err != nil {
		t.Fatal(err)
	}
	at, size := table.Bytes(p.Kept.Partition)
	for _, w := range recorder.Log() {
		if !w.IsSync() && w.Off < at+size && w.Off+int64(len(w.Data)) > at {
			t.Fatalf("%d bytes were written at %d, and the root partition has %d at %d", len(w.Data), w.Off, size, at)
		}
	}
	count := map[int]int{} // by the number of partitions
	check := func(c blocktest.Cut) error {
		have, _, err := gpt.Read(c.Disk, diskSize/512, 512)
		if err != nil {
			return err
		}
		root, err := FindRoot(c.Disk, diskSize/512, 512)
		if err != nil || root.Partition != p.Kept.Partition {
			return fmt.Errorf("root partition %+v: %w", root, err)
		}
		count[len(have.Partitions)]++
		switch len(have.Partitions) {
		case len(table.Partitions): // the old one, of which nothing else was written
			return nil
		case 1:
			return nil
		}
		return installed(c.Disk, have, s)
	}
	states, err := recorder.Cuts(blocktest.Options{}, check)
	if err != nil {
		t.Error(err)
	}
	if len(count) != 3 || count[1] == 0 || count[3] == 0 || count[6] == 0 {
		t.Errorf("states by the number of partitions: %v", count)
	}
	t.Logf("%d states; by the number of partitions: %v", states, count)
	again(t, recorder, states, true, newBuild(t, nil))
}

// again installs once more after ten of the cuts.
func again(t *testing.T, recorder *blocktest.Recorder, states int, keep bool, dir string) {
	t.Helper()
	at := 0
	_, err := recorder.Cuts(blocktest.Options{}, func(c blocktest.Cut) error {
		at++
		if at%max(states/10, 1) != 0 {
			return nil
		}
		s, err := FromDirectory(dir)
		if err != nil {
			return err
		}
		defer s.Close()
		p := plan(t, s, c.Disk, keep)
		if err := p.Err(true); err != nil {
			return err
		}
		if err := Install(t.Context(), target{blocktest.Record(c.Disk)}, p.Table, s, p.IDs, quiet); err != nil {
			return err
		}
		return nil
	})
	if err != nil {
		t.Errorf("installing again: %v", err)
	}
}

// An ESP that is larger than before makes way for the slots and a root partition that
// stays, and is never smaller than it always was.
func TestKeptRootAndLargeESP(t *testing.T) {
	s := open(t, newBuild(t, nil))
	if table, err := Table(s.ESP, randomIDs(t), (4<<30)/512, 512, nil); err != nil || bytesOf(table, layout.ESP) != layout.ESPSize {
		t.Errorf("as it always was: %+v, %v", table, err)
	}
	s.ESP.Size = 1 << 30
	least, err := layout.LeastDisk(0, slotSize)
	if err != nil {
		t.Fatal(err)
	}
	slots := least - layout.MinRoot - layout.Align // with what is before the ESP
	for begin, want := range map[int64]int64{
		-1:                           1 << 30, // nothing is kept
		slots + 1<<30:                1 << 30,
		slots + 3<<30:                1 << 30,
		slots + 1<<30 - 512:          1<<30 - mib,
		slots + 600*mib:              600 * mib,
		slots + layout.ESPSize:       layout.ESPSize,
		slots + layout.ESPSize - mib: layout.ESPSize, // which is refused then
	} {
		var kept *Root
		if begin > 0 {
			kept = &Root{Partition: gpt.Partition{Number: 6, Type: layout.TypeLUKS, UUID: gpt.GUID{7}, Label: layout.RootLabel, First: uint64(begin / 512), Last: (8<<30)/512 - 2048}}
		}
		table, err := Table(s.ESP, randomIDs(t), (8<<30)/512, 512, kept)
		if err != nil || bytesOf(table, layout.ESP) != want {
			t.Errorf("a root partition from %d on: %+v, %v; want an ESP of %d", begin, table, err, want)
			continue
		}
		_, err = layout.NewPlan(table, slotSize, rand.Reader)
		if fits := begin != slots+layout.ESPSize-mib; (err == nil) != fits {
			t.Errorf("a root partition from %d on: the first boot says %v", begin, err)
		}
	}
}

func bytesOf(t *gpt.Table, r layout.Role) int64 {
	p, _ := layout.Find(t, r)
	_, size := t.Bytes(p)
	return size
}

// A disk with the root partition of a HalogenOS and another system's partitions: to keep
// the one would take the others off the table, so that it is not offered, and who erases
// the disk is told whose systems go.
func TestKeepsNoneBesideOthers(t *testing.T) {
	d, table := inUse(t, rootheader.Label, tokens()...)
	s := open(t, newBuild(t, nil))
	shared := *table
	shared.Partitions = slices.Clone(table.Partitions)
	root := &shared.Partitions[5]
	foreign := gpt.Partition{Number: 7, Type: typeReserved, UUID: randomIDs(t).Disk, First: root.Last - 2047, Last: root.Last, Label: "Microsoft reserved partition"}
	root.Last -= 2048
	shared.Partitions = append(shared.Partitions, foreign)
	second := foreign
	second.Type, second.Label = layout.TypeESP, layout.ESPLabel
	for name, other := range map[string]gpt.Partition{"of another type": foreign, "with the marks of ours": second} {
		shared.Partitions[6] = other
		if err := shared.Write(d); err != nil {
			t.Fatal(err)
		}
		disk := LookAt(d, Disk{Path: "/dev/sda", Serial: "S1", SectorSize: 512, Sectors: diskSize / 512})
		for _, keep := range []bool{true, false} {
			p := NewPlan(s, disk, Facts{}, randomIDs(t), Choice{OtherMachine: true, KeepRoot: keep})
			says := func(f Finding) bool { return strings.Contains(f.Text.String(), "partition 7") && f.Fatal == keep }
			if !slices.ContainsFunc(p.Findings, says) || disk.Root != nil || keep == (p.Err(true) == nil) {
				t.Errorf("%s, keep %v: root %v, %+v", name, keep, disk.Root, p.Findings)
			}
			if name == "of another type" && !strings.Contains(p.Loss().String(), "Windows") {
				t.Errorf("%s: %s", name, p.Loss())
			}
		}
	}
}
