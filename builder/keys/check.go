// Package keys makes the secret keys of a distributor, and checks that they are
// kept as they must be: behind a password that cannot be guessed, in a file
// that nobody else reads, on storage that is encrypted.
//
// It refuses what it cannot tell: a file system whose encryption the kernel
// says nothing about counts as one without. A rule that is broken is refused,
// unless the caller takes the risk by name.
package keys

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	pgpecdsa "github.com/ProtonMail/go-crypto/openpgp/ecdsa"
	pgped25519 "github.com/ProtonMail/go-crypto/openpgp/ed25519"
	"github.com/ProtonMail/go-crypto/openpgp/eddsa"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/youmark/pkcs8"
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/secretmem"
)

const maxKey = 64 << 10 // bytes of a key file

// Rules, by the names that a report gives them.
const (
	RulePassword    = "password"    // the key is encrypted with a password
	RuleStrength    = "strength"    // key and password cannot be guessed
	RuleStorage     = "storage"     // the file lies on encrypted storage
	RulePermissions = "permissions" // nobody else reads or replaces the file
)

// A Verdict is how a key does by one rule.
type Verdict struct {
	Rule string `json:"rule"`
	OK   bool   `json:"ok"`
	Says string `json:"says"`
}

// A Report is how a key file does by all rules.
type Report struct {
	Path     string    `json:"path"`
	Kind     string    `json:"kind"`
	Name     string    `json:"name,omitempty"` // an OpenPGP fingerprint
	Verdicts []Verdict `json:"verdicts"`
}

// Err returns an error that names the rules which are broken, but for those
// that without names.
func (r *Report) Err(without ...string) error {
	var broken []error
	for _, v := range r.Verdicts {
		excused := false
		for _, rule := range without {
			excused = excused || rule == v.Rule
		}
		if !v.OK && !excused {
			broken = append(broken, fmt.Errorf("key %s: %s: %s", r.Path, v.Rule, v.Says))
		}
	}
	return errors.Join(broken...)
}

func (r *Report) add(rule string, err error, good string) {
	v := Verdict{Rule: rule, OK: err == nil, Says: good}
	if err != nil {
		v.Says = err.Error()
	}
	r.Verdicts = append(r.Verdicts, v)
}

// Check looks at a secret key, OpenPGP or PKCS#8, by all rules. The password
// may be nil; then it is only seen that there is one. The key must be valid at
// the time.
func Check(path string, password *Password, at time.Time) (*Report, error) {
	return using(func() (*Report, error) { return thisHost().check(path, password, at) })
}

func (h host) check(path string, password *Password, at time.Time) (*Report, error) {
	r, err := h.checkPlace(path)
	if err != nil {
		return nil, err
	}
	text, err := readKey(path)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	if bytes.Contains(text, []byte("PRIVATE KEY-----")) && !bytes.Contains(text, []byte("BEGIN PGP")) {
		err = r.checkPKCS8(text, password)
	} else {
		err = r.checkOpenPGP(text, password, at)
	}
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	return r, nil
}

// CheckPlace looks at where a file with a key or a password lies, and at who
// may read it.
func CheckPlace(path string) (*Report, error) { return thisHost().checkPlace(path) }

func (h host) checkPlace(path string) (*Report, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	r := &Report{Path: path}
	how, err := h.storage(path, 0)
	r.add(RuleStorage, err, how)
	r.add(RulePermissions, permissions(path), "nobody else reads it")
	return r, nil
}

// permissions refuses a file that others may read, or replace.
func permissions(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	if real, err = filepath.Abs(real); err != nil {
		return err
	}
	info, err := os.Stat(real)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("it is not a regular file")
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("others may read it: its mode is %04o, want 0600 or 0400: `chmod 0600 %s` (a container's secret takes mode=0400)", mode, path)
	}
	for at := real; ; at = filepath.Dir(at) {
		var s unix.Stat_t
		if err := unix.Stat(at, &s); err != nil {
			return &os.PathError{Op: "stat", Path: at, Err: err}
		}
		if s.Uid != 0 && int(s.Uid) != os.Geteuid() {
			return fmt.Errorf("%s belongs to the user %d, who can replace what is in it: `chown` it to yourself, or keep the key elsewhere", at, s.Uid)
		}
		if s.Mode&0o022 != 0 && s.Mode&unix.S_ISVTX == 0 {
			return fmt.Errorf("others may write to %s, and so replace what is in it: `chmod go-w %[1]s`", at)
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}

// readKey reads a key file.
func readKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKey+1))
	if err == nil && len(text) > maxKey {
		err = fmt.Errorf("has more than %d bytes", maxKey)
	}
	if err != nil {
		clear(text)
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	return text, nil
}

