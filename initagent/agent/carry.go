package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/slot"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/upper"
)

// beforeDirectory is where the initramfs has the image of the system before mounted
// while its state is carried over, and beforeDevice its device-mapper device.
const (
	beforeDirectory = "/before"
	beforeDevice    = "before"
)

// blessedNote is what `ota bless` writes. maxBlessed bounds it, and upper.Blessed, in bytes.
const (
	blessedNote = rootpart.Shared + "/" + upper.Note
	maxBlessed  = 4 << 10
)

// observeState looks, once the root partition is open, whether this system has state of
// its own, and whether what is noted about whose state counts still holds.
func (a *Agent) observeState() error {
	if a.State.Root != slot.RootOpen || a.facts.Mount != slot.NotTried {
		return nil
	}
	a.observeSnapshots()
	found, err := a.foundState()
	if err != nil {
		a.facts.FirstStart, a.facts.Cause = true, err.Error() // carry-state says the same
		return nil
	}
	a.facts.FirstStart = a.facts.Carried == slot.NotTried && (!found.Has(a.ownState()) || a.leftState(found))
	a.facts.Unsettled = a.facts.Settled == slot.NotTried && a.RunsBlessed() && !a.facts.FirstStart &&
		(found.Current() != a.ownState() || found.Noted != "" || len(upper.Stale(found, a.ownState())) > 0)
	return nil
}

// leftState reports whether this system's state is from before the system in the other
// slot ran, which is of a release that keeps one /etc for all systems. Such a release
// neither removes the state of a trial when it runs, nor that of a system when it stages it
// again.
//
// A system that was blessed and is on trial has either been staged again or its blessing
// was cut (see `ota bless`), and then its state is what it has run on.
func (a *Agent) leftState(found upper.Found) bool {
	booted, known := a.BootedName()
	if !known || !booted.Counted || !found.Unnamed || found.Has(a.otherSlot(nil).System) {
		return false
	}
	return a.madeForAnother() || !found.Proven(a.ownState()) && (booted.Done <= 1 || a.otherRan())
}

// otherRan reports whether it was another version that the last start handed over to.
func (a *Agent) otherRan() bool {
	for _, e := range slices.Backward(a.Journal.Written()) {
		if e.Kind == journal.Boot {
			return e.Version != a.Contract.Version
		}
	}
	return false
}

// madeForAnother reports whether this system's state was made for an earlier staging of
// it: a first try may have been cut before it came so far.
func (a *Agent) madeForAnother() bool {
	mark, err := a.Store.Read(path.Join(upper.Of(a.Contract.Root()), upper.Mark), maxBlessed)
	staged := a.lastStaged()
	return err == nil && staged != "" && string(mark) != staged
}

// lastStaged names the staging of this system by its entry in the boot journal; "" where
// the journal has none.
func (a *Agent) lastStaged() string {
	for _, e := range slices.Backward(a.Journal.Written()) {
		if e.Kind == journal.Staged && e.Version == a.Contract.Version {
			return e.Boot + " " + e.Time.UTC().Format(time.RFC3339)
		}
	}
	return ""
}

// ownState names this system's state: by the root hash of its image.
func (a *Agent) ownState() string { return a.Contract.Root().String() }

// foundState is what the root partition has of the state of systems.
func (a *Agent) foundState() (upper.Found, error) {
	names, err := a.Store.Names(upper.Directory)
	if err != nil {
		return upper.Found{}, fmt.Errorf("the state of the systems: %w", err)
	}
	found := upper.Found{Systems: upper.Systems(names), Linked: upper.Linked(names)}
	unnamed, err := a.Store.Names(upper.Unnamed)
	switch {
	case err != nil && (!a.RunsBlessed() || !found.Has(a.ownState())): // it may be whose state counts
		return upper.Found{}, fmt.Errorf("the state of the systems: %w", err)
	case err != nil:
		a.Log.Say("what was kept for all systems cannot be read, and is not used: %v", err)
	}
	found.Unnamed = len(unnamed) > 0
	text, err := a.Store.Read(upper.Blessed, maxBlessed)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.Log.Say("which system ran last is not known: %v", err)
	}
	found.Blessed = upper.Systems(strings.Fields(string(text)))
	note, err := a.Store.Read(blessedNote, maxBlessed)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.Log.Say("which system was blessed last is not known: %v", err)
	}
	found.TakeNote(note)
	if found.Noted != "" && a.stillOnTrial(found.Noted) {
		found.Noted = ""
	}
	return found, nil
}

