// Package upkeep is what a blessed system does before it is handed over to: it judges a
// trial that has used up its tries, makes the ESP whole from its copies, and has the
// TPM's record be about the systems that there are.
//
// It refuses to do anything in a trial, which has not proven itself.
package upkeep

import (
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/initagent/bootmanager"
	"halogenos.internal/initagent/fwupd"
	"halogenos.internal/initagent/growslots"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/moduletrust"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/staging"
)

// Found is what a blessed system has to see to.
type Found struct {
	bootflow.Upkeep
	Judgement Judgement
	Compared  bool  // the ESP was compared with its copies
	PolicyErr error // why the TPM's record is left as it is
}

// Look looks, once the root partition is open, for what there is to do. tried is what this
// boot has done, and last what it has found before. There is nothing to do once directories
// of root's are mounted into the system: what is read there is no longer the image's.
func Look(h *host.Host, tried bootflow.Facts, last Found) Found {
	if h.State.Root != bootflow.RootOpen || h.State.Trial || tried.Came(bootflow.MountState) != bootflow.NotTried {
		return Found{Compared: last.Compared}
	}
	f := Found{Judgement: last.Judgement, Upkeep: bootflow.Upkeep{ESPDiffers: last.ESPDiffers}, Compared: true}
	// First: a trial that gets its tries again keeps its place in the record.
	if tried.Came(bootflow.Remember) == bootflow.NotTried {
		f.Judgement = judgeTrial(h)
	}
	f.Verdict = f.Judgement.Verdict
	if tried.Came(bootflow.Mend) == bootflow.NotTried && !last.Compared { // nothing but mend changes it
		f.ESPDiffers = espDiffers(h) // the record waits for it while a boot manager is replaced
	}
	if f.Policy, f.PolicyErr = outdated(h, f, tried); f.PolicyErr != nil {
		h.Log.Say("the TPM's record is left as it is: %v", f.PolicyErr)
	}
	// While the Secure Boot keys are being replaced the record allows what PCR 7 will
	// be on the way. None of these would. While the machine secret is, the list may be
	// under the other one, and each of these has to write it.
	settled := (!h.Unsettled || h.List != nil) && !rootpart.KeysUnfinished(h.Store, h.Lock)
	f.Manager = settled && tried.Came(bootflow.UpdateManager) == bootflow.NotTried && h.RunsBlessed() && bootmanager.Waits(h)
	f.Stage = settled && tried.Came(bootflow.Stage) == bootflow.NotTried && h.RunsBlessed() && staging.Waits(h)
	f.Revoke = settled && tried.Came(bootflow.Revoke) == bootflow.NotTried && h.RunsBlessed() && bootmanager.Revocable(h)
	f.Modules = settled && tried.Came(bootflow.TrustModules) == bootflow.NotTried && h.RunsBlessed() && moduletrust.Waits(h)
	f.Grow = settled && tried.Came(bootflow.GrowSlots) == bootflow.NotTried && h.RunsBlessed() && growslots.Waits(h)
	f.Updater = settled && tried.Came(bootflow.SignUpdater) == bootflow.NotTried && h.RunsBlessed() && fwupd.Waits(h)
	return f
}
