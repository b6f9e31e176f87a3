// Package firstboot keeps what a machine must remember between its first boot,
// which makes its keys, and its second, which makes the place where they stay:
// one file on the ESP, with nothing in it that is not sealed or public.
//
// It refuses a file that it did not write itself, as far as that can be told;
// whatever else is in it, only the TPM opens it.
package firstboot

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/strictjson"
)

// Directory is where the ESP has what is ours besides UKIs and boot manager.
const Directory = "EFI/halogen"

// MaxSize bounds the file in bytes.
const MaxSize = 1 << 20

const format = 1

// Purpose is what the key that wraps the Secure Boot keys is derived for.
const Purpose = "secure-boot-keys"

// DeletionMark is a file of the ESP: a start has deleted what its kernel had obeyed. What
// it holds does not matter, and neither does who has put it there: without such a variable
// it is removed, and beside one it only has the console open that shows no key.
const DeletionMark = Directory + "/deleted"

// AnswersPurpose is what the key that wraps the installer's answers is derived for.
const AnswersPurpose = "first-start-answers"

// maxAnswers bounds them in bytes, as the machine secret encrypts them.
const maxAnswers = answers.MaxSize + 64

// Left is what the installer and earlier starts have left in Directory.
type Left struct {
	// Answers are what answers.OnESP has, as anybody may have written it; nil where it cannot
	// be read.
	Answers  []byte
	Handed   bool     // there is that file
	Pending  *Pending // the newest file that makes sense; or nil
	Keys     bool     // there are files of that kind
	Marked   bool     // there is DeletionMark
	Unlocked bool     // the root partition was opened before

	// Wished: there is secureboot.OthersOnESP. Others are the known certificates in it, and
	// LetStart is what this boot was told to let start.
	Wished   bool
	Others   secureboot.Database
	LetStart secureboot.OtherSystems
	// Modules is what this boot was told of the running release's certificate of kernel modules.
	Modules secureboot.Trust
}

// A Pending is the content of the file.
type Pending struct {
	Format int `json:"format"`
	// Sealed holds the machine secret, which this UKI alone may unseal.
	Sealed json.RawMessage `json:"sealed"`
	// Keys are the Secure Boot keys, and their list, under the machine secret.
	Keys []byte `json:"keys"`
	// Wanted is what the firmware shall hold once they are enrolled: what the list
	// says, for a boot that cannot open it yet.
	Wanted []byte `json:"wanted"`
	// Answers are those that the first boot has found (answers.OnESP), under the machine
	// secret: what is put there afterwards is not taken.
	Answers []byte `json:"answers,omitempty"`
	// Enrollments is how often an enrollment came to its end on this machine.
	Enrollments int `json:"enrolments"`
}

// Name is the file's name for a count of enrollments: each rewrite has a fresh
// one, since a file on FAT cannot be replaced in one piece.
func Name(enrollments int) string { return fmt.Sprintf("%s/keys-%d.json", Directory, enrollments) }

// Count is the reverse of Name for a name without its directory.
func Count(name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, "keys-")
	if digits, ok = cutSuffix(digits, ".json", ok); !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 8)
	return int(n), err == nil && strconv.FormatUint(n, 10) == digits
}

func cutSuffix(s, suffix string, ok bool) (string, bool) {
	rest, cut := strings.CutSuffix(s, suffix)
	return rest, ok && cut
}

// Parse reads the file.
func Parse(text []byte) (*Pending, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("pending keys have %d bytes, more than %d", len(text), MaxSize)
	}
	p := new(Pending)
	if err := strictjson.Decode(text, p); err != nil {
		return nil, fmt.Errorf("parse pending keys: %w", err)
	}
	if p.Format != format {
		return nil, fmt.Errorf("pending keys have format %d, want %d", p.Format, format)
	}
	if len(p.Keys) > secureboot.MaxWrappedList {
		return nil, fmt.Errorf("pending keys have %d bytes, more than %d", len(p.Keys), secureboot.MaxWrappedList)
	}
	if len(p.Answers) > maxAnswers {
		return nil, fmt.Errorf("pending answers have %d bytes, more than %d", len(p.Answers), maxAnswers)
	}
	if _, err := p.SealedSecret(); err != nil {
		return nil, err
	}
	if _, err := secureboot.ParseWanted(p.Wanted); err != nil {
		return nil, fmt.Errorf("pending keys: %w", err)
	}
	return p, nil
}

// Encode writes the file.
func (p *Pending) Encode() ([]byte, error) {
	p.Format = format
	text, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode pending keys: %w", err)
	}
	return append(text, '\n'), nil
}

// SealedSecret is the machine secret as the TPM takes it.
func (p *Pending) SealedSecret() (*policy.Sealed, error) { return policy.ParseSealed(p.Sealed) }

// WrapKeys encrypts the Secure Boot keys under the machine secret, and the list
// that belongs to them.
func WrapKeys(random io.Reader, secret *policy.Secret, keys *secureboot.KeySet, list *secureboot.List) ([]byte, error) {
	key := secret.Key(Purpose)
	defer clear(key[:])
	wrapped, err := secureboot.Wrap(random, key, Purpose, keys)
	if err != nil {
		return nil, err
	}
	return secureboot.WrapList(random, key, Purpose, wrapped, list)
}

// WrapList puts a list behind wrapped keys, in place of the one that was there.
func WrapList(random io.Reader, secret *policy.Secret, wrapped []byte, list *secureboot.List) ([]byte, error) {
	key := secret.Key(Purpose)
	defer clear(key[:])
	return secureboot.WrapList(random, key, Purpose, wrapped, list)
}

// UnwrapKeys is the reverse of WrapKeys, without the list. The caller wipes the
// keys.
func UnwrapKeys(secret *policy.Secret, wrapped []byte) (*secureboot.KeySet, error) {
	return unwrap(secret, wrapped, secureboot.Unwrap)
}

// UnwrapCertificate returns the certificate of the db key that a machine secret opens.
func UnwrapCertificate(secret *policy.Secret, wrapped []byte) (*x509.Certificate, error) {
	return unwrap(secret, wrapped, secureboot.UnwrapCertificate)
}

func unwrap[T any](secret *policy.Secret, wrapped []byte, by func(key *[32]byte, context string, keys []byte) (T, error)) (T, error) {
	keys, _, err := secureboot.SplitList(wrapped)
	if err != nil {
		var none T
		return none, err
	}
	key := secret.Key(Purpose)
	defer clear(key[:])
	return by(key, Purpose, keys)
}

// UnwrapList returns the list that belongs to wrapped keys. An earlier release
// stored none: then it is a bare one, of the keys alone.
func UnwrapList(secret *policy.Secret, wrapped []byte) (*secureboot.List, error) {
	key := secret.Key(Purpose)
	defer clear(key[:])
	list, err := secureboot.UnwrapList(key, Purpose, wrapped)
	if !errors.Is(err, secureboot.ErrNoList) {
		return list, err
	}
	keys, err := secureboot.Unwrap(key, Purpose, wrapped)
	if err != nil {
		return nil, err
	}
	defer keys.Wipe()
	return secureboot.BareList(keys), nil
}
