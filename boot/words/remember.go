package words

import (
	"fmt"
	"strings"
)

// Variable is the EFI variable, of the namespace nextboot.Vendor, by which the boot that takes
// the answers of an installer tells the starts to come of the language. Anybody can write it: it
// says which of the catalogue's languages the screens have, and opens nothing.
const Variable = "HalogenLanguage"

// remembered is what comes before the code there: the form, and its version.
const remembered = "language 1 "

// maxRemembered bounds the variable's content, in bytes.
const maxRemembered = 64

// Remember is the variable's content for a language.
func (l Language) Remember() []byte { return []byte(remembered + l.Code()) }

// ParseRemembered returns the language that a variable's content names.
func ParseRemembered(text []byte) (Language, error) {
	if len(text) > maxRemembered {
		return English, fmt.Errorf("remembered language: %d bytes, more than %d", len(text), maxRemembered)
	}
	code, ok := strings.CutPrefix(string(text), remembered)
	if !ok {
		return English, fmt.Errorf("remembered language: it does not begin with %q", remembered)
	}
	return Find(code)
}
