package etcmerge

import (
	"bytes"
	"context"
	"math"
)

const (
	// maxEdits bounds the lines by which a version may differ from the old image's,
	// those aside that the other does not have at all; the trace of the comparison
	// takes 4 bytes for each pair of them.
	maxEdits = 2048
	// maxSteps bounds the comparisons of two lines in a file, and planSteps in a plan.
	maxSteps  = 32 << 20
	planSteps = 2 * maxSteps
)

// A budget is what a whole plan may still cost.
type budget struct {
	ctx     context.Context
	steps   int // comparisons of two lines
	content int // bytes of merged files that the plan holds
}

// spent reports whether nothing more is to be merged.
func (b *budget) spent() bool { return b.steps <= 0 || b.content <= 0 }

// lacks reports whether a text lacks a line that both others have, or has it less often.
func lacks(text, a, b []byte) bool {
	count := func(text []byte) map[string]int {
		out := map[string]int{}
		for line := range bytes.Lines(text) {
			out[string(bytes.TrimSuffix(line, []byte("\n")))]++
		}
		return out
	}
	has, inA, inB := count(text), count(a), count(b)
	for line, n := range inA {
		if has[line] < min(n, inB[line]) {
			return true
		}
	}
	return false
}

// isText reports whether a file is one that people write: without control characters
// but for those of a terminal's text. What is not UTF-8 may be an older encoding.
func isText(content []byte) bool {
	return !bytes.ContainsFunc(content, func(r rune) bool {
		return r < ' ' && (r < '\t' || r > '\r') && r != '\x1b'
	})
}

// mergeText merges by line, as diff3 does (Khanna, Kunal and Pierce, A Formal
// Investigation of Diff3, 2007): lines that all three have, in the same order, divide
// the text; in between, one side at most may have changed anything, or both the same.
// Changes that touch each other are a conflict. It reports whether it is clean.
//
// Each line of the result is one of ours or of theirs: what is not clean is not merged
// in part.
func (work *budget) mergeText(base, theirs, ours []byte) ([]byte, bool, error) {
	if work.spent() {
		return nil, false, nil
	}
	ids := map[string]int32{}
	b, t, o := splitLines(base, ids), splitLines(theirs, ids), splitLines(ours, ids)
	work.steps -= len(b.ids) + len(t.ids) + len(o.ids)
	toTheirs, ok, err := work.match(b.ids, t.ids)
	if err != nil || !ok {
		return nil, false, err
	}
	toOurs, ok, err := work.match(b.ids, o.ids)
	if err != nil || !ok {
		return nil, false, err
	}
	var out []byte
	i, j, k := 0, 0, 0 // in base, ours, theirs
	for at := 0; at <= len(b.ids); at++ {
		endOurs, endTheirs := len(o.ids), len(t.ids)
		if at < len(b.ids) {
			if toOurs[at] < 0 || toTheirs[at] < 0 {
				continue
			}
			endOurs, endTheirs = int(toOurs[at]), int(toTheirs[at])
		}
		was, here, there := b.part(i, at), o.part(j, endOurs), t.part(k, endTheirs)
		switch {
		case bytes.Equal(here, was), bytes.Equal(here, there):
			out = append(out, there...)
		case bytes.Equal(there, was):
			out = append(out, here...)
		default:
			return nil, false, nil
		}
		if at < len(b.ids) {
			out = append(out, b.part(at, at+1)...)
		}
		i, j, k = at+1, endOurs+1, endTheirs+1
	}
	return out, true, nil
}

// lines is a text with a number for each line; the same line has the same number.
type lines struct {
	text  []byte
	ids   []int32
	start []int // of each line, and the end of the last
}

func (l lines) part(from, to int) []byte { return l.text[l.start[from]:l.start[to]] }

// splitLines cuts a text after each line feed. A last line without one is not the same
// as one with it.
func splitLines(text []byte, ids map[string]int32) lines {
	l := lines{text: text, start: []int{0}}
	for line := range bytes.SplitAfterSeq(text, []byte("\n")) {
		if len(line) == 0 {
			continue
		}
		id, known := ids[string(line)]
		if !known {
			id = int32(len(ids))
			ids[string(line)] = id
		}
		l.ids = append(l.ids, id)
		l.start = append(l.start, l.start[len(l.start)-1]+len(line))
	}
	return l
}

// match finds a longest common subsequence: for each element of a its index in b, or
// -1. It gives up, and reports false, where that takes too long.
func (work *budget) match(a, b []int32) ([]int32, bool, error) {
	out := make([]int32, len(a))
	for i := range out {
		out[i] = -1
	}
	from := 0
	for from < len(a) && from < len(b) && a[from] == b[from] {
		out[from] = int32(from)
		from++
	}
	endA, endB := len(a), len(b)
	for endA > from && endB > from && a[endA-1] == b[endB-1] {
		endA--
		endB--
		out[endA] = int32(endB)
	}
	// What the other side does not have at all matches nothing.
	shortA, atA := common(a[from:endA], b[from:endB])
	shortB, atB := common(b[from:endB], a[from:endA])
	pairs, ok, err := work.editPath(shortA, shortB)
	for _, p := range pairs {
		out[from+atA[p[0]]] = int32(from + atB[p[1]])
	}
	return out, ok, err
}

// common returns those elements of a that b has, and where in a they are.
func common(a, b []int32) (kept []int32, at []int) {
	in := make(map[int32]bool, len(b))
	for _, id := range b {
		in[id] = true
	}
	for i, id := range a {
		if in[id] {
			kept = append(kept, id)
			at = append(at, i)
		}
	}
	return kept, at
}

// editPath returns the pairs of equal elements on a shortest way from a to b (Myers, An
// O(ND) Difference Algorithm, 1986).
func (work *budget) editPath(a, b []int32) ([][2]int, bool, error) {
	n, m := len(a), len(b)
	// reach[d][k] is how far into a the diagonal -d+2k gets with d edits.
	var reach [][]int32
	steps := 0
	defer func() { work.steps -= steps }()
	for d := 0; d <= min(n+m, maxEdits); d++ {
		if err := work.ctx.Err(); err != nil {
			return nil, false, err
		}
		row := make([]int32, d+1)
		for k := range row {
			x, _ := start(reach, d, k)
			y := x - (2*k - d)
			for x < n && y < m && a[x] == b[y] {
				x++
				y++
				steps++
			}
			row[k] = int32(x)
			if 2*k-d == n-m && x >= n {
				return trace(append(reach, row), a, b), true, nil
			}
		}
		if steps += d + 1; steps > min(maxSteps, work.steps) {
			break
		}
		reach = append(reach, row)
	}
	return nil, false, nil
}

// start is where the diagonal begins with its last edit, and whether that edit leaves
// an element of b out of the match (and not one of a).
func start(reach [][]int32, d, k int) (x int, inserted bool) {
	if d == 0 {
		return 0, false
	}
	last := reach[d-1]
	below, above := math.MinInt, math.MinInt
	if k > 0 {
		below = int(last[k-1]) + 1 // an element of a is left out
	}
	if k < d {
		above = int(last[k])
	}
	if above >= below {
		return above, true
	}
	return below, false
}

// trace follows the way back.
func trace(reach [][]int32, a, b []int32) [][2]int {
	var pairs [][2]int
	d := len(reach) - 1
	x := len(a)
	k := (len(a) - len(b) + d) / 2
	for ; d >= 0; d-- {
		from, inserted := start(reach, d, k)
		for x > from {
			x--
			pairs = append(pairs, [2]int{x, x - (2*k - d)})
		}
		if !inserted {
			x--
			k--
		}
	}
	return pairs
}
