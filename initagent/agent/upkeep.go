package agent

import (
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/bootmanager"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/staging"
)

// observeUpkeep looks, once the root partition is open, for what a blessed
// system has to see to.
func (a *Agent) observeUpkeep() error {
	if a.State.Root != slot.RootOpen || a.State.Trial {
		a.facts.Policy, a.facts.Manager, a.facts.Stage, a.facts.Verdict, a.facts.ESPDiffers, a.facts.Revoke = false, false, false, slot.NoTrial, false, false
		return nil
	}
	// First: a trial that gets its tries again keeps its place in the record.
	if a.facts.Judged == slot.NotTried {
		a.judge()
	}
	if a.facts.Mended == slot.NotTried && !a.looked { // nothing but mend changes it
		a.looked = true
		a.facts.ESPDiffers = a.espDiffers() // the record waits for it while a boot manager is replaced
	}
	var err error
	if a.facts.Policy, err = a.policyOutdated(); err != nil {
		a.Log.Say("the TPM's record is left as it is: %v", err)
		a.facts.Record = slot.Failed
	}
	// While the Secure Boot keys are being replaced the record allows what PCR 7 will
	// be on the way. None of these would. While the machine secret is, the list may be
	// under the other one, and each of these has to write it.
	settled := (!a.Unsettled || a.List != nil) && !rootpart.KeysUnfinished(a.Store, a.Lock)
	a.facts.Manager = settled && a.facts.Managed == slot.NotTried && a.RunsBlessed() && bootmanager.Waits(&a.Host)
	a.facts.Stage = settled && a.facts.Staged == slot.NotTried && a.RunsBlessed() && staging.Waits(&a.Host)
	a.facts.Revoke = settled && a.facts.Revoked == slot.NotTried && a.RunsBlessed() && bootmanager.Revocable(&a.Host)
	return nil
}

// judge takes over what is held of a trial that has used up its tries.
func (a *Agent) judge() {
	j := a.judgeTrial()
	a.facts.Verdict = j.verdict
	if j.verdict != slot.NoTrial {
		a.judged = j
	}
}

// stage makes a release that the fetcher has left the next one to be tried.
func (a *Agent) stage() error {
	return staging.Stage(&a.Host, staging.Input{Booted: a.State.Booted, Floor: a.State.Floor, Failures: a.Journal.Failures, Note: a.Journal.Note, LeaveState: a.leaveOwnState})
}

// updateManager puts the boot manager of the running release in its place.
func (a *Agent) updateManager() error { return bootmanager.Update(&a.Host) }

// revoke has the firmware refuse the boot managers that were replaced.
func (a *Agent) revoke() error { return bootmanager.Revoke(&a.Host, a.keeper()) }
