package prompt

import (
	"errors"
	"fmt"
	"time"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/phrase"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
)

// wishFile is where the root partition has the running system's wish for another phrase.
const wishFile = rootpart.Shared + "/" + phrase.Wish

// timeout is how long somebody has to answer.
const timeout = 2 * time.Minute

const (
	wanted = `
A NEW PHRASE: this was asked for from the running system, with ` + "`halogenctl phrase new`" + `.
If it was not you who asked, press Enter: somebody else may be root there. Anything but
y, and two minutes without an answer, leaves the phrase as it is.
Make a new one, and show it here?`

	fresh = `
This machine's NEW PHRASE:

    %s

It is shown before the machine asks for a secret. Other words, or none, mean that
something else asks.
`
	elsewhere = "\nIt is shown on the screen of this machine, and not on this line, which others may record.\n"

	counts = "Do you know it by heart? Anything but y leaves the phrase as it was."
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
		p, err = rootpart.SealPhrase(h.Chip.TPM, h.Random, key, secret, sealed)
	}
	if err != nil {
		h.Log.Say("no phrase was made: %v", err)
		return nil
	}
	h.Phrase = key
	return p
}

// Settle has the header keep a phrase that the TPM gives to the boots that get the machine
// secret, in a boot that got it, and takes its key. A machine of an earlier release gets
// its first one, and one whose secret was sealed to other boots since keeps its own. It is
// one header: cut before, the next boot does it. A system on trial leaves it to one that
// stays. None of it is worth a boot. One that the TPM has just refused, in a boot that it gave
// the secret to, is sealed again.
func Settle(h *host.Host, secret *policy.Secret) {
	kept, err := rootpart.KeptPhrase(h.Lock, secret)
	known := err == nil
	if known && h.Phrase == nil {
		h.Phrase = kept
	} else if known {
		kept.Wipe()
	}
	switch {
	case h.Chip.Err != nil || h.Lock.Sealed == nil || h.State.Trial:
		return
	case h.Lock.StrangePhrase != nil: // it may be a later release's
		h.Log.Say("the phrase is not understood: %v", h.Lock.StrangePhrase)
		return
	case known && h.PhraseRefused == nil && h.Lock.Phrase.Sealed.LikeBoots(h.Lock.Sealed):
		return
	}
	key, says := h.Phrase, "the phrase is sealed again"
	if key == nil {
		says = "this machine has a phrase now, which it shows before it asks for a PIN or the recovery key"
		if key, err = policy.NewSecret(h.Random); err != nil {
			h.Log.Say("no phrase was made: %v", err)
			return
		}
	}
	if err := keep(h, key, secret); err != nil {
		h.Log.Say("the phrase was not kept: %v", err)
		if key != h.Phrase {
			key.Wipe()
		}
		return
	}
	h.Phrase = key
	h.Log.Say("%s", says)
}

// keep seals a phrase and writes it into the header.
func keep(h *host.Host, key, secret *policy.Secret) error {
	p, err := rootpart.SealPhrase(h.Chip.TPM, h.Random, key, secret, h.Lock.Sealed)
	if err != nil {
		return err
	}
	f, err := h.Disks.OpenPartition(h.Disk, layout.Root, true)
	if err != nil {
		return err
	}
	return errors.Join(h.Lock.KeepPhrase(h.Random, f, p), f.Close())
}

// Wished reports whether the running system has asked for another phrase.
func Wished(store hw.Store) bool {
	_, err := store.Read(wishFile, 1<<10)
	return err == nil
}

// New makes another phrase, as the running system has asked, where somebody wants it and says
// that they know it. The wish goes first, so that it is asked once; the phrase before counts
// until the header has the new one. Root of the running system gains the question.
func New(h *host.Host) error {
	if err := h.Store.Remove(wishFile); err != nil {
		return err
	}
	c, err := Open(h)
	if err != nil {
		return err
	}
	defer c.Close()
	yes, err := hw.AskYes(c, wanted, timeout)
	if err == nil && yes {
		err = replace(h, c)
	} else if err == nil {
		c.Print("The phrase stays as it is.\n")
	}
	if errors.Is(err, hw.ErrNobody) {
		return nil
	}
	if err != nil {
		c.Print(fmt.Sprintf("the phrase stays as it is: %v\n", err))
	}
	return err
}

func replace(h *host.Host, c hw.Console) error {
	key, err := policy.NewSecret(h.Random)
	if err != nil {
		return err
	}
	c.PrintSecret(fmt.Sprintf(fresh, phrase.Of(key)), elsewhere)
	yes, err := hw.AskYes(c, counts, timeout)
	if err == nil && !yes {
		c.Print("The phrase stays as it is.\n")
	}
	if err == nil && yes {
		err = keep(h, key, h.Secret)
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
	c.Print("The new phrase counts from now on.\n")
	return nil
}
