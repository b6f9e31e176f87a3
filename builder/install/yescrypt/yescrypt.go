// Package yescrypt makes the hash of an account's password, as Debian's and others' crypt(3)
// make it, without any program or library of the machine.
//
// It makes no other kind of hash and compares none: the machine does that.
package yescrypt

import (
	"errors"
	"fmt"
	"io"

	"github.com/go-crypt/x/yescrypt"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/secretmem"
)

// setting is what comes before the salt: the parameters that libxcrypt takes by default
// (crypt_gensalt(3), cost 5), with which a guess takes 16 MiB.
const setting = "$y$j9T$"

// saltSize is in bytes, as libxcrypt has it.
const saltSize = 16

// Hash returns the hash of a password for /etc/shadow (crypt(5)), with a salt from random. The
// password stays the caller's to wipe; what is derived from it on the way is erased.
func Hash(password []byte, random io.Reader) (string, error) {
	if err := answers.Password(password); err != nil {
		return "", err
	}
	salt := make([]byte, saltSize)
	if _, err := io.ReadFull(random, salt); err != nil {
		return "", fmt.Errorf("salt of a password: %w", err)
	}
	text := append([]byte(setting), yescrypt.Encode64(salt)...)
	hash, err := secretmem.Get(func() (string, error) {
		made, err := yescrypt.Hash(password, text)
		return string(made), err
	})
	secretmem.Collect() // the 16 MiB that the hash was made in
	if err != nil {
		return "", fmt.Errorf("hash a password: %w", err)
	}
	if answers.Hash(hash) != nil {
		return "", errors.New("hash a password: the hash has a form that no machine would take")
	}
	return hash, nil
}
