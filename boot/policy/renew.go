package policy

import (
	"fmt"
	"slices"
)

// A System is one that may unlock: a release, and the boots that it may come up
// with.
type System struct {
	Version, Epoch uint64
	Boots          []Boot // the likeliest first
	Passing        []Boot // by a boot manager that is being replaced
}

// Compose returns the record that allows these systems. There is room for
// [MaxBranches] boots: the likeliest of each system come first, then those by a boot
// manager that is being replaced, then the less likely ones, as far as they go.
func Compose(floor uint64, volume [32]byte, programs bool, systems ...System) (*Record, error) {
	r := &Record{Floor: floor, Volume: volume, Programs: programs}
	rank := func(s System, n int) (boots []Branch) {
		for i, list := range [][]Boot{s.Boots, s.Passing} {
			if n < len(list) {
				boots = append(boots, Branch{Policy: list[n].branch(programs), Version: s.Version, Epoch: s.Epoch, Passing: programs && i == 1})
			}
		}
		return boots
	}
	for n := range MaxBranches {
		for _, s := range systems {
			for _, b := range rank(s, n) {
				there := slices.ContainsFunc(r.Branches, func(o Branch) bool { return o.Policy == b.Policy && o.Version == b.Version })
				if len(r.Branches) < MaxBranches && !there {
					r.Branches = append(r.Branches, b)
				}
			}
		}
	}
	return r, r.Validate()
}

// running finds the branch of the running system, by which the secret was released.
func (r *Record) running(boot *Boot) (Branch, error) {
	if r.Provisional() {
		return Branch{}, fmt.Errorf("%w: there is no volume yet", ErrRecord)
	}
	d, err := boot.BranchOver(r.PCRs())
	if err != nil {
		return Branch{}, err
	}
	at := slices.IndexFunc(r.Branches, func(b Branch) bool { return b.Policy == d })
	if at < 0 {
		return Branch{}, fmt.Errorf("%w: the running system is not in it", ErrRecord)
	}
	return r.Branches[at], nil
}

// Renewal is what a machine says of itself for [Record.Renew].
type Renewal struct {
	Boot      Boot     // the running system's, blessed
	Startable []uint64 // the other versions that may still be started
	Floor     uint64   // the lowest epoch that the root partition's own note allows
	// OneManager: every boot manager on the ESP, and every copy of one, is that
	// which has started this boot.
	OneManager bool
}

// Replaced reports whether the record names systems, among them a newer one, and this
// version is not among them. That is more than a measurement that differs: such a system
// keeps its version. One that is newer than all of them was installed without the TPM, or
// was on trial and given up.
func (r *Record) Replaced(version uint64) bool {
	mine := func(b Branch) bool { return b.Version == version }
	newer := func(b Branch) bool { return b.Version > version }
	return !r.Provisional() && slices.ContainsFunc(r.Branches, newer) && !slices.ContainsFunc(r.Branches, mine)
}

// Passing reports whether the record allows boots by a boot manager that is being
// replaced.
func (r *Record) Passing() bool {
	return slices.ContainsFunc(r.Branches, func(b Branch) bool { return b.Passing })
}

// Renew returns the record that a machine calls for when a blessed system runs:
// with the branches of the running system, one of which must be there already,
// since by it the secret was released; with those of the other versions that may
// still be started; and without all others. The floor rises to the running
// system's epoch and never falls; what is under it goes, no matter who may still be
// started. Where there is one boot manager left, the boots by the other one go.
//
// The record itself is returned when it is that one already.
func (r *Record) Renew(q Renewal) (*Record, error) {
	mine, err := r.running(&q.Boot)
	if err != nil {
		return nil, err
	}
	next := &Record{Floor: max(r.Floor, mine.Epoch, q.Floor), Volume: r.Volume, Programs: r.Programs, Manager: r.Manager}
	settled := q.OneManager && r.Passing()
	for _, b := range r.Branches {
		if b.Version != mine.Version && (b.Epoch < next.Floor || !slices.Contains(q.Startable, b.Version)) {
			continue
		}
		if settled && b.Passing != mine.Passing {
			continue
		}
		b.Passing = b.Passing && !settled
		next.Branches = append(next.Branches, b)
	}
	if next.Floor == r.Floor && slices.Equal(next.Branches, r.Branches) {
		return r, nil
	}
	return next, next.Validate()
}

// Admit returns the record that lets one more system unlock, beside the running
// one, which must be there and run as boot. It takes the place of all others: there
// are two slots. The floor stays. With programs the new record is over PCR 4;
// without, it must not have been before. The record itself is returned when it is
// that one already.
func (r *Record) Admit(boot Boot, programs bool, mine, fresh System) (*Record, error) {
	have, err := r.running(&boot)
	switch {
	case err != nil:
		return nil, err
	case have.Version != mine.Version || have.Epoch != mine.Epoch:
		return nil, fmt.Errorf("%w: version %d runs, and version %d was released to", ErrRecord, mine.Version, have.Version)
	case fresh.Version <= mine.Version:
		return nil, fmt.Errorf("%w: version %d would follow version %d", ErrRecord, fresh.Version, mine.Version)
	case r.Programs && !programs:
		return nil, fmt.Errorf("%w: it is bound to PCR 4 and would be no more", ErrRecord)
	}
	next, err := Compose(r.Floor, r.Volume, programs, mine, fresh)
	if err != nil {
		return nil, err
	}
	next.TakeManager(r.Manager, boot)
	if _, err := next.running(&boot); err != nil {
		return nil, err
	}
	if next.Programs == r.Programs && slices.Equal(next.Branches, r.Branches) {
		return r, nil
	}
	return next, nil
}
