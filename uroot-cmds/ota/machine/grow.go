package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/growth"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/bootdisk"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/settings"
)

// A Growing is what larger slots take of a machine; sizes are in bytes.
type Growing struct {
	SlotSize int64 `json:"slot_size"`
	Now      int64 `json:"slot_size_now"`
	// Takes is what the root partition loses, and Free what is free in it now.
	Takes int64 `json:"root_partition_loses"`
	Free  int64 `json:"root_partition_free"`
	// GivenUp are the systems of the other slot: it is emptied.
	GivenUp []contract.Version `json:"gives_up,omitempty"`
	Asked   bool               `json:"asked"`
}

// A Grown is what the machine was asked for and what came of it, for Status.
type Grown struct {
	Request *growth.Request `json:"request,omitempty"` // that the next start carries out
	Outcome *growth.Outcome `json:"outcome,omitempty"` // of the last one
}

// PlanGrowth says what larger slots would take. Without a size they are those that the release
// needs which the server offers; version, unless 0, is the one that this has to be.
// What stands against it is an error: the boot would refuse it as well.
func (m *Machine) PlanGrowth(ctx context.Context, size int64, version contract.Version, o Options) (*Growing, error) {
	r, err := m.system()
	if err != nil {
		return nil, err
	}
	if size == 0 {
		if size, err = m.wantedSlots(ctx, version, o); err != nil {
			return nil, err
		}
	}
	return m.growing(r, size)
}

// wantedSlots are those of the release that is offered.
func (m *Machine) wantedSlots(ctx context.Context, version contract.Version, o Options) (int64, error) {
	out, err := m.Check(ctx, o)
	switch {
	case out != nil && version != 0 && out.Version != version:
		return 0, fmt.Errorf("version %s %w now, but version %s: ask for that, or name a size", version, ErrNotOffered, out.Version)
	case out != nil && out.SlotSize != 0:
		return out.SlotSize, nil
	case err != nil:
		return 0, err
	}
	return 0, fmt.Errorf("no release that is offered needs larger slots (%s): nothing to do; `--to 4G` asks for a size", out.Reason)
}

// growing is PlanGrowth for a size.
func (m *Machine) growing(r *Running, size int64) (*Growing, error) {
	if err := m.mayGrow(r); err != nil {
		return nil, err
	}
	disk, err := bootdisk.Disk(m.Hardware.Disks, m.Hardware.Firmware)
	if err != nil {
		return nil, err
	}
	table, _, err := bootdisk.Table(m.Hardware.Disks, disk)
	if err != nil {
		return nil, fmt.Errorf("partition table of %s: %w", disk.Name, err)
	}
	g := &Growing{SlotSize: size}
	if g.Now, err = layout.Size(table, r.Slot.Other().System()); err != nil {
		return nil, err
	}
	plan, err := layout.Grow(table, size, m.Random)
	if err != nil {
		return nil, err
	}
	g.Takes = plan.Shrink
	if g.Free, err = m.free(r); err != nil {
		return nil, err
	}
	if missing := g.Takes + growth.Reserve - g.Free; g.Takes > 0 && missing > 0 {
		return nil, fmt.Errorf("the root partition is too full: the slots take %d MiB of it, of which %d MiB are free, and %d MiB must stay free: delete %d MiB first",
			g.Takes>>20, g.Free>>20, int64(growth.Reserve)>>20, layout.AlignUp(missing)>>20)
	}
	if g.Takes == 0 || r.Contract.RootFileSystem == "btrfs" {
		return g, nil // the other slot stays as it is
	}
	inv, err := inventory.Take(m.Hardware)
	if err != nil {
		return nil, err
	}
	for _, s := range inv.Systems {
		if s.Slot == r.Slot.Other() && s.Contract != nil {
			g.GivenUp = append(g.GivenUp, s.Contract.Version)
		}
	}
	return g, nil
}

// mayGrow refuses what the boot would put off: a trial may need the other slot, and a release
// that waits lies in it.
func (m *Machine) mayGrow(r *Running) error {
	back, err := m.goesBack(r)
	if err != nil {
		return err
	}
	inv, err := inventory.Take(m.Hardware)
	if err != nil {
		return err
	}
	trial, err := m.onTrial(r, inv)
	if err != nil {
		return err
	}
	waits, err := m.staged(r)
	switch {
	case err != nil:
		return err
	case back:
		return errors.New("the next start puts directories back, as `ota rollback --state` has asked for: restart first, or take it back (`ota rollback --state --cancel`)")
	case trial:
		return fmt.Errorf("version %s is on trial, and the other slot may still be needed: wait until it is blessed (`ota bless`)", r.Contract.Version)
	case waits != nil:
		return errors.New("a release was fetched and waits for the next start: restart first, or give it up (`ota rollback`)")
	}
	return nil
}

