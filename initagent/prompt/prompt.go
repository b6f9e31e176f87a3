// Package prompt opens the console for a question to the person at the machine, and shows the
// machine's phrase before it: the words that the TPM gives to this machine's own systems
// alone.
//
// It refuses to leave the phrase on the screen, where the running system would find it.
package prompt

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"halogenos.internal/boot/phrase"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/console"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/tpm"
)

// us is the keymap of a machine that was told nothing, and of releases that know none.
const us = "us"

// Keys says, before a PIN is typed, what the keyboard is taken for, where Open has not said it.
func Keys(h *host.Host) string {
	if named(h) {
		return ""
	}
	return h.Language.Say(words.Keymap, us)
}

// NewKeys says the same before a new PIN, and what another keymap means for it.
func NewKeys(h *host.Host) string {
	if named(h) {
		return "\n" + h.Language.Text(words.OtherKeys)
	}
	return Keys(h)
}

func named(h *host.Host) bool { return h.Keymap != "" && h.Keymap != us }

// page takes what was there off a screen, and out of what it has scrolled away.
const page = "\033[H\033[2J\033[3J"

// Open opens the console, and shows the phrase on it. Closing takes it off the screen again.
func Open(h *host.Host) (hw.Console, error) {
	c, err := h.Person.Open(h.Language)
	if err != nil {
		return nil, err
	}
	a, l := &asking{Console: c}, h.Language
	a.columns, a.lines = c.Room()
	if named(h) {
		c.Print(l.Say(words.Keymap, h.Keymap))
	}
	switch err := unseal(h); {
	case err == nil:
		header := l.Say(words.PhraseIs, phrase.Of(h.Phrase))
		a.PrintSecret(header, l.Text(words.PhraseOnScreen))
		a.header, a.below = header, 0
	case never(h):
		c.Print(l.Text(words.PhraseNoTPM))
	case errors.Is(err, errUnable):
		c.Print(l.Text(words.PhraseUnable))
	case errors.Is(err, errNone):
		c.Print(l.Text(words.PhraseNone))
	default:
		header := l.Say(words.PhraseNotShown, l.Text(why(h, err)))
		c.Print(header)
		a.header = header
	}
	return a, nil
}

// never reports whether there is no TPM, nor ever was one of this volume's: its owner is not
// to be told at each start that something may be wrong.
func never(h *host.Host) bool {
	return errors.Is(h.Chip.Err, tpm.ErrAbsent) && h.Lock != nil && h.Lock.Sealed == nil && h.Lock.Strange == nil && h.Lock.Phrase == nil
}

// Text is what a machine says of its phrase when it has just been made.
func Text(l words.Language, key *policy.Secret) string {
	return l.Say(words.PhraseFirst, phrase.Of(key))
}

// An asking is a console that the phrase was shown on.
type asking struct {
	hw.Console
	shown bool
	since strings.Builder // what was printed after the last answer

	header         string // what was shown of the phrase; "" once another page has taken its place
	below          int    // how many rows there are below it
	columns, lines int    // of the smallest screen; 0 columns where that does not matter
}

// PrintSecret implements hw.Console.
func (a *asking) PrintSecret(text, elsewhere string) {
	a.shown = true
	a.note(text)
	a.Console.PrintSecret(text, elsewhere)
}

// Print implements hw.Console.
func (a *asking) Print(text string) {
	_, _ = a.since.WriteString(text)
	a.note(text)
	a.Console.Print(text)
}

// note counts what is shown below the phrase.
func (a *asking) note(text string) {
	if strings.Contains(text, page) {
		a.header = ""
	}
	a.below += console.Rows(text, a.columns)
}

// again shows the phrase once more, where it would not stand on the screen any more above an answer of
// some rows: a long warning, or several tries, have pushed it off. A question that leaves no room for
// it is shown first, but for its last line. It returns what is still to be asked.
func (a *asking) again(question string, answer int) string {
	left := question
	if a.header != "" && a.columns > 0 {
		header, rows := console.Rows(a.header, a.columns), console.Rows(question, a.columns)+answer
		if header+a.below+rows > a.lines {
			if at := strings.LastIndex(strings.TrimRight(question, "\n"), "\n") + 1; header+rows > a.lines {
				a.Console.Print(question[:at])
				left = question[at:]
			}
			a.showHeader()
		}
	}
	a.below += console.Rows(left, a.columns) + answer
	return left
}

func (a *asking) showHeader() {
	a.below = 0
	if a.shown {
		a.Console.PrintSecret(a.header, "")
		return
	}
	a.Console.Print(a.header)
}

// The rows that an answer takes: a line, or that of a recovery key and what is said of it.
const (
	lineRows = 1
	keyRows  = 3
)

// Ask implements hw.Console.
func (a *asking) Ask(prompt string, hidden bool, timeout time.Duration) ([]byte, error) {
	a.since.Reset()
	return a.Console.Ask(a.again(prompt, lineRows), hidden, timeout)
}

// AskKey implements hw.Console.
func (a *asking) AskKey(prompt string, checks bool, timeout time.Duration) ([]byte, error) {
	a.since.Reset()
	return a.Console.AskKey(a.again(prompt, keyRows), checks, timeout)
}

// Close takes what was shown off the screen, but for what was said after the last answer.
func (a *asking) Close() error {
	if a.shown {
		a.Console.PrintSecret(page+a.since.String(), "")
	}
	return a.Console.Close()
}

// Why a machine has no phrase to show: it has none, and will have none.
var (
	errNone   = errors.New("it has none")
	errUnable = fmt.Errorf("%w, and its TPM cannot keep one", errNone)
)

// unseal takes the phrase's key, where this boot does not know it, from the TPM. That
// releases it to the boots that get the machine secret, without a PIN, and to nobody once a
// volume was opened.
func unseal(h *host.Host) error {
	switch {
	case h.Phrase != nil:
		return nil
	case h.Chip.Err != nil:
		return h.Chip.Err
	case h.Lock == nil:
		return errNone
	case h.Lock.StrangePhrase != nil:
		return h.Lock.StrangePhrase
	case h.Lock.Phrase == nil:
		return without(h)
	case h.PhraseRefused != nil:
		return h.PhraseRefused
	}
	key, _, err := h.Chip.TPM.Unseal(h.Lock.Phrase.Sealed)
	h.Phrase, h.PhraseRefused = key, err
	return err
}

// without says why the header has no phrase. A TPM that has not answered is not asked again.
func without(h *host.Host) error {
	if h.PhraseRefused != nil {
		return errNone
	}
	if able, err := h.Chip.TPM.KeepsPhrases(); err != nil || able {
		return errNone
	}
	return errUnable
}

// Refused notes why the TPM has not released the machine secret to this boot: the phrase is
// under the same policy. A TPM that does not answer is not waited for a second time. Where the
// object of the secret is at fault, that of the phrase need not be.
func Refused(h *host.Host, err error) {
	if h.Phrase == nil && !errors.Is(err, policy.ErrSealed) {
		h.PhraseRefused = err
	}
}

// why says in few words why the phrase cannot be shown: what is wrong with the TPM, or has
// changed since, is said elsewhere.
func why(h *host.Host, err error) string {
	_, mismatch := errors.AsType[*tpm.MismatchError](err)
	switch {
	case errors.Is(err, tpm.ErrAbsent):
		return words.PhraseTPMGone
	case errors.Is(err, policy.ErrNewer):
		return words.PhraseNewer
	case h.Lock.StrangePhrase != nil:
		return words.PhraseDamaged
	case mismatch:
		return words.PhraseOther
	}
	return words.PhraseRefused
}
