// Package secureboot is a machine's own Secure Boot hierarchy: its three keys,
// the signature databases that the firmware keeps, and the signed payloads
// that change them.
//
// It refuses keys that firmware does not reliably take (anything but
// RSA-2048), a signature database that claims more than it holds, and a
// timestamp from before the build: firmware keeps the last one and turns older
// ones away. It reads no clock and no variable, and it trusts nothing that a
// signature database says about itself.
package secureboot

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"

	"halogenos.internal/boot/gpt"
)

const (
	// keyBits is the size of every key: RSA-2048 with SHA-256 is the one
	// combination that UEFI obliges firmware to support (UEFI 2.10, section
	// 32.4.1).
	keyBits = 2048
	// validYears is how long the certificates run. Firmware does not look at
	// it, but tools that judge a signature on a running system do.
	validYears = 40
	// serialBytes is the length of a certificate's serial number: 127 random
	// bits, well over the 64 that are usual.
	serialBytes = 16
	// NamePrefix begins the common name of each certificate.
	NamePrefix = "HalogenOS "
)

// A Pair is a private key and its self-signed certificate.
type Pair struct {
	Key         *rsa.PrivateKey
	Certificate *x509.Certificate
}

// A KeySet is a machine's hierarchy: PK signs changes of KEK, KEK signs changes
// of db and dbx, db signs what the machine starts. The caller that made or unwrapped it
// owns the private keys, and calls Wipe.
type KeySet struct {
	// Owner is the SignatureOwner of everything this machine enrolls.
	Owner       gpt.GUID
	PK, KEK, DB Pair
}

// roles lists the pairs in the order of their encoding, which must not change.
func (k *KeySet) roles() [3]struct {
	name string
	pair *Pair
} {
	return [3]struct {
		name string
		pair *Pair
	}{{"Platform Key", &k.PK}, {"Key Exchange Key", &k.KEK}, {"Signature Database Key", &k.DB}}
}

// Generate makes a new set. The owner GUID and the serial numbers come from
// random; the RSA keys do too as far as the Go library lets them (since Go
// 1.26 it uses the system's generator whatever it is given). buildDate is when
// the certificates begin to be valid: not now, since the clock of a machine
// that starts for the first time may be decades off.
func Generate(random io.Reader, buildDate time.Time) (*KeySet, error) {
	if err := checkDate(buildDate); err != nil {
		return nil, fmt.Errorf("make Secure Boot keys: build date: %w", err)
	}
	owner, err := gpt.RandomGUID(random)
	if err != nil {
		return nil, fmt.Errorf("make Secure Boot keys: %w", err)
	}
	k := &KeySet{Owner: owner}
	for _, role := range k.roles() {
		if *role.pair, err = newPair(random, role.name, owner, buildDate); err != nil {
			k.Wipe()
			return nil, fmt.Errorf("make %s: %w", role.name, err)
		}
	}
	return k, nil
}

func newPair(random io.Reader, role string, owner gpt.GUID, buildDate time.Time) (Pair, error) {
	key, err := rsa.GenerateKey(random, keyBits)
	if err != nil {
		return Pair{}, fmt.Errorf("generate RSA-%d key: %w", keyBits, err)
	}
	serial, err := newSerial(random)
	if err != nil {
		return Pair{}, err
	}
	from := buildDate.UTC().Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber: serial,
		// The owner keeps the names of two machines apart, for tools that look
		// certificates up by name.
		Subject:               pkix.Name{CommonName: NamePrefix + role, OrganizationalUnit: []string{owner.String()}},
		NotBefore:             from,
		NotAfter:              from.AddDate(validYears, 0, 0),
		SignatureAlgorithm:    x509.SHA256WithRSA,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(random, template, template, key.Public(), key)
	if err != nil {
		return Pair{}, fmt.Errorf("make certificate: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return Pair{}, fmt.Errorf("read back certificate: %w", err)
	}
	return Pair{Key: key, Certificate: certificate}, nil
}

// newSerial returns a positive number, as RFC 5280 section 4.1.2.2 has it.
func newSerial(random io.Reader) (*big.Int, error) {
	b := make([]byte, serialBytes)
	if _, err := io.ReadFull(random, b); err != nil {
		return nil, fmt.Errorf("read %d random bytes for a serial number: %w", len(b), err)
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b), nil
}

// check reports whether the pair belongs together and is of a kind that
// firmware takes.
func (p Pair) check() error {
	if p.Key == nil || p.Certificate == nil {
		return errors.New("key or certificate is missing")
	}
	if bits := p.Key.N.BitLen(); bits != keyBits {
		return fmt.Errorf("key has %d bits, want %d", bits, keyBits)
	}
	if err := p.Key.Validate(); err != nil {
		return fmt.Errorf("key: %w", err)
	}
	if public, ok := p.Certificate.PublicKey.(*rsa.PublicKey); !ok || !public.Equal(&p.Key.PublicKey) {
		return errors.New("certificate is for another key")
	}
	if err := p.Certificate.CheckSignature(p.Certificate.SignatureAlgorithm, p.Certificate.RawTBSCertificate, p.Certificate.Signature); err != nil {
		return fmt.Errorf("certificate is not signed by its own key: %w", err)
	}
	return nil
}

// signDigest signs a SHA-256 digest with PKCS #1 v1.5, which is deterministic
// and needs no randomness.
func (p Pair) signDigest(digest []byte) ([]byte, error) {
	return rsa.SignPKCS1v15(nil, p.Key, crypto.SHA256, digest)
}

// Wipe overwrites the private numbers. What the Go library keeps of them inside
// the key is out of reach; it goes with the process's memory.
func (k *KeySet) Wipe() {
	for _, role := range k.roles() {
		wipeKey(role.pair.Key)
		role.pair.Key = nil
	}
}

func wipeKey(key *rsa.PrivateKey) {
	if key == nil {
		return
	}
	numbers := append([]*big.Int{key.D, key.Precomputed.Dp, key.Precomputed.Dq, key.Precomputed.Qinv}, key.Primes...)
	for _, n := range numbers {
		if n != nil {
			clear(n.Bits())
			n.SetInt64(0)
		}
	}
}
