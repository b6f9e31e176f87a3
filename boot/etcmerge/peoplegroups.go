package etcmerge

import "slices"

// groupsThatStay are the people's groups but for those of the system's that the image does
// not have: nothing is left that belongs to them.
//
// One of the image's own system groups has the image's number: what a program of the image
// runs as is its own, and no number of a person's. Nor has any other group a system number
// that the image gives to another name, which could not run then: it gets an ordinary one.
// Those whose first group it is follow it: else they would be in the group that has its old
// number in the image.
func (s *seating) groupsThatStay() records {
	primary := map[uint32]bool{}
	for _, rec := range s.people["passwd"].lines {
		if n, ok := number(rec.fields[groupField]); ok {
			primary[n] = true
		}
	}
	inImage, free := map[uint32]bool{}, s.freeGroups()
	s.image["group"].numbers(func(_ string, n uint32) { inImage[n] = true })
	moved, stayed := map[uint32]record{}, map[uint32]bool{} // by the number here
	for i, rec := range s.people["group"].lines {
		was, is := s.people["group"].own(rec.name)
		n, has := s.image["group"].own(rec.name)
		rec.fields = slices.Clone(rec.fields)
		switch {
		case has && system(n):
			rec.fields[numberField] = decimal(n)
		case is && system(was) && inImage[was] && (has || primary[was]):
			rec.fields[numberField] = free(was)
		default:
			stayed[was] = stayed[was] || is
			continue
		}
		s.people["group"].lines[i] = rec
		if _, before := moved[was]; is && !before {
			moved[was] = rec
		}
	}
	s.follow(moved, stayed)
	return firstLines(s.people["group"], func(name string) bool {
		n, ok := s.people["group"].own(name)
		_, shared := s.image["group"].get(name)
		if !ok || system(n) && !primary[n] && !shared {
			s.note("group", "group %s, which the image does not have, goes with its members", Name(name))
			return false
		}
		return true
	})
}

// freeGroups gives ordinary numbers in place of others: to all groups with one number the
// same. Where none is free it is that of the group without rights, and the group goes.
func (s *seating) freeGroups() func(was uint32) string {
	pool := poolOf(&table{theirs: s.image["group"], ours: s.people["group"]})
	for _, passwd := range []records{s.image["passwd"], s.people["passwd"]} {
		passwd.numbers(func(_ string, n uint32) { pool.take(n) })
		for _, rec := range passwd.lines {
			if rec.name == "" {
				continue
			}
			if n, ok := number(rec.fields[groupField]); ok {
				pool.take(n)
			}
		}
	}
	given := map[uint32]string{}
	return func(was uint32) string {
		if _, is := given[was]; !is {
			given[was] = nobody
			if n, ok := pool.free(lastSystem+1, nil); ok {
				pool.take(n)
				given[was] = decimal(n)
			}
		}
		return given[was]
	}
}

// follow gives those whose first group has moved, and left no other with its number, its new
// number.
func (s *seating) follow(moved map[uint32]record, stayed map[uint32]bool) {
	for i, rec := range s.people["passwd"].lines {
		was, ok := number(rec.fields[groupField])
		group, follows := moved[was]
		if !ok || !follows || stayed[was] || decimal(was) == group.fields[numberField] {
			continue
		}
		rec.fields = slices.Clone(rec.fields)
		rec.fields[groupField] = group.fields[numberField]
		s.people["passwd"].lines[i] = rec
		s.note("passwd", "user %s: the first group is %s still, which has the number %s now and had %d here", Name(rec.name), Name(group.name), group.fields[numberField], was)
	}
}