// AskGrowth has the next start make the slots that large.
func (m *Machine) AskGrowth(g *Growing) error {
	r, err := m.system()
	if err != nil {
		return err
	}
	lock, err := m.lock(r)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := m.mayGrow(r); err != nil { // maybe not any more
		return err
	}
	g.Asked = true
	return m.keepRequest(r, growth.Request{SlotSize: g.SlotSize, By: growth.ByOwner})
}

// keepRequest asks the next boot. The file is there as a whole, or not at all.
func (m *Machine) keepRequest(r *Running, request growth.Request) error {
	text, err := request.Encode()
	if err != nil {
		return err
	}
	return hw.KeepFile(m.state(r, growth.RequestName), text, 0o644)
}

// CancelGrowth takes the request back.
func (m *Machine) CancelGrowth() error {
	r, err := m.system()
	if err != nil {
		return err
	}
	lock, err := m.lock(r)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := os.Lstat(m.state(r, growth.RequestName)); errors.Is(err, fs.ErrNotExist) {
		return errors.New("nothing was asked for: the slots stay as they are")
	}
	return hw.RemoveFile(m.state(r, growth.RequestName))
}

// grown reads both notes. One that cannot be read is the boot's to answer.
func (m *Machine) grown(r *Running) (*Grown, error) {
	g := new(Grown)
	text, err := readSmall(m.state(r, growth.RequestName), growth.MaxSize)
	if err == nil {
		g.Request, err = growth.ParseRequest(text)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	text, err = readSmall(m.state(r, growth.OutcomeName), growth.MaxSize)
	if err == nil {
		g.Outcome, err = growth.ParseOutcome(text)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if g.Request == nil && g.Outcome == nil {
		return nil, nil
	}
	return g, nil
}

// needsSlots completes the refusal of a release that needs larger slots: what stands against
// them, or what they take, and what has to be done. Where the settings say that the machine
// asks by itself, a fetch does so once: what was refused stays with the owner.
func (u *update) needsSlots(d *offer.Decision, fetching bool) {
	say := func(format string, args ...any) { d.Reason += fmt.Sprintf(format, args...) }
	if u.running.Console {
		return
	}
	before, err := u.grown(u.running)
	if err != nil {
		say(". %s", err)
		return
	}
	if before != nil && before.Request != nil && before.Request.SlotSize >= d.SlotSize {
		d.Verdict = offer.Later
		say("; that was asked for: restart, and fetch then")
		return
	}
	g, err := u.growing(u.running, d.SlotSize)
	if err != nil {
		say(". It cannot now: %s", err)
		return
	}
	if g.Takes > 0 {
		say(", out of the root partition, which loses %d MiB and has %d MiB free%s", g.Takes>>20, g.Free>>20, g.gives())
	}
	refused := before != nil && before.Outcome != nil && !before.Outcome.Done && before.Outcome.SlotSize == d.SlotSize
	if !fetching || refused || u.settings.Grow != settings.GrowAuto {
		return
	}
	if err := u.keepRequest(u.running, growth.Request{SlotSize: d.SlotSize, By: growth.ByPolicy}); err != nil {
		say(". %s", err)
		return
	}
	d.Verdict = offer.Later
	say(". That was asked for (Grow=auto): restart, and the next `ota fetch` brings it")
}

// gives says which systems are given up.
func (g *Growing) gives() string {
	if len(g.GivenUp) == 0 {
		return ""
	}
	var names []string
	for _, v := range g.GivenUp {
		names = append(names, v.String())
	}
	return fmt.Sprintf("; version %s in the other slot is given up for it", strings.Join(names, ", "))
}

// Lines say to people what it means.
func (g *Growing) Lines() []string {
	lines := []string{fmt.Sprintf("the slots become %d MiB each; they have %d MiB now", g.SlotSize>>20, g.Now>>20)}
	if g.Takes > 0 {
		lines = append(lines, fmt.Sprintf("the root partition loses %d MiB at its end, and has %d MiB free; what is on it stays", g.Takes>>20, g.Free>>20),
			"the next start does it, and restarts once more; it may take minutes, and nothing is lost where the power goes meanwhile")
	}
	if len(g.GivenUp) > 0 {
		lines = append(lines, fmt.Sprintf("the other slot is emptied for it: there is no way back to version %s, until the next release is in", strings.Join(strings.Fields(strings.Trim(fmt.Sprint(g.GivenUp), "[]")), ", ")))
	}
	return lines
}

// free is what is free on the root partition, in bytes.
func (m *Machine) free(r *Running) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(m.state(r), &s); err != nil {
		return 0, fmt.Errorf("free space: %w", err)
	}
	return int64(min(s.Bavail, 1<<50/uint64(max(s.Bsize, 1)))) * s.Bsize, nil
}
