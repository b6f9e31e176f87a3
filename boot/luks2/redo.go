package luks2

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"halogenos.internal/boot/strictjson"
)

// redoName is both the type of the token and the mandatory requirement (specification
// section 3.5, config) by which a header says that sectors of the volume wait elsewhere.
// cryptsetup, and a program that does not know the requirement, opens no such volume.
const redoName = "halogen-redo"

const macSize = 32 // of HMAC-SHA256

// A Redo says that chunks of the volume's ciphertext lie in a store on another partition,
// and must be copied to their places before the volume is opened. Only who has the volume key
// can tell whether the store is the right one: by the MAC.
type Redo struct {
	// Partition is the label of the partition that holds the store.
	Partition string `json:"partition"`
	Chunks    int    `json:"chunks"`
	MAC       []byte `json:"mac"`
}

func (r *Redo) validate() error {
	if r.Partition == "" || r.Chunks < 0 || len(r.MAC) != macSize {
		return fmt.Errorf("%d chunks on the partition %q with a MAC of %d bytes, want %d", r.Chunks, r.Partition, len(r.MAC), macSize)
	}
	return nil
}

// Redo returns what is to be copied before the volume is opened; nil for nothing. After a
// write that failed it is an error: the device may say something else.
func (h *Header) Redo() (*Redo, error) {
	if h.unusable {
		return nil, errors.New("luks2: a write failed before, the header has to be opened again")
	}
	_, r, err := h.meta.redo()
	return r, err
}

// redo returns the token of that type with its name, and refuses one without the requirement,
// a requirement without it, and two.
func (m *metadata) redo() (id string, r *Redo, err error) {
	for name, raw := range m.Tokens {
		f, err := tokenFields(raw)
		if err != nil {
			return "", nil, fmt.Errorf("token %s: %w", name, err)
		}
		if f.kind != redoName {
			continue
		}
		if r != nil {
			return "", nil, fmt.Errorf("two tokens of type %s", redoName)
		}
		id, r = name, new(Redo)
		text, err := json.Marshal(f.rest)
		if err == nil {
			err = strictjson.Decode(text, r)
		}
		if err == nil {
			err = r.validate()
		}
		if err != nil {
			return "", nil, fmt.Errorf("token %s: %w", name, err)
		}
	}
	if required := m.Config.Requirements != nil && slices.Contains(m.Config.Requirements.Mandatory, redoName); required != (r != nil) {
		return "", nil, fmt.Errorf("the requirement %s and the token of that name belong together", redoName)
	}
	return id, r, nil
}

// SetRedo has the header say what is to be copied before the volume is opened. It is given
// nothing where that is done.
func (c *Change) SetRedo(r *Redo) error {
	id, have, err := c.meta.redo()
	if err != nil {
		return err
	}
	if r == nil {
		if have != nil {
			delete(c.meta.Tokens, id)
			c.meta.Config.Requirements, c.edited = nil, true
		}
		return nil
	}
	if have != nil {
		return errors.New("something is to be copied already")
	}
	if err := r.validate(); err != nil {
		return err
	}
	t := Token{Type: redoName, Fields: map[string]json.RawMessage{}}
	for name, value := range map[string]any{"partition": r.Partition, "chunks": r.Chunks, "mac": r.MAC} {
		if t.Fields[name], err = json.Marshal(value); err != nil {
			return fmt.Errorf("token of type %s: %w", redoName, err)
		}
	}
	n, err := freeNumber(c.meta.Tokens, MaxTokens)
	if err != nil {
		return fmt.Errorf("token of type %s: %w", redoName, err)
	}
	raw, err := c.meta.encodeToken(t)
	if err != nil {
		return fmt.Errorf("token of type %s: %w", redoName, err)
	}
	c.meta.Tokens[strconv.Itoa(n)] = raw
	c.meta.Config.Requirements, c.edited = &requirements{Mandatory: []string{redoName}}, true
	return nil
}
