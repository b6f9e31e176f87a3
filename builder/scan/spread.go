package scan

import (
	"bytes"
	"strconv"
)

// spread returns the characters of a text that has the same sign after each of
// them, or each of them on a line of its own, with where it starts and ends. A
// byte of it is given.
func spread(data []byte, done, i int) (start, end int, plain []byte) {
	if i+6 > len(data) {
		return i, i, nil
	}
	switch gap := data[i+1]; {
	case (gap == 0 || gap == ' ' || gap == ',') && data[i+3] == gap && data[i+5] == gap:
		return spaced(data, done, i, gap)
	case gap == '\n' || gap == '\r':
		return column(data, done, i)
	}
	switch gap := data[i]; {
	case (gap == 0 || gap == ' ' || gap == ',') && data[i+2] == gap && data[i+4] == gap:
		return spaced(data, done, i+1, gap)
	case gap == '\n' || gap == '\r':
		for i+1 < len(data) && lineEnd(data[i]) {
			i++
		}
		return column(data, done, i)
	}
	return i, i, nil
}

func spaced(data []byte, done, i int, gap byte) (start, end int, plain []byte) {
	letter := func(at int) bool {
		if data[at] == gap { // a blank between two words
			return gap == ' ' && at > 1 && at+2 < len(data) && data[at-2] != gap && data[at+2] != gap
		}
		return class[data[at]]&printable != 0
	}
	for start = i; start-2 >= done && data[start-1] == gap && letter(start-2); start -= 2 {
	}
	for end = start; end < len(data) && end-start < maxEncoded && letter(end) && (end == start || data[end-1] == gap); end += 2 {
	}
	if end-start < 2*minSpread {
		return i, i, nil
	}
	for at := start; at < end; at += 2 {
		plain = append(plain, data[at])
	}
	return start, min(end, len(data)), plain
}

func lineEnd(b byte) bool { return b == '\n' || b == '\r' }

// column reads one character a line. An empty line is the end of a line of the
// text.
func column(data []byte, done, i int) (start, end int, plain []byte) {
	letter := func(at int) bool {
		return class[data[at]]&printable != 0 && !lineEnd(data[at]) && (at+1 == len(data) || lineEnd(data[at+1]))
	}
	if i > 0 && !lineEnd(data[i-1]) {
		return i, i, nil
	}
	for start = i; start > done; {
		before := start - 1
		for before > done && lineEnd(data[before]) {
			before--
		}
		if before == start-1 || start-before > 8 || !letter(before) || before > 0 && !lineEnd(data[before-1]) {
			break
		}
		start = before
	}
	for end = start; end < len(data) && end-start < maxEncoded && letter(end); {
		plain = append(plain, data[end])
		from, lines := end+1, 0
		for end++; end < len(data) && end-from < 8 && lineEnd(data[end]); end++ {
			if data[end] == '\n' {
				lines++
			}
		}
		if lines > 1 {
			plain = append(plain, '\n')
		}
	}
	if len(plain) < minSpread {
		return i, i, nil
	}
	return start, end, plain
}

// numbers returns the bytes that an array of numbers holds, in hexadecimal, as
// decimals, also below zero as in Java, or as the escapes of C. A zero byte
// stands between two arrays.
func numbers(text []byte) []byte {
	var out, part []byte
	flush := func() {
		if len(part) >= minNumbers {
			out = append(append(out, part...), 0)
		}
		part = part[:0]
	}
	// All words of an array are written alike; without a prefix the last may be
	// shorter.
	kind, width, decimals := "", 0, false
	for word := range words(text) {
		prefix, value := cutPrefix(word)
		n := 0
		if prefix == "" {
			n = len(value)
			decimals = decimals || n != 2
		}
		last := prefix == "" && kind == "" && n < width
		if !last && (prefix != kind || n != width) {
			flush()
			kind, width = prefix, n
		}
		if part = appendNumber(part, prefix, value); last {
			flush()
			width = 0
		}
	}
	if flush(); !decimals {
		return out
	}
	for word := range words(text) {
		n, err := strconv.Atoi(string(word))
		if err != nil || n < -128 || n > 255 || len(word) > 4 {
			flush()
			continue
		}
		part = append(part, byte(n))
	}
	flush()
	return out
}

func cutPrefix(word []byte) (prefix string, value []byte) {
	for _, prefix := range []string{"0x", "0X", "x", `\x`, `\`} {
		if value, ok := bytes.CutPrefix(word, []byte(prefix)); ok {
			return prefix, value
		}
	}
	return "", word
}

func appendNumber(part []byte, kind string, value []byte) []byte {
	switch {
	case kind == "\\" && len(value) == 3:
		if n, err := strconv.ParseUint(string(value), 8, 8); err == nil {
			return append(part, byte(n))
		}
	case kind != "\\" && len(value) == 1 && class[value[0]]&inHex != 0:
		return append(part, digit(value[0]))
	case kind != "\\" && len(value)%2 == 0:
		return append(part, decodeHex(value)...)
	}
	return part
}

// words splits an array of numbers. A backslash starts a word.
func words(text []byte) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		start := -1
		for i := 0; i <= len(text); i++ {
			space := i == len(text)
			if !space {
				c := text[i]
				space = c == ' ' || c == ',' || c == ':' || c == '\t' || lineEnd(c)
			}
			if start >= 0 && (space || text[i] == '\\') {
				if !yield(text[start:i]) {
					return
				}
				start = -1
			}
			if start < 0 && !space {
				start = i
			}
		}
	}
}
