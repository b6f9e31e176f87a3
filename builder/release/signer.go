package release

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/ecdsa"
	"github.com/ProtonMail/go-crypto/openpgp/ed25519"
	"github.com/ProtonMail/go-crypto/openpgp/eddsa"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/secretmem"
	"halogenos.internal/builder/files"
	"halogenos.internal/builder/keys"
)

// KeyFile says where the secret release key lies.
type KeyFile struct {
	Path string // an OpenPGP secret key, binary or armored, as gpg --export-secret-keys writes it
	// Password is a file whose first line is the key's password.
	Password string
	// Ask gets the password where no file has it; nil for nobody to ask.
	Ask func() (*keys.Password, error)
	// Unprotected takes a key without a password: anyone who reads the file can
	// then sign what every machine takes.
	Unprotected bool
	// UnencryptedStorage takes a key that lies where nothing encrypts it:
	// nothing but the password protects it from anyone who gets the disk.
	UnencryptedStorage bool
	// GPG has gpg sign, with the secret part of the pinned key that its agent
	// or a smart card holds. The other fields are not used then.
	GPG bool
}

// named reports whether there is anything to sign with.
func (f KeyFile) named() bool { return f.Path != "" || f.GPG }

// A Signer signs releases. It holds a secret until Close.
type Signer struct {
	key    *packet.PrivateKey
	public *pgp.Key
	must   []*pgp.Key // older certificates that must accept what it signs
	gpg    bool
}

// LoadSigner reads the secret key and finds the newest of its keys whose
// signatures are accepted at a time by the public key, and by older copies of it
// that machines have pinned.
func LoadSigner(file KeyFile, pinned *pgp.Key, at time.Time, must ...*pgp.Key) (*Signer, error) {
	if file.GPG {
		return &Signer{public: pinned, must: must, gpg: true}, nil
	}
	defer secretmem.Collect()
	return secretmem.Get(func() (*Signer, error) { return loadSigner(file, pinned, at, must) })
}

func loadSigner(file KeyFile, pinned *pgp.Key, at time.Time, must []*pgp.Key) (*Signer, error) {
	ring, err := readSecretKey(file.Path)
	if err != nil {
		return nil, fmt.Errorf("signing key %s: %w", file.Path, err)
	}
	defer func() {
		for _, k := range ring {
			wipeKey(k)
		}
	}()
	if have := ring[len(ring)-1].Fingerprint; !bytes.Equal(have, fingerprint(pinned)) {
		return nil, fmt.Errorf("signing key %s is %X, but the image has pinned %s", file.Path, have, pinned.Fingerprint())
	}
	if err := kept(file, at); err != nil {
		return nil, err
	}
	if err := unlock(ring, file); err != nil {
		return nil, fmt.Errorf("signing key %s: %w", file.Path, err)
	}
	var refusals []error
	for i, k := range ring {
		s := &Signer{key: k, public: pinned, must: must}
		if _, err := s.Sign(bytes.NewReader(nil), at); err != nil {
			refusals = append(refusals, fmt.Errorf("%X: %w", k.Fingerprint, err))
			continue
		}
		ring = slices.Delete(ring, i, i+1) // and leave the others to be wiped
		return s, nil
	}
	return nil, fmt.Errorf("signing key %s has no key whose signatures machines take: %w%s", file.Path, errors.Join(refusals...), wanted(must, at))
}

// wanted says which keys would do.
func wanted(must []*pgp.Key, at time.Time) string {
	if len(must) == 0 {
		return ""
	}
	var names []string
	usable, _ := must[0].SigningKeys(at) // it was asked before
	for f := range usable {
		names = append(names, f.String())
	}
	slices.Sort(names)
	return fmt.Sprintf(". Machines of the releases of before know the signing key %s: sign this release with that one, so that it brings them the new certificate; the next one can be signed by a newer key", strings.Join(names, " or "))
}

