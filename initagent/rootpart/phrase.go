package rootpart

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"halogenos.internal/boot/keynote"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/tpm"
)

// phrasePurpose is of the box in which the header keeps the phrase, and PhraseFile has it again.
const phrasePurpose = "phrase"

// What such a box holds: a byte of its form, the phrase's number (8 bytes, the higher byte first),
// the TPM Name of the object that the key was sealed in, and the key. A release with another version
// of the object has another form of the box, too: earlier ones go by that alone.
const (
	phraseForm = 1
	phraseSize = 1 + 8 + len(policy.Name{}) + 32
)

// maxPhrase bounds PhraseFile, in bytes.
const maxPhrase = 1 << 10

// A Phrase is what the machine secret vouches for of the words that the machine shows.
type Phrase struct {
	Key    *policy.Secret
	Number uint64      // of the machine's phrases, from 1 on: an older one that is put back does not count
	Object policy.Name // the sealed object that this machine has made of it
}

// Wipe overwrites the key.
func (p *Phrase) Wipe() {
	if p != nil {
		p.Key.Wipe()
	}
}

func (p *Phrase) box(random io.Reader, secret *policy.Secret) ([]byte, error) {
	plain := make([]byte, 0, phraseSize)
	plain = binary.BigEndian.AppendUint64(append(plain, phraseForm), p.Number)
	plain = append(plain, p.Object[:]...)
	key := p.Key.Bytes()
	defer clear(key)
	plain = append(plain, key...)
	defer clear(plain)
	return secret.Box(random, phrasePurpose, plain)
}

// openPhrase opens what box has made. One of a later release is policy.ErrNewer.
func openPhrase(secret *policy.Secret, box []byte) (*Phrase, error) {
	plain, err := secret.Unbox(phrasePurpose, box)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	if len(plain) > 0 && plain[0] > phraseForm {
		return nil, fmt.Errorf("phrase of form %d: %w", plain[0], policy.ErrNewer)
	}
	if len(plain) != phraseSize || plain[0] != phraseForm {
		return nil, fmt.Errorf("phrase of %d bytes, want %d of form %d", len(plain), phraseSize, phraseForm)
	}
	p := &Phrase{Number: binary.BigEndian.Uint64(plain[1:])}
	copy(p.Object[:], plain[9:])
	if p.Key, err = policy.SecretFrom(plain[phraseSize-32:]); err != nil {
		return nil, err
	}
	return p, nil
}

// KeptPhrases are the phrases that a machine keeps under its secret. One that is nil is not
// there, or does not open.
type KeptPhrases struct {
	Header, Copy *Phrase
	Newer        error // why what counts is a later release's, or nil
	Had          bool  // there is something of a phrase, whether or not it opens
}

// Phrases reads what the header and the root partition keep of the phrase. Neither is a later
// release's because it says so where anybody can write: the box says it. A file that cannot be
// read now is the error. The caller wipes them.
func Phrases(store hw.Store, lock *rootlock.Lock, secret *policy.Secret) (k KeptPhrases, err error) {
	text, err := store.Read(PhraseFile, maxPhrase)
	unfit := errors.Is(err, hw.ErrUnfit) // the running system can put anything there
	if err != nil && !unfit && !errors.Is(err, fs.ErrNotExist) {
		return k, fmt.Errorf("read %s: %w", PhraseFile, err)
	}
	k.Had = err == nil || unfit || lock.Phrase != nil || lock.StrangePhrase != nil
	kept := lock.StrangeKept
	if lock.Phrase != nil {
		kept = lock.Phrase.Kept
	}
	open := func(box []byte) (p *Phrase, newer error) {
		p, err := openPhrase(secret, box)
		if errors.Is(err, policy.ErrNewer) {
			newer = err
		}
		return p, newer
	}
	var newer error
	k.Header, newer = open(kept)
	k.Copy, k.Newer = open(text)
	if k.Copy == nil && k.Newer == nil { // a copy that opens counts: an old header can be put back
		k.Newer = newer
	}
	return k, nil
}

// Best is the one that counts: the one with the higher number, of two the header's. It is nil
// where there is none.
func (k *KeptPhrases) Best() *Phrase {
	if k.Header == nil || k.Copy != nil && k.Copy.Number > k.Header.Number {
		return k.Copy
	}
	return k.Header
}

// Wipe overwrites their keys.
func (k *KeptPhrases) Wipe() {
	k.Header.Wipe()
	k.Copy.Wipe()
}