// stillOnTrial reports whether another system's UKI says that it has used tries and was not
// blessed: its blessing was cut after the note. One that was blessed and given up has a
// counter that has counted nothing.
func (a *Agent) stillOnTrial(system string) bool {
	for _, n := range a.Names {
		if n.ImageID != a.Contract.ImageID || a.IsOurs(n) || !n.Counted || n.Done == 0 {
			continue
		}
		if b, err := a.lookBefore(n); err == nil && b.contract.Root().String() == system {
			return true
		}
	}
	return false
}

// before is the system that another UKI on the ESP belongs to.
type before struct {
	slot     layout.Slot
	contract *contract.Contract
	image    []byte // the UKI
}

// carryState makes what is this system's own on the root partition. See
// upper.Store.Carry for what a cut leaves.
//
// Where it fails, nothing has changed: a trial is given up by its tries, and the system
// before it opens its own state, which was only read.
func (a *Agent) carryState(ctx context.Context) error {
	found, err := a.foundState()
	if err != nil {
		return err
	}
	entries, err := a.stateEntries()
	if err != nil {
		return err
	}
	if found.Has(a.ownState()) { // see leftState
		if err := a.forgetBlessing(found); err != nil {
			return fmt.Errorf("that this system was blessed before: %w", err)
		}
		// The links that it has set stay: this is to set them, too.
		if err := a.Store.Discard(path.Join(upper.Directory, a.ownState())); err != nil {
			return fmt.Errorf("the state of an earlier trial of this system: %w", err)
		}
	}
	last := a.systemBefore()
	c := upper.Carry{
		System: a.ownState(), From: upper.Choose(found, a.ownState(), a.otherSlot(last)),
		Image: a.Path(host.SystemDirectory), Entries: entries,
		Options: etcmerge.Options{To: a.Contract.Version}, Mark: a.lastStaged(),
		Progress: func(total int64) func(int64) { return a.Log.Progress("carrying the state over", total) },
	}
	a.Log.Say("%s", c.From)
	if c.Base, err = a.openBefore(c.From, last); err != nil {
		a.Log.Say("the image of the system before cannot be had, so that all that its state holds counts as this machine's: %v", err)
	}
	if c.Base != "" {
		c.Options.From = last.contract.Version
	}
	if c.Base == a.Path(beforeDirectory) {
		defer a.closeBefore()
	}
	report, err := a.Store.Carry(ctx, c)
	if c.Base != "" && errors.Is(err, etcmerge.ErrBase) {
		a.Log.Say("the image of the system before is damaged, so that all that its state holds counts as this machine's: %v", err)
		c.Base, c.Options.From = "", 0
		report, err = a.Store.Carry(ctx, c)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = hw.Full(err)
		a.NoteSelf(journal.NoRoom, err.Error())
	}
	if err != nil {
		return err
	}
	a.reportCarry(report)
	return nil
}

// forgetBlessing notes that this system is a trial again. It comes before the state goes:
// cut between the two, the state is made for an earlier staging still (madeForAnother), and
// all of this is done again.
func (a *Agent) forgetBlessing(found upper.Found) error {
	if !found.Proven(a.ownState()) {
		return nil
	}
	others := found.Settled(a.ownState())
	others = others[:len(others)-1]
	if err := a.Store.Keep(upper.Blessed, []byte(strings.Join(others, "\n")+"\n")); err != nil {
		return err
	}
	return a.Store.Remove(blessedNote) // whom it named is in the list, or is this one
}

func (a *Agent) reportCarry(r *upper.Report) {
	if r.Kept+r.Merged+len(r.Conflicts) > 0 {
		a.Log.Say("of /etc and what is like it %d entries are this machine's own, and %d are merged; %d conflicts wait for a decision", r.Kept, r.Merged, len(r.Conflicts))
	}
	for _, n := range r.Notes {
		a.Log.Say("%s: %s", n.Path, n.Text)
	}
	for _, l := range r.LeftOut {
		a.Log.Say("WARNING: %s", l)
	}
}

