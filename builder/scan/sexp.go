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

// agentExamples are the secret numbers of the keys by which libgcrypt tests itself at
// every start, up to their first 32 bytes. Their public numbers others may have, too.
var agentExamples = []string{
	"07ef82500c403899934fe993ac5a36f14ff2df38cf1ef315f205ee4c83edaa19", // rsa.c
	"69c7548c21d0dfea6b9a51c9ead4e27c33d3b3f180316e5bcab92c933f0e4dbc", // dsa.c: RFC 6979, A.2.2
	"c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721", // ecc.c: RFC 6979, A.2.5
	"4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb", // ecc.c: RFC 8032, section 7.1, test 2
	"c4eab05d357007c632f3dbb48489924d552b08fe0c353a0d4a1f00acda2c463a", // ecc.c: RFC 8032, section 7.4, of 1 octet
}

// agentExample reports whether a key starts here whose secret numbers are all of those.
func agentExample(data []byte) bool {
	if len(data) == 0 || data[0] != '(' {
		return false
	}
	e, _, ok := parseSexp(data[:min(len(data), maxSexp)], 0)
	if !ok || len(e.list) < 2 || string(e.list[0].atom) != "private-key" {
		return false
	}
	known := 0
	for _, number := range e.list[1].list {
		if !secretNumber(number) {
			continue
		}
		value := number.list[1].atom
		if !slices.Contains(agentExamples, hex.EncodeToString(value[:min(len(value), 32)])) {
			return false
		}
		known++
	}
	return known > 0
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
