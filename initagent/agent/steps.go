package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/bootmanager"
	"halogenos.internal/initagent/extensions"
	"halogenos.internal/initagent/fwupd"
	"halogenos.internal/initagent/growslots"
	"halogenos.internal/initagent/handover"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/moduletrust"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/prompt"
	"halogenos.internal/initagent/reset"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/setup"
	"halogenos.internal/initagent/staging"
	"halogenos.internal/initagent/unlock"
	"halogenos.internal/initagent/upkeep"
)

// A stepRow is all that the loop has to know of a kind of step. What came of it is held under
// the kind (bootflow.Facts.Note).
type stepRow struct {
	do func(a *Agent, ctx context.Context) error
	// secrets: a secret is made, released, typed or used. What the step leaves on stack
	// and heap is erased: libraries copy what they are given, and nobody could wipe those
	// copies.
	secrets bool
	// deaf: nobody listens any more for the wish for the recovery console, since a person
	// types something else in this step, or nothing after it.
	deaf bool
	// ends: a boot that cannot go on may have failed in this step. The next one says so.
	ends bool
	// last: this boot does not survive it, so that what it is, and why, is said before.
	last bool
	// limit is how long it may take before the boot counts as hanging; 0 is host.StepLimit.
	limit time.Duration
}

// noLimit is for a step that waits for a person, treeLimit for a slow stick with a large
// image, growLimit for a large file system on a slow disk, secretLimit for a step that waits for a person as long as unlock.SecretTimeout lets it, and renewLimit
// for one that has them type a key, and a PIN twice, keyLimit for one that has them write a key down,
// as often as it takes (unlock.WriteTimeout).
const (
	noLimit     time.Duration = -1
	treeLimit                 = time.Hour
	growLimit                 = 3 * time.Hour
	secretLimit               = 20 * time.Minute
	renewLimit                = 40 * time.Minute
	keyLimit                  = 2 * time.Hour
)

// time is how long the step may take for the watchdog.
func (r stepRow) time() time.Duration {
	switch r.limit {
	case noLimit:
		return 0
	case 0:
		return host.StepLimit
	}
	return r.limit
}