// systemBefore is the system that may have run before this one: of the UKIs on the ESP
// the one that a slot holds, blessed rather than on trial. nil where there is none.
func (a *Agent) systemBefore() (out *before) {
	var last bls.Name
	for _, n := range a.Names {
		if n.ImageID != a.Contract.ImageID || a.IsOurs(n) || out != nil && !last.Counted {
			continue
		}
		b, err := a.lookBefore(n)
		if err != nil {
			a.Log.Say("%s is not what ran before: %v", n, err)
			continue
		}
		last, out = n, b
	}
	return out
}

func (a *Agent) lookBefore(n bls.Name) (*before, error) {
	b := new(before)
	err := a.ReadESP(func(files fs.FS) (err error) { b.image, err = rootpart.ReadUKI(files, n); return err })
	if err != nil {
		return nil, err
	}
	if b.contract, _, err = rootpart.Describe(b.image); err != nil {
		return nil, err
	}
	root := b.contract.Root()
	s, named := layout.FindSlot(a.Table, layout.SystemUUID(root), layout.VerityUUID(root))
	if !s.Valid() || !named {
		return nil, errors.New("no slot holds its content")
	}
	b.slot = s
	return b, nil
}

// otherSlot is what the disk says of the slot that does not run.
func (a *Agent) otherSlot(last *before) upper.Other {
	if last != nil {
		return upper.Other{System: last.contract.Root().String(), Starts: true}
	}
	s := a.State.Booted.Other()
	system, ok := a.Table.ByNumber(s.SystemNumber())
	tree, tok := a.Table.ByNumber(s.VerityNumber())
	if !ok || !tok {
		return upper.Other{}
	}
	return upper.Other{System: spelled(system.UUID, tree.UUID).String()}
}

// spelled is the root hash that the partitions of a slot spell. Where they name no
// system, no state has it as its name.
func spelled(system, tree gpt.GUID) (root verity.Root) {
	copy(root[:16], system[:])
	copy(root[16:], tree[:])
	return root
}

// errNotBefore is for state whose system's image neither slot holds.
var errNotBefore = errors.New("no slot holds the image of the system that the state is from")

// openBefore opens and mounts the image that the state to be taken over lies on, and
// returns where. Its root hash is vouched for by the state's name, on the encrypted root
// partition; that of a system without one by its UKI, which this machine must have
// signed: somebody who could choose the image could have any file of /etc reset.
func (a *Agent) openBefore(from upper.Source, last *before) (string, error) {
	switch {
	case from.System == "" && !from.Unnamed:
		return "", nil
	case last == nil, !from.Unnamed && last.contract.Root().String() != from.System:
		return "", errNotBefore
	}
	if from.Unnamed && a.List != nil && rootpart.Enforces(a.FirmwareKeys) {
		if err := rootpart.CheckOwn(last.image, a.FirmwareKeys, a.List); err != nil {
			return "", fmt.Errorf("its UKI: %w", err)
		}
	}
	if bytes.Equal(last.contract.RootHash, a.Contract.RootHash) {
		return a.Path(host.SystemDirectory), nil // both releases have the same image, which is open
	}
	return a.mountBefore(last)
}

func (a *Agent) mountBefore(last *before) (string, error) {
	data, err := a.Disks.PartitionPath(a.Disk, last.slot.SystemNumber())
	if err != nil {
		return "", err
	}
	hash, err := a.Disks.PartitionPath(a.Disk, last.slot.VerityNumber())
	if err != nil {
		return "", err
	}
	device, err := a.Mapper.OpenVerity(hw.Verity{
		Name: beforeDevice, DataDevice: data, HashDevice: hash, Params: last.contract.VerityParams(), Root: last.contract.Root(),
	})
	if err != nil {
		return "", errors.Join(err, a.dropBefore())
	}
	where := a.Path(beforeDirectory)
	if err := a.Mounts.Mount(device, where, "erofs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil {
		return "", errors.Join(err, a.dropBefore())
	}
	return where, nil
}

// dropBefore removes the device; one that was not made is fine.
func (a *Agent) dropBefore() error {
	if err := a.Mapper.Close(beforeDevice); err != nil && !errors.Is(err, unix.ENXIO) {
		return err
	}
	return nil
}

