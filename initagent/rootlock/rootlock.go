// Package rootlock is the lock of the root partition: what its LUKS2 header says
// beyond LUKS2, how it is made, and who may open it.
//
// It refuses to make a volume over anything that may have been one, to accept a
// volume that this machine did not make (its fingerprint is in the TPM, and its
// owner signature is by this machine's Secure Boot key), and to keep a secret longer
// than the call that needed it.
package rootlock

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/rootheader"
)

// Types of our tokens in the LUKS2 header, and their fields.
const (
	tpmToken                = rootheader.TPMToken
	unfinishedToken         = rootheader.UnfinishedToken
	replacedToken           = rootheader.ReplacedToken
	phraseToken             = rootheader.PhraseToken
	escrowField             = rootheader.EscrowField
	checksField             = rootheader.ChecksField
	sealedField             = "sealed"
	ownerSignatureField     = "deed"
	nextOwnerSignatureField = "next_deed"
	pinField                = "pin"  // the stretched PIN under the volume key
	keptField               = "kept" // the phrase's key under the machine secret
)

// HeaderArea is how much of a partition, in bytes, must be zero for it to count
// as never used: provisioning zeroes it before the partition exists.
const HeaderArea = luks2.DataOffset

// headers is how much of it, in bytes, the two copies of a header take.
const headers = 32 << 10

// ErrForeign is wrapped by errors about a volume that this machine did not make.
var ErrForeign = errors.New("this volume was not made by this machine")

// A Lock is what the header says about who opens the volume. Nothing of it is
// secret, and nothing of it is believed before the volume is open.
type Lock struct {
	Header *luks2.Header
	Health luks2.Health

	Sealed             *policy.Sealed // nil: not bound to a TPM
	Strange            error          // why what the header says of the TPM is not understood, or nil: Sealed is nil then
	TPMSlot            int            // -1: none, or it is not known which
	OwnerSignature     []byte         // signature over the volume's fingerprint
	NextOwnerSignature []byte         // the same by the key that is about to replace the first; or nil
	KeptPIN            []byte         // the PIN under the volume key; nil without one
	Recoveries         []Recovery     // by token: one, and two while the key is being replaced
	Unfinished         bool           // provisioning was cut
	Replaced           bool           // the keyslot of an earlier machine secret is still to be removed

	HeldPhrase
	opening
}

// opening is what this boot has done with a lock.
type opening struct {
	volume *[32]byte // the fingerprint of the volume that it has opened; nil until then
	typed  string    // the ID of the recovery key that has opened it; "" until then
	added  string    // the ID of the recovery key that was added last; "" until then
}

// A Recovery is what the header has for a recovery key.
type Recovery struct {
	Token   int
	Keyslot int
	Escrow  []byte // the machine secret under the key
	Checks  bool   // each group of it has a check, which only helps anyone who types it
}

// ID tells a recovery key from every other that the volume has had: keyslots are used
// again.
func (r Recovery) ID() string {
	sum := sha256.Sum256(r.Escrow)
	return fmt.Sprintf("%d-%x", r.Keyslot, sum[:8])
}

// Look reads a partition of size bytes and says in which condition the root
// partition is. The lock is nil unless there is a volume.
func Look(r io.ReaderAt, size int64) (bootflow.Root, *Lock, error) {
	header, health, err := luks2.Open(r, size)
	switch {
	case errors.Is(err, luks2.ErrNotLUKS):
		return lookUnused(r)
	case err != nil:
		return bootflow.RootDamaged, nil, err
	}
	lock, err := read(header)
	if err != nil {
		return bootflow.RootDamaged, nil, err
	}
	lock.Health = health
	if lock.Unfinished {
		return bootflow.RootUnfinished, lock, nil
	}
	return bootflow.RootLocked, lock, nil
}

// lookUnused tells a partition that was never used, or whose formatting was cut
// before it had a header, from one that holds something else. luks2.Format
// zeroes the place of both headers before it touches anything else, and
// partitioning has zeroed all of the area: what neither has done is not ours.
func lookUnused(r io.ReaderAt) (bootflow.Root, *Lock, error) {
	buf := make([]byte, 1<<20)
	found := bootflow.RootBlank
	for off := int64(0); off < HeaderArea; off += int64(len(buf)) {
		if _, err := r.ReadAt(buf, off); err != nil {
			return bootflow.RootDamaged, nil, fmt.Errorf("read the start of the root partition: %w", err)
		}
		if off == 0 && !block.IsZero(buf[:headers]) {
			return bootflow.RootDamaged, nil, errors.New("it holds no LUKS2 volume, and is not empty either: `reset` makes a new one, if nothing on it is wanted")
		}
		if !block.IsZero(buf) {
			found = bootflow.RootUnfinished
		}
	}
	return found, nil, nil
}

