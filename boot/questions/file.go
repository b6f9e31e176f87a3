package questions

import (
	"encoding/json"
	"fmt"

	"halogenos.internal/boot/strictjson"
)

// Version is that of the format of [Choices].
const Version = 1

// MaxSize bounds the file in bytes. Debian's, with all of its locales, has 55 KB.
const MaxSize = 1 << 20

// Encode writes the file.
func (c *Choices) Encode() ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(c)
	if err == nil && len(text) >= MaxSize {
		err = fmt.Errorf("has %d bytes, more than %d", len(text), MaxSize)
	}
	return append(text, '\n'), err
}

// Parse reads the file. Names that are not known are passed over: a later release may say
// more than is asked here.
func Parse(text []byte) (*Choices, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("has %d bytes, more than %d", len(text), MaxSize)
	}
	c := new(Choices)
	if err := strictjson.Unmarshal(text, c); err != nil {
		return nil, err
	}
	if c.Version != Version {
		return nil, fmt.Errorf("has version %d, and this program knows %d alone", c.Version, Version)
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return c, nil
}
