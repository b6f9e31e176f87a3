package luks2

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

const (
	areaAlign = 4096
	stripes   = 4000

	typeSegment = "crypt"
	typeKeyslot = "luks2"
	typeDigest  = "pbkdf2"
	typeAF      = "luks1"
	typeArea    = "raw"
	sizeDynamic = "dynamic"

	minSalt, maxSalt = 16, 64
	maxFlags         = 32
)

// dataSegment is the only segment that there is. Nothing vouches for it: not the
// checksum, which anybody can make, and not the volume key, which the keyslots
// give away whatever it says. Were one of its fields free, somebody who has stored
// a file on the volume, and later holds the disk, could have the kernel take that
// file for the volume's file system: with the file's place as the offset and its
// first sector's number as the tweak every sector of it decrypts.
//
// These are the values that every release has written.
var dataSegment = segment{Type: typeSegment, Offset: DataOffset, Size: sizeDynamic, Encryption: Cipher, SectorSize: CryptSector}

// areas is where keyslot areas may lie: all that is between the second copy of the
// header and the data.
var areas = span{start: 2 * headerSize, end: DataOffset}

// validate is the short list: it returns nil for metadata that the package is
// willing to open or to write. size is that of the device in bytes.
func (m *metadata) validate(size int64) error {
	if m.Keyslots == nil || m.Tokens == nil || m.Segments == nil || m.Digests == nil || m.Config == nil {
		return errors.New("metadata: an object is missing")
	}
	if err := m.Config.validate(); err != nil {
		return err
	}
	if len(m.Segments) != 1 || m.Segments["0"] == nil {
		return fmt.Errorf("%d segments, want one, number 0", len(m.Segments))
	}
	if err := m.Segments["0"].validate(); err != nil {
		return err
	}
	if size <= DataOffset {
		return fmt.Errorf("a device of %d bytes, where the data starts at %d", size, DataOffset)
	}
	if err := m.validateKeyslots(); err != nil {
		return err
	}
	if err := m.validateDigest(); err != nil {
		return err
	}
	if len(m.Tokens) > MaxTokens {
		return fmt.Errorf("%d tokens, at most %d are possible", len(m.Tokens), MaxTokens)
	}
	for id, raw := range m.Tokens {
		if _, err := number(id, MaxTokens); err != nil {
			return fmt.Errorf("token: %w", err)
		}
		if _, err := m.decodeToken(raw); err != nil {
			return fmt.Errorf("token %s: %w", id, err)
		}
	}
	_, _, err := m.redo()
	return err
}

// span is a range of bytes on the device; end is the first byte behind it.
type span struct{ start, end uint64 }

// validate leaves the flags alone, which cryptsetup keeps there for itself when it
// is told to (allow-discards, for example): nothing here reads them.
func (c *config) validate() error {
	if c.JSONSize != headerSize-binarySize {
		return fmt.Errorf("config: JSON area of %d bytes, want %d", c.JSONSize, headerSize-binarySize)
	}
	if want := decimal(areas.end - areas.start); c.KeyslotsSize != want {
		return fmt.Errorf("config: keyslots area of %d bytes, want %d", c.KeyslotsSize, want)
	}
	if len(c.Flags) > maxFlags {
		return fmt.Errorf("config: %d flags", len(c.Flags))
	}
	if c.Requirements != nil && len(c.Requirements.Mandatory) > 0 && !slices.Equal(c.Requirements.Mandatory, []string{redoName}) {
		return fmt.Errorf("config: requirements %q", c.Requirements.Mandatory)
	}
	return nil
}

func (s *segment) validate() error {
	if *s == dataSegment {
		return nil
	}
	have, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("segment 0: %w", err)
	}
	want, err := json.Marshal(dataSegment)
	if err != nil {
		return fmt.Errorf("segment 0: %w", err)
	}
	return fmt.Errorf("segment 0 is %s, want %s: somebody has changed where the data is or how it is read", have, want)
}

func (m *metadata) validateKeyslots() error {
	if len(m.Keyslots) > MaxKeyslots {
		return fmt.Errorf("%d keyslots, at most %d are possible", len(m.Keyslots), MaxKeyslots)
	}
	for id, k := range m.Keyslots {
		if _, err := number(id, MaxKeyslots); err != nil {
			return fmt.Errorf("keyslot: %w", err)
		}
		if k == nil {
			return fmt.Errorf("keyslot %s is null", id)
		}
		if err := k.validate(); err != nil {
			return fmt.Errorf("keyslot %s: %w", id, err)
		}
	}
	var last span
	for _, k := range m.byOffset() {
		if k.span().start < last.end {
			return fmt.Errorf("keyslot areas overlap at offset %d", k.span().start)
		}
		last = k.span()
	}
	return nil
}