func (r *Report) checkOpenPGP(text []byte, password *Password, at time.Time) error {
	read := openpgp.ReadKeyRing
	if bytes.HasPrefix(text, []byte("-----BEGIN ")) {
		read = openpgp.ReadArmoredKeyRing
	}
	entities, err := read(bytes.NewReader(text))
	switch {
	case err != nil:
		return errors.New("it is neither an OpenPGP key nor PKCS#8 in PEM: export the key with gpg --armor --export-secret-keys FINGERPRINT, or make one with halogen keys generate")
	case len(entities) != 1:
		return fmt.Errorf("it holds %d keys, want one", len(entities))
	case entities[0].PrivateKey == nil:
		return errors.New("it is a public key: name the file with the secret one")
	}
	e := entities[0]
	r.Kind, r.Name = "OpenPGP", fmt.Sprintf("%X", e.PrimaryKey.Fingerprint)
	var secret []*packet.PrivateKey
	for _, k := range append([]*packet.PrivateKey{e.PrivateKey}, subkeys(e)...) {
		if !k.Dummy() {
			secret = append(secret, k)
		}
	}
	if len(secret) == 0 {
		return errors.New("holds no secret: it lies on a card or was exported without")
	}
	r.add(RulePassword, locked(secret, password), "it is encrypted")
	err = password.judge()
	for _, k := range secret {
		err = errors.Join(err, strength(&k.PublicKey))
	}
	if _, invalid := e.VerifyPrimaryKey(at, nil); invalid != nil {
		err = errors.Join(err, fmt.Errorf("%X is not valid: %w", e.PrimaryKey.Fingerprint, invalid))
	}
	r.add(RuleStrength, err, password.verdict())
	return nil
}

func subkeys(e *openpgp.Entity) []*packet.PrivateKey {
	var all []*packet.PrivateKey
	for _, s := range e.Subkeys {
		if s.PrivateKey != nil {
			all = append(all, s.PrivateKey)
		}
	}
	return all
}

// locked refuses keys that are not encrypted, or not with the password.
func locked(secret []*packet.PrivateKey, password *Password) error {
	for _, k := range secret {
		if !k.Encrypted {
			return fmt.Errorf("%X has no password: anyone who reads the file has the key: give it one (gpg --change-passphrase, openssl pkcs8 -topk8)", k.Fingerprint)
		}
		if password == nil {
			continue
		}
		opened := *k
		err := opened.Decrypt(password.Bytes())
		wipe(opened.PrivateKey)
		if err != nil {
			return fmt.Errorf("the password does not open the key %X: try again, or name the file with its password (--password-file)", k.Fingerprint)
		}
	}
	return nil
}

// wipe overwrites the secret numbers, where the library keeps them.
func wipe(key any) {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		clear(k.D.Bits())
		for _, p := range k.Primes {
			clear(p.Bits())
		}
	case *ecdsa.PrivateKey:
		//lint:ignore SA1019 there is no other way to reach the number
		clear(k.D.Bits())
	case ed25519.PrivateKey:
		clear(k)
	case *pgpecdsa.PrivateKey:
		clear(k.D.Bits())
	case *eddsa.PrivateKey:
		clear(k.D)
	case *pgped25519.PrivateKey:
		clear(k.Key)
	}
}

// strength refuses public keys that can be broken.
func strength(k *packet.PublicKey) error {
	bits, err := k.BitLength()
	if err != nil {
		return err
	}
	least := map[packet.PublicKeyAlgorithm]uint16{
		packet.PubKeyAlgoRSA: 3072, packet.PubKeyAlgoRSASignOnly: 3072, packet.PubKeyAlgoECDSA: 256, packet.PubKeyAlgoEdDSA: 255, packet.PubKeyAlgoEd25519: 0,
		packet.PubKeyAlgoECDH: 255, packet.PubKeyAlgoX25519: 0, packet.PubKeyAlgoEd448: 0, packet.PubKeyAlgoX448: 0,
	}
	want, ok := least[k.PubKeyAlgo]
	if !ok {
		return fmt.Errorf("%X is of an algorithm (%d) that is no longer used", k.Fingerprint, k.PubKeyAlgo)
	}
	if bits < want {
		return fmt.Errorf("%X has %d bits, want %d", k.Fingerprint, bits, want)
	}
	return nil
}

