package recovery

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/console"
	"halogenos.internal/initagent/hw"
)

// ScreenLanguage is the language of the screens before the system runs: the one that the firmware's variable
// names, or the image's, as the boot has it; chosen says which of the two. A variable that names
// none is an error, beside the image's language, which the starts then have.
func (m *Machine) ScreenLanguage() (l words.Language, chosen bool, err error) {
	if line, err := os.ReadFile(m.Path("/proc/cmdline")); err == nil { // without it it is English
		l = words.OfCmdline(string(line))
	}
	_, text, err := m.Variables.Read(words.Variable, nextboot.Vendor)
	if errors.Is(err, fs.ErrNotExist) {
		return l, false, nil
	}
	if err != nil {
		return l, false, err
	}
	remembered, err := words.ParseRemembered(text)
	if err != nil {
		return l, false, err
	}
	return remembered, true, nil
}

// Terminal opens the terminal that a command runs on, in the language of the screens before the system.
func Terminal() (hw.Console, error) {
	var l words.Language
	if m, err := Linux(); err == nil { // no language is worth the command
		l, _, _ = m.ScreenLanguage()
	}
	return console.Here(l)
}

// RememberLanguage has the starts to come ask and tell in a language. One write of a variable, of which a
// cut leaves the language before or this one; where it is remembered already nothing is written.
//
// It needs nobody's consent at the next start, as a PIN does: the variable holds the code of a
// language of the catalogue and nothing else, each language says the same and takes the same
// answers, and words.TestLanguages sees to that. So root who is a stranger, and anyone who can write
// the firmware's variables anyway, has the screens speak another language and weakens nothing.
func (m *Machine) RememberLanguage(l words.Language) error {
	if had, chosen, err := m.ScreenLanguage(); err == nil && chosen && had == l {
		return nil
	}
	if err := m.Variables.WriteAuthenticated(words.Variable, nextboot.Vendor, nextboot.Attributes, l.Remember()); err != nil {
		return fmt.Errorf("leave the language for the starts to come in the firmware's variable %s (is efivarfs mounted, and writable?): %w", words.Variable, err)
	}
	return nil
}
