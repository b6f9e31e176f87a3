// Package agent is the boot: it observes the machine, asks bootflow.Next what to
// do, does it, and starts over, until the system has taken over, the machine
// restarts, or the recovery console is open.
//
// It refuses to decide: every branch that matters is in boot/bootflow, where it can
// be read and tested without a machine.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/extensions"
	"halogenos.internal/initagent/handover"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/setup"
	"halogenos.internal/initagent/tpm"
	"halogenos.internal/initagent/unmeasured"
	"halogenos.internal/initagent/upkeep"
)

// maxSteps bounds a boot: a loop that makes no headway ends in the recovery
// console.
const maxSteps = 32

// An Agent is one boot.
type Agent struct {
	host.Host
	listener   hw.Listener         // or nil: nobody is listened to
	unmeasured unmeasured.Removed  // from the firmware's variables
	homeLooked bool                // for the note of a reset that keeps /home
	found      upkeep.Found        // what a blessed system has to see to
	request    *nextboot.Console   // what the boot before this one asks for; or nil
	wish       *nextboot.NewSecret // of the running system; or nil
	foretold   *rootpart.Start     // what the TPM was told of the start after the enrollment; or nil

	facts bootflow.Facts
}

// Boot runs the machine until it hands over. It returns only when neither the
// system, nor a restart, nor the recovery console could be had.
func (a *Agent) Boot(ctx context.Context) error {
	a.Chip.Err = errNotOpened
	a.Journal = bootjournal.Journal{Machine: a.Machine, Root: a.Root, Ready: a.StoreReady}
	a.listen()
	a.begin()
	for range maxSteps {
		a.observe()
		step := bootflow.Next(a.State, a.facts)
		if step.Kind == bootflow.Recovery || step.Kind == bootflow.RecoverNext {
			return a.stop(step)
		}
		a.AllowWatchdog(steps[step.Kind].time())
		if steps[step.Kind].deaf {
			a.stopListening()
		}
		a.act(ctx, step)
	}
	return a.stop(bootflow.Stop(a.State, a.facts, fmt.Sprintf("the boot made no headway in %d steps", maxSteps)))
}

// stop ends a boot that cannot go on.
func (a *Agent) stop(step bootflow.Step) error {
	a.Log.Show()
	switch {
	case step.Kind == bootflow.Recovery && !a.facts.Released && !a.Released:
		return a.recover(step.Reason)
	case step.Kind == bootflow.Reboot:
		a.Log.Announce(step.Kind.String(), step.Reason)
		return a.reboot()
	}
	return a.recoverNext(step.Reason)
}

// begin is what comes before there is anything to decide. What fails here is a
// fact for Next, or missed later by whatever needs it.
func (a *Agent) begin() {
	steps := []struct {
		name, reason string
		run          func() error
	}{
		{"firmware", "the firmware's variables", a.openFirmware},
		{"unmeasured", "nothing stored in the firmware steers the kernel", a.removeUnmeasured},
		{"request", "what the boot before this one asks for", a.readRequest},
		{"drivers", "devices get their kernel modules", a.LoadDrivers},
		{"watchdog", "a hang becomes a restart", a.StartWatchdog},
		{"contract", "the facts that the signed UKI carries", a.readContract},
		{"tpm", "the machine's TPM", func() error { a.OpenTPM(); return a.observeTPM(nil) }},
		{"measure", "the initramfs phase begins", func() error { return a.observeTPM(a.EnterPhase()) }},
		{"disk", "the disk that the firmware started from", a.FindDisk},
		{"tries", "a start of a trial is counted", func() error { return a.CountTry(a.unmeasured.CountVariable) }},
		{"pending", "what an earlier start has left to do", a.readLeft},
	}
	for _, s := range steps {
		if err := a.Log.Step(s.name, s.reason, s.run); err != nil {
			a.facts.Problem = err.Error()
			return
		}
		if a.facts.PlantedGone {
			return // what the boot before asks for is for the next one
		}
	}
}

func (a *Agent) openFirmware() error {
	_ = a.Kernel.Load("efivarfs") // it may be built in; the mount tells
	if err := a.Mounts.Firmware(); err != nil {
		return err
	}
	a.TakeKeymap()
	a.TakeLanguage()
	return nil
}

// errNotOpened is why there is no TPM before the boot has come to it.
var errNotOpened = errors.New("the TPM was not opened yet")

// observeTPM says whether there is a TPM, and returns what a step with it has failed for. One
// that does not work is as good as none.
func (a *Agent) observeTPM(failed error) error {
	err := a.Chip.Err
	a.facts.TPMPresent = err == nil
	if err != nil && !errors.Is(err, tpm.ErrAbsent) && a.facts.TPMFault == "" {
		a.facts.TPMFault = err.Error()
		a.Log.Say("the TPM cannot be used: %v", err)
	}
	return failed
}

