package rootpart

import (
	"crypto/rand"
	"errors"
	"testing"

	"halogenos.internal/boot/policy"
)

// What the machine secret vouches for comes out as it was; another secret, another size and a
// later release's form do not.
func TestPhraseBox(t *testing.T) {
	secret, key := aSecret(t), aSecret(t)
	p := &Phrase{Key: key, Number: 7, Object: policy.NameOf([]byte("object"))}
	box, err := p.box(rand.Reader, secret)
	if err != nil {
		t.Fatal(err)
	}
	got, err := openPhrase(secret, box)
	if err != nil || !got.Key.Equal(key) || got.Number != 7 || got.Object != p.Object {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := openPhrase(aSecret(t), box); err == nil {
		t.Errorf("by another secret: %+v", got)
	}
	for name, c := range map[string]struct {
		plain []byte
		newer bool
	}{
		"empty": {nil, false}, "of a later form": {[]byte{2}, true}, "of no form": {make([]byte, phraseSize), false},
		"short": {append([]byte{phraseForm}, make([]byte, phraseSize-2)...), false}, "long": {append([]byte{phraseForm}, make([]byte, phraseSize)...), false},
	} {
		box, err := secret.Box(rand.Reader, phrasePurpose, c.plain)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := openPhrase(secret, box); got != nil || err == nil || errors.Is(err, policy.ErrNewer) != c.newer {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// The one with the higher number counts, and of two alike the header's.
func TestBestPhrase(t *testing.T) {
	one, two, other := &Phrase{Number: 1}, &Phrase{Number: 2}, &Phrase{Number: 2}
	for _, c := range []struct{ header, stored, want *Phrase }{
		{nil, nil, nil}, {one, nil, one}, {nil, one, one}, {one, two, two}, {two, one, two}, {two, other, two},
	} {
		if got := (&KeptPhrases{Header: c.header, Copy: c.stored}).Best(); got != c.want {
			t.Errorf("of %v and %v %v, want %v", c.header, c.stored, got, c.want)
		}
	}
}

func aSecret(t *testing.T) *policy.Secret {
	t.Helper()
	s, err := policy.NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
