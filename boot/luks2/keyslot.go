package luks2

import (
	"bytes"
	"cmp"
	"crypto/aes"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"

	"golang.org/x/crypto/pbkdf2"
	"golang.org/x/crypto/xts"
)

const (
	priorityIgnore = 0
	priorityNormal = 1
	priorityPrefer = 2

	areaSector = 512 // keyslot areas are encrypted in sectors of this size
)

// Keyslot describes a keyslot.
type Keyslot struct {
	Number int
	KDF    KDF
	// Priority is 0 for a keyslot that is tried only when asked for, 1 for a
	// normal one, 2 for one to be tried first.
	Priority     int
	Offset, Size int64 // of its area on the device, in bytes
}

// Keyslots lists the keyslots by number.
func (h *Header) Keyslots() []Keyslot {
	var list []Keyslot
	for _, n := range numbers(h.meta.Keyslots) {
		k := h.meta.keyslot(n)
		list = append(list, Keyslot{n, k.KDF.KDF, k.priority(), int64(k.Area.Offset), int64(k.Area.Size)})
	}
	return list
}

func (k *keyslot) priority() int {
	if k.Priority == nil {
		return priorityNormal
	}
	return *k.Priority
}

// Unlock returns the volume key, which the caller wipes, and the keyslot that
// the passphrase opened. r is the device. Without slots it tries all but those
// of priority 0; a caller whose token names a keyslot should name that one. A
// keyslot whose key derivation takes more than memory bytes is not tried.
//
// The error wraps ErrPassphrase when a keyslot was tried and did not open,
// ErrMemory when one was not tried, and what reading gave; it can wrap several.
func (h *Header) Unlock(r io.ReaderAt, passphrase []byte, memory uint64, slots ...int) (volumeKey []byte, slot int, err error) {
	if len(slots) == 0 {
		slots = h.defaultSlots()
	}
	if len(slots) == 0 {
		return nil, 0, errors.New("luks2: unlock: the volume has no keyslot to try")
	}
	var failed []error
	for _, n := range slots {
		k := h.meta.keyslot(n)
		if k == nil {
			failed = append(failed, fmt.Errorf("keyslot %d: not there", n))
			continue
		}
		if need := k.KDF.memory(); need > memory {
			failed = append(failed, fmt.Errorf("keyslot %d: %w: %d MiB, the limit is %d MiB", n, ErrMemory, need>>20, memory>>20))
			continue
		}
		key, err := k.open(r, passphrase)
		if err == nil && h.VerifyVolumeKey(key) == nil {
			return key, n, nil
		}
		Wipe(key)
		failed = append(failed, fmt.Errorf("keyslot %d: %w", n, cmp.Or(err, ErrPassphrase)))
	}
	return nil, 0, fmt.Errorf("luks2: unlock: %w", errors.Join(failed...))
}

func (h *Header) defaultSlots() []int {
	slots := slices.DeleteFunc(numbers(h.meta.Keyslots), func(n int) bool {
		return h.meta.keyslot(n).priority() == priorityIgnore
	})
	slices.SortStableFunc(slots, func(a, b int) int {
		return cmp.Compare(h.meta.keyslot(b).priority(), h.meta.keyslot(a).priority())
	})
	return slots
}

// VerifyVolumeKey returns ErrVolumeKey unless the key is the volume's.
func (h *Header) VerifyVolumeKey(volumeKey []byte) error {
	return h.meta.digest().verify(volumeKey)
}

func (d *digest) verify(volumeKey []byte) error {
	got := d.of(volumeKey)
	if subtle.ConstantTimeCompare(got, d.Digest) != 1 {
		return ErrVolumeKey
	}
	return nil
}

func (d *digest) of(volumeKey []byte) []byte {
	h := hashes(d.Hash)
	return pbkdf2.Key(volumeKey, d.Salt, d.Iterations, h().Size(), h)
}

// ReadKeyslot reports whether the device gives all that a passphrase opens a keyslot by.
func (h *Header) ReadKeyslot(r io.ReaderAt, slot int) error {
	k := h.meta.keyslot(slot)
	if k == nil {
		return nil // Unlock says that it is not there
	}
	material := make([]byte, k.KeySize*k.AF.Stripes)
	defer Wipe(material)
	return readFull(r, material, int64(k.Area.Offset))
}

// open returns what the area holds under the passphrase: the volume key, or
// noise. The caller wipes it.
func (k *keyslot) open(r io.ReaderAt, passphrase []byte) ([]byte, error) {
	material := make([]byte, k.KeySize*k.AF.Stripes)
	defer Wipe(material)
	if err := readFull(r, material, int64(k.Area.Offset)); err != nil {
		return nil, err
	}
	if err := k.crypt(passphrase, material, (*xts.Cipher).Decrypt); err != nil {
		return nil, err
	}
	key := make([]byte, k.KeySize)
	mergeStripes(key, material, hashes(k.AF.Hash)())
	return key, nil
}

