package modules

import (
	"bytes"
	"path"
	"strings"

	"halogenos.internal/boot/modindex"
)

// PlainName is the name of a module's file once it is unpacked.
func PlainName(name string) string {
	if IsModule(name) && path.Ext(name) != ".ko" {
		return strings.TrimSuffix(name, path.Ext(name))
	}
	return name
}

// plainWord is PlainName for a word of modules.dep, which may end in a colon.
func plainWord(word string) string {
	if name, ok := strings.CutSuffix(word, ":"); ok {
		return PlainName(name) + ":"
	}
	return PlainName(word)
}

// PlainDep returns modules.dep(5), or another text with names of modules' files in it,
// once all modules are unpacked. Whatever else is in it stays.
func PlainDep(text []byte) []byte {
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		for i, word := range strings.Split(string(line), " ") {
			if i > 0 {
				out.WriteByte(' ')
			}
			bare := strings.TrimRight(word, "\n")
			out.WriteString(plainWord(bare) + word[len(bare):])
		}
	}
	return out.Bytes()
}

// PlainDepBin returns modules.dep.bin once all modules are unpacked. What modules are
// called, and their order, stays.
func PlainDepBin(raw []byte) ([]byte, error) {
	x, err := modindex.Parse(raw)
	if err != nil {
		return nil, err
	}
	for _, values := range x {
		for i, v := range values {
			values[i].Text = string(PlainDep([]byte(v.Text)))
		}
	}
	return x.Encode()
}
