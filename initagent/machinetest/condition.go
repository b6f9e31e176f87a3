package machinetest

import (
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/lastgood"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
)

// Remaining visits every state that a cut now leaves: of each write to the disk
// since the last flush nothing, the first half of its sectors or all of it, and of
// each file of the ESP whatever it may be.
func (m *Machine) Remaining(visit func(*World)) {
	var names []string
	var radix []int
	for _, w := range m.Disk.pending {
		radix = append(radix, min(3, 1+len(w.Data)/SectorSize))
	}
	for _, name := range slices.Sorted(maps.Keys(m.ESP.Files)) {
		if n := len(m.ESP.Files[name].Disk); n > 1 {
			names, radix = append(names, name), append(radix, n)
		}
	}
	digits := make([]int, len(radix))
	writes := len(m.Disk.pending)
	for {
		w := m.World(true, nil)
		w.Disk = m.Disk.landed(digits[:writes])
		for i, name := range names {
			w.ESP[name] = m.ESP.Files[name].Disk[digits[writes+i]]
		}
		visit(w)
		at := 0
		for ; at < len(digits) && digits[at] == radix[at]-1; at++ {
			digits[at] = 0
		}
		if at == len(digits) {
			return
		}
		digits[at]++
	}
}

// landed is the disk with none (0), all (1) or half (2) of each write that waits.
func (d *recordedDisk) landed(choice []int) *blocktest.Disk {
	out := d.base.Overlay()
	for i, w := range d.pending {
		data := w.Data
		switch choice[i] {
		case 0:
			continue
		case 2:
			data = data[:len(data)/2/SectorSize*SectorSize]
		}
		if _, err := out.WriteAt(data, w.Off); err != nil {
			d.m.T.Fatal(err)
		}
	}
	return out
}

// A condition is what can be said of a machine without power, as far as it matters
// to what it will do. Two worlds of one condition behave alike.
type Condition struct {
	Systems []bls.Name
	Record  *policy.Record
	slots   string // what they hold
	History []journal.Entry
	Key     string // the same for all worlds of this condition
}

// condition reads it from the media. It fails where nothing good is left on one.
func (m *Machine) condition(w *World) (*Condition, error) {
	c := new(Condition)
	var out strings.Builder
	c.readESP(&out, w)
	table, health, err := gpt.Read(w.Disk, uint64(w.Disk.Size()/SectorSize), SectorSize)
	if err != nil {
		return nil, fmt.Errorf("no partition table is left: %w", err)
	}
	fmt.Fprintf(&out, "table %v\n", health.OK())
	for _, s := range layout.Slots {
		holds, err := m.content(w, table, s)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&out, "slot %s %s\n", s, holds)
		c.slots += " " + holds
	}
	if c.Record, err = policy.DecodeRecord(w.Record); err != nil {
		return nil, fmt.Errorf("the TPM's record: %w", err)
	}
	fmt.Fprintf(&out, "request %q\n", w.Vars[nextboot.Variable].Data)
	fmt.Fprintf(&out, "record %x\ndbx %x\n", sha256.Sum256(w.Record), w.Vars["dbx"].Data)
	m.readRoot(c, &out, w)
	for _, v := range slices.Sorted(maps.Keys(m.Releases)) {
		c.rounds(&out, v)
	}
	c.Key = fmt.Sprintf("%x", sha256.Sum256([]byte(out.String())))
	return c, nil
}

func (c *Condition) readESP(out io.Writer, w *World) {
	for _, name := range slices.Sorted(maps.Keys(w.ESP)) {
		f := w.ESP[name]
		switch {
		case f.Absent, path.Dir(name) == firstboot.Directory && lastgood.Is(path.Base(name)):
			continue // which explains, and decides nothing
		case esp.Stray(name):
			fmt.Fprintf(out, "%s\n", name)
			continue
		}
		if n, err := bls.Parse(path.Base(name)); err == nil && path.Dir(name) == bls.Directory {
			c.Systems = append(c.Systems, n)
		}
		fmt.Fprintf(out, "%s %v %x\n", name, f.Unreadable, sha256.Sum256(f.Data))
	}
}

func (m *Machine) readRoot(c *Condition, out io.Writer, w *World) {
	for _, files := range w.Volumes {
		for _, name := range slices.Sorted(maps.Keys(files)) {
			switch name {
			case bootjournal.File:
			case rootpart.ListFile:
				text, err := m.ListOf(w).Marshal()
				m.Must(err)
				fmt.Fprintf(out, "%s %x\n", name, sha256.Sum256(text))
			case rootpart.GuaranteesFile:
				text, err := m.secretOf(w).Unbox("guarantees", files[name])
				m.Must(err)
				fmt.Fprintf(out, "%s %s\n", name, text)
			case keephome.Path:
				note, err := keephome.Parse(files[name])
				m.Must(err)
				fmt.Fprintf(out, "%s %s %q\n", name, note.Stage, note.People)
			case path.Join(rootpart.Copies, "index.json"):
				fmt.Fprintf(out, "%s %s\n", name, checkedAt.ReplaceAll(files[name], nil))
			default:
				fmt.Fprintf(out, "%s %x\n", name, sha256.Sum256(files[name]))
			}
		}
		c.History = journal.Parse(files[bootjournal.File])
	}
}

