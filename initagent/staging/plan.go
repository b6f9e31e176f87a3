package staging

import (
	"bytes"
	"errors"
	"fmt"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/fetched"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// A plan is all that staging a release writes, once everything that can fail without
// writing has been done.
type plan struct {
	*candidate
	admission admission
	table     *gpt.Table // in which its slot has its name; nil where none has to be written
	gone      []bls.Name // the systems whose content is gone
	snapshot  string     // what came of that of the state, once it is taken
}

// An admission is what lets a release unlock the root partition. Where all is nil there
// is nothing to be written.
type admission struct {
	record *policy.Record // for the TPM
	boots  []policy.Boot  // that the secret is sealed to again
	untold error          // why the TPM is not told, and the recovery key is asked for
}

// plan says what there is to be written for a release that was checked.
func (s *stager) plan(c *candidate) (*plan, error) {
	p := &plan{candidate: c}
	var err error
	if p.admission, err = s.admit(c); err != nil {
		return nil, err
	}
	if p.table = s.renamed(c); p.table != nil {
		if err := p.table.Validate(); err != nil {
			return nil, err
		}
	}
	for _, n := range s.Names {
		if n.ImageID == s.Contract.ImageID && n.Version != s.Contract.Version && s.isGone(n, c) {
			p.gone = append(p.gone, n)
		}
	}
	return p, nil
}

// activate carries a plan out. A release gets its place: in the TPM's record, in the
// partition table, and, last of all, on the ESP.
//
// Until its UKI has its name nothing starts it. So, cut before the record is
// written, or while it is: the running system unlocks by the old record or the
// new one, and the note is still there: this is done again. Cut after it: the
// record allows a system that is not there; upkeep.UpdatePolicy takes it out again, or
// this puts it to use. Cut while the table is written: one of its copies is good,
// and the running slot's entries are the same in both. Cut after it: the other
// slot has its name, which matters to no UKI there is. Cut while the UKI is written:
// esp.Put leaves a file that nothing starts. Cut after it: the trial begins,
// and the note says what is true.
//
// The fallback's branch leaves the record here, and not before: its slot was given
// up when the fetcher emptied it, and what is left of its UKI goes first. So is what was
// kept of its state. The snapshot of what all systems share is taken then: whatever fails
// after it is done again by the next boot, which takes another one.
func (s *stager) activate(p *plan) error {
	if err := s.makeRoom(p); err != nil {
		return err
	}
	if err := s.state.Leave(p.contract.Root()); err != nil {
		return err
	}
	p.snapshot = s.state.Snapshot(p.contract.Version)
	if err := s.tell(p); err != nil {
		return fmt.Errorf("let version %s unlock the root partition: %w", p.contract.Version, err)
	}
	if p.table != nil {
		if err := s.PutTable(p.table); err != nil { // the running system is open
			return err
		}
	}
	return s.WriteESP(func(dir hw.ESPDir) error { return esp.Put(dir, p.name, p.uki) })
}

// makeRoom takes away what is left of the systems whose content is gone, and asks
// for room for the new one before anything else is changed.
func (s *stager) makeRoom(p *plan) error {
	return s.WriteESP(func(dir hw.ESPDir) error {
		for _, n := range p.gone {
			s.Log.Say("%s goes: no slot holds its content", n)
			if err := esp.Remove(dir, n); err != nil {
				return err
			}
		}
		return esp.CheckRoom(dir, int64(len(p.uki)))
	})
}

// tell lets the release unlock the root partition.
func (s *stager) tell(p *plan) error {
	switch a := p.admission; {
	case a.record != nil:
		return s.ReplaceRecord(a.record)
	case a.boots != nil:
		return s.Reseal(a.boots...)
	case a.untold != nil:
		s.Log.Say("WARNING: the TPM was not told of version %s (%v): it asks for the recovery key, also when the TPM is there again", p.contract.Version, a.untold)
	}
	return nil
}

// renamed is the table in which the slot's partitions spell the release's root
// hash; nil where none has to be written. Where the running slot has the same
// content the release runs from that one, since two partitions of one name would
// leave nobody sure which is meant.
func (s *stager) renamed(c *candidate) *gpt.Table {
	system, tree := layout.SystemUUID(c.contract.Root()), layout.VerityUUID(c.contract.Root())
	if at, named := layout.FindSlot(s.Table, system, tree); named && (at == c.slot || at == s.State.Booted) {
		return nil
	}
	return layout.Rename(s.Table, c.slot, system, tree)
}

// isGone reports whether a UKI names content that neither the running slot has nor
// the one that holds the new release.
func (s *stager) isGone(n bls.Name, c *candidate) bool {
	have, _, err := s.ContractOf(n)
	return err == nil && !bytes.Equal(have.RootHash, s.Contract.RootHash) && !bytes.Equal(have.RootHash, c.contract.RootHash)
}

// admit says what lets the release unlock the root partition, having done all of it
// that can fail without writing. Secure Boot's register will hold what it
// holds now: the same keys, and the same one of them signs.
func (s *stager) admit(c *candidate) (admission, error) {
	if s.Lock == nil || s.Lock.Sealed == nil {
		return admission{}, nil // a person unlocks it
	}
	if s.Chip.Err != nil {
		return s.unrecorded()
	}
	start, err := s.ToldStart()
	if err != nil {
		return admission{}, err
	}
	fresh, err := rootpart.ReadImage(c.uki)
	if err != nil {
		return admission{}, fetched.Refused(err)
	}
	if s.Lock.HasPIN() && fresh.Abilities.NewSecret < rootpart.KnowsPIN {
		return admission{}, fetched.Refuse("it knows nothing of PINs, and this machine has one: it would take the root partition for damaged")
	}
	known := s.KnownManagers(start)
	mine, theirs := start.System(start.Running, known, nil), start.System(fresh, known, nil)
	if s.Lock.Sealed.Kind == policy.KindPCR {
		boots, err := s.Resealing(start.Boot, mine, theirs)
		return admission{boots: boots}, err
	}
	if !s.RecordsPolicy() {
		return admission{}, errors.New("the TPM did not unlock this boot, so that what it would make of the new system is not known")
	}
	able := fresh.Abilities.PolicyRecord >= policy.RecordNewest
	switch {
	case s.Record.Programs && !able:
		return admission{}, fetched.Refuse("it cannot read this machine's record in the TPM, which is over PCR 4")
	case s.Record.Programs && start.Unbound != nil:
		return admission{}, fmt.Errorf("what the TPM will hold in PCR 4 when the new system runs is not known: %w", start.Unbound)
	}
	record, err := s.Record.Admit(start.Boot, able && start.Unbound == nil, mine, theirs)
	return admission{record: record}, err
}

// unrecorded is admit for a machine whose root partition is bound to a TPM that is
// gone, or does not work, and which does without one in this boot: its owner has typed
// the recovery key, and the word where there is a TPM that could not be told. Every
// system asks for the key there, so that there is nothing to admit. The record stays as
// it is: a TPM that comes back does not know the new system, whose owner is then asked
// to accept the machine, once.
//
// A TPM that works again by now is not a reason: the next boot tells it.
func (s *stager) unrecorded() (admission, error) {
	absent := errors.Is(s.Chip.Err, tpm.ErrAbsent) && !s.Chip.Ended
	if s.Contract.TPM != contract.Optional || !absent && !s.Chip.Untold {
		return admission{}, fmt.Errorf("the TPM cannot be told of the new system in this boot: %w", s.Chip.Err)
	}
	return admission{untold: s.Chip.Err}, nil
}
