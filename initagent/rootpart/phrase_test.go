package rootpart

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
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

// Of a later release is what only that can have made: its box, where no copy of this release's opens.
func TestNewerPhrase(t *testing.T) {
	secret := aSecret(t)
	later, err := secret.Box(rand.Reader, phrasePurpose, []byte{2})
	if err != nil {
		t.Fatal(err)
	}
	ours, err := (&Phrase{Key: aSecret(t), Number: 1}).box(rand.Reader, secret)
	if err != nil {
		t.Fatal(err)
	}
	token := fmt.Errorf("version 9: %w", policy.ErrNewer)
	for name, c := range map[string]struct {
		lock  rootlock.HeldPhrase
		file  []byte
		newer bool
		best  bool
	}{
		"the token says so alone":              {rootlock.HeldPhrase{StrangePhrase: token, StrangeKept: []byte("junk")}, ours, false, true},
		"the token, over this release's box":   {rootlock.HeldPhrase{StrangePhrase: token, StrangeKept: ours}, nil, false, true},
		"the token, with nothing to vouch":     {rootlock.HeldPhrase{StrangePhrase: token}, nil, false, false},
		"the header's box":                     {rootlock.HeldPhrase{StrangePhrase: token, StrangeKept: later}, nil, true, false},
		"the header's box, beside another one": {rootlock.HeldPhrase{StrangePhrase: token, StrangeKept: later}, ours, false, true},
		"the copy":                             {rootlock.HeldPhrase{StrangePhrase: token}, later, true, false},
		"the box of a token that is known":     {rootlock.HeldPhrase{Phrase: &rootlock.Phrase{Kept: later}}, nil, true, false},
	} {
		k, err := Phrases(stored{file: c.file}, &rootlock.Lock{HeldPhrase: c.lock}, secret)
		if err != nil || (k.Newer != nil) != c.newer || (k.Best() != nil) != c.best || !k.Had {
			t.Errorf("%s: %+v, %v", name, k, err)
		}
	}
}

// What says why the phrase is to be shown counts the starts that have shown it, and ends.
func TestUnseenPhrase(t *testing.T) {
	for _, c := range []struct {
		text  string
		why   Unseen
		shown int
	}{
		{"first", FirstPhrase, 0}, {"lost..", LostPhrase, 2}, {"exchanged.", ExchangedPhrase, 1}, {"", LostPhrase, 0}, {"anything", LostPhrase, 0}, {"a.b.", LostPhrase, 1},
		{"lost...", "", 0}, {"first................", "", 0}, {"...", "", 0},
	} {
		if why, shown := unseen([]byte(c.text)); why != c.why || shown != c.shown {
			t.Errorf("%q: %q, %d; want %q, %d", c.text, why, shown, c.why, c.shown)
		}
	}
}

// stored is a root partition with one file; nil is for none.
type stored struct {
	hw.Store
	file []byte
}

func (s stored) Read(string, int64) ([]byte, error) {
	if s.file == nil {
		return nil, fs.ErrNotExist
	}
	return s.file, nil
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