func read(header *luks2.Header) (*Lock, error) {
	l := &Lock{Header: header, TPMSlot: -1}
	var broken []error
	bound := 0
	tokens := header.Tokens()
	for _, number := range slices.Sorted(maps.Keys(tokens)) {
		t := tokens[number]
		switch t.Type {
		case unfinishedToken:
			l.Unfinished = true
		case replacedToken:
			l.Replaced = true
		case phraseToken:
			l.takePhrase(readPhrase(t))
		case tpmToken:
			if bound++; bound == 1 {
				broken = append(broken, l.readTPM(t))
			}
		case luks2.RecoveryTokenType:
			r := Recovery{Token: number}
			if err := errors.Join(field(t, escrowField, &r.Escrow), field(t, checksField, &r.Checks)); err != nil {
				broken = append(broken, err) // another one may open
				continue
			}
			if len(t.Keyslots) == 1 { // a key that was being removed has none
				r.Keyslot = t.Keyslots[0]
				l.Recoveries = append(l.Recoveries, r)
			}
		}
	}
	if bound > 1 { // which of them counts is not known
		err := fmt.Errorf("LUKS2 header: %d %s tokens, want one", bound, tpmToken)
		l.Sealed, l.KeptPIN, l.TPMSlot, l.Strange = nil, nil, -1, errors.Join(l.Strange, err)
		broken = append(broken, err)
	}
	if err := errors.Join(broken...); err != nil && len(l.Recoveries) == 0 {
		return nil, err
	}
	return l, nil
}

// readTPM reads what the TPM opens by. Whatever is wrong there, the recovery key needs none
// of it. The error is that of a token without exactly one keyslot.
func (l *Lock) readTPM(t luks2.Token) (wrong error) {
	if len(t.Keyslots) == 1 {
		l.TPMSlot = t.Keyslots[0]
	} else {
		wrong = fmt.Errorf("LUKS2 token %s: %d keyslots, want one", tpmToken, len(t.Keyslots))
	}
	sealed, err := policy.ParseSealed(t.Fields[sealedField])
	err = errors.Join(err, field(t, ownerSignatureField, &l.OwnerSignature), field(t, nextOwnerSignatureField, &l.NextOwnerSignature), field(t, pinField, &l.KeptPIN))
	if err != nil {
		err = fmt.Errorf("LUKS2 token %s: %w", tpmToken, err)
	}
	if err = errors.Join(wrong, err); err != nil {
		l.Strange = errors.Join(l.Strange, err)
		return wrong
	}
	l.Sealed = sealed
	return nil
}

func field(t luks2.Token, name string, into any) error {
	raw, ok := t.Fields[name]
	if !ok {
		return nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("LUKS2 token %s, field %s: %w", t.Type, name, err)
	}
	return nil
}

// Options is what a new volume is made from.
type Options struct {
	UUID   string
	Size   int64 // of the partition, bytes
	Memory uint64
	CPUs   int

	Secret   *policy.Secret     // stays the caller's
	Recovery *luks2.RecoveryKey // stays the caller's
	Sealed   *policy.Sealed     // nil: no TPM
	Phrase   *Phrase            // nil: none yet
	Owner    *rsa.PrivateKey    // makes the owner signature; nil without Secure Boot keys
}

