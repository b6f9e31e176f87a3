package host

import (
	"errors"
	"fmt"
	"io/fs"

	"halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/words"
)

// remembered reads what was chosen earlier from a variable of the firmware. Anybody can write
// one, so that none is worth a boot: what is damaged counts for nothing, and the log says with
// instead what counts.
func remembered[T any](h *Host, variable string, parse func([]byte) (T, error), instead string) (chosen T, ok bool) {
	_, text, err := h.Variables.Read(variable, nextboot.Vendor)
	if errors.Is(err, fs.ErrNotExist) {
		return chosen, false
	}
	if err == nil {
		chosen, err = parse(text)
	}
	if err != nil {
		h.Log.Say("%s: %v", instead, err)
	}
	return chosen, err == nil
}

// TakeLanguage takes the language that was chosen when the machine was installed, in the place of
// the image's. Each language says the same.
func (h *Host) TakeLanguage() {
	if l, ok := remembered(h, words.Variable, words.ParseRemembered, "the language stays what the image has"); ok {
		h.Language = l
	}
}

// TakeKeymap has the keyboard type what somebody at the recovery console has said that is
// printed on it. That opens nothing.
func (h *Host) TakeKeymap() {
	k, ok := remembered(h, keyboard.Variable, keyboard.ParseRemembered, "the keyboard is taken for a US one")
	if !ok {
		return
	}
	if err := h.Person.Keymap(k); err != nil {
		h.Log.Say("keymap %s: %v", k.Name, err)
		// Not half of one and half of another: what is said before a PIN has to be so.
		us, err := keyboard.FindKeymap("us")
		if err == nil {
			err = h.Person.Keymap(us)
		}
		if err != nil {
			h.Log.Say("keymap us: %v", err)
			h.Keymap = fmt.Sprintf("partly %s, partly us", k.Name)
		}
		return
	}
	h.Keymap = k.Name
}
