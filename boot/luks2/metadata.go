package luks2

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"halogenos.internal/boot/strictjson"
)

// The JSON metadata (specification section 3). Tokens stay as they are,
// everything else has to be known.
type metadata struct {
	Keyslots map[string]*keyslot        `json:"keyslots"`
	Tokens   map[string]json.RawMessage `json:"tokens"`
	Segments map[string]*segment        `json:"segments"`
	Digests  map[string]*digest         `json:"digests"`
	Config   *config                    `json:"config"`
}

type keyslot struct {
	Type     string `json:"type"`
	KeySize  int    `json:"key_size"`
	Priority *int   `json:"priority,omitempty"`
	AF       af     `json:"af"`
	Area     area   `json:"area"`
	KDF      kdf    `json:"kdf"`
}

type af struct {
	Type    string `json:"type"`
	Stripes int    `json:"stripes"`
	Hash    string `json:"hash"`
}

type area struct {
	Type       string  `json:"type"`
	Offset     decimal `json:"offset"`
	Size       decimal `json:"size"`
	Encryption string  `json:"encryption"`
	KeySize    int     `json:"key_size"`
}

type kdf struct {
	KDF
	Salt []byte `json:"salt"`
}

type segment struct {
	Type       string  `json:"type"`
	Offset     decimal `json:"offset"`
	Size       string  `json:"size"`
	IVTweak    decimal `json:"iv_tweak"`
	Encryption string  `json:"encryption"`
	SectorSize int     `json:"sector_size"`
}

type digest struct {
	Type       string   `json:"type"`
	Keyslots   []string `json:"keyslots"`
	Segments   []string `json:"segments"`
	Hash       string   `json:"hash"`
	Iterations int      `json:"iterations"`
	Salt       []byte   `json:"salt"`
	Digest     []byte   `json:"digest"`
}

type config struct {
	JSONSize     decimal       `json:"json_size"`
	KeyslotsSize decimal       `json:"keyslots_size"`
	Flags        []string      `json:"flags,omitempty"`
	Requirements *requirements `json:"requirements,omitempty"`
}

type requirements struct {
	Mandatory []string `json:"mandatory"`
}

// decimal is a 64-bit number, which the format writes as a string because JSON
// numbers may be floating point. It always fits an int64.
type decimal uint64

func (d decimal) MarshalJSON() ([]byte, error) {
	return strconv.AppendQuote(nil, strconv.FormatUint(uint64(d), 10)), nil
}

func (d *decimal) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	n, err := parseDecimal(s)
	*d = n
	return err
}

func parseDecimal(s string) (decimal, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || s != strconv.FormatUint(n, 10) {
		return 0, fmt.Errorf("%q is not a number below 2^63", s)
	}
	return decimal(n), nil
}

// decodeMetadata decodes JSON text strictly; validate judges what it says.
func decodeMetadata(text []byte) (*metadata, error) {
	if err := strictjson.Check(text); err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	if err := refuseRequirements(text); err != nil {
		return nil, err
	}
	m := new(metadata)
	if err := strictjson.Decode(text, m); err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	return m, nil
}

// refuseRequirements tells a volume in reencryption, or of a newer format,
// from a malformed one. It grants nothing: the strict decoding comes after.
func refuseRequirements(text []byte) error {
	var probe struct {
		Keyslots map[string]struct {
			Type string `json:"type"`
		} `json:"keyslots"`
		Config struct {
			Requirements struct {
				Mandatory []string `json:"mandatory"`
			} `json:"requirements"`
		} `json:"config"`
	}
	if err := json.Unmarshal(text, &probe); err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	if names := probe.Config.Requirements.Mandatory; len(names) > 0 && !slices.Equal(names, []string{redoName}) {
		for _, name := range names {
			if strings.Contains(name, "reencrypt") {
				return fmt.Errorf("the volume is being reencrypted (requirement %q)", name)
			}
		}
		return fmt.Errorf("the volume has requirements %q", names)
	}
	for id, k := range probe.Keyslots {
		if k.Type == "reencrypt" {
			return fmt.Errorf("the volume is being reencrypted (keyslot %q)", id)
		}
	}
	return nil
}

// encode returns the JSON text.
func (m *metadata) encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(m); err != nil {
		return nil, fmt.Errorf("encode metadata: %w", err)
	}
	return bytes.TrimSpace(b.Bytes()), nil
}

// clone returns a deep copy.
func (m *metadata) clone() (*metadata, error) {
	text, err := m.encode()
	if err != nil {
		return nil, err
	}
	return decodeMetadata(text)
}

// number parses the name of a keyslot, token, segment or digest.
func number(id string, limit int) (int, error) {
	n, err := strconv.Atoi(id)
	if err != nil || n < 0 || n >= limit || id != strconv.Itoa(n) {
		return 0, fmt.Errorf("%q is not a number below %d", id, limit)
	}
	return n, nil
}

// numbers returns the names of a valid map as numbers, in order.
func numbers[T any](m map[string]T) []int {
	list := make([]int, 0, len(m))
	for id := range m {
		n, err := strconv.Atoi(id)
		if err == nil {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list
}

// freeNumber returns the first number that m does not have.
func freeNumber[T any](m map[string]T, limit int) (int, error) {
	for n := range limit {
		if _, taken := m[strconv.Itoa(n)]; !taken {
			return n, nil
		}
	}
	return 0, fmt.Errorf("all %d are taken", limit)
}
