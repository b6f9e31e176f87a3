package luks2

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"halogenos.internal/boot/block"
)

// Change collects edits of a header, which Header.Change and Format then write
// together.
type Change struct {
	rand   io.Reader
	device block.Device
	meta   *metadata
	edited bool

	added   []span   // areas that were written
	removed []string // keyslots that go in the second step
}

// Change lets edit change the header's keyslots and tokens and writes them, all
// or nothing: after an error of edit the device has the header it had. After an
// error of writing the header is to be opened again; the volume opens with
// the old passphrases, with the new ones, or with both.
//
// Power cuts. New key material goes into free areas and is synced before a
// header refers to it. The header that follows has all that is new and still
// everything that is removed, so that a replaced keyslot works until the new
// one does. Only then the removed areas are overwritten and synced, while their
// keyslots are still listed: who looks after a cut sees that the removal is
// not finished, and no key material survives that nothing points to. A last
// header no longer lists them.
func (h *Header) Change(rand io.Reader, d block.Device, edit func(*Change) error) error {
	if h.unusable {
		return errors.New("luks2: change: a write failed before, the header has to be opened again")
	}
	meta, err := h.meta.clone()
	if err != nil {
		return fmt.Errorf("luks2: change: %w", err)
	}
	c := &Change{rand: rand, device: d, meta: meta}
	if err := h.apply(c, edit); err != nil {
		return fmt.Errorf("luks2: change: %w", err)
	}
	return nil
}

// apply runs edit and writes what came of it.
func (h *Header) apply(c *Change, edit func(*Change) error) error {
	final, err := c.run(edit, h)
	if err != nil {
		// What was written is in nobody's area; it need not stay.
		return errors.Join(err, c.overwrite(c.added))
	}
	if len(c.added) > 0 {
		if err := c.device.Sync(); err != nil {
			h.unusable = true
			return fmt.Errorf("sync key material: %w", err)
		}
	}
	if c.edited {
		if err := h.write(c, c.meta); err != nil {
			return err
		}
	}
	if len(c.removed) == 0 {
		return nil
	}
	var areas []span
	for _, id := range c.removed {
		areas = append(areas, c.meta.Keyslots[id].span())
	}
	if err := c.overwrite(areas); err != nil {
		h.unusable = true
		return err
	}
	return h.write(c, final)
}

// run collects the edits and checks both headers that would come of them, so
// that whatever can fail without writing a header fails before. It returns the
// second one.
func (c *Change) run(edit func(*Change) error, h *Header) (*metadata, error) {
	if err := edit(c); err != nil {
		return nil, err
	}
	final, err := c.meta.clone()
	if err != nil {
		return nil, err
	}
	for _, id := range c.removed {
		if err := final.drop(id); err != nil {
			return nil, err
		}
	}
	if len(final.Keyslots) == 0 {
		return nil, errors.New("the volume would be left without a keyslot")
	}
	for _, m := range []*metadata{c.meta, final} {
		if err := m.validate(h.size); err != nil {
			return nil, err
		}
		text, err := m.encode()
		if err != nil {
			return nil, err
		}
		if len(text) > maxJSON {
			return nil, fmt.Errorf("metadata of %d bytes, room for %d", len(text), maxJSON)
		}
	}
	return final, nil
}

// AddKeyslot puts the volume key under a passphrase and returns the keyslot's
// number. Both stay the caller's. The material is written to the device at
// once, where nothing refers to it yet.
func (c *Change) AddKeyslot(volumeKey, passphrase []byte, k KDF) (int, error) {
	slot, err := c.addKeyslot(volumeKey, passphrase, k)
	if err != nil {
		return 0, fmt.Errorf("add keyslot: %w", err)
	}
	return slot, nil
}

func (c *Change) addKeyslot(volumeKey, passphrase []byte, k KDF) (int, error) {
	if err := checkPassphrase(passphrase); err != nil {
		return 0, err
	}
	if err := k.validate(); err != nil {
		return 0, err
	}
	d := c.meta.digest()
	if err := d.verify(volumeKey); err != nil {
		return 0, err
	}
	number, err := freeNumber(c.meta.Keyslots, MaxKeyslots)
	if err != nil {
		return 0, err
	}
	offset, err := c.meta.gap(areaSize(len(volumeKey)))
	if err != nil {
		return 0, err
	}
	slot, err := newKeyslot(c.rand, len(volumeKey), offset, k)
	if err != nil {
		return 0, err
	}
	material, err := slot.seal(c.rand, volumeKey, passphrase)
	if err != nil {
		return 0, err
	}
	c.added = append(c.added, slot.span())
	if _, err := c.device.WriteAt(material, int64(offset)); err != nil {
		return 0, fmt.Errorf("write key material at offset %d: %w", offset, err)
	}
	id := strconv.Itoa(number)
	c.meta.Keyslots[id] = slot
	d.Keyslots = append(d.Keyslots, id)
	c.edited = true
	return number, nil
}

