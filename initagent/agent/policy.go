package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/systems"
)

// A renewal is what it takes for the TPM and the ESP to agree about which systems
// may run.
type renewal struct {
	record   *policy.Record // to be written; nil where it is right
	outdated []bls.Name     // systems under the floor that are not marked bad yet
}

// runsBlessed reports whether the running system has proven itself: only such a
// one may give others up. The boot manager says what it counted, and the name
// says what was never blessed.
func (a *Agent) runsBlessed() bool {
	booted, known := a.bootedName()
	return !a.state.Trial && known && !booted.Counted
}

// recordsPolicy reports whether the TPM keeps the list of systems, and has let
// this boot unlock by it.
func (a *Agent) recordsPolicy() bool {
	return a.chip.err == nil && a.secret != nil && a.lock != nil && a.lock.Sealed != nil && a.lock.Sealed.Kind == policy.KindNV &&
		a.record != nil && !a.record.Provisional()
}

// policyOutdated reports whether the TPM's record is not the one that the
// machine's systems call for.
func (a *Agent) policyOutdated() bool {
	if a.facts.Record != slot.NotTried || !a.runsBlessed() || !a.recordsPolicy() {
		return false
	}
	r, err := a.renew()
	if err != nil {
		a.Log.Say("the TPM's record is left as it is: %v", err)
		a.facts.Record = slot.Failed
		return false
	}
	return r.record != nil || len(r.outdated) > 0
}

// renew compares the record with the ESP. A fallback is known by its version: the
// record has its branch, and never takes one that it had not, so that it does not
// matter which file bears the name. One whose trial is about to get its tries
// again counts as one that has them.
func (a *Agent) renew() (*renewal, error) {
	boot, err := a.toldBoot()
	if err != nil {
		return nil, err
	}
	var others []bls.Name
	var startable []uint64
	for _, n := range a.names {
		if n.ImageID != a.contract.ImageID || n.Version == a.contract.Version {
			continue
		}
		if !n.Bad() {
			others = append(others, n)
		}
		if !n.Bad() || a.facts.Verdict == slot.Interrupted {
			startable = append(startable, uint64(n.Version))
		}
	}
	next, err := a.record.Renew(boot.Branch(), startable)
	if err != nil {
		return nil, err
	}
	r := new(renewal)
	if next != a.record {
		r.record = next
	}
	for _, n := range others {
		if epoch, known := a.epochOf(n); known && epoch < next.Floor {
			r.outdated = append(r.outdated, n)
		}
	}
	return r, nil
}

// toldBoot is this boot by the firmware's event log, as it was when the root
// partition was unlocked. That the record has it proves the log.
func (a *Agent) toldBoot() (policy.Boot, error) {
	log, _, err := a.readLog()
	if err != nil {
		return policy.Boot{}, err
	}
	return rootpart.Logged(log)
}

// epochOf is a system's epoch, by the record, or else by its own contract.
func (a *Agent) epochOf(n bls.Name) (epoch uint64, known bool) {
	for _, b := range a.record.Branches {
		if b.Version == uint64(n.Version) {
			return b.Epoch, true
		}
	}
	err := a.readESP(func(files fs.FS) error {
		image, err := rootpart.ReadUKI(files, n)
		if err != nil {
			return err
		}
		c, _, err := rootpart.Describe(image)
		if err != nil {
			return err
		}
		epoch = c.Epoch
		return nil
	})
	return epoch, err == nil
}

// updatePolicy writes the TPM's record anew after the ESP's systems have changed: a
// trial was blessed or has failed, or the fetcher has emptied a slot.
//
// The record is one NV write. Cut before it, the old record stands: it allows the
// running system, and one or two that may be gone; this is done again at the next
// boot. Cut after it, the new record stands, and it allows the running system,
// which is blessed, and the other one, if that may run at all. A system under the
// new floor still looks startable then; it gets no key and marks itself bad, or
// is marked at the next boot. In the other order a cut would leave a fallback that
// is given up while the floor does not ask for it yet.
func (a *Agent) updatePolicy() error {
	r, err := a.renew()
	if err != nil {
		return err
	}
	if r.record != nil {
		old := a.record
		if err := a.writeRecord(a.secret, a.lock.Sealed, r.record); err != nil {
			return err
		}
		a.record = r.record
		for _, b := range old.Branches {
			if !slices.Contains(r.record.Branches, b) {
				a.Log.Say("version %d unlocks nothing any more", b.Version)
			}
		}
		if r.record.Floor > old.Floor {
			a.state.Floor = r.record.Floor
			a.noteSelf(journal.Floor, fmt.Sprintf("the lowest epoch that may run rises from %d to %d", old.Floor, r.record.Floor))
		}
	}
	if len(r.outdated) == 0 {
		return nil
	}
	a.lookAgain() // what is given up loses its copy
	return a.writeESP(func(dir hw.ESPDir) error {
		var errs []error
		for _, n := range r.outdated {
			errs = append(errs, systems.Condemn(dir, n))
			a.Log.Say("%s is under the floor and loses its tries", n)
		}
		return errors.Join(errs...)
	})
}

// acceptable returns the record for an owner who accepts the machine as it is,
// and the boots that it allows besides the running one's.
func (a *Agent) acceptable(boot policy.Boot, volumeKey []byte, secret *policy.Secret) (*policy.Record, []policy.Boot) {
	q := rootpart.Fallbacks{Table: a.table, Running: a.contract, Boot: boot, Firmware: a.firmware, List: a.list, Say: a.Log.Say}
	if last := a.lastGood(secret); last != nil && last.Authentic {
		if b, err := rootpart.Logged(last.Log); err == nil {
			q.Known = append(q.Known, b)
		}
	}
	return a.binding().Acceptable(q, a.lock, volumeKey, a.readESP)
}
