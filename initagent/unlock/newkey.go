package unlock

import (
	"errors"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"

	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/keynote"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/prompt"
	"halogenos.internal/initagent/recoverykey"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/upper"
)

const (
	// presence is how long somebody has to say that they are there to see a new recovery
	// key, where the machine itself offers one; who has asked for it has SecretTimeout.
	presence = 15 * time.Second

	// WriteTimeout is how long a new recovery key stays on the screen to be written down,
	// and how long its groups are waited for.
	WriteTimeout = 10 * time.Minute
)

// A keyChange makes a new recovery key on a machine that the TPM has opened.
type keyChange struct {
	*host.Host
	note      keynote.Note
	f         hw.File
	volumeKey []byte
	shown     bool // in this boot
}

// KeyNoted reports whether NewKey has anything to do. Unasked it offers a key only until
// somebody has a directory in /home: from then on there is data to be had by a key that
// is shown to anyone who restarts the machine.
func KeyNoted(store hw.Store) bool {
	n := recoverykey.Noted(store)
	return n.Keep != "" || n.Drop != "" || due(store, n)
}

func due(store hw.Store, n keynote.Note) bool { return n.Wanted || n.Due() && !inhabited(store) }

// inhabited reports whether somebody has a directory in /home. One that cannot be listed
// counts.
func inhabited(store hw.Store) bool {
	names, err := store.Names(path.Join(upper.Bind, keephome.Home))
	return err != nil || slices.ContainsFunc(names, func(name string) bool { return name != "lost+found" && !strings.HasPrefix(name, ".") })
}

// NewKey makes a new recovery key, shows it, and has it confirmed, where the note says so,
// and finishes what a cut has left of that. Nobody sees a key who does not say yes first,
// and it was the running system, from the encrypted root partition, or the first boot,
// that asked for one.
//
// The order: the note says that the key before counts, where there is one; the new one is
// added; the note says that it may have been seen, and which it is, where there were
// several; it is shown and confirmed; the note says that it counts; all others go, and the note after them. Cut
// anywhere, the key that the note names opens, and is the only one at the next start,
// which says so of one that was shown and is gone.
func NewKey(h *host.Host) (err error) {
	k := &keyChange{Host: h, note: recoverykey.Noted(h.Store)}
	if k.f, err = h.Disks.OpenPartition(h.Disk, layout.Root, true); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.f.Close()) }()
	gone, err := k.settle()
	if err != nil {
		return err
	}
	due := due(h.Store, k.note)
	if !gone && !due {
		return nil
	}
	c, err := prompt.Open(h)
	if err != nil {
		return err
	}
	defer c.Close()
	if gone {
		err = k.sayVoid(c)
	}
	if due {
		err = errors.Join(err, k.offer(c))
	}
	return err
}

// offer makes a new key, where somebody wants one, and puts it in force, where they
// confirm it.
func (k *keyChange) offer(c hw.Console) error {
	question, timeout := words.KeyOffered, presence
	if k.note.Wanted { // somebody has lost the key, or says so, and is not asked again
		question, timeout = words.KeyWanted, SecretTimeout
		k.note.Wanted, k.note.Unconfirmed, k.note.Shown = false, true, keynote.MaxShown
	} else {
		k.note.Shown++
	}
	before := recoverykey.Noted(k.Store)
	// Before anybody is asked: what is asked for is asked once.
	if err := recoverykey.Note(k.Store, k.note); err != nil {
		return err
	}
	if n := len(k.Lock.Recoveries); n > 1 {
		c.Print(k.Language.Say(words.KeysSeveral, n))
	}
	yes, err := hw.AskYes(c, k.Language.Text(question), timeout)
	switch {
	case errors.Is(err, hw.ErrNobody):
		return nil
	case err != nil:
		return err
	case !yes:
		c.Print(k.Language.Text(words.KeyUnchanged))
		if before.Wanted { // by somebody else than who is here
			before.Wanted = false
			return recoverykey.Note(k.Store, before)
		}
		return nil
	}
	if err = k.replace(c); err != nil {
		c.Print(k.Language.Error(err) + "\n")
	}
	gone, serr := k.settle()
	if serr == nil && gone && k.shown {
		serr = k.sayVoid(c)
	}
	return errors.Join(err, serr)
}

