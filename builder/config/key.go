package config

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

const maxKey = 64 << 10 // bytes of a key file

// releaseKey reads the pinned key, if there is one. Having none must be said.
func (r *reader) releaseKey() error {
	switch {
	case r.fingerprint == "":
		return errors.New("ReleaseKey of [Image] is missing: want the key's fingerprint with ReleaseKeyFile, or none")
	case r.fingerprint == "none" && r.keyFile != "":
		return errors.New("ReleaseKey is none, yet there is a ReleaseKeyFile")
	case r.fingerprint == "none":
		return nil
	case r.keyFile == "":
		return fmt.Errorf("ReleaseKey is %q, but ReleaseKeyFile is missing", r.fingerprint)
	}
	want, err := hex.DecodeString(strings.ReplaceAll(r.fingerprint, " ", ""))
	if err != nil || len(want) != 20 && len(want) != 32 {
		return fmt.Errorf("ReleaseKey %q is not a whole OpenPGP fingerprint", r.fingerprint)
	}
	text, err := readBounded(r.local(r.keyFile), maxKey)
	if err != nil {
		return fmt.Errorf("ReleaseKeyFile: %w", err)
	}
	key, err := publicKey(text, want)
	if err != nil {
		return fmt.Errorf("ReleaseKeyFile %s: %w", r.keyFile, err)
	}
	r.config.ReleaseKey = key
	return nil
}

// publicKey returns the binary form of the one public key in text, which is
// binary or armored and whose fingerprint must be want.
func publicKey(text, want []byte) ([]byte, error) {
	read := openpgp.ReadKeyRing
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("-----BEGIN ")) {
		read = openpgp.ReadArmoredKeyRing
	}
	ring, err := read(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("read OpenPGP key: %w", err)
	}
	if len(ring) != 1 {
		return nil, fmt.Errorf("holds %d keys, want one", len(ring))
	}
	key := ring[0]
	if key.PrivateKey != nil {
		return nil, errors.New("is a private key: export the public one")
	}
	if have := key.PrimaryKey.Fingerprint; !bytes.Equal(have, want) {
		return nil, fmt.Errorf("has the fingerprint %X, want %X", have, want)
	}
	var out bytes.Buffer
	if err := key.Serialize(&out); err != nil {
		return nil, fmt.Errorf("encode OpenPGP key: %w", err)
	}
	return out.Bytes(), nil
}
