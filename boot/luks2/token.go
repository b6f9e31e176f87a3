package luks2

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"halogenos.internal/boot/strictjson"
)

// Token is a note in the header on how to get at passphrases: of which kind,
// for which keyslots, and whatever else that kind needs. Nothing in it is
// secret or authenticated.
type Token struct {
	Type     string
	Keyslots []int // that it is for; may be empty
	// Fields is everything else, each value as JSON text. "type" and
	// "keyslots" cannot be among them.
	Fields map[string]json.RawMessage
}

const (
	tokenType     = "type"
	tokenKeyslots = "keyslots"
)

// fields is a token as its JSON object has it.
type fields struct {
	kind     string
	keyslots []string
	rest     map[string]json.RawMessage
}

func tokenFields(raw json.RawMessage) (*fields, error) {
	f := new(fields)
	if err := json.Unmarshal(raw, &f.rest); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(f.rest[tokenType], &f.kind); err != nil || f.kind == "" {
		return nil, errors.New("no type")
	}
	if err := json.Unmarshal(f.rest[tokenKeyslots], &f.keyslots); err != nil || f.keyslots == nil {
		return nil, errors.New("no keyslots")
	}
	delete(f.rest, tokenType)
	delete(f.rest, tokenKeyslots)
	return f, nil
}

func (f *fields) encode() (json.RawMessage, error) {
	object := map[string]any{tokenType: f.kind, tokenKeyslots: f.keyslots}
	for name, value := range f.rest {
		if name == tokenType || name == tokenKeyslots {
			return nil, fmt.Errorf("field %q is set twice", name)
		}
		object[name] = value
	}
	b, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	// The same strictness as when it is read again.
	return b, strictjson.Check(b)
}

// decodeToken checks a token against the keyslots that there are.
func (m *metadata) decodeToken(raw json.RawMessage) (Token, error) {
	f, err := tokenFields(raw)
	if err != nil {
		return Token{}, err
	}
	if err := m.checkReferences(f.keyslots); err != nil {
		return Token{}, err
	}
	t := Token{Type: f.kind, Fields: f.rest}
	for _, id := range f.keyslots {
		n, err := number(id, MaxKeyslots)
		if err != nil {
			return Token{}, err
		}
		t.Keyslots = append(t.Keyslots, n)
	}
	return t, nil
}

func (m *metadata) encodeToken(t Token) (json.RawMessage, error) {
	f := &fields{kind: t.Type, keyslots: []string{}, rest: t.Fields}
	for _, n := range t.Keyslots {
		f.keyslots = append(f.keyslots, strconv.Itoa(n))
	}
	raw, err := f.encode()
	if err != nil {
		return nil, err
	}
	_, err = m.decodeToken(raw)
	return raw, err
}

// Tokens returns all tokens by number. The map is the caller's.
func (h *Header) Tokens() map[int]Token {
	tokens := map[int]Token{}
	for _, n := range numbers(h.meta.Tokens) {
		// Metadata that does not decode was never loaded.
		if t, err := h.meta.decodeToken(h.meta.Tokens[strconv.Itoa(n)]); err == nil {
			tokens[n] = t
		}
	}
	return tokens
}

// AddToken adds a token and returns its number. It may name keyslots that the
// same change adds.
func (c *Change) AddToken(t Token) (int, error) {
	n, err := freeNumber(c.meta.Tokens, MaxTokens)
	if err != nil {
		return 0, fmt.Errorf("add token of type %q: %w", t.Type, err)
	}
	return n, c.SetToken(n, t)
}

// SetToken adds the token of that number, or replaces it.
func (c *Change) SetToken(n int, t Token) error {
	if n < 0 || n >= MaxTokens {
		return fmt.Errorf("set token %d: there are %d", n, MaxTokens)
	}
	raw, err := c.meta.encodeToken(t)
	if err != nil {
		return fmt.Errorf("set token %d of type %q: %w", n, t.Type, err)
	}
	c.meta.Tokens[strconv.Itoa(n)] = raw
	c.edited = true
	return nil
}

// RemoveToken removes a token, not the keyslots that it is for.
func (c *Change) RemoveToken(n int) error {
	id := strconv.Itoa(n)
	if _, ok := c.meta.Tokens[id]; !ok {
		return fmt.Errorf("remove token %d: not there", n)
	}
	delete(c.meta.Tokens, id)
	c.edited = true
	return nil
}