// SealPhrase seals a phrase to the boots that the machine secret's object is released to, notes
// which object that is, and puts it under the machine secret. All of it stays the caller's.
func SealPhrase(chip *tpm.TPM, random io.Reader, p *Phrase, secret *policy.Secret, like *policy.Sealed) (*rootlock.Phrase, error) {
	sealed, err := chip.SealPhrase(p.Key, like)
	if err != nil {
		return nil, err
	}
	p.Object = sealed.Name()
	kept, err := p.box(random, secret)
	if err != nil {
		return nil, err
	}
	return &rootlock.Phrase{Sealed: sealed, Kept: kept}, nil
}

// KeepPhraseCopy has the root partition keep what the header keeps of the phrase. Cut before it,
// the copy before is there, or none: the header counts, since its number is as high at least.
func KeepPhraseCopy(store hw.Store, p *rootlock.Phrase) error {
	if err := store.MakeDirectory(OwnDirectory, 0o700); err != nil {
		return err
	}
	return store.Keep(PhraseFile, p.Kept)
}

// CarryPhrase has the phrase come with the header that is about to say that the TPM opens by
// sealed, and that the machine secret is now: the phrase that counts, and not one that somebody has
// put into the header, which would be the machine's own under a fresh secret. It is not worth that
// header: where it fails, the next boot that the TPM opens seals it, or makes another one.
func (b Binding) CarryPhrase(random io.Reader, lock *rootlock.Lock, before, now *policy.Secret, sealed *policy.Sealed) {
	lock.CarryPhrase(nil)
	kept, err := Phrases(b.Store, lock, before)
	if err == nil {
		err = kept.Newer
	}
	defer kept.Wipe()
	if best := kept.Best(); err == nil && best != nil {
		var next *rootlock.Phrase
		if next, err = SealPhrase(b.TPM, random, best, now, sealed); err == nil {
			lock.CarryPhrase(next)
		}
	}
	if err != nil {
		b.Say("%v", fmt.Errorf("the phrase was not sealed again: %w", err))
	}
}

// Unseen is why the phrase is to be shown on a page of its own. It stands in UnseenFile, which goes
// when somebody has seen it: root of the running system can write it, and has a page shown.
type Unseen string

// The reasons.
const (
	FirstPhrase     Unseen = "first"     // the machine has not had one, as far as it knows
	LostPhrase      Unseen = "lost"      // the one before is lost, and nobody has seen this one yet
	ExchangedPhrase Unseen = "exchanged" // somebody has put another one into the header; the phrase is what it was
)

// maxShown is at how many starts it is shown to nobody.
const maxShown = keynote.MaxShown

// unseen reads UnseenFile: a reason, and a dot for each start that has shown it.
func unseen(text []byte) (why Unseen, shown int) {
	why = Unseen(bytes.TrimRight(text, "."))
	if shown = len(text) - len(why); shown >= maxShown {
		return "", 0
	}
	if why != FirstPhrase && why != ExchangedPhrase {
		why = LostPhrase
	}
	return why, shown
}

// UnseenPhrase returns why the phrase is to be shown, or "" where it was seen, or shown often enough.
// What is not a file is none.
func UnseenPhrase(store hw.Store) Unseen {
	text, err := store.Read(UnseenFile, maxUnseen)
	if err != nil {
		return ""
	}
	why, _ := unseen(text)
	return why
}

// maxUnseen bounds UnseenFile, in bytes.
const maxUnseen = 64

// NoteUnseen notes why a phrase is to be shown. What it says already is not written again; that the
// header had another phrase does not take the place of a phrase that nobody has seen. Cut after it,
// the next boot makes the phrase, or shows the one that there is.
func NoteUnseen(store hw.Store, why Unseen) error {
	had := UnseenPhrase(store)
	if had == why || had != "" && why == ExchangedPhrase {
		return nil
	}
	if err := store.MakeDirectory(OwnDirectory, 0o700); err != nil {
		return err
	}
	return store.Keep(UnseenFile, []byte(why))
}

// ShowUnseen counts a start that is about to show the phrase. last says that no other one will,
// unless somebody has it shown.
func ShowUnseen(store hw.Store) (last bool, err error) {
	text, err := store.Read(UnseenFile, maxUnseen)
	if err != nil {
		return false, err
	}
	why, shown := unseen(text)
	shown++
	return shown >= maxShown, store.Keep(UnseenFile, []byte(string(why)+strings.Repeat(".", shown)))
}