// byOffset returns the keyslots in the order of their areas.
func (m *metadata) byOffset() []*keyslot {
	list := make([]*keyslot, 0, len(m.Keyslots))
	for _, k := range m.Keyslots {
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b *keyslot) int { return cmp.Compare(a.Area.Offset, b.Area.Offset) })
	return list
}

func (k *keyslot) span() span {
	return span{uint64(k.Area.Offset), uint64(k.Area.Offset) + uint64(k.Area.Size)}
}

func (k *keyslot) validate() error {
	if k.Type != typeKeyslot {
		return fmt.Errorf("type %q, want %s", k.Type, typeKeyslot)
	}
	for _, size := range []int{k.KeySize, k.Area.KeySize} {
		if size != VolumeKeySize {
			return fmt.Errorf("key of %d bytes, want %d", size, VolumeKeySize)
		}
	}
	if k.Priority != nil && (*k.Priority < priorityIgnore || *k.Priority > priorityPrefer) {
		return fmt.Errorf("priority %d", *k.Priority)
	}
	if k.AF.Type != typeAF || k.AF.Stripes != stripes || hashes(k.AF.Hash) == nil {
		return fmt.Errorf("anti-forensic splitter %q of %d stripes with %q", k.AF.Type, k.AF.Stripes, k.AF.Hash)
	}
	if k.Area.Type != typeArea || k.Area.Encryption != Cipher {
		return fmt.Errorf("area of type %q under cipher %q, want %s and %s", k.Area.Type, k.Area.Encryption, typeArea, Cipher)
	}
	s := k.span()
	if s.start%areaAlign != 0 || s.start < areas.start || s.end > areas.end || s.end-s.start < uint64(k.KeySize*stripes) {
		return fmt.Errorf("area of %d bytes at offset %d, want %d bytes between %d and %d", k.Area.Size, s.start, k.KeySize*stripes, areas.start, areas.end)
	}
	if n := len(k.KDF.Salt); n < minSalt || n > maxSalt {
		return fmt.Errorf("salt of %d bytes", n)
	}
	return k.KDF.validate()
}

// validateDigest checks that there is one digest, for the segment and for
// every keyslot.
func (m *metadata) validateDigest() error {
	if len(m.Digests) != 1 {
		return fmt.Errorf("%d digests, want one", len(m.Digests))
	}
	for id, d := range m.Digests {
		if _, err := number(id, MaxKeyslots); err != nil {
			return fmt.Errorf("digest: %w", err)
		}
		if d == nil || d.Type != typeDigest {
			return fmt.Errorf("digest %s is not of type %s", id, typeDigest)
		}
		h := hashes(d.Hash)
		if h == nil || len(d.Digest) != h().Size() {
			return fmt.Errorf("digest %s: %d bytes by hash %q", id, len(d.Digest), d.Hash)
		}
		if d.Iterations < minIterations || d.Iterations > maxIterations {
			return fmt.Errorf("digest %s: %d iterations, want %d to %d", id, d.Iterations, minIterations, maxIterations)
		}
		if n := len(d.Salt); n < minSalt || n > maxSalt {
			return fmt.Errorf("digest %s: salt of %d bytes", id, n)
		}
		if !slices.Equal(d.Segments, []string{"0"}) {
			return fmt.Errorf("digest %s is for segments %q, want 0", id, d.Segments)
		}
		if err := m.checkReferences(d.Keyslots); err != nil {
			return fmt.Errorf("digest %s: %w", id, err)
		}
		if len(d.Keyslots) != len(m.Keyslots) {
			return fmt.Errorf("digest %s is for %d of %d keyslots", id, len(d.Keyslots), len(m.Keyslots))
		}
	}
	return nil
}

// checkReferences checks that each keyslot named exists and is named once.
func (m *metadata) checkReferences(ids []string) error {
	for i, id := range ids {
		if m.Keyslots[id] == nil || slices.Contains(ids[:i], id) {
			return fmt.Errorf("keyslot %q is not there, or named twice", id)
		}
	}
	return nil
}

// digest returns the only digest of valid metadata.
func (m *metadata) digest() *digest {
	for _, d := range m.Digests {
		return d
	}
	return nil
}

func (m *metadata) keyslot(n int) *keyslot { return m.Keyslots[strconv.Itoa(n)] }
