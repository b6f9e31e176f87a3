package rootlock

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
)

// Of several tokens of a phrase the one that is understood counts, wherever it stands; where none
// is, one of a later release counts before one that is damaged. The secret's own object is none.
func TestPhraseTokens(t *testing.T) {
	secret, err := sealedFor(t, new(policy.Secret)).Encode()
	if err != nil {
		t.Fatal(err)
	}
	good, err := sealedPhrase(t).Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		tokens           []string
		good, newer, bad bool
	}{
		"none":                       {},
		"damaged":                    {tokens: []string{`[]`}, bad: true},
		"the secret's":               {tokens: []string{string(secret)}, bad: true},
		"damaged, then whole":        {tokens: []string{`[]`, string(good)}, good: true},
		"whole, then damaged":        {tokens: []string{string(good), `{}`}, good: true},
		"a later one's, then whole":  {tokens: []string{`{"version":9}`, string(good)}, good: true},
		"damaged, and a later one's": {tokens: []string{`[]`, `{"version":9}`}, newer: true, bad: true},
		"a later one's, and damaged": {tokens: []string{`{"version":9}`, `[]`}, newer: true, bad: true},
	} {
		l := new(Lock)
		for _, sealed := range tt.tokens {
			l.takePhrase(readPhrase(luks2.Token{Type: phraseToken, Fields: map[string]json.RawMessage{sealedField: json.RawMessage(sealed), keptField: json.RawMessage(`"AAAA"`)}}))
		}
		if (l.Phrase != nil) != tt.good || (l.StrangePhrase != nil) != tt.bad || errors.Is(l.StrangePhrase, policy.ErrNewer) != tt.newer {
			t.Errorf("%s: %v, %v", name, l.Phrase, l.StrangePhrase)
		}
	}
}

// sealedPhrase is an object of a phrase's form.
func sealedPhrase(t *testing.T) *policy.Sealed {
	t.Helper()
	of := sealedFor(t, new(policy.Secret))
	of.Phrase = true
	d, err := of.Policy()
	if err != nil {
		t.Fatal(err)
	}
	template := tpm2.Marshal(policy.SealedTemplate(d))
	of.Public = slices.Concat(template[:len(template)-2], of.Public[len(template)-2:])
	return of
}

// What was sealed for a header that was not written does not come with a later one.
func TestCarriedPhrase(t *testing.T) {
	random := rand.NewChaCha8([32]byte{2})
	phrase := &Phrase{Sealed: sealedPhrase(t), Kept: []byte("kept")}
	for name, change := range map[string]func(m *made, l *Lock, sealed *policy.Sealed) error{
		"bind": func(m *made, l *Lock, sealed *policy.Sealed) error {
			return l.Rebind(random, m.disk, m.volumeKey, m.secret, sealed, nil)
		},
		"new secret": func(m *made, l *Lock, sealed *policy.Sealed) error {
			return l.ReplaceSecret(random, m.disk, m.volumeKey, NewSecret{Secret: m.secret, Sealed: sealed, Recovery: &m.old})
		},
	} {
		for _, fails := range []bool{true, false} {
			m := bound(t, random)
			l, err := look(m.disk)
			if err != nil {
				t.Fatal(err)
			}
			l.CarryPhrase(phrase)
			if fails {
				if err := change(m, l, new(policy.Sealed)); err == nil {
					t.Fatalf("%s: it takes an object that is none", name)
				}
			}
			if err := change(m, l, l.Sealed); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if l.Phrase != nil == fails {
				t.Errorf("%s: after a failure: %t, the header has %v", name, fails, l.Phrase)
			}
		}
	}
}
