package screen

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rivo/tview"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/questions"
	"halogenos.internal/boot/words"
)

// first shows the first page: before anything is read or typed, how.
func (u *ui) first() error {
	switch {
	case u.begin.Ask:
		u.chooseLanguage()
	case u.begin.Keymap != "":
		u.chooseKeyboard(u.app.Stop)
	default:
		return u.chooseDisk()
	}
	return nil
}

// chooseLanguage lists the languages, each in its own words.
func (u *ui) chooseLanguage() {
	codes := words.Codes()
	var lines []line
	var all []words.Language
	for _, code := range codes {
		l, _ := words.Find(code) // it is in the list
		all = append(all, l)
		lines = append(lines, line{text: l.Text(words.LanguageName)})
	}
	now := max(0, slices.Index(all, u.Language))
	take := func(i int) {
		u.Language = all[i]
		if u.begin.Keymap == "" {
			u.back()
			return
		}
		u.chooseKeyboard(u.chooseLanguage)
	}
	// Somebody who does not read the language of the page reads its lines.
	list := u.list(lines, now, take, u.app.Stop, func(int) {}).ShowSecondaryText(false)
	also := text("%s", inAll(all, words.InLanguageAlso, "\n"))
	page := tview.NewFlex().SetDirection(tview.FlexRow).AddItem(list, len(lines)+1, 0, true).AddItem(also, 0, 1, false)
	u.show("language", u.frame(inAll(all, words.InLanguageTitle, " / "), u.Text(words.InFirstKeys), page), list)
}

// inAll is a text in all languages.
func inAll(all []words.Language, text, between string) string {
	var said []string
	for _, l := range all {
		said = append(said, l.Text(text))
	}
	slices.Sort(said)
	return strings.Join(slices.Compact(said), between)
}

// chooseKeyboard lists the keymaps, and has the keys type what is taken.
func (u *ui) chooseKeyboard(leave func()) {
	names := keyboard.Keymaps()
	var lines []line
	for _, name := range names {
		lines = append(lines, line{text: strings.TrimSpace(fmt.Sprintf("%-12s %s", name, keyboardName(name)))})
	}
	wrong := text("%s", u.Text(words.InKeyboardHere))
	take := func(i int) {
		k, err := keyboard.FindKeymap(names[i])
		if err == nil {
			err = u.begin.SetKeymap(k)
		}
		if err != nil {
			wrong.SetText(u.Say(words.InKeyboardRefused, u.restore(err)))
			return
		}
		u.begin.Keymap = k.Name
		u.back()
	}
	list := u.list(lines, max(0, slices.Index(names, u.likely(names))), take, leave, func(int) {}).ShowSecondaryText(false)
	page := tview.NewFlex().SetDirection(tview.FlexRow).AddItem(list, 0, 1, true).AddItem(nil, 1, 0, false).AddItem(wrong, 3, 0, false)
	u.show("keyboard", u.frame(u.Text(words.InKeyboardTitle), u.Text(words.InChooseKeys), page), list)
}

// restore has the keys type what they did, after an error that has left them half of one kind.
func (u *ui) restore(err error) error {
	k, before := keyboard.FindKeymap(u.begin.Keymap)
	if before == nil {
		before = u.begin.SetKeymap(k)
	}
	return errors.Join(err, before)
}

// keyboardName is what people call the keyboard of a keymap.
func keyboardName(name string) string {
	k, err := keyboard.FindKeymap(name)
	if err != nil {
		return ""
	}
	return k.Title()
}

// likely is the keymap that the list starts on: one that was named, or that of the language.
func (u *ui) likely(names []string) string {
	if code := u.Code(); u.begin.Keymap == "us" && slices.Contains(names, code) {
		return code
	}
	return u.begin.Keymap
}

// offered are the answers that the questions about the new system start with: what was chosen for
// the installer itself.
func (u *ui) offered(c *questions.Choices) *answers.Answers {
	a := &answers.Answers{Version: answers.Version}
	if !u.begin.Ask {
		return a
	}
	if now, _ := words.OfLocale(c.Language); now != u.Language || c.Language == "" {
		a.Language = localeOf(u.Language, c.Languages)
	}
	if k, err := keyboard.FindKeymap(u.begin.Keymap); err == nil && c.HasKeyboard(k.Layout()) {
		a.Keyboard = k.Layout()
	}
	return a
}

// localeOf is the locale of a language among some: the one of the country that the language has its
// name of, or the first; "" for none.
func localeOf(l words.Language, all []string) string {
	home := l.Code() + "_" + strings.ToUpper(l.Code()) + ".UTF-8"
	if l == words.English {
		home = "en_US.UTF-8"
	}
	if slices.Contains(all, home) {
		return home
	}
	for _, name := range all {
		if of, known := words.OfLocale(name); known && of == l {
			return name
		}
	}
	return ""
}

// typedHere is said where a password is typed on other keys than the new system's; "" where they
// are the same.
func (s *setup) typedHere() string {
	k, err := keyboard.FindKeymap(s.begin.Keymap)
	if err == nil && s.interview.Answers().Keyboard == k.Layout() {
		return ""
	}
	return s.Text(words.InTypedHere)
}