// sayVoid tells anyone who has written a key down that it opens nothing.
func (k *keyChange) sayVoid(c hw.Console) error {
	k.Log.Say("the recovery key that was shown last was not confirmed, and is gone: the one before is in force")
	_, err := c.Ask(k.Language.Text(words.KeyVoid), false, SecretTimeout)
	if errors.Is(err, hw.ErrNobody) {
		return nil
	}
	return err
}

// settle leaves the recovery key that counts alone, where the note names one. gone says
// that one is gone which was shown and not confirmed, now or before a cut.
func (k *keyChange) settle() (gone bool, err error) {
	at := func(id string) int {
		return slices.IndexFunc(k.Lock.Recoveries, func(r rootlock.Recovery) bool { return r.ID() == id })
	}
	several := len(k.Lock.Recoveries) > 1
	switch {
	case k.note.Keep != "":
		n := at(k.note.Keep)
		// With one key alone nothing is gone, whatever the note says, which root can write:
		// somebody would throw away the only one.
		if gone = n >= 0 && several && k.note.Void; n >= 0 && several {
			if err = k.Lock.RemoveRecoveries(k.Random, k.f, k.Lock.Recoveries[n].Keyslot); err != nil {
				return false, err
			}
			k.Log.Say("the recovery keys but one are removed: that one was confirmed, or typed, or is the one before")
		}
	case k.note.Drop != "":
		n := at(k.note.Drop)
		if gone = k.note.Void; n >= 0 && several {
			err = k.Lock.RemoveRecovery(k.Random, k.f, k.Lock.Recoveries[n].Keyslot)
		} else if n >= 0 { // the only one
			gone, k.note.Void = false, false
		}
	default:
		return false, nil
	}
	if err != nil {
		return false, err
	}
	k.note.Keep, k.note.Drop = "", ""
	return gone, recoverykey.Note(k.Store, k.note)
}

// replace adds a key and has it confirmed. Whatever it returns, the note says which counts.
func (k *keyChange) replace(c hw.Console) error {
	k.note = recoverykey.Adding(k.note, k.Lock)
	if err := recoverykey.Note(k.Store, k.note); err != nil {
		k.note.Keep = ""
		return err
	}
	fresh, err := luks2.NewRecoveryKey(k.Random)
	if err != nil {
		return err
	}
	defer fresh.Wipe()
	if k.volumeKey, err = k.OpenByTPM(k.Secret); err != nil {
		return err
	}
	defer luks2.Wipe(k.volumeKey)
	memory, err := k.Memory()
	if err != nil {
		return err
	}
	cpus := runtime.NumCPU()
	kdf := luks2.Argon2id(rootpart.KeyMemory(memory, cpus), cpus)
	if err := k.Lock.AddRecovery(k.Random, k.f, k.volumeKey, k.Secret, &fresh, kdf); err != nil {
		return err
	}
	unseen := k.note.Void
	k.note = recoverykey.Showing(k.note, k.Lock.Added())
	if err := recoverykey.Note(k.Store, k.note); err != nil {
		k.note.Void = unseen
		return err
	}
	k.shown = true
	k.NoteSelf(journal.NewKey, "somebody at the machine has had a new recovery key shown, without the one before")
	confirmed, err := recoverykey.Confirm(c, k.Random, &fresh, recoverykey.Text{Title: k.Language.Text(words.KeyNameNew), Later: k.Language.Text(words.KeyBeforeStays)}, WriteTimeout)
	if err != nil || !confirmed {
		return err
	}
	id, err := k.Lock.RecoveryID(k.f, &fresh, rootpart.KeyLimit(memory)) // by what opens
	if err != nil {
		return err
	}
	before := k.note
	k.note = keynote.Note{Keep: id, Replaced: keynote.Day(k.Now())}
	if err := recoverykey.Note(k.Store, k.note); err != nil {
		k.note = before // it is in force
		return words.Errorf(words.KeyNotInForce, err)
	}
	k.NoteSelf(journal.NewKey, "the new recovery key was confirmed: the one before opens nothing any more")
	c.Print(k.Language.Text(words.KeyConfirmed))
	return nil
}
