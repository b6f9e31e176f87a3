package prompt

import (
	"errors"
	"time"

	"halogenos.internal/boot/keynote"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/phrase"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
)

// wishFile is where the root partition has the running system's wish for another phrase.
const wishFile = rootpart.Shared + "/" + phrase.Wish

// timeout is how long somebody has to answer who has asked, or has just typed a PIN, and presence
// how long a start waits for somebody who may be there.
const (
	timeout  = 2 * time.Minute
	presence = 15 * time.Second
)

// Make makes the first phrase of a machine whose root partition is about to be made, and
// returns what the header is to have of it. No start is worth less for want of one: nil is
// for none, which the next boot makes. From then on h has its key.
func Make(h *host.Host, secret *policy.Secret, sealed *policy.Sealed) *rootlock.Phrase {
	if h.Chip.Err != nil || sealed == nil {
		return nil
	}
	key, err := policy.NewSecret(h.Random)
	var p *rootlock.Phrase
	if err == nil {
		p, err = rootpart.SealPhrase(h.Chip.TPM, h.Random, &rootpart.Phrase{Key: key, Number: 1}, secret, sealed)
	}
	if err != nil {
		h.Log.Say("no phrase was made: %v", err)
		return nil
	}
	h.Phrase = key
	return p
}

// Settle has the header keep the phrase that the machine secret vouches for, as an object that
// the TPM releases to the boots that get that secret, in a boot that got it, and takes its key. A
// machine of an earlier release gets its first one, and one whose secret was sealed to other boots
// since keeps its own. What the TPM alone has given is not this machine's for that: anyone can
// have it seal words of theirs.
//
// It is one header, and after it the copy on the root partition: cut before, the next boot does
// it. A system on trial leaves it to one that stays. None of it is worth a boot. A phrase that the
// TPM has just refused, in a boot that it gave the secret to, is sealed again.
func Settle(h *host.Host, secret *policy.Secret) {
	kept, altered, ok := read(h, secret)
	if !ok {
		return
	}
	defer kept.Wipe()
	best := kept.Best()
	refused := h.PhraseRefused != nil
	if other := takeKey(h, best); best != nil && (other || altered) {
		noteExchanged(h)
	}
	var err error
	switch {
	case h.Chip.Err != nil || h.Lock.Sealed == nil || h.State.Trial:
		return
	case best == nil:
		err = another(h, secret, kept.Had)
	case altered, refused, h.Lock.Phrase == nil, !h.Lock.Phrase.Sealed.LikeBoots(h.Lock.Sealed):
		if err = keep(h, best, secret); err == nil {
			h.Log.Say("the phrase is sealed again")
		}
	case kept.Copy == nil || kept.Copy.Number != best.Number || !kept.Copy.Key.Equal(best.Key):
		keepCopy(h)
	}
	if err != nil {
		h.Log.Say("the phrase was not kept: %v", err)
	}
}

// Typed compares the phrase that this start has shown with what the machine secret vouches for,
// where a recovery key has opened the root partition: Settle does not run in such a boot, and a
// new PIN is about to be typed in it. It returns what the person at the machine is to be told, or
// "". A boot that has shown no phrase is given none.
func Typed(h *host.Host, secret *policy.Secret) string {
	kept, altered, ok := read(h, secret)
	if !ok {
		return ""
	}
	defer kept.Wipe()
	if (h.Phrase == nil || !takeKey(h, kept.Best())) && !altered {
		return ""
	}
	if kept.Best() != nil {
		noteExchanged(h)
	}
	return h.Language.Text(words.PhraseNotThis)
}

// noteExchanged has the phrase shown, and why: the log of a start that goes on to the system is gone
// before anybody has read it. The next start shows it where this one does not.
func noteExchanged(h *host.Host) {
	if err := rootpart.NoteUnseen(h.Store, rootpart.ExchangedPhrase); err != nil {
		h.Log.Say("that the phrase was exchanged will not be shown: %v", err)
	}
}

