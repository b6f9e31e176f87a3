package luks2

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"halogenos.internal/boot/block"
)

// Options describes a volume to be made.
type Options struct {
	UUID      string // in text form, for example 01234567-89ab-cdef-0123-456789abcdef
	Label     string // at most 47 bytes, may be empty
	Subsystem string // at most 47 bytes, may be empty
	Size      int64  // of the device, in bytes: a multiple of CryptSector
}

func (o Options) validate() error {
	if !validUUID(o.UUID) {
		return fmt.Errorf("UUID %q is not 8-4-4-4-12 lower-case hex digits", o.UUID)
	}
	for _, s := range []string{o.Label, o.Subsystem} {
		if len(s) >= labelSize || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
			return fmt.Errorf("label %q, at most %d bytes without control characters are possible", s, labelSize-1)
		}
	}
	if o.Size <= DataOffset || o.Size%CryptSector != 0 {
		return fmt.Errorf("device of %d bytes, want more than %d in sectors of %d", o.Size, DataOffset, CryptSector)
	}
	return nil
}

func validUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case !strings.ContainsRune("0123456789abcdef", rune(c)):
			return false
		}
	}
	return true
}

// Format makes a volume with a fresh random volume key, which it returns and
// the caller wipes. Everything that the device held is lost. edit gets the
// volume key (not to be kept or wiped) and must add the first keyslot; a
// header that no passphrase opens is never written.
//
// Power cuts. The old header and all old key material are overwritten and
// synced first, then the new material, then the header in two copies: until
// the first of them is whole the device is not a LUKS volume, and from then on it
// is one that opens. Formatting starts over after a cut.
func Format(rand io.Reader, d block.Device, o Options, edit func(c *Change, volumeKey []byte) error) (*Header, []byte, error) {
	if err := o.validate(); err != nil {
		return nil, nil, fmt.Errorf("luks2: format: %w", err)
	}
	volumeKey := make([]byte, VolumeKeySize)
	h, err := format(rand, d, o, volumeKey, edit)
	if err != nil {
		Wipe(volumeKey)
		return nil, nil, fmt.Errorf("luks2: format: %w", err)
	}
	return h, volumeKey, nil
}

func format(rand io.Reader, d block.Device, o Options, volumeKey []byte, edit func(*Change, []byte) error) (*Header, error) {
	if _, err := io.ReadFull(rand, volumeKey); err != nil {
		return nil, fmt.Errorf("random volume key: %w", err)
	}
	meta, err := newMetadata(rand, volumeKey)
	if err != nil {
		return nil, err
	}
	h := &Header{
		UUID: o.UUID, Label: o.Label, Subsystem: o.Subsystem,
		meta: meta, size: o.Size,
	}
	if err := block.Zero(d, 0, int64(areas.start)); err != nil {
		return nil, fmt.Errorf("wipe the old header: %w", err)
	}
	if err := fill(rand, d, areas); err != nil {
		return nil, fmt.Errorf("wipe the keyslots area: %w", err)
	}
	// What follows goes to the same sectors.
	if err := d.Sync(); err != nil {
		return nil, fmt.Errorf("wipe the old header: sync: %w", err)
	}
	c := &Change{rand: rand, device: d, meta: meta}
	err = h.apply(c, func(c *Change) error {
		if err := edit(c, volumeKey); err != nil {
			return err
		}
		if len(c.removed) > 0 {
			return errors.New("keyslots were removed from a new volume")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// newMetadata describes a volume without keyslots.
func newMetadata(rand io.Reader, volumeKey []byte) (*metadata, error) {
	d := &digest{
		Type: typeDigest, Keyslots: []string{}, Segments: []string{"0"},
		// The key is random: there is nothing to stretch.
		Hash: "sha256", Iterations: minIterations, Salt: make([]byte, 32),
	}
	if _, err := io.ReadFull(rand, d.Salt); err != nil {
		return nil, fmt.Errorf("random salt: %w", err)
	}
	d.Digest = d.of(volumeKey)
	data := dataSegment
	return &metadata{
		Keyslots: map[string]*keyslot{},
		Tokens:   map[string]json.RawMessage{},
		Segments: map[string]*segment{"0": &data},
		Digests:  map[string]*digest{"0": d},
		Config:   &config{JSONSize: headerSize - binarySize, KeyslotsSize: decimal(areas.end - areas.start)},
	}, nil
}