// ListOf is what this machine wants its firmware to hold.
func (m *Machine) ListOf(w *World) *secureboot.List {
	for _, files := range w.Volumes {
		list, err := firstboot.UnwrapList(m.secretOf(w), files[rootpart.ListFile])
		m.Must(err)
		return list
	}
	return nil
}

// secrets are the machine secrets of volumes, for what is encrypted differently each
// time it is written.
var secrets sync.Map

// secretOf is the machine secret of a world's volume.
func (m *Machine) secretOf(w *World) *policy.Secret {
	id := fmt.Sprint(w.shown)
	secret, ok := secrets.Load(id)
	if !ok {
		table, _, err := gpt.Read(w.Disk, uint64(w.Disk.Size()/SectorSize), SectorSize)
		m.Must(err)
		p, _ := layout.Find(table, layout.Root)
		at, size := table.Bytes(p)
		s, err := block.NewSection(w.Disk, at, size)
		m.Must(err)
		_, lock, err := rootlock.Look(s, size)
		m.Must(err)
		_, opened, err := lock.OpenRecovery(s, []byte(w.shown[len(w.shown)-1]), 1<<20)
		m.Must(err)
		secret, _ = secrets.LoadOrStore(id, opened)
	}
	return secret.(*policy.Secret)
}

// content says what a slot holds and what it is called.
func (m *Machine) content(w *World, t *gpt.Table, s layout.Slot) (string, error) {
	system, _ := layout.Find(t, s.System())
	tree, _ := layout.Find(t, s.Verity())
	name := "unnamed"
	for _, v := range slices.Sorted(maps.Keys(m.Releases)) {
		root := m.Releases[v].Contract.Root()
		if system.UUID == layout.SystemUUID(root) {
			name = fmt.Sprintf("version %s, tree named %v", v, tree.UUID == layout.VerityUUID(root))
		}
	}
	head := make([]byte, 8192)
	for _, p := range []gpt.Partition{system, tree} {
		at, _ := t.Bytes(p)
		if _, err := w.Disk.ReadAt(head[4096*(p.Number&1):][:4096], at); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%s, %x", name, sha256.Sum256(head)), nil
}

// checkedAt is the one thing in the index of the ESP's copies that every look
// changes.
var checkedAt = regexp.MustCompile(`"checked":"[^"]*"`)

// rounds writes down how a version is judged, now and after whatever it may live
// through before it is judged again: of its history nothing else matters.
func (c *Condition) rounds(out io.Writer, v contract.Version) {
	boot, retry := journal.Entry{Kind: journal.Boot, Version: v, Trial: true}, journal.Entry{Kind: journal.Retry, Version: v}
	_, failed := journal.Failures(c.History)[v]
	fmt.Fprintf(out, "version %s failed %v", v, failed)
	for _, more := range [][]journal.Entry{nil, {boot}, {retry}, {retry, boot}} {
		verdict, _ := journal.Judge(slices.Concat(c.History, more), v)
		fmt.Fprintf(out, " %d", verdict)
	}
	fmt.Fprintln(out)
}

// Count is how many entries of a kind the journal has about a version.
func (c *Condition) Count(kind journal.Kind, v contract.Version) (n int) {
	for _, e := range c.History {
		if e.Kind == kind && e.Version == v {
			n++
		}
	}
	return n
}

// Tries are those a version has left: none, where it is not on trial.
func (c *Condition) Tries(v contract.Version) (left int, there bool) {
	for _, n := range c.Systems {
		if n.Version == v && n.Counted {
			return n.Left, true
		}
	}
	return 0, false
}

// Blessed are the versions that have proven themselves and may run.
func (c *Condition) Blessed() (versions []contract.Version) {
	for _, n := range c.Systems {
		if !n.Counted {
			versions = append(versions, n.Version)
		}
	}
	slices.Sort(versions)
	return versions
}

// branch is a version's in the TPM's record.
func (c *Condition) branch(v contract.Version) (policy.Branch, bool) {
	for _, b := range c.Record.Branches {
		if b.Version == uint64(v) {
			return b, true
		}
	}
	return policy.Branch{}, false
}

func (c *Condition) String() string {
	if c == nil {
		return "nothing that could be read"
	}
	var versions []uint64
	for _, b := range c.Record.Branches {
		versions = append(versions, b.Version)
	}
	return fmt.Sprintf("%v, the TPM's floor %d and versions %v", c.Systems, c.Record.Floor, versions)
}
