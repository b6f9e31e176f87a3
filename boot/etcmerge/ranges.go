package etcmerge

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// A span is a range of subordinate numbers.
type span struct{ first, count uint64 }

func (s span) end() uint64 { return s.first + s.count }

func (s span) overlaps(o span) bool { return s.first < o.end() && o.first < s.end() }

func spanOf(rec record) (span, bool) {
	first, err := strconv.ParseUint(rec.fields[1], 10, 32)
	count, err2 := strconv.ParseUint(rec.fields[2], 10, 32)
	return span{first, count}, err == nil && err2 == nil && count > 0
}

// mergeRanges merges subuid or subgid, where a name may have several lines. This
// machine's ranges stay, since files of containers belong to them. A new range of the
// image's that would overlap one of them is moved.
func (p *planner) mergeRanges(t *table, passwd records) {
	base, theirs, ours := rangesOf(t.base), rangesOf(t.theirs), rangesOf(t.ours)
	t.out.lines = slices.Clone(t.ours.lines)
	used := slices.Concat(spansOf(t.theirs), spansOf(t.ours))
	slices.SortFunc(used, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	taken := spansOf(t.ours)
	for _, name := range slices.Sorted(maps.Keys(theirs)) {
		was, before := base[name]
		here, now := ours[name]
		unchanged := before && slices.Equal(was, theirs[name])
		if before && !now && p.rangesReturn(t, name, passwd) {
			before, unchanged = false, false
		}
		switch {
		case now && (unchanged || slices.Equal(here, theirs[name])), !now && unchanged:
		case now || before:
			if p.base != nil {
				p.clash(t.path, name, stateLine, fmt.Sprintf("ranges of %s: changed in the image, and %s", Name(name), map[bool]string{true: "this machine's stay", false: "deleted here"}[now]))
				t.clashes = true
			}
		default:
			if p.budget.spent() {
				p.leaveOut(t, name, "ranges of %s are left out: there are too many to compare", Name(name))
				continue
			}
			for _, line := range theirs[name] {
				rec, ok := p.admitRange(t, record{name, strings.Split(line, ":")}, taken, &used)
				if ok {
					t.out.lines = append(t.out.lines, rec)
				}
			}
		}
	}
}

// noteMovedRanges says whose ranges are others in the image than they were, in a file that
// this machine has never changed: the image's are in effect, and files of containers have
// the old numbers.
func (p *planner) noteMovedRanges(t *table) {
	if !t.known {
		return
	}
	base, theirs := rangesOf(t.base), rangesOf(t.theirs)
	for _, name := range slices.Sorted(maps.Keys(base)) {
		if gone := without(base[name], theirs[name]); len(gone) > 0 {
			p.note(t.path, "ranges of %s are others in the image, and in effect; files of containers may have numbers of %s", Name(name), Name(strings.Join(gone, ", ")))
		}
	}
}

// rangesReturn decides over ranges that the old image had as well, and this machine has
// not.
func (p *planner) rangesReturn(t *table, name string, passwd records) bool {
	if t.leftOut[name] {
		return true
	}
	if _, here := passwd.get(name); !here || !p.options.Masked {
		return false
	}
	p.note(t.path, "ranges of %s of the image come in: they were not here, and nobody is known to have removed them", Name(name))
	return true
}

// admitRange takes in a range that is new in the image.
func (p *planner) admitRange(t *table, rec record, taken []span, used *[]span) (record, bool) {
	s, ok := spanOf(rec)
	if !ok || !slices.ContainsFunc(taken, s.overlaps) {
		p.budget.steps -= len(taken)
		return rec, true
	}
	p.budget.steps -= len(taken) + len(*used)
	at := uint64(firstRange)
	for _, o := range *used {
		if at+s.count <= o.first {
			break
		}
		at = max(at, o.end())
	}
	if at+s.count-1 > lastRange {
		p.leaveOut(t, rec.name, "range %d:%d of %s is left out: some of it was given away here, and there is no room for it elsewhere", s.first, s.count, Name(rec.name))
		return rec, false
	}
	p.note(t.path, "range %d:%d of %s begins with %d here: some of it was given away", s.first, s.count, Name(rec.name), at)
	rec.fields[1] = strconv.FormatUint(at, 10)
	i, _ := slices.BinarySearchFunc(*used, at, func(o span, at uint64) int { return cmp.Compare(o.first, at) })
	*used = slices.Insert(*used, i, span{at, s.count})
	return rec, true
}

func rangesOf(r records) map[string][]string {
	out := map[string][]string{}
	for _, rec := range r.lines {
		if rec.name != "" {
			out[rec.name] = append(out[rec.name], rec.line())
		}
	}
	return out
}

func spansOf(r records) []span {
	var out []span
	for _, rec := range r.lines {
		if rec.name == "" {
			continue
		}
		if s, ok := spanOf(rec); ok {
			out = append(out, s)
		}
	}
	return out
}
