package rootlock

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
)

// A Phrase is what the header has of the words that the machine shows before it asks
// somebody. It has a token of its own, which earlier releases leave alone.
type Phrase struct {
	Sealed *policy.Sealed // its key, which the TPM releases to the boots of the machine secret, without a PIN
	Kept   []byte         // its key under the machine secret, so that it can be sealed again
}

// readPhrase reads a token. Of one that it refuses it returns what is kept.
func readPhrase(t luks2.Token) (*Phrase, error) {
	sealed, err := policy.ParseSealedPhrase(t.Fields[sealedField])
	p := &Phrase{Sealed: sealed}
	if kerr := field(t, keptField, &p.Kept); err == nil {
		err = kerr
	}
	if err != nil {
		return p, fmt.Errorf("LUKS2 token %s: %w", phraseToken, err)
	}
	return p, nil
}

// takePhrase takes what a token says of the phrase: of several the first that is understood.
// Where none is, one that calls itself a later release's counts before one that is damaged. Anybody
// with the disk can have it say so: what is kept says whether it is so.
func (l *Lock) takePhrase(p *Phrase, err error) {
	switch {
	case l.Phrase != nil:
	case err == nil:
		l.Phrase, l.StrangePhrase, l.StrangeKept = p, nil, nil
	case l.StrangePhrase == nil || errors.Is(err, policy.ErrNewer):
		l.StrangePhrase, l.StrangeKept = err, p.Kept
	}
}

// setPhrase puts a phrase in place of those that there are; nil leaves them.
func setPhrase(c *luks2.Change, tokens map[int]luks2.Token, p *Phrase) error {
	if p == nil {
		return nil
	}
	sealed, err := p.Sealed.Encode()
	if err != nil {
		return err
	}
	kept, err := json.Marshal(p.Kept)
	if err != nil {
		return err
	}
	for _, number := range slices.Sorted(maps.Keys(tokens)) {
		if tokens[number].Type == phraseToken {
			if err := c.RemoveToken(number); err != nil {
				return err
			}
		}
	}
	_, err = c.AddToken(luks2.Token{Type: phraseToken, Keyslots: []int{}, Fields: map[string]json.RawMessage{sealedField: sealed, keptField: kept}})
	return err
}

// KeepPhrase writes a phrase into the header, in place of the one that is there. Cut before
// the header is whole, the one before is there, or none.
func (l *Lock) KeepPhrase(random io.Reader, d block.Device, p *Phrase) error {
	err := l.Header.Change(random, d, func(c *luks2.Change) error { return setPhrase(c, l.Header.Tokens(), p) })
	l.carried = nil
	if err != nil {
		return fmt.Errorf("keep the phrase in the root partition's header: %w", err)
	}
	return l.again()
}

// CarryPhrase has the phrase come with the next header that says what the TPM opens by: what
// it was sealed to before is then of no use. It is forgotten with that header, even where the
// writing of it fails; nil forgets it now.
func (l *Lock) CarryPhrase(p *Phrase) { l.carried = p }

// A HeldPhrase is what a header says of the machine's phrase.
type HeldPhrase struct {
	Phrase        *Phrase // nil: none was made, or it is not understood
	StrangePhrase error   // why what the header says of the phrase is not understood, or nil: Phrase is nil then
	StrangeKept   []byte  // what the header keeps of such a phrase under the machine secret; or nil

	carried *Phrase // goes into the header with the next TPM token; nil leaves what is there
}
