// Package luks2 formats, opens and changes the header of a LUKS2 volume, as
// the LUKS2 On-Disk Format Specification (version 1.1) has it and cryptsetup
// reads it. The data itself is dm-crypt's: the package only says what to put
// into its table.
//
// The header is not authenticated, so what it may say is a short list, and
// everything else is refused: one segment, from [DataOffset] to the end of the
// device, under aes-xts-plain64 in sectors of [CryptSector] that are counted from
// zero; keyslots with PBKDF2 or Argon2id under aes-xts-plain64; one PBKDF2 digest.
// No other cipher, above all no null cipher, no integrity, no reencryption, no
// requirement but the one of [Redo], no unbound keyslot, no field that is unknown. So nothing in a
// header says where or how data is read: it only says who opens the volume.
// The metadata is read once, and what was checked is what is used.
//
// Secrets (volume keys, passphrases) are byte slices that belong to the
// caller: the package keeps none, wipes the copies that it makes itself, and
// leaves wiping arguments and results to the caller ([Wipe]). Copies inside
// the crypto libraries (key schedules, Argon2's memory) cannot be reached.
package luks2

import (
	"errors"
	"runtime"

	"halogenos.internal/boot/words"
)

const (
	// DataOffset is where the data of a volume made by Format starts, in
	// bytes; cryptsetup's default.
	DataOffset = 16 << 20
	// MaxKeyslots and MaxTokens are the specification's limits.
	MaxKeyslots = 32
	MaxTokens   = 32
	// Cipher is the only one, for segments and for keyslots.
	Cipher = "aes-xts-plain64"
	// CryptSector is how many bytes are encrypted as one.
	CryptSector = 4096
	// VolumeKeySize is the size in bytes of volume keys: AES-256 twice, for XTS.
	VolumeKeySize = 64
)

var (
	// ErrNotLUKS: nothing on the device starts like a LUKS header.
	ErrNotLUKS = errors.New("not a LUKS volume")
	// ErrDamaged: there was a header, and no copy of it is whole.
	ErrDamaged = errors.New("LUKS header damaged")
	// ErrUnsupported: the header is whole and says what is not on the list.
	ErrUnsupported = errors.New("LUKS header refused")
	// ErrPassphrase: the passphrase opens none of the keyslots tried. A
	// keyslot whose key material is damaged looks the same.
	ErrPassphrase = words.Errorf(words.WrongPassphrase)
	// ErrMemory: a keyslot wants more memory than it may take.
	ErrMemory = errors.New("keyslot takes too much memory")
	// ErrVolumeKey: the volume key is not this volume's.
	ErrVolumeKey = errors.New("wrong volume key")
)

// Health says how the two copies of a header are. A nil error means whole and
// current.
type Health struct {
	Primary, Secondary error
}

// Good reports whether both copies are whole and current.
func (h Health) Good() bool { return h.Primary == nil && h.Secondary == nil }

// Header is an opened header. It holds no secret. It is not safe for
// concurrent use.
type Header struct {
	UUID      string // the volume's, in text form
	Label     string
	Subsystem string

	meta *metadata
	size int64 // of the device, in bytes

	seq      uint64
	json     []byte // what meta was read from
	loaded   side
	health   Health
	unusable bool // a write failed half way
}

// SequenceID counts the changes of the header.
func (h *Header) SequenceID() uint64 { return h.seq }

// Wipe overwrites a secret with zeros.
func Wipe(secret []byte) {
	clear(secret)
	runtime.KeepAlive(secret)
}