// kept refuses a key, or a password, that is not kept as it must be.
func kept(file KeyFile, at time.Time) error {
	var without []string
	if file.Unprotected {
		without = append(without, keys.RulePassword)
	}
	if file.UnencryptedStorage {
		without = append(without, keys.RuleStorage)
	}
	r, err := keys.Check(file.Path, nil, at)
	if err != nil {
		return fmt.Errorf("signing key: %w", err)
	}
	if err := r.Err(without...); err != nil || file.Password == "" {
		return err
	}
	if r, err = keys.CheckPlace(file.Password); err != nil {
		return fmt.Errorf("read password: %w", err)
	}
	return r.Err(without...)
}

func fingerprint(k *pgp.Key) []byte {
	f := k.Fingerprint()
	return f[:]
}

// readSecretKey returns the key's secret parts that can sign: subkeys, newest
// first, then the primary key.
func readSecretKey(path string) ([]*packet.PrivateKey, error) {
	text, err := files.Read(path, pgp.MaxKey)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	read := openpgp.ReadKeyRing
	if bytes.HasPrefix(text, []byte("-----BEGIN ")) {
		read = openpgp.ReadArmoredKeyRing
	}
	entities, err := read(bytes.NewReader(text))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read OpenPGP key: %w", err)
	case len(entities) != 1:
		return nil, fmt.Errorf("holds %d keys, want one", len(entities))
	case entities[0].PrivateKey == nil:
		return nil, errors.New("it is a public key: export the secret one")
	}
	var keys []*packet.PrivateKey
	for _, s := range entities[0].Subkeys {
		if s.PrivateKey != nil && s.PublicKey.PubKeyAlgo.CanSign() {
			keys = append(keys, s.PrivateKey)
		}
	}
	slices.SortStableFunc(keys, func(a, b *packet.PrivateKey) int { return cmp.Compare(b.CreationTime.Unix(), a.CreationTime.Unix()) })
	return append(keys, entities[0].PrivateKey), nil
}

// KeyWarning says what is to be done about the expiry of a key, secret or public, in
// a file; empty is nothing, also for a file that holds no OpenPGP key.
func KeyWarning(path string, now time.Time) string {
	text, err := files.Read(path, pgp.MaxKey)
	if err != nil {
		return ""
	}
	defer clear(text)
	read := openpgp.ReadKeyRing
	if bytes.HasPrefix(text, []byte("-----BEGIN ")) {
		read = openpgp.ReadArmoredKeyRing
	}
	entities, err := read(bytes.NewReader(text))
	if err != nil || len(entities) != 1 {
		return ""
	}
	var public bytes.Buffer
	if err := entities[0].Serialize(&public); err != nil {
		return ""
	}
	key, err := pgp.ParseKey(public.Bytes())
	if err != nil {
		return ""
	}
	return key.Warning(now)
}

// unlock decrypts the keys with the password, which it forgets again.
func unlock(ring []*packet.PrivateKey, file KeyFile) (err error) {
	secret := func(k *packet.PrivateKey) bool { return !k.Dummy() }
	if !slices.ContainsFunc(ring, secret) {
		return errors.New("holds no secret: it lies on a card or was exported without")
	}
	if open := slices.ContainsFunc(ring, func(k *packet.PrivateKey) bool { return secret(k) && !k.Encrypted }); open && !file.Unprotected {
		return errors.New("has no password: anyone who reads the file can sign what every machine takes")
	}
	locked := slices.DeleteFunc(slices.Clone(ring), func(k *packet.PrivateKey) bool { return !secret(k) || !k.Encrypted })
	if len(locked) == 0 {
		return nil
	}
	password, err := file.password()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, password.Wipe()) }()
	for _, k := range locked {
		if err := k.Decrypt(password.Bytes()); err != nil {
			return fmt.Errorf("the password does not open it: %w: try again, or name its --password-file", err)
		}
	}
	return password.Strong()
}

// password gets the key's password.
func (f KeyFile) password() (*keys.Password, error) {
	switch {
	case f.Password != "":
		return keys.ReadPassword(f.Password)
	case f.Ask != nil:
		return f.Ask()
	}
	return nil, errors.New("is encrypted: name the file with its password")
}

// Key returns the pinned public key.
func (s *Signer) Key() *pgp.Key { return s.public }

