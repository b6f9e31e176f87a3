package scan

import (
	"bytes"
	"strconv"
)

const (
	maxEscapedBefore = 4 << 10  // bytes before an escape that are read with it
	maxEscaped       = 64 << 10 // bytes behind it
)

// escapeAnchors are in texts in which a key is written with the escapes of
// JSON, of a programming language, of HTML or of a URL.
var escapeAnchors = []string{
	`\u00`, `\x02\x01\x0`, `\002\001\00`, `\x00\x00\x00\x0`, `PRIVATE\x20KEY`, `PRIVATE\040KEY`, `PRIVATE%20KEY`, `PRIVATE+KEY`, `PRIVATE&#32;KEY`, `PRIVATE&#x20;KEY`, `&#45;&#45;`, `&#x2d;`, `&#x2D;`,
}

// kindOf is the sign that escapes of the kind of an anchor begin with; '+' for a form
// of HTML, in which a plus stands for a space, and others are written with '%'.
func kindOf(data []byte, at int) byte {
	if data[at] == 'P' {
		at += len("PRIVATE")
	}
	return data[at]
}

// escapes searches the text around an escape with all escapes of its kind replaced:
// to another kind's these bytes may look alike by chance. It returns up to where it
// has done so; up to done it has before.
func (j *job) escapes(name string, data []byte, at, done, depth int) (int, error) {
	if at < done {
		return done, nil
	}
	start, end := max(0, at-maxEscapedBefore), min(len(data), at+maxEscaped)
	text := data[start:end]
	plain := unescape(text, kindOf(data, at))
	if len(plain) == len(text) && kindOf(data, at) != '+' {
		return end, nil
	}
	return end, j.view(name, start, at, end, plain, depth)
}

var singleEscapes = map[byte]byte{'n': '\n', 'r': '\r', 't': '\t', '/': '/', '"': '"', '\'': '\'', '\\': '\\', 'a': 7, 'b': 8, 'v': 11, 'f': 12}

// unescape replaces the escapes of a kind: those of JSON, C and Python, of HTML, or of
// URLs.
func unescape(text []byte, kind byte) []byte {
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); {
		c, n := text[i], 1
		switch {
		case kind == '+' && c == '+':
			c = ' '
		case c == kind, kind == '+' && c == '%':
			if plain, length := escape(text[i:]); length > 0 {
				c, n = plain, length
			}
		}
		out = append(out, c)
		i += n
	}
	return out
}

// escape returns what the escape that starts here stands for, and its length; 0
// if none does.
func escape(text []byte) (c byte, n int) {
	number := func(from, to, base int) (byte, int) {
		if to > len(text) {
			return 0, 0
		}
		v, err := strconv.ParseUint(string(text[from:to]), base, 8)
		if err != nil {
			return 0, 0
		}
		return byte(v), to
	}
	if len(text) < 2 {
		return 0, 0
	}
	switch text[0] {
	case '%':
		return number(1, 3, 16)
	case '&':
		stop := bytes.IndexByte(text[:min(len(text), 8)], ';')
		switch {
		case stop < 3 || text[1] != '#':
			return 0, 0
		case text[2] == 'x' || text[2] == 'X':
			c, n = number(3, stop, 16)
		default:
			c, n = number(2, stop, 10)
		}
		if n > 0 {
			n++
		}
		return c, n
	case '\\':
		switch text[1] {
		case 'u':
			return number(2, 6, 16)
		case 'x':
			return number(2, 4, 16)
		case '0', '1', '2', '3':
			if c, n := number(1, 4, 8); n > 0 {
				return c, n
			}
			if text[1] == '0' {
				return 0, 2
			}
		}
		if c, ok := singleEscapes[text[1]]; ok {
			return c, 2
		}
	}
	return 0, 0
}
