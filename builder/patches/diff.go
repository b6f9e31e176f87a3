// Package patches makes the patches that boot/patch applies: of the plain files of a new
// system image against those of the same names in an old one.
package patches

import "halogenos.internal/boot/patch"

// diff is a comparison under way, as bsdiff makes it (C. Percival, "Naive differences of
// executable code", 2003): exact matches are found first, and then extended in both
// directions as long as half of the bytes are the same.
type diff struct {
	matcher
	fresh []byte
	// Where the last match that counts starts, in both.
	freshAt, oldAt int

	steps      []patch.Copy
	added, new []byte
}

// enough is by how many bytes a match must be better than going on with the last one.
const enough = 8

// Diff returns the steps that make fresh of old, the differences of what they add and what
// is new in them.
func Diff(old, fresh []byte) (steps []patch.Copy, added, created []byte, err error) {
	sorted, err := suffixes(old)
	if err != nil {
		return nil, nil, nil, err
	}
	d := &diff{matcher: matcher{old, sorted}, fresh: fresh}
	d.run()
	return d.steps, d.added, d.new, nil
}

// same reports whether the old bytes, shifted, have a byte of the new ones.
func (d *diff) same(at, shift int) bool {
	old := at + shift
	return old < len(d.old) && d.old[old] == d.fresh[at]
}

func (d *diff) run() {
	at, length, shift := 0, 0, 0
	for at < len(d.fresh) {
		at += length
		old, known := 0, 0 // known is how many bytes of the match the last shift has, too
		counted := at
		for ; at < len(d.fresh); at++ {
			old, length = d.longest(d.fresh[at:])
			for ; counted < at+length; counted++ {
				if d.same(counted, shift) {
					known++
				}
			}
			if length == known && length != 0 || length > known+enough {
				break
			}
			if d.same(at, shift) {
				known--
			}
		}
		if length == known && at < len(d.fresh) {
			continue // the last match goes on
		}
		d.emit(at, old)
		shift = old - at
	}
}

// emit ends the last match where the next, from at on, begins: both are extended towards
// each other, and what neither has is new.
func (d *diff) emit(at, old int) {
	forward := d.extend(min(at-d.freshAt, len(d.old)-d.oldAt), func(i int) bool { return d.fresh[d.freshAt+i] == d.old[d.oldAt+i] })
	back := 0
	if at < len(d.fresh) {
		back = d.extend(min(at-d.freshAt, old), func(i int) bool { return d.fresh[at-1-i] == d.old[old-1-i] })
	}
	if over := forward + back - (at - d.freshAt); over > 0 {
		forward, back = d.split(at, old, forward, back, over)
	}
	for i := range forward {
		d.added = append(d.added, d.fresh[d.freshAt+i]-d.old[d.oldAt+i])
	}
	fresh := d.fresh[d.freshAt+forward : at-back]
	d.new = append(d.new, fresh...)
	seek := old - back - (d.oldAt + forward)
	if at == len(d.fresh) {
		seek = 0
	}
	d.steps = append(d.steps, patch.Copy{Add: forward, New: len(fresh), Seek: seek})
	d.freshAt, d.oldAt = at-back, old-back
}

// extend returns the length up to which most bytes are the same.
func (d *diff) extend(limit int, same func(int) bool) int {
	best, score, length := 0, 0, 0
	for i := range limit {
		if same(i) {
			score++
		}
		if 2*score-(i+1) > best {
			best, length = 2*score-(i+1), i+1
		}
	}
	return length
}

// split divides what both matches would have, where most bytes are the same.
func (d *diff) split(at, old, forward, back, over int) (int, int) {
	score, best, take := 0, 0, 0
	for i := range over {
		if d.fresh[d.freshAt+forward-over+i] == d.old[d.oldAt+forward-over+i] {
			score++
		}
		if d.fresh[at-back+i] == d.old[old-back+i] {
			score--
		}
		if score > best {
			best, take = score, i+1
		}
	}
	return forward + take - over, back - take
}