func (r *Report) checkPKCS8(text []byte, password *Password) error {
	block, _ := pem.Decode(text)
	if block == nil {
		return errors.New("is not PEM")
	}
	defer clear(block.Bytes)
	r.Kind = block.Type
	if block.Type != "ENCRYPTED PRIVATE KEY" {
		old := strings.Contains(string(text), "ENCRYPTED")
		err := errors.New("it has no password: anyone who reads the file has the key: give it one (gpg --change-passphrase, openssl pkcs8 -topk8)")
		if old {
			err = errors.New("it is encrypted in the old way of OpenSSL, whose passwords are guessed fast: convert it with `openssl pkcs8 -topk8`")
		}
		r.add(RulePassword, err, "")
		return nil
	}
	r.Kind = "PKCS#8"
	if password == nil {
		r.add(RulePassword, nil, "it is encrypted")
		r.add(RuleStrength, nil, password.verdict())
		return nil
	}
	key, err := openPKCS8(block.Bytes, password)
	r.add(RulePassword, err, "it is encrypted")
	if err == nil {
		defer wipe(key)
		err = errors.Join(password.judge(), moduleStrength(key))
		r.add(RuleStrength, err, password.verdict())
	}
	return nil
}

func openPKCS8(der []byte, password *Password) (crypto.Signer, error) {
	key, err := pkcs8.ParsePKCS8PrivateKey(der, password.Bytes())
	if err != nil {
		return nil, fmt.Errorf("the password does not open it: try again, or name the file with its password (--password-file)")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("it is a key of the kind %T, which cannot sign", key)
	}
	return signer, nil
}

// moduleStrength refuses what the kernel does not take, or what can be broken.
func moduleStrength(key crypto.Signer) error {
	switch k := key.Public().(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 3072 {
			return fmt.Errorf("it has %d bits, want 3072", n)
		}
	case *ecdsa.PublicKey:
		if n := k.Curve.Params().BitSize; n < 256 {
			return fmt.Errorf("it has %d bits, want 256", n)
		}
	default:
		return fmt.Errorf("it is of a kind (%T) that the kernel does not know", k)
	}
	return nil
}

// judge refuses a password that is there and can be guessed.
func (p *Password) judge() error {
	if p == nil {
		return nil
	}
	return p.Strong()
}

func (p *Password) verdict() string {
	if p == nil {
		return "key is strong; its password was not given, so not judged"
	}
	return "key and password are strong"
}

// LoadModuleKey reads the key for kernel modules: PKCS#8 in PEM, encrypted.
// The one who got it calls its wipe.
func LoadModuleKey(path string, password *Password) (key crypto.Signer, wiped func(), err error) {
	s, err := using(func() (*secretSigner, error) { return loadModuleKey(path, password) })
	if err != nil {
		return nil, nil, err
	}
	return s, s.wipe, nil
}

func loadModuleKey(path string, password *Password) (*secretSigner, error) {
	text, err := readKey(path)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "ENCRYPTED PRIVATE KEY" {
		return nil, fmt.Errorf("key %s is not an encrypted PKCS#8 in PEM", path)
	}
	defer clear(block.Bytes)
	if password == nil {
		return nil, fmt.Errorf("key %s is encrypted: name the file with its password", path)
	}
	key, err := openPKCS8(block.Bytes, password)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	return &secretSigner{key, key.Public()}, nil
}

// A secretSigner uses its key only where what the key leaves in memory is erased.
type secretSigner struct {
	key    crypto.Signer
	public crypto.PublicKey
}

// Public implements crypto.Signer.
func (s *secretSigner) Public() crypto.PublicKey { return s.public }

// Sign implements crypto.Signer.
func (s *secretSigner) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if s.key == nil {
		return nil, errors.New("sign: the key is wiped")
	}
	return secretmem.Get(func() ([]byte, error) { return s.key.Sign(rand, digest, opts) })
}

func (s *secretSigner) wipe() {
	secretmem.Do(func() {
		wipe(s.key)
		s.key = nil
	})
	secretmem.Collect()
}