// RemoveKeyslot removes a keyslot, its key material, and its mention in
// tokens. The last keyslot cannot be removed. On flash memory the medium may
// keep a copy that cannot be reached.
func (c *Change) RemoveKeyslot(slot int) error {
	id := strconv.Itoa(slot)
	if c.meta.Keyslots[id] == nil || slices.Contains(c.removed, id) {
		return fmt.Errorf("remove keyslot %d: not there", slot)
	}
	c.removed = append(c.removed, id)
	return nil
}

// drop takes a keyslot out of all objects.
func (m *metadata) drop(id string) error {
	delete(m.Keyslots, id)
	is := func(s string) bool { return s == id }
	d := m.digest()
	d.Keyslots = slices.DeleteFunc(d.Keyslots, is)
	for tokenID, raw := range m.Tokens {
		fields, err := tokenFields(raw)
		if err != nil {
			return fmt.Errorf("token %s: %w", tokenID, err)
		}
		if !slices.ContainsFunc(fields.keyslots, is) {
			continue
		}
		fields.keyslots = slices.DeleteFunc(fields.keyslots, is)
		if m.Tokens[tokenID], err = fields.encode(); err != nil {
			return fmt.Errorf("token %s: %w", tokenID, err)
		}
	}
	return nil
}

// overwrite fills areas with random bytes, which is also what free space in
// the keyslots area looks like, and syncs.
func (c *Change) overwrite(areas []span) error {
	if len(areas) == 0 {
		return nil
	}
	for _, a := range areas {
		if err := fill(c.rand, c.device, a); err != nil {
			return fmt.Errorf("overwrite key material: %w", err)
		}
	}
	if err := c.device.Sync(); err != nil {
		return fmt.Errorf("overwrite key material: sync: %w", err)
	}
	return nil
}

// fill writes random bytes in pieces.
func fill(rand io.Reader, d block.Device, s span) error {
	buf := make([]byte, min(1<<20, s.end-s.start))
	for at := s.start; at < s.end; at += uint64(len(buf)) {
		buf = buf[:min(uint64(len(buf)), s.end-at)]
		if _, err := io.ReadFull(rand, buf); err != nil {
			return fmt.Errorf("random bytes: %w", err)
		}
		if _, err := d.WriteAt(buf, int64(at)); err != nil {
			return fmt.Errorf("%d bytes at offset %d: %w", len(buf), at, err)
		}
	}
	return nil
}

// write writes both copies with the next sequence number.
//
// The copy that was not loaded goes first: it may be the broken or the older
// one, and of two equal ones it is the secondary. Cut while it is written, the
// other copy is whole and current. Cut after its sync, it is the newer one of
// two whole copies, and counts. Then the other follows. At no time both are
// in the writing.
func (h *Header) write(c *Change, m *metadata) error {
	text, err := m.encode()
	if err != nil {
		return err
	}
	next := h.copyOf(text, h.seq+1)
	h.unusable = true
	for _, s := range []side{h.loaded ^ 1, h.loaded} {
		if err := next.writeTo(c.rand, c.device, s); err != nil {
			return err
		}
	}
	h.meta, h.seq, h.json = m, next.seq, text
	h.loaded, h.health, h.unusable = primary, Health{}, false
	return nil
}

func (h *Header) copyOf(text []byte, seq uint64) *headerCopy {
	return &headerCopy{uuid: h.UUID, label: h.Label, subsystem: h.Subsystem, seq: seq, json: text}
}

func (c *headerCopy) writeTo(rand io.Reader, d block.Device, s side) error {
	b, err := c.encode(rand, s)
	if err != nil {
		return fmt.Errorf("%s header: %w", s, err)
	}
	if _, err := d.WriteAt(b, s.offset()); err != nil {
		return fmt.Errorf("write %s header: %w", s, err)
	}
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s header: %w", s, err)
	}
	return nil
}

// Heal writes the copy that Open found broken or out of date again, from the
// other one, which is not touched: a power cut leaves at worst what there was.
// It does nothing when both are good.
func (h *Header) Heal(rand io.Reader, d block.Device) error {
	if h.unusable {
		return errors.New("luks2: heal: a write failed before, the header has to be opened again")
	}
	if h.health.Good() {
		return nil
	}
	if err := h.copyOf(h.json, h.seq).writeTo(rand, d, h.loaded^1); err != nil {
		return fmt.Errorf("luks2: heal: %w", err)
	}
	h.health = Health{}
	return nil
}