// closeBefore lets go of the image: the fetcher writes to its slot next.
func (a *Agent) closeBefore() {
	err := a.Mounts.Unmount(a.Path(beforeDirectory))
	if err == nil {
		err = a.Mapper.Close(beforeDevice)
	}
	if err != nil {
		a.Log.Say("the image of the system before stays open: %v", err)
	}
}

// settleState notes that the state of this system, which is blessed, counts, after that
// of the one that was blessed last. The state of a trial that was not blessed goes: what
// changes from now on is merged when it starts again. Cut between the two, the next start
// of this system does the rest. What `ota bless` has noted stays, and says nothing new.
func (a *Agent) settleState() error {
	found, err := a.foundState()
	if err != nil {
		return err
	}
	if found.Current() != a.ownState() || found.Noted != "" {
		text := strings.Join(found.Settled(a.ownState()), "\n") + "\n"
		if err := a.Store.Keep(upper.Blessed, []byte(text)); err != nil {
			return err
		}
	}
	var errs []error
	for _, s := range upper.Stale(found, a.ownState()) {
		errs = append(errs, a.discardState(s))
	}
	return errors.Join(errs...)
}

// discardState removes the state of a system, and gives the links back after it that it
// has set in shared directories. Cut between the two, the list of these links is there
// still: a first start sets them again, and the next boot of this system gives them back.
// In the other order a trial whose links are back could start on the state that it has.
func (a *Agent) discardState(system string) error {
	if err := a.Store.Discard(path.Join(upper.Directory, system)); err != nil {
		return fmt.Errorf("the state of system %.16s: %w", system, err)
	}
	return a.Store.GiveBack(system, a.Path(host.SystemDirectory))
}

// leaveOwnState removes the state of all systems but this one, which is blessed and
// has its own: the slot of each of them holds another release from now on. The same
// release once more is merged again when it starts, and is a trial: that it was blessed
// in an earlier life counts no more.
//
// It comes before the new UKI has its name. Cut before or within it, this system
// starts, whose state is untouched; what is left goes the next time.
//
// Only what the release that is staged would find has to go, and it finds what has its own
// root hash: its state, and that it was blessed. Everything else that cannot be removed is
// of systems that no slot holds. None of them starts before it is staged itself, and then
// its state has to go. Until then it takes up room, and is said.
func (a *Agent) leaveOwnState(next verity.Root) error {
	found, err := a.foundState()
	if err != nil {
		return err
	}
	if !found.Has(a.ownState()) {
		return nil
	}
	if err := a.leaveBlessed(found); err != nil {
		if found.Proven(next.String()) {
			return err
		}
		a.Log.Say("which system ran last is not noted: %v", err)
	}
	for _, s := range upper.Leave(found, a.ownState()) {
		if found.Proven(s) {
			a.Log.Say("what was changed in /etc under system %.16s goes: a release is installed in its place", s)
		}
		if err := a.discardState(s); err != nil {
			if s == next.String() {
				return err
			}
			a.Log.Say("it stays, and is not used: %v", err)
		}
	}
	if found.Unnamed {
		return a.leaveUnnamed()
	}
	return nil
}

// leaveUnnamed removes what a release before this one kept for all systems, of which this
// one has its own. No system that a slot holds opens it any more.
func (a *Agent) leaveUnnamed() error {
	entries, err := a.stateEntries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Mode != stateconf.Overlay {
			continue // what this system has not taken over stays
		}
		if err := a.Store.Discard(path.Join(upper.Unnamed, upper.Name(e.Path))); err != nil {
			a.Log.Say("%s as it was kept for all systems stays, and is not used: %v", e.Path, err)
		}
	}
	return nil
}

// leaveBlessed notes that of all systems this one alone has run blessed. Cut after it, the
// state of the others is that of trials, which goes all the same. What `ota bless` has
// noted is in the list then, or is of a system whose state goes: where it cannot be
// removed, it says no more than root of this system could have said.
func (a *Agent) leaveBlessed(found upper.Found) error {
	if err := a.Store.Remove(blessedNote); err != nil {
		a.Log.Say("what was blessed last stays noted: %v", err)
	}
	if len(found.Blessed) == 1 && found.Current() == a.ownState() {
		return nil
	}
	return a.Store.Keep(upper.Blessed, []byte(a.ownState()+"\n"))
}
