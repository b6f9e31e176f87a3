package scan

import "bytes"

// block is how many bytes at the start of a pattern the matcher looks for. All
// patterns are at least so long.
const block = 4

// A matcher finds many fixed patterns in one pass (Wu and Manber, "A Fast
// Algorithm for Multi-Pattern Searching", TR-94-17): of most text it looks at
// every third byte pair alone.
type matcher struct {
	// shift is how far one may go on when a pair of bytes is seen at the end
	// of the window of four.
	shift [1 << 16]uint8
	// chain is the first pattern whose window ends with the pair, plus one.
	chain    [1 << 16]uint16
	patterns []pattern
}

type pattern struct {
	text []byte
	rule int
	next uint16 // of the same chain, plus one
}

func pair(a, b byte) int { return int(a) | int(b)<<8 }

// newMatcher takes the anchors of the rules; the rule is named by its index.
func newMatcher(rules []rule) *matcher {
	m := new(matcher)
	for i := range m.shift {
		m.shift[i] = block - 1
	}
	for i, r := range rules {
		for _, anchor := range r.anchors {
			m.add([]byte(anchor), i)
		}
	}
	return m
}

func (m *matcher) add(text []byte, rule int) {
	for end := 1; end < block; end++ {
		at := pair(text[end-1], text[end])
		m.shift[at] = min(m.shift[at], uint8(block-1-end))
	}
	last := pair(text[block-2], text[block-1])
	m.patterns = append(m.patterns, pattern{text: text, rule: rule, next: m.chain[last]})
	m.chain[last] = uint16(len(m.patterns))
}

// find calls found for each pattern in the data, with where it starts, until
// found returns false.
func (m *matcher) find(data []byte, found func(rule, at int) bool) {
	for end := block - 1; end < len(data); {
		p := pair(data[end-1], data[end])
		if s := m.shift[p]; s > 0 {
			end += int(s)
			continue
		}
		start := end - block + 1
		for c := m.chain[p]; c > 0; {
			candidate := &m.patterns[c-1]
			c = candidate.next
			if bytes.HasPrefix(data[start:], candidate.text) && !found(candidate.rule, start) {
				return
			}
		}
		end++
	}
}
