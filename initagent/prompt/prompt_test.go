package prompt

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/console"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/tpm"
)

// screen is a console with one.
type screen struct {
	hw.Console
	shows  string
	closed bool
}

func (*screen) Room() (columns, lines int) { return 0, 0 }
func (l *low) Language() words.Language    { return words.English }
func (*screen) Language() words.Language   { return words.English }

func (s *screen) Print(text string) {
	if i := strings.LastIndex(text, page); i >= 0 {
		s.shows, text = "", text[i+len(page):]
	}
	s.shows += text
}

func (s *screen) PrintSecret(text, _ string) { s.Print(text) }
func (s *screen) Ask(prompt string, _ bool, _ time.Duration) ([]byte, error) {
	s.Print(prompt)
	return []byte("y"), nil
}
func (s *screen) AskKey(prompt string, _ bool, _ time.Duration) ([]byte, error) {
	s.Print(prompt)
	return nil, nil
}
func (s *screen) Close() error { s.closed = true; return nil }

// A low is a screen of some size, as far as what is shown scrolls on it.
type low struct {
	hw.Console
	columns, lines int
	text           string
	questions      int
	check          func(visible string)
}

func (l *low) Room() (columns, lines int) { return l.columns, l.lines }
func (l *low) Print(text string)          { l.text += console.Wrap(text, l.columns) }
func (l *low) PrintSecret(text, _ string) { l.Print(text) }

// ask shows a question and the rows of its answer, and has what is seen then judged.
func (l *low) ask(prompt string, answer int) {
	l.Print(prompt)
	l.text += strings.Repeat("\n", answer-1)
	rows := strings.Split(l.text, "\n")
	l.questions++
	l.check(strings.Join(rows[max(0, len(rows)-l.lines):], "\n"))
	l.text += "\n"
}

func (l *low) Ask(prompt string, _ bool, _ time.Duration) ([]byte, error) {
	l.ask(prompt, lineRows)
	return nil, nil
}

func (l *low) AskKey(prompt string, _ bool, _ time.Duration) ([]byte, error) {
	l.ask(prompt, keyRows)
	return nil, nil
}

// On the smallest screens the phrase and what it means stand above each question, in each language, after each
// of the longest warnings and after many tries; on a page of another kind they are not put.
func TestPhraseStaysAbove(t *testing.T) {
	for _, size := range []struct{ columns, lines int }{{80, 25}, {80, 24}, {40, 25}, {40, 20}, {53, 30}, {100, 37}, {160, 31}} {
		for _, code := range words.Codes() {
			l, err := words.Find(code)
			if err != nil {
				t.Fatal(err)
			}
			for name, header := range map[string]string{
				"phrase": l.Say(words.PhraseIs, "strawberry grandfather toothpaste basketball"), "none": l.Say(words.PhraseNotShown, l.Text(words.PhraseOther)),
			} {
				at := fmt.Sprintf("%d by %d, %s, %s", size.columns, size.lines, code, name)
				s := &low{columns: size.columns, lines: size.lines}
				want := strings.TrimLeft(console.Wrap(header, size.columns), "\n")
				s.check = func(visible string) {
					if !strings.Contains(visible, want) {
						t.Errorf("%s: question %d stands below\n%s\nwithout\n%s", at, s.questions, visible, want)
					}
				}
				a := &asking{Console: s, columns: size.columns, lines: size.lines}
				a.PrintSecret(header, "")
				a.header, a.below = header, 0
				dialogue(a, l)
				s.check = func(visible string) {
					if strings.Contains(visible, strings.TrimSpace(header)) {
						t.Errorf("%s: it stands on a page of its own:\n%s", at, visible)
					}
				}
				s.text = ""
				a.Print(page + strings.Repeat("a page\n", size.lines-2))
				_, _ = a.Ask("the next?", false, 0)
			}
		}
	}
}

// dialogue asks all that is asked about on one page, with the most that is said before it.
func dialogue(a *asking, l words.Language) {
	_, _ = a.AskKey(l.Text(words.AskKey), true, 0)
	for range 5 {
		a.Print(l.Say(words.TryAgain, words.Errorf(words.NotTheKey, words.Linef(words.LookAtGroups, "1, 2, 3"), words.Errorf(words.WrongPassphrase))))
		_, _ = a.AskKey(l.Text(words.AskKey), true, 0)
	}
	for range 3 {
		_, _ = a.Ask(l.Text(words.AskPIN), true, 0)
		a.Print(l.Say(words.WrongPIN, l.Say(words.TriesLeft, 31, l.Say(words.InMinutes, 1440))))
	}
	_, _ = a.Ask(l.Text(words.ThreeWrong), false, 0)
	a.Print(l.Text(words.WeakerWarning))
	for _, lost := range []string{words.LostManager, words.LostUnseen, words.LostRecord, words.LostPrograms, words.LostPIN, words.LostSecureBoot} {
		a.Print("- " + l.Text(lost) + "\n")
	}
	_, _ = a.Ask(l.Say(words.WeakerAsk, "weaker"), false, 0)
	a.Print(l.Say(words.WithoutTPM, errors.New("it does not answer")))
	_, _ = a.Ask(l.Say(words.WithoutTPMAsk, "weaker"), false, 0)
	for _, question := range []string{l.Text(words.PhraseWanted), l.Text(words.KeyWanted), l.Say(words.GiveKeys, l.Text(words.OrPowerCut)), l.Say(words.LetROM, "a card", [32]byte{})} {
		_, _ = hw.AskYes(a, question, 0)
	}
}

// What was shown goes from the screen with the question, and what was said after the answer
// stays; where nothing was shown the screen is left as it is.
func TestClose(t *testing.T) {
	for _, secret := range []bool{true, false} {
		s := new(screen)
		c := &asking{Console: s}
		if secret {
			c.PrintSecret("the phrase\n", "")
		}
		c.Print("why it asks\n")
		if _, err := hw.AskYes(c, "Well?", 0); err != nil {
			t.Fatal(err)
		}
		c.Print("what comes of it\n")
		if _, err := c.AskKey("Key: ", true, 0); err != nil {
			t.Fatal(err)
		}
		c.Print("and that\n")
		c.Print("is all\n")
		if err := c.Close(); err != nil || !s.closed {
			t.Fatalf("closed %t: %v", s.closed, err)
		}
		want := "and that\nis all\n"
		if !secret {
			want = "why it asks\nWell? [y/N] what comes of it\nKey: " + want
		}
		if s.shows != want {
			t.Errorf("the screen shows %q, want %q", s.shows, want)
		}
	}
}

// A TPM that has not answered for the machine secret, which takes minutes to find out, is not
// asked for the phrase before the recovery key is.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		err  error
		asks bool
	}{{tpm.ErrTimeout, false}, {&tpm.MismatchError{}, false}, {policy.ErrSealed, true}} {
		h := &host.Host{Lock: &rootlock.Lock{HeldPhrase: rootlock.HeldPhrase{Phrase: &rootlock.Phrase{}}}}
		Refused(h, fmt.Errorf("unsealing: %w", c.err))
		if c.asks {
			if h.PhraseRefused != nil {
				t.Errorf("%v: the TPM is not asked", c.err)
			}
		} else if err := unseal(h); !errors.Is(err, c.err) { // there is no TPM: asking panics
			t.Errorf("%v, want %v", err, c.err)
		}
	}
}