// removeUnmeasured takes away what somebody has stored in the firmware.
func (a *Agent) removeUnmeasured() error {
	a.unmeasured = unmeasured.Remove(&a.Host)
	a.facts.Planted, a.facts.PlantedGone = a.unmeasured.Planted, a.unmeasured.Again
	return nil
}

// readLeft reads what earlier starts have left on the ESP.
func (a *Agent) readLeft() error {
	err := setup.ReadLeft(&a.Host)
	unmeasured.ForgetMark(&a.Host, a.facts.Planted)
	return err
}

func (a *Agent) readContract() error {
	text, err := os.ReadFile(a.Path(contract.Path))
	if err != nil {
		return fmt.Errorf("the UKI carries no boot contract: %w", err)
	}
	if a.Contract, err = contract.Parse(text); err != nil {
		return err
	}
	if err := extensions.ReadList(&a.Host); err != nil {
		return err
	}
	a.facts.Epoch = a.Contract.Epoch
	a.facts.SecureBoot, a.facts.TPM = a.Contract.SecureBoot, a.Contract.TPM
	a.Log.Say("%s %s, epoch %d", a.Contract.ImageID, a.Contract.Version, a.Contract.Epoch)
	a.readModuleKey()
	if len(a.Contract.ReleaseKey) == 0 {
		a.Log.Say("WARNING: this system has no release key: its updates are not signed")
	}
	return nil
}

// readModuleKey reads whose kernel modules the release wants trusted. Without that it starts all
// the same.
func (a *Agent) readModuleKey() {
	text, err := bounded.File(os.DirFS(a.Path("/")), contract.ModuleKeyPath, contract.MaxModuleKey)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		a.ModuleKey, err = contract.ParseModuleKey(text)
	}
	if err != nil {
		a.Log.Say("WARNING: whose kernel modules this release has is not known: %v", err)
	}
}

// observe brings the state up to date with the machine.
func (a *Agent) observe() {
	a.observePerson()
	a.observeRequest()
	if a.facts.Problem != "" || a.facts.PlantedGone {
		return
	}
	if err := a.observeTable(); err != nil {
		a.State.Table, a.facts.Cause = bootflow.TableForeign, err.Error()
		return
	}
	if err := a.observeESP(); err != nil {
		// The ESP only says what there is to fall back to.
		a.Log.Say("the ESP cannot be read: %v", err)
	}
	for _, observe := range []func() error{a.observeRoot, a.observeKeys, a.observeLoss, a.observeUpkeep, a.observeState} {
		if err := observe(); err != nil {
			a.facts.Problem = err.Error()
			return
		}
	}
}

// act does one step and turns what came of it into facts.
func (a *Agent) act(ctx context.Context, step bootflow.Step) {
	row, known := steps[step.Kind]
	if !known {
		row.do = func(*Agent, context.Context) error { return fmt.Errorf("this machine cannot %s", step.Kind) }
	}
	err := a.run(ctx, step, row)
	a.facts.Released = a.Released
	switch {
	case err == nil:
		a.facts.Note(step.Kind, bootflow.Done)
	case a.facts.Note(step.Kind, bootflow.Failed):
		fails, full := a.DiskFails(step.Kind, err)
		a.facts.Cause, a.facts.DiskFails = full.Error(), a.facts.DiskFails || fails
		a.facts.Foreign = a.facts.Foreign || errors.Is(err, rootpart.ErrForeign)
	case errors.Is(err, handover.ErrNoSystem) && a.Extensions.Opens():
		// Not the slot's fault for certain: what lies over its image may be damaged.
		a.facts.Outcomes[bootflow.AddExtensions], a.facts.Cause = bootflow.Failed, err.Error()
		a.facts.Problem = fmt.Sprintf("with its extensions, %v", err)
	case errors.Is(err, handover.ErrNoSystem):
		a.facts.Outcomes[bootflow.OpenVerity], a.facts.Cause = bootflow.Failed, err.Error()
	default:
		a.facts.Problem = fmt.Sprintf("%s: %v", step.Kind, err)
	}
}

// run does what the table has for a step.
func (a *Agent) run(ctx context.Context, step bootflow.Step, row stepRow) error {
	run := func() error { return row.do(a, ctx) }
	if row.secrets {
		run = func() error { return a.Secretly(func() error { return row.do(a, ctx) }) }
	}
	if row.last {
		return a.last(step, run)
	}
	return a.Log.Step(step.Kind.String(), step.Reason, run)
}

// last does a step that this boot does not survive: what it is, and why, is said
// and written down first.
func (a *Agent) last(step bootflow.Step, run func() error) error {
	a.Log.Announce(step.Kind.String(), step.Reason)
	if step.Kind == bootflow.Condemn {
		a.NoteSelf(journal.Condemned, step.Reason)
	}
	return run()
}
