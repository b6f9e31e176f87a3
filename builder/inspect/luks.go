package inspect

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"halogenos.internal/boot/luks2"
)

// LUKS describes a LUKS2 volume by its header.
type LUKS struct {
	UUID      string        `json:"uuid"`
	Label     string        `json:"label,omitempty"`
	Subsystem string        `json:"subsystem,omitempty"`
	Sequence  uint64        `json:"sequence"` // changes of the header
	Header    string        `json:"header"`   // how its two copies are
	Cipher    string        `json:"cipher,omitempty"`
	Sector    int           `json:"sector,omitempty"` // bytes
	Data      int64         `json:"data,omitempty"`   // where the data starts, in bytes
	Keyslots  []Keyslot     `json:"keyslots"`
	Tokens    map[int]Token `json:"tokens"`
}

// Keyslot is a place of the volume key, behind a password.
type Keyslot struct {
	Number   int       `json:"number"`
	KDF      luks2.KDF `json:"kdf"`
	Priority int       `json:"priority"` // 0 for one that must be asked for
}

// Token says what opens keyslots.
type Token struct {
	Type     string   `json:"type"`
	Keyslots []int    `json:"keyslots"`
	Fields   []string `json:"fields"` // that it has beside these
}

var luksMagic = []byte("LUKS\xba\xbe\x00\x02")

func describeLUKS(r io.ReaderAt, size int64) (*LUKS, error) {
	h, health, err := luks2.Open(r, size)
	if err != nil {
		return nil, err
	}
	l := &LUKS{UUID: h.UUID, Label: h.Label, Subsystem: h.Subsystem, Sequence: h.SequenceID(), Header: "both copies are whole", Tokens: map[int]Token{}}
	if !health.Good() {
		l.Header = fmt.Sprintf("first copy: %v, second: %v", orGood(health.Primary), orGood(health.Secondary))
	}
	// A copy of the header alone has no data, and so no segment that fits.
	if s, err := h.Segment(); err == nil {
		l.Cipher, l.Sector, l.Data = s.Cipher, s.Sector, s.Offset
	}
	for _, k := range h.Keyslots() {
		l.Keyslots = append(l.Keyslots, Keyslot{k.Number, k.KDF, k.Priority})
	}
	for n, t := range h.Tokens() {
		l.Tokens[n] = Token{t.Type, t.Keyslots, slices.Sorted(maps.Keys(t.Fields))}
	}
	return l, nil
}

func orGood(err error) string {
	if err == nil {
		return "good"
	}
	return err.Error()
}

func (l *LUKS) text(w io.Writer, size int64) {
	line(w, "LUKS2 volume\t%d bytes\nUUID\t%s\nlabel\t\"%s\", subsystem \"%s\"\nheader\t%s, changed %d times\n", size, l.UUID, l.Label, l.Subsystem, l.Header, l.Sequence)
	if l.Cipher != "" {
		line(w, "cipher\t%s, sectors of %d, from byte %d\n", l.Cipher, l.Sector, l.Data)
	}
	for _, k := range l.Keyslots {
		how := fmt.Sprintf("%s, %d times %s", k.KDF.Type, k.KDF.Iterations, k.KDF.Hash)
		if k.KDF.Iterations == 0 {
			how = fmt.Sprintf("%s, %d passes over %d KiB, %d lanes", k.KDF.Type, k.KDF.Time, k.KDF.Memory, k.KDF.CPUs)
		}
		line(w, "keyslot %d\t%s, priority %d\n", k.Number, how, k.Priority)
	}
	for _, n := range slices.Sorted(maps.Keys(l.Tokens)) {
		t := l.Tokens[n]
		line(w, "token %d\t%s, for keyslots %v\n\t%s\n", n, t.Type, t.Keyslots, strings.Join(t.Fields, ", "))
	}
}
