package scan

import "bytes"

// What a key is written as when it is not written as it is: Base64 and
// hexadecimal, in lines, in strings of a program or in an array of numbers, and
// text of which every second byte says nothing (UTF-16, one character a line).

// Sizes below which a text is not decoded: the shortest secret that has a form
// of its own is longer.
const (
	stride      = 16 // characters of the first line
	minBase64   = 44 // characters
	minHex      = 64 // digits
	minNumbers  = 32
	minSpread   = 40       // characters with something between them
	maxEncoded  = 64 << 20 // bytes of one text
	maxBetween  = 48       // bytes between two lines of one text
	base64Chars = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_"
)

// Classes of bytes.
const (
	inBase64 = 1 << iota
	inHex
	inNumbers
	printable
	between // two lines of one text
)

var class = func() (c [256]uint8) {
	set := func(chars string, bit uint8) {
		for i := range len(chars) {
			c[chars[i]] |= bit
		}
	}
	set(base64Chars, inBase64)
	set("0123456789abcdefABCDEF", inHex)
	set("0123456789abcdefABCDEFxX,:-\\ \t\r\n", inNumbers)
	set(" \t\r\n\"'`,+\\#>*|;&.()", between)
	set("\t\r\n", printable)
	for b := ' '; b <= '~'; b++ {
		c[b] |= printable
	}
	return c
}()

// encoded searches what the texts in a file stand for. It looks at every
// sixteenth byte alone until one may be in the middle of such a text.
func (j *job) encoded(name string, data []byte, depth int) error {
	done := 0 // up to here all is decoded
	for i := stride - 1; i < len(data); i += stride {
		start, end, plain := spread(data, done, i)
		if plain == nil {
			start, end, plain = coded(data, done, i)
		}
		if end-start >= maxEncoded {
			j.found(name, ruleUnsearched, int64(start))
			done = end
		}
		if plain != nil {
			if err := j.view(name, start, start, end, plain, depth); err != nil {
				return err
			}
			done = end
		}
		i = max(i, end-1)
	}
	return nil
}

// coded returns where the text around a byte starts and ends, and what it
// stands for.
func coded(data []byte, done, i int) (start, end int, plain []byte) {
	kind := class[data[i]]
	start, end = i, i
	if kind&inBase64 != 0 {
		for start > done && (class[data[start-1]]&inBase64 != 0 || data[start] == '/' && data[start-1] == '\\') {
			start--
		}
		end = segment(data, start)
		if n := end - start; n >= stride && (n >= minBase64 || end < len(data) && class[data[end]]&between != 0) && !same(data[start:start+stride]) {
			end, plain = decodeLines(data, start, end)
			return start, end, plain
		}
	}
	if kind&inNumbers == 0 {
		return start, end, nil
	}
	for start = i; start > done && class[data[start-1]]&inNumbers != 0; start-- {
	}
	for end = i; end < len(data) && end-start < maxEncoded && class[data[end]]&inNumbers != 0; end++ {
	}
	if end-start < 2*minNumbers {
		return start, end, nil
	}
	return start, end, numbers(data[start:end])
}

func same(b []byte) bool { return bytes.Count(b, b[:1]) == len(b) }

// segment returns where the characters of Base64 end that start here. JSON may
// have a backslash before a slash, or a sign by its number.
func segment(data []byte, at int) int {
	stop := min(len(data), at+maxEncoded)
	for at < stop {
		switch {
		case class[data[at]]&inBase64 != 0:
			at++
		case data[at] == '\\' && at+1 < stop && data[at+1] == '/':
			at += 2
		case data[at] == '\\' && at+6 <= stop && escapedSign(data[at:at+6]) != 0:
			at += 6
		default:
			return at
		}
	}
	return at
}

// escapedSign returns the sign of Base64 that an escape of JSON stands for.
func escapedSign(b []byte) byte {
	for sign, escape := range map[byte]string{'+': `\u002b`, '/': `\u002f`, '=': `\u003d`} {
		if bytes.EqualFold(b, []byte(escape)) {
			return sign
		}
	}
	return 0
}

// decodeLines decodes the lines of one text, of which the first is given. All
// have the length of the first but for the last.
func decodeLines(data []byte, start, end int) (int, []byte) {
	text := append([]byte(nil), data[start:end]...)
	for first := end - start; end-start < maxEncoded; {
		next := nextLine(data, end)
		if next == 0 {
			break
		}
		stop := segment(data, next)
		if stop == next || stop-next > first {
			break
		}
		text = append(text, data[next:stop]...)
		if end = stop; stop-next < first {
			break
		}
	}
	hex := true
	for _, c := range text[:min(len(text), minHex)] {
		hex = hex && class[c]&inHex != 0
	}
	if hex && len(text) >= minHex {
		return end, decodeHex(text)
	}
	if len(text) < minBase64 {
		return end, nil
	}
	return end, decodeBase64(text)
}

// nextLine returns where the next line of a text starts, or 0 where what
// follows is something else: a new line as it is or escaped, or the end of a
// string and the start of one, with signs that programs have there.
func nextLine(data []byte, at int) int {
	quotes, lines := 0, 0
	for from := at; at < len(data) && at-from < maxBetween; at++ {
		switch c := data[at]; {
		case c == '\n' || c == '\r':
			lines++
		case c == '"' || c == '\'' || c == '`':
			quotes++
		case c == '\\' && at+1 < len(data) && (data[at+1] == 'n' || data[at+1] == 'r' || data[at+1] == 't'):
			lines++
			at++
		case class[c]&inBase64 != 0 && (c != '+' || quotes != 1):
			if lines > 0 || quotes > 1 {
				return at
			}
			return 0
		case class[c]&between == 0:
			return 0
		}
	}
	return 0
}

var sextet = func() (s [256]int8) {
	for i := range s {
		s[i] = -1
	}
	for i := range len(base64Chars) - 2 {
		s[base64Chars[i]] = int8(i)
	}
	s['-'], s['_'] = 62, 63
	return s
}()

// decodeBase64 decodes both alphabets up to what is in neither.
func decodeBase64(text []byte) []byte {
	plain := make([]byte, 0, len(text)/4*3+3)
	var bits uint32
	for i, n := 0, 0; i < len(text); i++ {
		c := text[i]
		if c == '\\' {
			if i+1 < len(text) && text[i+1] == '/' {
				continue
			}
			if i+6 > len(text) {
				break
			}
			c = escapedSign(text[i : i+6])
			i += 5
		}
		v := sextet[c]
		if v < 0 {
			break
		}
		bits = bits<<6 | uint32(v)
		if n++; n&3 == 0 {
			plain = append(plain, byte(bits>>16), byte(bits>>8), byte(bits))
		} else if i == len(text)-1 && n&3 > 1 { // without padding
			bits <<= 6 * uint(4-n&3)
			plain = append(plain, []byte{byte(bits >> 16), byte(bits >> 8)}[:n&3-1]...)
		}
	}
	return plain
}

func digit(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	default:
		return c&0xdf - 'A' + 10
	}
}

// decodeHex decodes up to what is not a digit.
func decodeHex(text []byte) []byte {
	plain := make([]byte, 0, len(text)/2)
	for ; len(text) > 1 && class[text[0]]&class[text[1]]&inHex != 0; text = text[2:] {
		plain = append(plain, digit(text[0])<<4|digit(text[1]))
	}
	return plain
}
