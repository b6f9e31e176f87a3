package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// Fetch brings the release that is offered into the other slot, if it is to be
// taken.
func (m *Machine) Fetch(ctx context.Context, o Options) (*Outcome, error) {
	r, err := m.Running()
	if err != nil {
		return nil, err
	}
	lock, err := m.lock(r)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	u, err := m.begin(r, o)
	if err != nil {
		return nil, err
	}
	defer u.end()
	u.lock = lock
	defer u.telling()()
	if err := u.mayFetch(); err != nil {
		return nil, err
	}
	out, head, err := u.look(ctx)
	if err != nil || out.Verdict != offer.Take {
		return out, err
	}
	if done, err := u.already(out); done || err != nil {
		return out, err
	}
	u.meter.of(out.Version)
	if err := u.room(head.Release); err != nil {
		return out, err
	}
	if u.Measure {
		if err := u.measure(ctx, out, head); err != nil {
			return out, err
		}
	}
	if u.running.Console {
		if err := u.consoleMayFetch(ctx); err != nil {
			return out, err
		}
	}
	if _, err := u.foresee(ctx, head); err != nil {
		return out, err
	}
	if err := u.empty(); err != nil {
		return out, fmt.Errorf("empty slot %s: %w", u.running.Slot.Other(), err)
	}
	if err := u.fill(ctx, out, head); err != nil {
		return out, hw.Full(err)
	}
	if err := u.bringExtensions(ctx, out); err != nil {
		return out, hw.Full(err)
	}
	return out, u.stage(out)
}

// mayFetch refuses to empty a slot whose content may be needed: the running
// system must be blessed and intact, since it will be the only one.
func (u *update) mayFetch() error {
	if asked, err := u.goesBack(u.running); err != nil || asked {
		return errors.Join(err, errors.New("the next start puts directories back, as `ota rollback --state` has asked for, and an update would replace what they go back to: restart first, or take it back (`ota rollback --state --cancel`)"))
	}
	trial, err := u.onTrial(u.running, u.inv)
	if err != nil {
		return err
	}
	switch {
	case trial && u.running.Console:
		return fmt.Errorf("version %s is not blessed, and only a blessed system installs another one: `exit` and let it prove itself, or `rollback`", u.running.Contract.Version)
	case trial:
		return fmt.Errorf("version %s is on trial, and the other slot may still be needed: wait until it is blessed (`ota bless`)", u.running.Contract.Version)
	case u.running.Console:
		return nil // consoleMayFetch
	}
	corrupt, err := u.Corrupt()
	if err != nil {
		return err
	}
	if corrupt {
		return fmt.Errorf("the system that runs, in slot %s, has corrupt blocks, and the other one may be the only good one: `halogenctl repair` first", u.running.Slot)
	}
	return nil
}

// consoleMayFetch is mayFetch at the recovery console, where every block is looked
// at: the slot of this console's UKI must be whole, or the other one have nothing to
// lose.
func (u *update) consoleMayFetch(ctx context.Context) error {
	u.Tell(worker.Event{Note: fmt.Sprintf("looking whether slot %s is whole, since it will be the only one", u.running.Slot)})
	verify := func(s layout.Slot) error {
		have, err := u.inv.In(s)
		if err != nil {
			return err
		}
		return u.inv.Verify(ctx, have, nil)
	}
	err := verify(u.running.Slot)
	if err == nil {
		return nil
	}
	if other := verify(u.running.Slot.Other()); ctx.Err() == nil && other != nil {
		u.Tell(worker.Event{Note: fmt.Sprintf("slot %s: %v; but the other one is no better: %v", u.running.Slot, err, other)})
		return nil
	}
	return fmt.Errorf("slot %s: %w; and the other one may be the only good one: `repair`, or `rollback`, first", u.running.Slot, err)
}

// already reports whether the offered release is in the slot and waits.
func (u *update) already(out *Outcome) (bool, error) {
	staged, err := u.staged(u.running)
	if err != nil {
		return false, err
	}
	if staged != nil && staged.Version == out.Version {
		out.Verdict, out.Staged = offer.Current, true
		out.Reason = fmt.Sprintf("version %s is fetched already: restart to try it", out.Version)
		return true, nil
	}
	for _, s := range u.inv.Systems {
		n, err := bls.Parse(s.File)
		if err == nil && s.Contract != nil && s.Problem == "" && s.Slot == u.running.Slot.Other() && s.Contract.Version == out.Version && !n.Bad() {
			out.Verdict, out.Staged = offer.Current, true
			out.Reason = fmt.Sprintf("version %s is in slot %s already (%s): restart to try it", out.Version, s.Slot, s.State)
			return true, nil
		}
	}
	return false, nil
}

// spare is the room that stays free on the root partition, in bytes.
const spare = 16 << 20

// room refuses a release whose small files do not fit, before anything is
// emptied for it.
func (u *update) room(r *release.Release) error {
	need := int64(spare)
	for _, f := range r.Files {
		if f.Name != release.ImageFile {
			need += 2 * f.Size // the worker's, and the copy that nobody can change
		}
		if f.Name == release.IndexFile {
			need += f.Packed
		}
	}
	free, err := u.free()
	if err != nil {
		return err
	}
	// What an earlier try has left is used again, or makes room.
	err = filepath.WalkDir(u.state(u.running, fetchDirectory), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // what cannot be seen is no room
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			free += allocated(info)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if free < need {
		return fmt.Errorf("release needs %d MiB on the root partition, and %d are free: make room there", need>>20, free>>20)
	}
	return nil
}