// steps has a row for each kind of step that goes on with the boot. How one ends that
// cannot is for Agent.stop.
var steps = map[bootflow.Kind]stepRow{
	bootflow.Install:    {do: onHost(setup.Install), deaf: true},
	bootflow.Heal:       {do: plain((*Agent).healTable)},
	bootflow.Partition:  {do: onHost(setup.Partition)},
	bootflow.MakeTree:   {do: func(a *Agent, ctx context.Context) error { return setup.MakeTree(ctx, &a.Host) }, limit: treeLimit},
	bootflow.OpenVerity: {do: func(a *Agent, ctx context.Context) error { return a.OpenVerity(ctx) }, ends: true},
	bootflow.AskOthers:  {do: onHost(setup.AskOthers), deaf: true, limit: secretLimit},
	bootflow.Enroll:     {do: func(a *Agent, _ context.Context) error { return setup.Enroll(&a.Host, a.foretold) }, secrets: true, ends: true},
	bootflow.MakeRoot:   {do: plain((*Agent).makeRoot), secrets: true, deaf: true, limit: renewLimit},
	bootflow.Unlock:     {do: func(a *Agent, _ context.Context) error { return a.opened(unlock.ByTPM(&a.Host)) }, secrets: true, ends: true},
	bootflow.AskPIN:     {do: func(a *Agent, _ context.Context) error { return a.opened(unlock.ByPIN(&a.Host)) }, secrets: true, deaf: true, limit: noLimit},
	bootflow.AskKey:     {do: func(a *Agent, _ context.Context) error { return a.opened(unlock.ByKey(&a.Host, a.facts)) }, secrets: true, deaf: true, ends: true, limit: noLimit},
	bootflow.NewSecret:  {do: func(a *Agent, _ context.Context) error { return unlock.NewSecret(&a.Host, a.wish) }, secrets: true, deaf: true, limit: renewLimit},
	bootflow.NewKey:     {do: onHost(unlock.NewKey), secrets: true, deaf: true, limit: keyLimit},
	bootflow.NewPhrase:  {do: onHost(prompt.New), secrets: true, deaf: true, limit: secretLimit},
	bootflow.Reset: {do: func(a *Agent, _ context.Context) (err error) {
		a.facts.ResetBegun, err = reset.Asked(&a.Host)
		return err
	}, secrets: true, deaf: true, limit: secretLimit},
	bootflow.KeepHome: {do: func(a *Agent, ctx context.Context) (err error) {
		a.facts.KeepHomeBegun, err = reset.KeepHome(ctx, &a.Host, a.facts.KeepHomeBegun)
		return err
	}, secrets: true, deaf: true, ends: true, limit: secretLimit},
	bootflow.RestoreState:  {do: onHost(ownstate.Restore), ends: true},
	bootflow.Remember:      {do: func(a *Agent, _ context.Context) error { return upkeep.Remember(&a.Host, a.found.Judgement) }},
	bootflow.Retry:         {do: func(a *Agent, _ context.Context) error { return upkeep.Retry(&a.Host, a.found.Judgement) }},
	bootflow.Mend:          {do: onHost(upkeep.Mend)},
	bootflow.Stage:         {do: plain((*Agent).stage), secrets: true},
	bootflow.UpdatePolicy:  {do: plain((*Agent).updatePolicy), secrets: true},
	bootflow.UpdateManager: {do: onHost(bootmanager.Update), secrets: true},
	bootflow.TrustModules:  {do: plain((*Agent).trustModules), secrets: true, deaf: true, limit: secretLimit},
	bootflow.Revoke:        {do: onHost(revoke), secrets: true},
	bootflow.SignUpdater:   {do: onHost(fwupd.Sign), secrets: true},
	bootflow.GrowSlots:     {do: plain((*Agent).growSlots), secrets: true, ends: true, limit: growLimit},
	bootflow.CarryState:    {do: func(a *Agent, ctx context.Context) error { return ownstate.Carry(ctx, &a.Host) }, ends: true},
	bootflow.SettleState:   {do: onHost(ownstate.Settle)},
	bootflow.AddExtensions: {do: onHost(extensions.Add), ends: true},
	bootflow.MountState:    {do: onHost(handover.MountState), ends: true},
	bootflow.Condemn:       {do: plain((*Agent).giveUp), deaf: true, last: true},
	bootflow.Reboot:        {do: plain((*Agent).reboot), deaf: true, last: true},
	bootflow.SwitchRoot:    {do: func(a *Agent, _ context.Context) error { return handover.Start(&a.Host, a.facts) }, deaf: true},
}

// plain is a step that nobody interrupts.
func plain(do func(a *Agent) error) func(*Agent, context.Context) error {
	return func(a *Agent, _ context.Context) error { return do(a) }
}

// onHost is a step that needs the machine alone.
func onHost(do func(h *host.Host) error) func(*Agent, context.Context) error {
	return func(a *Agent, _ context.Context) error { return do(&a.Host) }
}

// endings are the steps in which a boot may have come to its end, the last one first.
func endings() (kinds []bootflow.Kind) {
	for kind, row := range steps {
		if row.ends {
			kinds = append(kinds, kind)
		}
	}
	slices.Sort(kinds) // a boot takes them in this order
	slices.Reverse(kinds)
	return kinds
}

// makeRoot makes the root partition.
func (a *Agent) makeRoot() error {
	err := setup.MakeRoot(&a.Host)
	a.facts.RootMade, a.facts.Replaced = err == nil, a.facts.Replaced || errors.Is(err, rootpart.ErrReplaced)
	return err
}

