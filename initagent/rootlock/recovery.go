package rootlock

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/words"
)

// ReadRecovery reports that no recovery key opens the volume, whatever is typed: the disk
// does not give the area of any of their keyslots.
func (l *Lock) ReadRecovery(r io.ReaderAt) error {
	var failed error
	for _, have := range l.Recoveries {
		err := l.Header.ReadKeyslot(r, have.Keyslot)
		if err == nil {
			return nil
		}
		failed = errors.Join(failed, fmt.Errorf("keyslot %d: %w", have.Keyslot, err))
	}
	if failed != nil {
		return fmt.Errorf("the disk fails to read what the recovery key opens the root partition by, so no key is asked for: "+
			"check the disk and its cable, and restart (`exit`); if it stays like this, the disk has to be replaced: %w", failed)
	}
	return nil
}

// OpenRecovery opens the volume with a recovery key that somebody typed, on whatever
// keyboard, and returns the machine secret with it. The caller wipes both.
func (l *Lock) OpenRecovery(r io.ReaderAt, typed []byte, memory uint64) ([]byte, *policy.Secret, error) {
	key, volumeKey, secret, err := l.OpenRecoveryKey(r, typed, memory)
	if err != nil {
		return nil, nil, err
	}
	key.Wipe()
	return volumeKey, secret, nil
}

// OpenRecoveryKey is OpenRecovery for who needs the key as well, and wipes it, too.
func (l *Lock) OpenRecoveryKey(r io.ReaderAt, typed []byte, memory uint64) (*luks2.RecoveryKey, []byte, *policy.Secret, error) {
	keys, err := luks2.ParseRecoveryKeys(typed)
	if err != nil {
		return nil, nil, nil, err
	}
	defer func() {
		for i := range keys {
			keys[i].Wipe()
		}
	}()
	for i := range keys {
		volumeKey, secret, err := l.openRecovery(r, &keys[i], memory)
		switch {
		case errors.Is(err, luks2.ErrPassphrase):
		case err != nil:
			return nil, nil, nil, err
		default:
			key := keys[i]
			return &key, volumeKey, secret, nil
		}
	}
	return nil, nil, nil, words.Errorf(words.NotTheKey, l.pointAt(typed), luks2.ErrPassphrase)
}

func (l *Lock) openRecovery(r io.ReaderAt, key *luks2.RecoveryKey, memory uint64) ([]byte, *policy.Secret, error) {
	passphrase := key.Passphrase()
	defer luks2.Wipe(passphrase)
	volumeKey, opened, err := l.Header.Unlock(r, passphrase, memory, l.recoveryKeyslots()...)
	if err != nil {
		return nil, nil, fmt.Errorf("open the root partition with the recovery key: %w", err)
	}
	raw := key.Bytes()
	defer luks2.Wipe(raw)
	secret, err := policy.OpenEscrow(raw, l.escrow(opened))
	if err != nil {
		luks2.Wipe(volumeKey)
		return nil, nil, fmt.Errorf("the recovery key opens the volume and not what was kept under it: %w", err)
	}
	l.TakePIN(volumeKey, secret)
	l.OpenedBy(volumeKey)
	l.typed = l.ID(opened)
	return volumeKey, secret, nil
}

// Typed is the ID of the recovery key that has opened the volume; "" where none has.
func (l *Lock) Typed() string { return l.typed }

// ID is that of the recovery key with a keyslot; "" where there is none.
func (l *Lock) ID(keyslot int) string {
	for _, r := range l.Recoveries {
		if r.Keyslot == keyslot {
			return r.ID()
		}
	}
	return ""
}

func (l *Lock) recoveryKeyslots() (keyslots []int) {
	for _, have := range l.Recoveries {
		keyslots = append(keyslots, have.Keyslot)
	}
	return keyslots
}

// Checks reports whether the groups of every recovery key have checks, as the header
// says. Anybody with the disk can have it say so: a check that fails keeps no key from
// being tried.
func (l *Lock) Checks() bool {
	without := slices.ContainsFunc(l.Recoveries, func(r Recovery) bool { return !r.Checks })
	return len(l.Recoveries) > 0 && !without
}

// pointAt names the groups that cannot have been typed as they are written.
func (l *Lock) pointAt(typed []byte) words.Line {
	r := luks2.ReadTyped(typed)
	defer r.Wipe()
	switch wrong := r.Wrong(l.Checks()); len(wrong) {
	case 0:
		return words.Fixed("")
	case 1:
		return words.Linef(words.LookAtGroup, wrong[0])
	default:
		return words.Linef(words.LookAtGroups, strings.Trim(strings.ReplaceAll(fmt.Sprint(wrong), " ", ", "), "[]"))
	}
}

func (l *Lock) escrow(keyslot int) []byte {
	for _, r := range l.Recoveries {
		if r.Keyslot == keyslot {
			return r.Escrow
		}
	}
	return nil
}

// AddRecovery adds a recovery key beside those that there are. Cut anywhere, the
// old keys open, and the new one does or does not. Nothing is taken over: the
// volume key, the secret and the key stay the caller's. Added says which one it is.
func (l *Lock) AddRecovery(random io.Reader, d block.Device, volumeKey []byte, secret *policy.Secret, key *luks2.RecoveryKey, k luks2.KDF) error {
	before := l.Recoveries
	err := l.Header.Change(random, d, func(c *luks2.Change) error {
		return addRecovery(random, c, volumeKey, secret, key, k)
	})
	if err != nil {
		return fmt.Errorf("add a recovery key: %w", err)
	}
	if err := l.again(); err != nil {
		return err
	}
	for _, r := range l.Recoveries {
		if !slices.ContainsFunc(before, func(b Recovery) bool { return b.ID() == r.ID() }) {
			l.added = r.ID()
		}
	}
	return nil
}

