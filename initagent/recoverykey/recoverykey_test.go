package recoverykey

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/hw"
)

// owner is somebody who has or has not written the key down.
type owner struct {
	hw.Console
	t        *testing.T
	key      string
	answers  []string // to the question for groups: "right", or what is typed; none is nobody
	screen   string   // what can be seen
	shown    int
	us       bool // the keys are those of a US keyboard
	language words.Language
}

func (o *owner) Language() words.Language { return o.language }

func (*owner) Room() (columns, lines int) { return 0, 0 }

func (o *owner) Positions() (restore func()) {
	o.us = true
	return func() { o.us = false }
}

// fits checks that a screen of 80 by 25 holds what is shown, with the cursor.
func (o *owner) fits() {
	o.t.Helper()
	rows := strings.Split(strings.TrimPrefix(o.screen, strings.TrimPrefix(page, "\033[H")), "\n")
	if len(rows) > 25 {
		o.t.Errorf("%d lines, of which the first scroll away:\n%s", len(rows), o.screen)
	}
	for _, row := range rows {
		if n := utf8.RuneCountInString(row); n > 79 {
			o.t.Errorf("a line of %d characters: %s", n, row)
		}
	}
}

func (o *owner) Print(text string) {
	if i := strings.LastIndex(text, "\033[2J"); i >= 0 {
		o.screen, text = "", text[i:]
	}
	o.screen += text
}

func (o *owner) PrintSecret(text, _ string) {
	if strings.HasSuffix(text, about+"\n") {
		o.Print(text)
		return
	}
	if !strings.Contains(text, "    "+o.key+"\n") || !strings.Contains(text, "█") {
		o.t.Errorf("shows %q", text)
	}
	o.shown++
	o.Print(text)
}

func (o *owner) Ask(prompt string, hidden bool, timeout time.Duration) ([]byte, error) {
	o.screen += prompt
	o.fits()
	written, _, _ := strings.Cut(o.language.Text(words.KeyWritten), "%")
	if o.us == strings.HasPrefix(prompt, written) {
		o.t.Errorf("at %q the keys are those of a US keyboard: %t", prompt, o.us)
	}
	if strings.HasPrefix(prompt, written) {
		if o.answers == nil {
			return nil, hw.ErrNobody
		}
		return nil, nil
	}
	if strings.Contains(o.screen, o.key[:8]) {
		o.t.Error("the key can be read off the screen")
	}
	if !strings.Contains(o.screen, about) {
		o.t.Errorf("it says nothing about the key:\n%s", o.screen)
	}
	groups, _, _ := strings.Cut(o.language.Text(words.KeyGroups), "\n")
	var a, b int
	if _, err := fmt.Sscanf(prompt, groups, &a, &b); err != nil {
		o.t.Fatalf("%q: %v", prompt, err)
	}
	if len(o.answers) == 0 {
		return nil, hw.ErrNobody
	}
	answer := o.answers[0]
	o.answers = o.answers[1:]
	switch answer {
	case "broken":
		return nil, errors.New("the console broke")
	case "right":
		parts := strings.Split(o.key, "-")
		return []byte(parts[a-1] + " " + parts[b-1]), nil
	}
	return []byte(answer), nil
}

const about = "about the key\n"

// The pages fit a screen of 80 by 25 in each language, with what is said at the first start.
func TestConfirmInEachLanguage(t *testing.T) {
	for _, code := range words.Codes() {
		l, err := words.Find(code)
		if err != nil {
			t.Fatal(err)
		}
		random := rand.NewChaCha8([32]byte{2})
		key, err := luks2.NewRecoveryKey(random)
		if err != nil {
			t.Fatal(err)
		}
		said := l.Text(words.KeyKeep) + l.Say(words.PhraseFirst, strings.Repeat("a", 40)) + about
		if l == words.English { // whose lines are a few characters longer, and are broken by the screen
			said = about
		}
		for _, name := range []string{words.KeyName, words.KeyNameNew} {
			o := &owner{t: t, key: string(key.Passphrase()), answers: []string{"mistyped", "right"}, language: l}
			got, err := Confirm(o, random, &key, Text{Title: l.Text(name), About: said, Later: l.Text(words.KeyBeforeStays)}, 10*time.Minute)
			if !got || err != nil || o.shown != 2 {
				t.Errorf("%s: %t, %v, shown %d times", code, got, err, o.shown)
			}
		}
	}
}

func TestConfirm(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	for _, tt := range []struct {
		name    string
		answers []string
		want    bool
		shown   int
		fails   bool
	}{
		{"nobody", nil, false, 1, false},
		{"nobody answers the second question", []string{}, false, 1, false},
		{"written down", []string{"right"}, true, 1, false},
		{"later", []string{""}, false, 1, false},
		{"mistyped", []string{"cbdefghi cbdefghi", "?", "right"}, true, 3, false},
		{"never written down", []string{"c", "c", "c", "c", "c", "right"}, false, tries, false},
		{"a console that breaks", []string{"broken"}, false, 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			key, err := luks2.NewRecoveryKey(random)
			if err != nil {
				t.Fatal(err)
			}
			o := &owner{t: t, key: string(key.Passphrase()), answers: tt.answers}
			got, err := Confirm(o, random, &key, Text{Title: "NEW RECOVERY KEY", About: about, Later: "later"}, time.Minute)
			if got != tt.want || (err != nil) != tt.fails || o.shown != tt.shown {
				t.Errorf("%t, %v, shown %d times", got, err, o.shown)
			}
			if strings.Contains(o.screen, o.key[:8]) {
				t.Error("the key stays on the screen")
			}
			if strings.Contains(o.screen, about) { // the phrase, at the second boot
				t.Errorf("what is said about the key stays on the screen:\n%s", o.screen)
			}
		})
	}
}
