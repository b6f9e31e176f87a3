package config

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pgp"
)

// releaseKey reads the pinned key, if there is one. Having none must be said.
func (r *reader) releaseKey() error {
	switch {
	case r.fingerprint == "":
		return errors.New("ReleaseKey of [Image] is missing: want the fingerprint of the key that signs the releases, with ReleaseKeyFile=; or ReleaseKey=none, for releases that nobody signs")
	case r.fingerprint == "none" && r.keyFile != "":
		return errors.New("ReleaseKey is none, yet there is a ReleaseKeyFile")
	case r.fingerprint == "none":
		return nil
	case r.keyFile == "":
		return fmt.Errorf("ReleaseKey is %q, but ReleaseKeyFile is missing", r.fingerprint)
	}
	want, err := hex.DecodeString(strings.ReplaceAll(r.fingerprint, " ", ""))
	if err != nil || len(want) != len(pgp.Fingerprint{}) {
		return fmt.Errorf("ReleaseKey %q is not a whole OpenPGP fingerprint", r.fingerprint)
	}
	text, err := readBounded(r.local(r.keyFile), pgp.MaxKey)
	if err != nil {
		return fmt.Errorf("ReleaseKeyFile: %w", err)
	}
	if text, err = plainArmor(text); err != nil {
		return fmt.Errorf("ReleaseKeyFile %s %w", r.keyFile, err)
	}
	key, err := publicKey(text, want)
	if err != nil {
		return fmt.Errorf("ReleaseKeyFile %s: %w: want the public key (gpg --export FINGERPRINT >%[1]s)", r.keyFile, err)
	}
	r.config.ReleaseKey = key
	return nil
}

// publicKey returns the binary form of the one public key in text, which is
// binary or armored and whose fingerprint must be want. A key that machines
// would refuse is refused here.
func publicKey(text, want []byte) ([]byte, error) {
	key, err := pgp.ParseKey(text)
	if err != nil {
		return nil, err
	}
	if have := key.Fingerprint(); !bytes.Equal(have[:], want) {
		return nil, fmt.Errorf("has the fingerprint %s, want %X", have, want)
	}
	return key.Bytes(), nil
}

const maxCertificate = 64 << 10 // bytes

// moduleKey reads the certificate whose key signs kernel modules, in PEM or
// DER.
func (r *reader) moduleKey(value string) error {
	text, err := readBounded(r.local(value), maxCertificate)
	if err != nil {
		return err
	}
	if block, rest := pem.Decode(text); block != nil {
		if block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
			return fmt.Errorf("%s is not one certificate", value)
		}
		text = block.Bytes
	}
	cert, err := x509.ParseCertificate(text)
	if err != nil {
		return fmt.Errorf("%s is not a certificate: %w", value, err)
	}
	r.config.ModuleKey = cert
	return nil
}

// moduleTrust refuses a certificate for db that is missing or that db has no room for.
func (r *reader) moduleTrust() error {
	if r.config.ModuleTrust != TrustByDB {
		return nil
	}
	if r.config.ModuleKey == nil {
		return errors.New("ModuleTrust=db in [Image] needs a certificate: name it with ModuleKey")
	}
	if r.config.SecureBoot != contract.Required {
		return errors.New("ModuleTrust=db in [Image] needs SecureBoot=required: a machine without its own Secure Boot keys cannot add to db")
	}
	if _, err := contract.ValidModuleKey(r.config.ModuleKey.Raw); err != nil {
		return fmt.Errorf("ModuleTrust=db in [Image]: %w", err)
	}
	return nil
}