// Added is the ID of the recovery key that AddRecovery has added last; "" before.
func (l *Lock) Added() string { return l.added }

// errOnlyKey refuses to leave a volume to the TPM alone.
var errOnlyKey = errors.New("no other recovery key would be left")

// RemoveRecoveries removes every recovery key but the one of a keyslot. Tokens
// go after their keyslots: cut in between, the next removal finds what is left.
// The key that stays is not touched, and nor is the TPM's keyslot, whatever names it:
// anybody with the disk can add a token.
func (l *Lock) RemoveRecoveries(random io.Reader, d block.Device, keep int) error {
	if !slices.ContainsFunc(l.Recoveries, func(r Recovery) bool { return r.Keyslot == keep }) {
		return fmt.Errorf("remove recovery keys: %w", errOnlyKey)
	}
	bound := l.tpmKeyslots()
	slots := l.recoveryKeyslots()
	slices.Sort(slots)
	slots = slices.DeleteFunc(slices.Compact(slots), func(n int) bool { return n == keep || slices.Contains(bound, n) })
	return l.remove(random, d, slots, func(t luks2.Token) bool {
		return t.Type == luks2.RecoveryTokenType && !slices.Contains(t.Keyslots, keep)
	})
}

// RemoveRecovery removes one recovery key, by its keyslot.
func (l *Lock) RemoveRecovery(random io.Reader, d block.Device, keyslot int) error {
	if !slices.ContainsFunc(l.Recoveries, func(r Recovery) bool { return r.Keyslot != keyslot }) {
		return fmt.Errorf("remove recovery key: %w", errOnlyKey)
	}
	return l.remove(random, d, []int{keyslot}, func(luks2.Token) bool { return false })
}

// tpmKeyslots are those that any TPM token names.
func (l *Lock) tpmKeyslots() (slots []int) {
	for _, t := range l.Header.Tokens() {
		if t.Type == tpmToken {
			slots = append(slots, t.Keyslots...)
		}
	}
	return slots
}

// remove removes keyslots, and then the tokens that name none any more, or are to go.
func (l *Lock) remove(random io.Reader, d block.Device, slots []int, gone func(luks2.Token) bool) error {
	err := l.Header.Change(random, d, func(c *luks2.Change) error {
		for _, n := range slots {
			if err := c.RemoveKeyslot(n); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = l.Header.Change(random, d, func(c *luks2.Change) error { return l.removeTokens(c, gone) })
	}
	if err != nil {
		return fmt.Errorf("remove recovery keys: %w", err)
	}
	return l.again()
}

func (l *Lock) removeTokens(c *luks2.Change, gone func(luks2.Token) bool) error {
	for number, t := range l.Header.Tokens() {
		empty := (t.Type == luks2.RecoveryTokenType || t.Type == replacedToken) && len(t.Keyslots) == 0
		if !empty && !gone(t) {
			continue
		}
		if err := c.RemoveToken(number); err != nil {
			return err
		}
	}
	return nil
}

// RecoveryID is the ID of the recovery key that is this one, by what opens the volume.
func (l *Lock) RecoveryID(r io.ReaderAt, key *luks2.RecoveryKey, memory uint64) (string, error) {
	keyslot, err := l.RecoveryKeyslot(r, key, memory)
	if err != nil {
		return "", err
	}
	return l.ID(keyslot), nil
}

// RecoveryKeyslot is the keyslot that a recovery key opens.
func (l *Lock) RecoveryKeyslot(r io.ReaderAt, key *luks2.RecoveryKey, memory uint64) (int, error) {
	passphrase := key.Passphrase()
	defer luks2.Wipe(passphrase)
	volumeKey, opened, err := l.Header.Unlock(r, passphrase, memory, l.recoveryKeyslots()...)
	if err != nil {
		return 0, err
	}
	luks2.Wipe(volumeKey)
	return opened, nil
}

// again reads the lock from the header as it is now.
func (l *Lock) again() error {
	now, err := read(l.Header)
	if err != nil {
		return err
	}
	now.Health, now.volume, now.typed, now.added = l.Health, l.volume, l.typed, l.added
	*l = *now
	return nil
}

// EraseKeys overwrites the place of every keyslot of a volume, so that no key
// and no passphrase opens it any more, whatever the header still says. When it
// has returned that survives a power cut. On flash memory the medium may keep
// copies that cannot be reached; what they are worth without the TPM's secret or
// the recovery key is nothing.
func EraseKeys(random io.Reader, d block.Device) error {
	buf := make([]byte, 1<<20)
	for at := int64(headers); at < HeaderArea; at += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), HeaderArea-at)]
		if _, err := io.ReadFull(random, buf); err != nil {
			return fmt.Errorf("random bytes: %w", err)
		}
		if _, err := d.WriteAt(buf, at); err != nil {
			return fmt.Errorf("overwrite the keyslots: %w", err)
		}
	}
	if err := d.Sync(); err != nil {
		return fmt.Errorf("flush the overwritten keyslots: %w", err)
	}
	return nil
}

// EraseHeader zeroes all that makes a partition a volume, after EraseKeys: it
// then looks as if it was never used. Cut anywhere, it looks so, or like a volume
// that nothing opens.
func EraseHeader(d block.Device) error {
	// The keyslots first: what lookUnused takes for a start that was cut is a
	// zeroed place of the headers, and nothing else.
	for _, part := range [][2]int64{{headers, HeaderArea - headers}, {0, headers}} {
		if err := block.Zero(d, part[0], part[1]); err != nil {
			return fmt.Errorf("zero the root partition's header: %w", err)
		}
		if err := d.Sync(); err != nil {
			return fmt.Errorf("flush the root partition's header: %w", err)
		}
	}
	return nil
}