// Sign returns a detached binary signature that the pinned key verifies. The
// same key, message and time give the same signature, but for ECDSA.
func (s *Signer) Sign(message io.ReadSeeker, at time.Time) ([]byte, error) {
	if s.gpg {
		return s.signByGPG(message, at)
	}
	return secretmem.Get(func() ([]byte, error) { return s.sign(message, at) })
}

func (s *Signer) sign(message io.ReadSeeker, at time.Time) ([]byte, error) {
	k := s.key
	if k == nil {
		return nil, errors.New("sign: the signing key is closed")
	}
	if k.Dummy() {
		return nil, errors.New("is not in the file")
	}
	once := false
	config := &packet.Config{Time: func() time.Time { return at }, NonDeterministicSignaturesViaNotation: &once}
	sig := &packet.Signature{
		Version: 4, SigType: packet.SigTypeBinary, PubKeyAlgo: k.PubKeyAlgo, Hash: hashFor(&k.PublicKey), CreationTime: at,
		IssuerKeyId: &k.KeyId, IssuerKeyVersion: 4, IssuerFingerprint: k.Fingerprint,
	}
	h, err := sig.PrepareSign(config)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if _, err := io.Copy(h, message); err != nil {
		return nil, fmt.Errorf("read what is to be signed: %w", err)
	}
	if err := sig.Sign(h, k, config); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	var out bytes.Buffer
	if err := sig.Serialize(&out); err != nil {
		return nil, fmt.Errorf("encode signature: %w", err)
	}
	return out.Bytes(), s.accepted(message, out.Bytes(), at)
}

// accepted reports why machines would not take a signature: such a one is not
// published.
func (s *Signer) accepted(message io.ReadSeeker, signature []byte, at time.Time) error {
	if err := lasts(signature); err != nil {
		return err
	}
	for _, k := range append([]*pgp.Key{s.public}, s.must...) {
		if _, err := message.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("read again what was signed: %w", err)
		}
		if err := k.Verify(message, signature, at); err != nil {
			return err
		}
	}
	return nil
}

// lasts refuses a signature that ends by itself: from then on machines would refuse
// what was published as good.
func lasts(signature []byte) error {
	end, err := pgp.Expires(signature)
	if err != nil || end.IsZero() {
		return err
	}
	return fmt.Errorf("signature ends on %s, and machines refuse it from then on: sign again without an end (gpg --default-sig-expire 0, and take default-sig-expire and ask-sig-expire out of gpg.conf)", end.Format(time.DateTime))
}

// hashFor is SHA-256, which is fast where the releases are checked, unless the
// key's curve wants a longer digest.
func hashFor(k *packet.PublicKey) crypto.Hash {
	if k.PubKeyAlgo == packet.PubKeyAlgoECDSA {
		switch curve, _ := k.Curve(); curve {
		case packet.CurveNistP384:
			return crypto.SHA384
		case packet.CurveNistP521:
			return crypto.SHA512
		}
	}
	return crypto.SHA256
}

// Close wipes the secret.
func (s *Signer) Close() {
	if s.key == nil {
		return
	}
	secretmem.Do(func() {
		wipeKey(s.key)
		s.key = nil
	})
	secretmem.Collect()
}

// wipeKey overwrites the numbers of a secret key where the library keeps them.
// The copies that it made on its way, which it does not reach, are erased when
// they are collected.
func wipeKey(k *packet.PrivateKey) {
	switch p := k.PrivateKey.(type) {
	case *rsa.PrivateKey:
		wipeInt(p.D)
		for _, prime := range p.Primes {
			wipeInt(prime)
		}
		wipeInt(p.Precomputed.Dp)
		wipeInt(p.Precomputed.Dq)
		wipeInt(p.Precomputed.Qinv)
	case *ecdsa.PrivateKey:
		wipeInt(p.D)
	case *eddsa.PrivateKey:
		clear(p.D)
	case *ed25519.PrivateKey:
		clear(p.Key)
	}
}

func wipeInt(n *big.Int) {
	if n != nil {
		clear(n.Bits())
	}
}
