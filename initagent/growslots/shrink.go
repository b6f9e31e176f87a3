package growslots

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/shrink"
	"halogenos.internal/boot/statefiles"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

const (
	snapshotDevice = "halogen-shrink"
	btrfs          = "btrfs"
	// leastStep is the least, in bytes, that one snapshot takes off.
	leastStep = 16 << 20
)

// lookForTools looks at what making the file system smaller takes.
func (g *grower) lookForTools() error {
	if err := g.Store.CanResize(g.Contract.RootFileSystem, g.Path(host.SystemDirectory)); err != nil {
		return refuse("%w", err)
	}
	if g.Contract.RootFileSystem == btrfs {
		return nil
	}
	if err := g.Kernel.Load("dm_snapshot"); err != nil {
		return refuse("the kernel has no dm-snapshot, without which a cut would lose the file system: %w", err)
	}
	if other := g.other(); !other.Valid() {
		return refuse("it is not known which slot runs")
	}
	return nil
}

// other is the slot that does not run. Its system partition holds what the snapshot changes.
func (g *grower) other() layout.Slot { return g.State.Booted.Other() }

// shrink makes the file system smaller, where it is too large.
func (g *grower) shrink() error {
	end, err := g.end()
	if err != nil || end <= g.target {
		return err
	}
	g.Log.Say("grow-slots: the file system of the root partition goes from %d to %d MiB; do not switch the machine off, although nothing would be lost", end>>20, g.target>>20)
	if g.Contract.RootFileSystem == btrfs {
		if err := g.Store.Resize(btrfs, "", "", g.target); err != nil {
			return refuse("%w", err)
		}
		return nil
	}
	if err := g.empty(); err != nil {
		return err
	}
	key := g.VolumeKey()
	defer luks2.Wipe(key)
	v := rootpart.Volume{Machine: g.Machine, Disk: g.Disk, Random: g.Random, Lock: g.Lock, Key: key}
	g.closed = true
	if err := g.CloseRoot(); err != nil {
		return err
	}
	err = g.inSteps(&v, end)
	// Whatever came of it: what waits is brought to its place here.
	g.Lock = v.Lock
	if oerr := g.OpenRoot(v.Lock, key, false); oerr != nil {
		return errors.Join(err, oerr)
	}
	g.closed = false
	return err
}

// empty makes the other slot nobody's. The order, and what a cut in it leaves, is that of the
// fetcher's: no UKI of it starts, and then it has no name. What the fetcher has checked of a
// release that is on its way there is not true any more.
func (g *grower) empty() error {
	names, err := g.Store.Names(path.Join(rootpart.Shared, statefiles.FetchDirectory))
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".work") {
			if err := g.Store.Discard(path.Join(rootpart.Shared, statefiles.FetchDirectory, name)); err != nil {
				return err
			}
		}
	}
	gone := g.stale()
	if len(gone) > 0 {
		err := g.WriteESP(func(dir hw.ESPDir) error {
			for _, n := range gone {
				g.Log.Say("grow-slots: %s goes: its slot holds what is changed meanwhile", n)
				if err := esp.Remove(dir, n); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	var ids [2]gpt.GUID
	for i := range ids {
		if ids[i], err = gpt.RandomGUID(g.Random); err != nil {
			return err
		}
	}
	table := layout.Rename(g.Table, g.other(), ids[0], ids[1])
	if err := g.PutTable(table); err != nil {
		return err
	}
	g.Table = table
	return nil
}

// stale are the UKIs of the slot that is emptied.
func (g *grower) stale() (gone []bls.Name) {
	for _, n := range g.Names {
		if g.IsOurs(n) {
			continue
		}
		c, _, err := g.ContractOf(n)
		inOther := false
		if err == nil {
			s, _ := layout.FindSlot(g.Table, layout.SystemUUID(c.Root()), layout.VerityUUID(c.Root()))
			inOther = s == g.other()
		}
		if n.ImageID == g.Contract.ImageID || inOther {
			gone = append(gone, n)
		}
	}
	return gone
}

// inSteps makes an ext4 that ends somewhere smaller. Where the store is too small for what
// must move, it goes a part of the way, and then on.
func (g *grower) inSteps(v *rootpart.Volume, end int64) error {
	for end > g.target {
		size := g.target
		err := g.step(v, size)
		for errors.Is(err, shrink.ErrOverflow) && end-size > leastStep {
			size = end - layout.AlignUp((end-size)/2)
			g.Log.Say("grow-slots: more must move than slot %s holds: to %d MiB first", g.other(), size>>20)
			err = g.step(v, size)
		}
		if err != nil {
			return err
		}
		end = size
		if end > g.target {
			if err := v.FinishRedo(); err != nil {
				return err
			}
		}
	}
	return nil
}

// step has the image's programs make the file system so long, on a snapshot of the root
// partition, and has the header say that what they have changed waits. Until then the root
// partition is as it was, so that all errors before are refusals.
func (g *grower) step(v *rootpart.Volume, size int64) error {
	if err := g.resize(v, size); err != nil {
		return refuse("the root partition is as it was: %w", err)
	}
	waits, err := v.NoteRedo(g.other().System())
	if err == nil {
		g.Log.Say("grow-slots: %d MiB are to change", waits>>20)
		return nil
	}
	// The header may be the old one or the new one.
	_, lock, lerr := rootpart.Look(g.Disks, g.Disk, g.Table)
	if lerr == nil && lock == nil {
		lerr = errors.New("the root partition has no header any more")
	}
	if lerr != nil {
		return errors.Join(err, lerr) // v.Lock opens nothing after an error of writing
	}
	lock.OpenedBy(v.Key)
	v.Lock = lock
	return refuse("what is to change was not noted: %w", err)
}

// resize runs the programs on a snapshot, and closes everything again.
func (g *grower) resize(v *rootpart.Volume, size int64) (err error) {
	open, err := g.openSnapshot()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Mapper.Close(snapshotDevice)) }()
	device, err := rootpart.AttachAt(g.Machine, open, v.Lock, v.Key)
	if err != nil {
		return err
	}
	g.Log.Say("grow-slots: e2fsck and resize2fs to %d MiB, on a snapshot whose changes go to slot %s", size>>20, g.other())
	err = g.Store.Resize(g.Contract.RootFileSystem, device, g.Path(host.SystemDirectory), size)
	used, serr := g.Mapper.SnapshotUse(snapshotDevice)
	if serr == nil {
		g.Log.Say("grow-slots: the snapshot has used %d MiB", used>>20)
	}
	// That the store is full comes first: the programs only see that a write fails.
	return errors.Join(serr, err, g.Mapper.Close(rootpart.Device))
}

// openSnapshot makes a snapshot of the root partition, whose changes go to the other slot.
func (g *grower) openSnapshot() (string, error) {
	role := g.other().System()
	f, err := g.Disks.OpenPartition(g.Disk, role, true)
	if err != nil {
		return "", err
	}
	if err := errors.Join(shrink.Blank(f), f.Close()); err != nil {
		return "", err
	}
	s := hw.Snapshot{Name: snapshotDevice}
	if s.Origin, err = g.Disks.PartitionPath(g.Disk, layout.Root); err != nil {
		return "", err
	}
	if s.Store, err = g.Disks.PartitionPath(g.Disk, role); err != nil {
		return "", err
	}
	if s.Size, err = layout.Size(g.Table, layout.Root); err != nil {
		return "", err
	}
	node, err := g.Mapper.OpenSnapshot(s)
	if err != nil {
		return "", fmt.Errorf("snapshot of the root partition: %w", err)
	}
	return node, nil
}
