package strictjson

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

type inner struct {
	Kilo int `json:"kilo"`
}

type embedded struct {
	Deep *inner `json:"deep,omitempty"`
}

// own reads itself, as luks2's numbers do.
type own string

func (o *own) UnmarshalJSON(b []byte) error { *o = own(b); return nil }

type outer struct {
	embedded
	Version int              `json:"version"`
	List    []inner          `json:"list,omitempty"`
	Map     map[string]inner `json:"map,omitempty"`
	Own     own              `json:"own,omitempty"`
	Raw     json.RawMessage  `json:"raw,omitempty"`
	Plain   string
	Hidden  string `json:"-"`
}

var refused = map[string]string{
	`{"version":1,"version":2}`:               `name "version" comes twice`,
	`{"version":1,"Version":2}`:               `name "Version" comes twice`,
	`{"version":1,"\u0076ersion":2}`:          `name "version" comes twice`,
	`{"Version":2}`:                           `name "Version" is spelt "version"`,
	`{"ver\u017fion":2}`:                      `is spelt "version"`,
	`{"plain":"x"}`:                           `is spelt "Plain"`,
	`{"deep":{"KILO":1}}`:                     `is spelt "kilo"`,
	"{\"deep\":{\"\u212ailo\":1}}":            `is spelt "kilo"`,
	`{"list":[{"kilo":1},{"Kilo":1}]}`:        `is spelt "kilo"`,
	`{"map":{"A":{"Kilo":1}}}`:                `is spelt "kilo"`,
	`{"map":{"A":{"kilo":1},"a":{"kilo":1}}}`: `comes twice`,
	`{"raw":{"x":1,"X":2}}`:                   `comes twice`,
	`{"version":1} {}`:                        `text after the JSON value`,
	`{"version":1}x`:                          `text after the JSON value`,
	``:                                        `no JSON value`,
	`{"version":`:                             `EOF`,
	strings.Repeat("[", 40):                   `nested deeper than 32`,
}

func TestRefuses(t *testing.T) {
	for text, want := range refused {
		for name, decode := range map[string]func([]byte, any) error{"Decode": Decode, "Unmarshal": Unmarshal} {
			if err := decode([]byte(text), new(outer)); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %s: error %v, want %q", name, text, err, want)
			}
		}
	}
}

func TestTakes(t *testing.T) {
	const text = `{"version":1,"deep":{"kilo":2},"list":[{"kilo":3}],"map":{"A":{"kilo":4}},"own":{"Version":5},"raw":{"Version":6},"Plain":"x"}`
	want := outer{embedded{&inner{2}}, 1, []inner{{3}}, map[string]inner{"A": {4}}, `{"Version":5}`, json.RawMessage(`{"Version":6}`), "x", ""}
	var got outer
	if err := Decode([]byte(text), &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	// Only Decode knows all names.
	const more = `{"version":1,"later":{"version":2},"Hidden":"x"}`
	if err := Unmarshal([]byte(more), new(outer)); err != nil {
		t.Error(err)
	}
	if err := Decode([]byte(more), new(outer)); err == nil || !strings.Contains(err.Error(), "unknown field") {
		t.Errorf("unknown fields: %v", err)
	}
	if err := Decode([]byte(`{"version":"x"}`), new(outer)); err == nil {
		t.Error("text is taken for a number")
	}
}

// What is taken says the same to a reader who takes the first of two names, and minds
// their case.
func FuzzDecode(f *testing.F) {
	for text := range refused {
		f.Add([]byte(text))
	}
	f.Add([]byte(`{"version":1,"deep":{"kilo":2},"list":[{"kilo":3}],"Plain":"x"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var got outer
		if Decode(text, &got) != nil {
			return
		}
		var other map[string]json.RawMessage
		if json.Unmarshal(text, &other) != nil {
			return // null, which leaves all as it was
		}
		raw, ok := other["version"]
		if !ok && got.Version != 0 {
			t.Fatalf("%s: version %d comes from nowhere", text, got.Version)
		}
		var version int
		if ok && (json.Unmarshal(raw, &version) != nil || version != got.Version) {
			t.Fatalf("%s: version %d and %d", text, version, got.Version)
		}
	})
}