// opened takes over what came of an attempt to open the root partition.
func (a *Agent) opened(r unlock.Result, err error) error {
	f := &a.facts
	f.Replaced, f.Answered, f.EnrollAgain = f.Replaced || r.Replaced, r.Answered, f.EnrollAgain || r.EnrollAgain
	if r.KeysWritten {
		f.Outcomes[bootflow.Enroll] = bootflow.Done
	}
	if r.Renewed {
		f.Outcomes[bootflow.NewSecret] = bootflow.Done
	}
	if r.Foretold != nil {
		a.foretold = r.Foretold
	}
	return err
}

// healTable writes the partition table again, of which one copy is damaged.
func (a *Agent) healTable() error {
	if err := a.WriteTable(a.Table); err != nil {
		return err
	}
	a.NoteSelf(journal.Healed, "one copy of the partition table was damaged")
	return nil
}

// observeUpkeep looks for what a blessed system has to see to.
func (a *Agent) observeUpkeep() error {
	a.found = upkeep.Look(&a.Host, a.facts, a.found)
	a.facts.Upkeep = a.found.Upkeep
	if a.found.PolicyErr != nil {
		a.facts.Outcomes[bootflow.UpdatePolicy] = bootflow.Failed
	}
	return nil
}

// observeState looks, once the root partition is open, whose state there is.
func (a *Agent) observeState() error {
	if a.State.Root != bootflow.RootOpen || a.facts.Came(bootflow.MountState) != bootflow.NotTried {
		return nil
	}
	if a.facts.Came(bootflow.AddExtensions) == bootflow.NotTried {
		a.facts.Extensions = extensions.Look(&a.Host)
	}
	a.observeKeepHome()
	if a.facts.Came(bootflow.NewKey) == bootflow.NotTried {
		a.facts.KeyNoted = unlock.KeyNoted(a.Store)
	}
	if a.facts.Came(bootflow.NewPhrase) == bootflow.NotTried {
		a.facts.PhraseNoted = prompt.Noted(a.Store)
	}
	a.facts.StateAsked = a.facts.Came(bootflow.RestoreState) == bootflow.NotTried && ownstate.RestoreAsked(&a.Host)
	first, unsettled, err := ownstate.Look(&a.Host, a.facts)
	a.facts.FirstStart = first
	if err != nil {
		a.facts.Cause = err.Error() // carry-state says the same
		return nil
	}
	a.facts.Unsettled = unsettled
	return nil
}

// updatePolicy writes the TPM's record. What it condemns on the ESP loses its copy.
func (a *Agent) updatePolicy() error {
	condemned, err := upkeep.UpdatePolicy(&a.Host, a.found, a.facts.Rewrote())
	if condemned {
		a.found.Compared, a.facts.Outcomes[bootflow.Mend] = false, bootflow.NotTried
	}
	return err
}

// stage makes a release that the fetcher has left the next one to be tried.
func (a *Agent) stage() error {
	return staging.Stage(&a.Host, staging.State{
		Leave:    func(next verity.Root) error { return ownstate.Leave(&a.Host, next) },
		Snapshot: func(v contract.Version) string { return ownstate.Snapshot(&a.Host, v) },
	})
}

// growSlots makes the slots larger.
func (a *Agent) growSlots() error {
	r, err := growslots.Grow(&a.Host)
	a.facts.Grown = r.Grown
	if r.Closed {
		a.facts.RootLost = fmt.Sprint(err)
	}
	return err
}

// revoke has the firmware refuse the boot managers that were replaced.
func revoke(h *host.Host) error { return bootmanager.Revoke(h, upkeep.Keeper(h)) }

// trustModules asks whose kernel modules count: before the machine's keys are made, or of one
// that has them.
func (a *Agent) trustModules() (err error) {
	if a.State.Keys == bootflow.KeysMissing {
		return setup.AskModules(&a.Host)
	}
	a.facts.DBWritten, err = moduletrust.Trust(&a.Host)
	return err
}

// giveUp takes the running slot's tries away. A system that cannot be condemned would be
// started again and again, so that it is not restarted.
func (a *Agent) giveUp() error {
	if err := a.Condemn(); err != nil {
		return err
	}
	return a.reboot()
}
