package scan

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strconv"
)

// An atom or a list of an S-expression (Rivest, "S-Expressions", 1997).
type sexp struct {
	atom []byte
	list []sexp // nil for an atom
}

const (
	maxSexpDepth = 12
	maxSexp      = 64 << 10 // bytes
)

// agentKey finds a secret key as libgcrypt and gpg-agent write it, in canonical
// or in readable form. What only looks like one (the templates that programs
// make keys from, a key that lies on a card) has no secret number in it.
func agentKey(data []byte, at int) (int, bool) {
	start := bytes.LastIndexByte(data[max(0, at-24):at+1], '(')
	if start < 0 {
		return 0, false
	}
	start += max(0, at-24)
	e, _, ok := parseSexp(data[start:min(len(data), start+maxSexp)], 0)
	if !ok || len(e.list) < 2 {
		return 0, false
	}
	switch string(e.list[0].atom) {
	case "private-key", "protected-private-key":
		return start, slices.ContainsFunc(e.list[1].list, secretNumber)
	case "openpgp-private-key":
		return start, slices.ContainsFunc(e.list, secretNumber)
	}
	return 0, false
}

// secretNumber reports whether a list holds a secret number of a key, in the
// clear or encrypted.
func secretNumber(e sexp) bool {
	if len(e.list) < 2 {
		return false
	}
	long := func(e sexp) bool { return len(e.atom) >= 16 }
	switch string(e.list[0].atom) {
	case "d", "x":
		return long(e.list[1])
	case "protected":
		return len(e.list) > 3 && long(e.list[3])
	case "skey":
		return slices.ContainsFunc(e.list, long)
	}
	return false
}

// parseSexp reads one expression and returns what follows it.
func parseSexp(s []byte, depth int) (e sexp, rest []byte, ok bool) {
	s = bytes.TrimLeft(s, " \t\r\n")
	if len(s) == 0 || depth > maxSexpDepth {
		return e, nil, false
	}
	switch c := s[0]; {
	case c == '(':
		e.list = []sexp{}
		for s = s[1:]; ; {
			s = bytes.TrimLeft(s, " \t\r\n")
			if len(s) > 0 && s[0] == ')' {
				return e, s[1:], true
			}
			var member sexp
			if member, s, ok = parseSexp(s, depth+1); !ok {
				return e, nil, false
			}
			e.list = append(e.list, member)
		}
	case c == '#' || c == '"':
		stop := bytes.IndexByte(s[1:], c)
		if stop < 0 {
			return e, nil, false
		}
		e.atom = s[1 : 1+stop]
		if c == '#' {
			digits := bytes.Join(bytes.Fields(e.atom), nil)
			e.atom = make([]byte, len(digits)/2)
			if _, err := hex.Decode(e.atom, digits[:len(digits)/2*2]); err != nil {
				return e, nil, false
			}
		}
		return e, s[stop+2:], true
	case '0' <= c && c <= '9':
		if colon := bytes.IndexByte(s[:min(len(s), 6)], ':'); colon > 0 {
			n, err := strconv.Atoi(string(s[:colon]))
			if err != nil || n < 0 || n > len(s)-colon-1 {
				return e, nil, false
			}
			return sexp{atom: s[colon+1 : colon+1+n]}, s[colon+1+n:], true
		}
	}
	n := 0
	for n < len(s) && (wordByte(s[n]) || bytes.IndexByte([]byte("./:*+=%"), s[n]) >= 0) {
		n++
	}
	return sexp{atom: s[:n]}, s[n:], n > 0
}