// Make formats a volume with a TPM keyslot (where there is one to bind to) and
// a recovery keyslot, marked as unfinished, and returns its volume key, which
// the caller wipes. Whatever the partition held is lost.
func Make(random io.Reader, d block.Device, o Options) (*Lock, []byte, error) {
	header, volumeKey, err := luks2.Format(random, d, luks2.Options{
		UUID: o.UUID, Label: rootheader.Label, Size: o.Size,
	}, func(c *luks2.Change, volumeKey []byte) error {
		if err := addTPM(random, c, volumeKey, o); err != nil {
			return err
		}
		if err := addRecovery(random, c, volumeKey, o.Secret, o.Recovery, luks2.Argon2id(o.Memory, o.CPUs)); err != nil {
			return err
		}
		if err := setPhrase(c, nil, o.Phrase); err != nil {
			return err
		}
		_, err := c.AddToken(luks2.Token{Type: unfinishedToken, Keyslots: []int{}})
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	lock, err := read(header)
	if err != nil {
		luks2.Wipe(volumeKey)
		return nil, nil, err
	}
	lock.OpenedBy(volumeKey)
	return lock, volumeKey, nil
}

func addTPM(random io.Reader, c *luks2.Change, volumeKey []byte, o Options) error {
	if o.Sealed == nil {
		return nil
	}
	passphrase := o.Secret.LUKSPassphrase()
	defer luks2.Wipe(passphrase)
	n, err := c.AddKeyslot(volumeKey, passphrase, luks2.PBKDF2())
	if err != nil {
		return err
	}
	kept, err := keptPIN(random, volumeKey, o.Secret, o.Sealed)
	if err != nil {
		return err
	}
	token, err := newTPMToken(n, volumeKey, o.Sealed, kept, o.Owner)
	if err != nil {
		return err
	}
	_, err = c.AddToken(token)
	return err
}

func newTPMToken(keyslot int, volumeKey []byte, sealed *policy.Sealed, kept []byte, owner *rsa.PrivateKey) (luks2.Token, error) {
	text, err := sealed.Encode()
	if err != nil {
		return luks2.Token{}, err
	}
	t := luks2.Token{Type: tpmToken, Keyslots: []int{keyslot}, Fields: map[string]json.RawMessage{sealedField: text}}
	if len(kept) > 0 {
		if t.Fields[pinField], err = json.Marshal(kept); err != nil {
			return luks2.Token{}, err
		}
	}
	if owner == nil {
		return t, nil
	}
	signature, err := SignAsOwner(owner, volumeKey)
	if err != nil {
		return luks2.Token{}, err
	}
	t.Fields[ownerSignatureField], err = json.Marshal(signature)
	return t, err
}

func addRecovery(random io.Reader, c *luks2.Change, volumeKey []byte, secret *policy.Secret, key *luks2.RecoveryKey, k luks2.KDF) error {
	passphrase := key.Passphrase()
	defer luks2.Wipe(passphrase)
	n, err := c.AddKeyslot(volumeKey, passphrase, k)
	if err != nil {
		return err
	}
	raw := key.Bytes()
	defer luks2.Wipe(raw)
	escrow, err := policy.Escrow(random, raw, secret)
	if err != nil {
		return err
	}
	token := luks2.RecoveryToken(n)
	if token.Fields == nil {
		token.Fields = map[string]json.RawMessage{}
	}
	if token.Fields[escrowField], err = json.Marshal(escrow); err != nil {
		return err
	}
	if key.Checked() {
		token.Fields[checksField] = json.RawMessage("true")
	}
	_, err = c.AddToken(token)
	return err
}

// Finish takes the mark of an unfinished volume away: from then on it is never
// made again. It is the last write of provisioning; cut before it, provisioning
// starts over, and nobody's data is on the volume yet.
func (l *Lock) Finish(random io.Reader, d block.Device) error {
	err := l.Header.Change(random, d, func(c *luks2.Change) error {
		for n, t := range l.Header.Tokens() {
			if t.Type == unfinishedToken {
				if err := c.RemoveToken(n); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("finish the root partition's header: %w", err)
	}
	l.Unfinished = false
	return nil
}

// Rebind replaces what the TPM's keyslot is bound to, after the machine secret
// was sealed again: by another TPM, or one that was cleared. Without an owner the owner signatures
// stay those that are there: they say of the volume who made it, whatever opens it.
//
// A keyslot that this secret does not open is another's, or damaged: the secret gets one of
// its own by the same header, and that one is left to RemoveReplaced.
func (l *Lock) Rebind(random io.Reader, d block.Device, volumeKey []byte, secret *policy.Secret, sealed *policy.Sealed, owner *rsa.PrivateKey) error {
	defer l.CarryPhrase(nil) // what was sealed for this header is not for another one
	passphrase := secret.LUKSPassphrase()
	defer luks2.Wipe(passphrase)
	opened, n, err := l.Header.Unlock(d, passphrase, 0) // its own has PBKDF2, which takes no memory
	luks2.Wipe(opened)
	if err != nil {
		n = -1
	}
	kept, err := keptPIN(random, volumeKey, secret, sealed)
	if err != nil {
		return fmt.Errorf("bind the root partition to this TPM: %w", err)
	}
	other := l.TPMSlot
	if other == n || slices.ContainsFunc(l.Recoveries, func(r Recovery) bool { return r.Keyslot == other }) {
		other = -1
	}
	err = l.Header.Change(random, d, func(c *luks2.Change) error {
		if n < 0 {
			var err error
			if n, err = c.AddKeyslot(volumeKey, passphrase, luks2.PBKDF2()); err != nil {
				return err
			}
		}
		if err := l.setTPMToken(c, tpmBinding{keyslot: n, volumeKey: volumeKey, sealed: sealed, kept: kept, owner: owner}); err != nil || other < 0 {
			return err
		}
		_, err := c.AddToken(luks2.Token{Type: replacedToken, Keyslots: []int{other}})
		return err
	})
	if err != nil {
		return fmt.Errorf("bind the root partition to this TPM: %w", err)
	}
	return l.again()
}

// tpmBinding is what the TPM's token says.
type tpmBinding struct {
	keyslot     int
	volumeKey   []byte
	sealed      *policy.Sealed
	kept        []byte          // the PIN under the volume key; nil without one
	owner, next *rsa.PrivateKey // sign the volume; nil for those whose signatures stay, and for none
}

// setTPMToken puts a TPM token in place of the one that is there, or of all.
func (l *Lock) setTPMToken(c *luks2.Change, b tpmBinding) error {
	token, err := newTPMToken(b.keyslot, b.volumeKey, b.sealed, b.kept, b.owner)
	if err != nil {
		return err
	}
	if b.next != nil {
		if err := setNextOwnerSignature(&token, b.next, b.volumeKey); err != nil {
			return err
		}
	}
	tokens, at := l.Header.Tokens(), -1
	if err := setPhrase(c, tokens, l.carried); err != nil {
		return err
	}
	for _, number := range slices.Sorted(maps.Keys(tokens)) {
		switch t := tokens[number]; {
		case t.Type != tpmToken:
		case at < 0:
			at = number
			for _, name := range []string{ownerSignatureField, nextOwnerSignatureField} {
				if signature, there := t.Fields[name]; there && b.owner == nil {
					token.Fields[name] = signature
				}
			}
		default: // there is to be one
			if err := c.RemoveToken(number); err != nil {
				return err
			}
		}
	}
	if at >= 0 {
		return c.SetToken(at, token)
	}
	_, err = c.AddToken(token)
	return err
}

// ownerSignatureText is what an owner signature signs: that the machine whose Secure Boot key this is
// made the volume with this fingerprint.
func ownerSignatureText(fingerprint [32]byte) []byte {
	return append([]byte("halogenos/1/deed\x00"), fingerprint[:]...)
}

// SignAsOwner signs that this machine made the volume. Anybody can seal a volume
// of their own to this TPM and let the machine boot with it; nobody else can sign
// with the key that the firmware's db holds.
func SignAsOwner(owner *rsa.PrivateKey, volumeKey []byte) ([]byte, error) {
	sum := sha256.Sum256(ownerSignatureText(policy.VolumeFingerprint(volumeKey)))
	signature, err := rsa.SignPKCS1v15(nil, owner, crypto.SHA256, sum[:])
	if err != nil {
		return nil, fmt.Errorf("make the owner signature of the root partition: %w", err)
	}
	return signature, nil
}

func signs(c *x509.Certificate, signature []byte, fingerprint [32]byte) bool {
	sum := sha256.Sum256(ownerSignatureText(fingerprint))
	key, ok := c.PublicKey.(*rsa.PublicKey)
	return ok && rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], signature) == nil
}

// CheckOwnerSignature verifies an owner signature by the certificates of the firmware's db.
func CheckOwnerSignature(signature, volumeKey []byte, db []*x509.Certificate) error {
	if len(signature) == 0 {
		return fmt.Errorf("%w: it carries no owner signature", ErrForeign)
	}
	if slices.ContainsFunc(db, func(c *x509.Certificate) bool { return signs(c, signature, policy.VolumeFingerprint(volumeKey)) }) {
		return nil
	}
	return fmt.Errorf("%w: its owner signature is by none of the %d keys in this machine's db", ErrForeign, len(db))
}

// CheckFingerprint compares an open volume with what the TPM's record says.
func CheckFingerprint(record *policy.Record, volumeKey []byte) error {
	have := policy.VolumeFingerprint(volumeKey)
	if record.Provisional() || !bytes.Equal(have[:], record.Volume[:]) {
		return fmt.Errorf("%w: the TPM knows another one", ErrForeign)
	}
	return nil
}

// OpenTPM opens the volume with the machine secret that the TPM released, and, where the
// TPM has asked for it, the PIN that goes along with it. The caller wipes the volume key.
func (l *Lock) OpenTPM(r io.ReaderAt, secret *policy.Secret, memory uint64) ([]byte, error) {
	passphrase := secret.LUKSPassphrase()
	defer luks2.Wipe(passphrase)
	volumeKey, _, err := l.Header.Unlock(r, passphrase, memory, l.TPMSlot)
	if err != nil {
		return nil, fmt.Errorf("open the root partition with the TPM's key: %w", err)
	}
	l.OpenedBy(volumeKey)
	return volumeKey, nil
}
