// Package growslots makes this machine's slots larger, as the running system has asked: the
// root partition is made smaller, and each slot gets a second extent in the space.
//
// It refuses to begin before everything that it needs was looked at, and to write a partition
// table by which the root partition would end before its file system does.
package growslots

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"halogenos.internal/boot/growth"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/staging"
)

// Where the running system asks, and is answered.
const (
	RequestFile = rootpart.Shared + "/" + growth.RequestName
	OutcomeFile = rootpart.Shared + "/" + growth.OutcomeName
)

// A Result is what became of the machine.
type Result struct {
	Grown  bool // the partition table is another one, which the kernel reads at the next start
	Closed bool // the root partition does not open again
}

// A refusal is why what was asked for is not done, and is not tried again.
type refusal struct {
	error
	missing int64 // bytes that the root partition has too little
}

// Unwrap returns the error.
func (r refusal) Unwrap() error { return r.error }

func refuse(format string, args ...any) error { return refusal{error: fmt.Errorf(format, args...)} }

// Waits reports whether the running system has asked, and no release waits to be staged: that
// lies in the slot that the growing may take.
func Waits(h *host.Host) bool {
	_, err := h.Store.Read(RequestFile, growth.MaxSize)
	return !errors.Is(err, fs.ErrNotExist) && !staging.Waits(h)
}

// A grower makes the slots larger.
type grower struct {
	*host.Host
	request *growth.Request
	plan    *layout.Growth
	target  int64 // bytes that the file system may have at most
	closed  bool
}

// Grow does what was asked for, and answers. What was refused is an error, and is not asked
// for any more.
//
// The order: everything is looked at; the request says that it was begun; the file system is
// made smaller; the partition table is written; the answer takes the place of the request. Cut
// before the table, the file system ends before its partition does, or where it did: the next
// boot goes on, or begins again. Cut in the table, one of its copies is good. Cut after it, the
// next boot finds the slots as large as they were asked for, and answers. A boot that goes down
// in the middle does so growth.MaxTries times.
func Grow(h *host.Host) (Result, error) {
	g := &grower{Host: h}
	err := g.grow()
	r := Result{Closed: g.closed}
	refused, is := errors.AsType[refusal](err)
	switch {
	case g.closed:
		return r, err
	case errors.Is(err, layout.ErrLargeEnough):
		return r, g.answer(growth.Outcome{Done: true})
	case is:
		return r, errors.Join(err, g.answer(growth.Outcome{Reason: err.Error(), Missing: refused.missing}))
	case err != nil:
		return r, err
	}
	r.Grown = true
	return r, g.answer(growth.Outcome{Done: true})
}

// answer replaces the request. Cut between the two, the request is looked at once more.
func (g *grower) answer(o growth.Outcome) error {
	if g.request != nil {
		o.SlotSize = g.request.SlotSize
	}
	o.When = g.Now()
	text, err := o.Encode()
	if err != nil {
		return err
	}
	g.NoteSelf(journal.Grown, strings.TrimSpace(o.Reason))
	return errors.Join(g.Store.Keep(OutcomeFile, text), g.Store.Remove(RequestFile))
}

func (g *grower) grow() error {
	text, err := g.Store.Read(RequestFile, growth.MaxSize)
	if err == nil {
		g.request, err = growth.ParseRequest(text)
	}
	if err != nil {
		return refuse("what the running system has asked for cannot be read: %w", err)
	}
	if err := g.look(); err != nil {
		return err
	}
	if g.request.Tries >= growth.MaxTries {
		return refuse("the machine went down %d times while its slots were made larger", g.request.Tries)
	}
	g.request.Tries++
	if text, err = g.request.Encode(); err == nil {
		err = g.Store.Keep(RequestFile, text)
	}
	if err != nil {
		return err
	}
	if err := g.shrink(); err != nil {
		return err
	}
	return g.write()
}

// look looks at all that is needed, and writes nothing.
func (g *grower) look() error {
	var err error
	g.plan, err = layout.Grow(g.Table, g.request.SlotSize, g.Random)
	room, full := errors.AsType[*layout.RoomError](err)
	switch {
	case full:
		return refusal{err, room.Missing}
	case errors.Is(err, layout.ErrLargeEnough):
		return err
	case err != nil:
		return refuse("%w", err)
	}
	for _, change := range g.plan.Changes {
		g.Log.Say("grow-slots: to %s", change)
	}
	g.target = g.plan.RootSize - luks2.DataOffset
	end, err := g.end()
	switch {
	case err != nil: // a btrfs of two devices, for one
		return refuse("%w", err)
	case end <= g.target:
		return nil
	}
	have, err := g.Store.Room()
	if err != nil {
		return err
	}
	if missing := end - g.target + growth.Reserve - have.Free; missing > 0 {
		return refusal{fmt.Errorf("the root partition is too full: the slots take %d MiB of it, of which %d MiB are free, and %d MiB must stay free; delete %d MiB, and ask again",
			(end-g.target)>>20, have.Free>>20, int64(growth.Reserve)>>20, layout.AlignUp(missing)>>20), layout.AlignUp(missing)}
	}
	return g.lookForTools()
}

// end is where the file system of the open root partition ends, in bytes.
func (g *grower) end() (int64, error) {
	return g.Store.FileSystemEnd(g.Contract.RootFileSystem, g.RootDevice())
}

// write writes the partition table, where the file system has the room that is left to it.
func (g *grower) write() error {
	end, err := g.end()
	if err != nil {
		return err
	}
	if end > g.target {
		return refuse("the file system of the root partition ends at %d MiB, want %d MiB at most", end>>20, g.target>>20)
	}
	// The slot that was emptied has other names by now.
	plan, err := layout.Grow(g.Table, g.request.SlotSize, g.Random)
	if err != nil {
		return err
	}
	if plan.RootSize != g.plan.RootSize {
		return fmt.Errorf("the root partition is to have %d bytes, and was to have %d", plan.RootSize, g.plan.RootSize)
	}
	if err := g.PutTable(plan.Table); err != nil {
		return err
	}
	g.Log.Say("grow-slots: the partition table is written")
	return nil
}
