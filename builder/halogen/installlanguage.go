package main

import (
	"halogenos.internal/boot/words"
)

// stickKeymap is the variable by which process 1 of an installer stick says what the keys type,
// and that this program may change it.
const stickKeymap = "HALOGEN_KEYMAP"

// language is the one that the environment names for messages (POSIX.1-2024, XBD 8.2), and whether
// it names one that the catalogue has.
func (c command) language() (l words.Language, known bool) {
	for _, name := range []string{"LC_ALL", "LC_MESSAGES", "LANG"} {
		if value := c.getenv(name); value != "" {
			return words.OfLocale(value)
		}
	}
	return words.English, false
}

// said is an error in a language.
type said struct {
	error
	in words.Language
}

// inLanguage is an error as a person reads it.
func inLanguage(l words.Language, err error) error {
	if err == nil || l == words.English {
		return err
	}
	return said{err, l}
}

// Error implements error.
func (s said) Error() string { return s.in.Error(s.error) }

// Unwrap leads to the error.
func (s said) Unwrap() error { return s.error }
