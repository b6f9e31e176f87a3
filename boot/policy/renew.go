package policy

import (
	"fmt"
	"slices"
)

// Renew returns the record that a machine calls for when a blessed system runs:
// with the branch of the running system, which must be there already, since by it
// the secret was released; with those of the other versions that may still be
// started; and without all others. The floor rises to the running system's epoch
// and never falls; what is under it goes, whoever may still be started.
//
// The record itself is returned when it is that one already.
func (r *Record) Renew(running Digest, startable []uint64) (*Record, error) {
	at := slices.IndexFunc(r.Branches, func(b Branch) bool { return b.Policy == running })
	switch {
	case r.Provisional():
		return nil, fmt.Errorf("%w: there is no volume yet", ErrRecord)
	case at < 0:
		return nil, fmt.Errorf("%w: the running system is not in it", ErrRecord)
	}
	next := &Record{Floor: max(r.Floor, r.Branches[at].Epoch), Volume: r.Volume}
	for i, b := range r.Branches {
		other := b.Version != r.Branches[at].Version && b.Epoch >= next.Floor && slices.Contains(startable, b.Version)
		if i == at || other {
			next.Branches = append(next.Branches, b)
		}
	}
	if next.Floor == r.Floor && len(next.Branches) == len(r.Branches) {
		return r, nil
	}
	return next, next.Validate()
}

// Admit returns the record that lets one more system unlock, beside the running
// one, which must be there. It takes the place of all others: there are two slots.
// The floor stays. The record itself is returned when it is that one already.
func (r *Record) Admit(running Digest, fresh Branch) (*Record, error) {
	at := slices.IndexFunc(r.Branches, func(b Branch) bool { return b.Policy == running })
	switch {
	case r.Provisional():
		return nil, fmt.Errorf("%w: there is no volume yet", ErrRecord)
	case at < 0:
		return nil, fmt.Errorf("%w: the running system is not in it", ErrRecord)
	case fresh.Version <= r.Branches[at].Version:
		return nil, fmt.Errorf("%w: version %d would follow version %d", ErrRecord, fresh.Version, r.Branches[at].Version)
	}
	next := &Record{Floor: r.Floor, Volume: r.Volume, Branches: []Branch{r.Branches[at], fresh}}
	if slices.Equal(next.Branches, r.Branches) {
		return r, nil
	}
	return next, next.Validate()
}
