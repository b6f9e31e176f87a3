package prompt

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/words"
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

func (*screen) Language() words.Language { return words.English }

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