// seal returns the bytes of the area that hold the volume key.
func (k *keyslot) seal(rand io.Reader, volumeKey, passphrase []byte) ([]byte, error) {
	material := make([]byte, k.KeySize*k.AF.Stripes)
	if err := splitStripes(rand, material, volumeKey, hashes(k.AF.Hash)()); err != nil {
		Wipe(material)
		return nil, err
	}
	if err := k.crypt(passphrase, material, (*xts.Cipher).Encrypt); err != nil {
		Wipe(material)
		return nil, err
	}
	return material, nil
}

// crypt encrypts or decrypts an area's bytes in place. Their length is a
// multiple of the sector size for both key sizes.
func (k *keyslot) crypt(passphrase, material []byte, sector func(c *xts.Cipher, dst, src []byte, n uint64)) error {
	key := k.KDF.derive(passphrase, k.Area.KeySize)
	defer Wipe(key)
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		return fmt.Errorf("area cipher: %w", err)
	}
	for n := range len(material) / areaSector {
		s := material[n*areaSector:][:areaSector]
		sector(c, s, s, uint64(n))
	}
	return nil
}

// splitStripes spreads a key over dst so that it is gone when any stripe is
// (the anti-forensic splitter; specification section 2.4 and LUKS1's).
func splitStripes(rand io.Reader, dst, key []byte, h hash.Hash) error {
	last := len(dst) - len(key)
	if _, err := io.ReadFull(rand, dst[:last]); err != nil {
		return fmt.Errorf("random stripes: %w", err)
	}
	foldStripes(dst[last:], dst[:last], h)
	subtle.XORBytes(dst[last:], dst[last:], key)
	return nil
}

// mergeStripes undoes splitStripes.
func mergeStripes(key, src []byte, h hash.Hash) {
	last := len(src) - len(key)
	foldStripes(key, src[:last], h)
	subtle.XORBytes(key, key, src[last:])
}

// foldStripes folds all stripes but the last into sum.
func foldStripes(sum, src []byte, h hash.Hash) {
	clear(sum)
	// Made once for all 4,000: the runtime keeps a list of what is made beside secrets.
	room := make([]byte, 4, 4+h.Size())
	defer Wipe(room[:cap(room)])
	for ; len(src) > 0; src = src[len(sum):] {
		subtle.XORBytes(sum, sum, src[:len(sum)])
		diffuse(sum, h, room)
	}
}

// diffuse replaces each piece of b, of the digest's size, by the digest of its
// number and itself. room has four bytes, and behind them room for a digest.
func diffuse(b []byte, h hash.Hash, room []byte) {
	for i := uint32(0); len(b) > 0; i++ {
		piece := b[:min(len(b), h.Size())]
		b = b[len(piece):]
		binary.BigEndian.PutUint32(room, i)
		h.Reset()
		h.Write(room)
		h.Write(piece)
		copy(piece, h.Sum(room)[len(room):])
	}
}

// newKeyslot describes a keyslot at an offset.
func newKeyslot(rand io.Reader, keySize int, offset uint64, k KDF) (*keyslot, error) {
	salt := make([]byte, 32)
	if _, err := io.ReadFull(rand, salt); err != nil {
		return nil, fmt.Errorf("random salt: %w", err)
	}
	return &keyslot{
		Type:    typeKeyslot,
		KeySize: keySize,
		AF:      af{Type: typeAF, Stripes: stripes, Hash: "sha256"},
		Area: area{
			Type:       typeArea,
			Offset:     decimal(offset),
			Size:       decimal(areaSize(keySize)),
			Encryption: Cipher,
			KeySize:    VolumeKeySize,
		},
		KDF: kdf{KDF: k, Salt: salt},
	}, nil
}

// areaSize is how many bytes a keyslot takes for a key of that size.
func areaSize(keySize int) uint64 {
	return (uint64(keySize*stripes) + areaAlign - 1) / areaAlign * areaAlign
}

// gap returns the first offset between the areas where size bytes fit.
func (m *metadata) gap(size uint64) (uint64, error) {
	at := areas.start
	for _, k := range m.byOffset() {
		if k.span().start >= at+size {
			break
		}
		at = (k.span().end + areaAlign - 1) / areaAlign * areaAlign
	}
	if at+size > areas.end {
		return 0, fmt.Errorf("no %d bytes are left in the keyslots area of %d", size, areas.end-areas.start)
	}
	return at, nil
}

// checkPassphrase refuses what would make a keyslot that opens for everybody:
// nothing, or the zeros that a key has which nobody filled in.
func checkPassphrase(passphrase []byte) error {
	if len(bytes.Trim(passphrase, "\x00")) == 0 {
		return errors.New("empty passphrase")
	}
	return nil
}