// read reads the phrases that are kept. altered says that the header has another one than this
// machine has put there last. Where they cannot be read, or are a later release's, ok is false, and
// they are left as they are.
func read(h *host.Host, secret *policy.Secret) (kept rootpart.KeptPhrases, altered, ok bool) {
	kept, err := rootpart.Phrases(h.Store, h.Lock, secret)
	if err == nil {
		err = kept.Newer
	}
	if err != nil {
		kept.Wipe()
		h.Log.Say("the phrase was left as it is: %v", err)
		return kept, false, false
	}
	best := kept.Best()
	switch of := h.Lock.Phrase; {
	case best == nil:
	case of != nil:
		altered = kept.Header == nil || kept.Header.Object != of.Sealed.Name() || kept.Header.Number != best.Number
	default:
		altered = errors.Is(h.Lock.StrangePhrase, policy.ErrNewer) // it says so, and is not
	}
	if altered {
		h.Log.Say("WARNING: what the disk's header had of the phrase is not what this machine has put there last: it was exchanged, put back, or damaged")
	}
	return kept, altered, true
}

// takeKey has this boot show the phrase that the machine secret vouches for, and no other. It
// reports whether it has shown another one.
func takeKey(h *host.Host, kept *rootpart.Phrase) (other bool) {
	other = h.Phrase != nil && (kept == nil || !kept.Key.Equal(h.Phrase))
	if other {
		h.Log.Say("WARNING: the phrase that was shown in this start is not this machine's: somebody has put it into the disk's header")
		h.Phrase.Wipe()
		h.Phrase = nil
	}
	switch {
	case kept == nil:
		h.PhraseRefused = errNone
	case h.Phrase == nil:
		key := *kept.Key
		h.Phrase = &key
	}
	return other
}

// another makes a phrase for a machine that has none that its secret vouches for. Somebody has to
// see it who is asked for a PIN at each start, or has known the one before.
func another(h *host.Host, secret *policy.Secret, had bool) error {
	why, says := rootpart.FirstPhrase, "this machine has a phrase now, which it shows before it asks for a PIN or the recovery key"
	if had {
		why, says = rootpart.LostPhrase, "WARNING: this machine's phrase is lost, and it has another one now: an earlier release has made a new machine secret, or somebody has changed the disk"
	}
	key, err := policy.NewSecret(h.Random)
	if err != nil {
		return err
	}
	p, err := rootpart.SealPhrase(h.Chip.TPM, h.Random, &rootpart.Phrase{Key: key, Number: 1}, secret, h.Lock.Sealed)
	if err == nil && (had || h.Lock.HasPIN()) { // what cannot be made is not announced
		err = rootpart.NoteUnseen(h.Store, why)
	}
	if err == nil {
		err = write(h, p)
	}
	if err != nil {
		key.Wipe()
		return err
	}
	h.Phrase = key
	h.Log.Say("%s", says)
	return nil
}

// keep seals a phrase and writes it into the header, and then the copy.
func keep(h *host.Host, phrase *rootpart.Phrase, secret *policy.Secret) error {
	p, err := rootpart.SealPhrase(h.Chip.TPM, h.Random, phrase, secret, h.Lock.Sealed)
	if err != nil {
		return err
	}
	return write(h, p)
}

func write(h *host.Host, p *rootlock.Phrase) error {
	f, err := h.Disks.OpenPartition(h.Disk, layout.Root, true)
	if err != nil {
		return err
	}
	if err := errors.Join(h.Lock.KeepPhrase(h.Random, f, p), f.Close()); err != nil {
		return err
	}
	keepCopy(h)
	return nil
}

// keepCopy has the root partition keep what the header does: the next start tries again.
func keepCopy(h *host.Host) {
	if err := rootpart.KeepPhraseCopy(h.Store, h.Lock.Phrase); err != nil {
		h.Log.Say("the copy of the phrase was not kept: %v", err)
	}
}

// Noted reports whether New has anything to do.
func Noted(store hw.Store) bool { return wished(store) || rootpart.UnseenPhrase(store) != "" }

func wished(store hw.Store) bool {
	_, err := store.Read(wishFile, 1<<10)
	return err == nil
}

