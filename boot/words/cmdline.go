package words

import "strings"

// Argument is what the kernel's command line, which is signed, names a language by.
const Argument = "halogen.language="

// OfCmdline returns the language that a kernel's command line names last; English where it names
// none that the catalogue has.
func OfCmdline(line string) (l Language) {
	for word := range strings.FieldsSeq(line) {
		if code, is := strings.CutPrefix(word, Argument); is {
			l, _ = Find(code) // the builder has refused others
		}
	}
	return l
}
