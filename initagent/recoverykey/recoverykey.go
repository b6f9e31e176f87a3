// Package recoverykey shows a recovery key and has it confirmed: a key that nobody has
// written down opens nothing, years later, when it is needed.
//
// It refuses to take a key for confirmed while it can be read off the screen.
package recoverykey

import (
	"errors"
	"io"
	"time"

	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/console"
	"halogenos.internal/initagent/hw"
)

// tries is how often the groups may be mistyped, and the key be shown again, before it
// counts as not confirmed.
const tries = 5

// Text is what is said around the key.
type Text struct {
	Title string // "RECOVERY KEY"
	About string // above the question for its groups; ends with a line end, or is empty
	Later string // what an empty line instead of the groups does
}

// Confirm shows a key, takes it off the screen again, and asks for two groups of it. It
// is not confirmed where somebody puts it off, or nobody answers in time; 0 waits for
// ever. The key stays the caller's.
func Confirm(c hw.Console, random io.Reader, key *luks2.RecoveryKey, text Text, timeout time.Duration) (confirmed bool, err error) {
	wrong, l := "", c.Language()
	for range tries {
		if err := show(c, key, wrong, text); err != nil {
			return false, err
		}
		wait := ""
		switch {
		case timeout == time.Minute:
			wait = l.Text(words.KeyWaitMinute)
		case timeout > 0:
			wait = l.Say(words.KeyWaitMinutes, timeout/time.Minute)
		}
		_, err := c.Ask(l.Say(words.KeyWritten, wait), false, timeout)
		c.Print(page)
		if err != nil {
			return false, unless(err, hw.ErrNobody)
		}
		groups, err := luks2.ConfirmingGroups(random)
		if err != nil {
			return false, err
		}
		if text.About != "" {
			c.PrintSecret("\n"+text.About+"\n", "")
		}
		restore := c.Positions()
		typed, err := c.Ask(l.Say(words.KeyGroups, groups[0], groups[1], text.Later), false, timeout)
		restore()
		c.Print(page) // whatever was answered: what is said about the key can be the phrase
		if err != nil {
			return false, unless(err, hw.ErrNobody)
		}
		if len(typed) == 0 {
			return false, nil
		}
		right := key.Confirms(typed, groups)
		luks2.Wipe(typed)
		if right {
			return true, nil
		}
		wrong = l.Say(words.KeyGroupsWrong, groups[0], groups[1])
	}
	return false, nil
}

// page begins a page: it takes what was there, the key above all, off a screen and out of
// what it has scrolled away (ECMA-48, and the kernel's own console for the last).
const page = "\033[H\033[2J\033[3J"

// show shows the key on a page of its own, which a screen of 80 by 25 holds with the question below
// it: a QR code whose top has scrolled away cannot be scanned. It is shown on the screen, or where there is none on every
// console.
func show(c hw.Console, key *luks2.RecoveryKey, wrong string, text Text) error {
	letters := key.Passphrase()
	defer luks2.Wipe(letters)
	drawn, err := console.QR(string(letters))
	if err != nil {
		return err
	}
	if wrong == "" {
		wrong = "\n"
	}
	l := c.Language()
	// The key is not formatted: what package fmt keeps is not erased.
	c.PrintSecret(page+wrong+drawn+l.Say(words.KeyTitle, text.Title)+string(letters)+"\n", l.Text(words.KeyElsewhere))
	return nil
}

func unless(err, fine error) error {
	if errors.Is(err, fine) {
		return nil
	}
	return err
}