// New shows the phrase where nobody has seen it yet, and makes another one, where the running
// system has asked for that.
func New(h *host.Host) error {
	err := showUnseen(h, rootpart.UnseenPhrase(h.Store))
	if wished(h.Store) {
		err = errors.Join(err, exchange(h))
	}
	return err
}

// showUnseen shows a phrase that was made without anybody's asking, or that somebody has put another
// one in place of, once somebody is there to see it. A machine that nobody is at is kept waiting for
// it at a few starts alone.
func showUnseen(h *host.Host, why rootpart.Unseen) error {
	if why == "" || h.Phrase == nil {
		return nil
	}
	last, err := rootpart.ShowUnseen(h.Store) // before: a cut does not have it shown for ever
	if err != nil {
		return err
	}
	c, err := h.Person.Open(h.Language)
	if err != nil {
		return err
	}
	a, l := &asking{Console: c}, h.Language
	defer a.Close()
	reason, shown := l.Text(words.PhraseFirstOne), l.Say(words.PhraseFresh, phrase.Of(h.Phrase))
	switch why {
	case rootpart.LostPhrase:
		reason = l.Text(words.PhraseLost)
	case rootpart.ExchangedPhrase:
		reason, shown = l.Text(words.PhraseExchanged), l.Say(words.PhraseStays, phrase.Of(h.Phrase))
	}
	wait, question := presence, words.PhraseSeen
	if h.Lock.HasPIN() { // somebody has just typed it
		wait, question = timeout, words.PhraseSeenPIN
	}
	a.PrintSecret(reason+shown, reason+l.Text(words.PhraseElsewhere))
	_, err = a.Ask(l.Text(question), false, wait)
	if errors.Is(err, hw.ErrNobody) {
		if last {
			h.Log.Say("the phrase was shown at %d starts, and nobody has pressed Enter: it is not shown by itself any more", keynote.MaxShown)
			return h.Store.Remove(rootpart.UnseenFile)
		}
		return nil // the next start shows it again
	}
	return errors.Join(err, h.Store.Remove(rootpart.UnseenFile))
}

// exchange makes another phrase, where somebody wants it and says that they know it. The wish
// goes first, so that it is asked once; the phrase before counts until the header has the new one.
// Root of the running system gains the question.
func exchange(h *host.Host) error {
	if err := h.Store.Remove(wishFile); err != nil {
		return err
	}
	c, err := Open(h)
	if err != nil {
		return err
	}
	defer c.Close()
	yes, err := hw.AskYes(c, h.Language.Text(words.PhraseWanted), timeout)
	if err == nil && yes {
		err = replace(h, c)
	} else if err == nil {
		c.Print(h.Language.Text(words.PhraseKept))
	}
	if errors.Is(err, hw.ErrNobody) {
		return nil
	}
	if err != nil {
		c.Print(h.Language.Say(words.PhraseKeptFor, err))
	}
	return err
}

func replace(h *host.Host, c hw.Console) error {
	key, err := policy.NewSecret(h.Random)
	if err != nil {
		return err
	}
	c.PrintSecret(h.Language.Say(words.PhraseFresh, phrase.Of(key)), h.Language.Text(words.PhraseElsewhere))
	yes, err := hw.AskYes(c, h.Language.Text(words.PhraseKnown), timeout)
	if err == nil && !yes {
		c.Print(h.Language.Text(words.PhraseKept))
	}
	if err == nil && yes {
		err = succeed(h, key)
	}
	if err != nil || !yes {
		key.Wipe()
		return err
	}
	if h.Phrase != nil {
		h.Phrase.Wipe()
	}
	h.Phrase = key
	h.Log.Say("the phrase is a new one, which somebody at the machine has confirmed")
	c.Print(h.Language.Text(words.PhraseCounts))
	return nil
}

// succeed has a key be that of the phrase from now on.
func succeed(h *host.Host, key *policy.Secret) error {
	kept, err := rootpart.Phrases(h.Store, h.Lock, h.Secret)
	if err != nil {
		return err
	}
	defer kept.Wipe()
	next := rootpart.Phrase{Key: key, Number: 1}
	if best := kept.Best(); best != nil {
		next.Number = best.Number + 1
	}
	return keep(h, &next, h.Secret)
}
