package extension

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/verity"
)

func ext(name string, essential bool) contract.Extension {
	root := sha256.Sum256([]byte(name))
	return contract.Extension{Name: name, RootHash: root[:], Salt: []byte{1}, ImageSize: verity.BlockSize, Essential: essential}
}

func choice(t *testing.T, names ...string) Choice {
	t.Helper()
	c, err := newChoice(names)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestChoice(t *testing.T) {
	c := choice(t, "vpn", "nvidia")
	if got := string(c.Encode()); got != `{"format":1,"enabled":["nvidia","vpn"]}`+"\n" {
		t.Errorf("encoded as %s", got)
	}
	if got := string(Choice{}.Encode()); got != `{"format":1,"enabled":[]}`+"\n" {
		t.Errorf("none is encoded as %s", got)
	}
	again, err := ParseChoice(c.Encode())
	if err != nil || !reflect.DeepEqual(again, c) {
		t.Errorf("read back as %v, %v", again, err)
	}
	more, err := c.With("a")
	if err != nil || !slices.Equal(more.Enabled(), []string{"a", "nvidia", "vpn"}) || !slices.Equal(c.Enabled(), []string{"nvidia", "vpn"}) {
		t.Errorf("with one more %v, %v", more, err)
	}
	if same, err := c.With("vpn"); err != nil || !slices.Equal(same.Enabled(), c.Enabled()) {
		t.Errorf("with the same one %v, %v", same, err)
	}
	if _, err := c.With("../up"); err == nil {
		t.Error("a name that is none")
	}
	if less := more.Without("nvidia"); !slices.Equal(less.Enabled(), []string{"a", "vpn"}) || !more.Has("nvidia") {
		t.Errorf("without one %v", less)
	}
}

func TestChoiceThatIsRefused(t *testing.T) {
	var many []string
	for i := range MaxEnabled + 1 {
		many = append(many, fmt.Sprintf("%q", fmt.Sprintf("e%d", i)))
	}
	for text, want := range map[string]string{
		``:                                      "no JSON value",
		`{"format":2,"enabled":[]}`:             "format 2",
		`{"format":1}`:                          "no list",
		`{"format":1,"enabled":null}`:           "no list",
		`{"format":1,"enabled":["a","a"]}`:      "twice",
		`{"format":1,"enabled":["a"],"x":1}`:    "unknown field",
		`{"format":1,"enabled":["a"]}{}`:        "",
		`{"format":1,"enabled":["../../etc"]}`:  "want a name",
		`{"format":1,"enabled":["A"]}`:          "want a name",
		`{"format":1,"enabled":[],"enabled":1}`: "",
		`{"format":1,"enabled":["` + strings.Repeat("a", 65) + `"]}`:   "want a name",
		`{"format":1,"enabled":[` + strings.Join(many, ",") + `]}`:     "at most",
		`{"format":1,"enabled":[]}` + strings.Repeat(" ", MaxChoice+1): "more than",
		"\x00\xff": "",
	} {
		c, err := ParseChoice([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || len(c.Enabled()) > 0 {
			t.Errorf("%.60s: %v, %v, want %q", text, c, err, want)
		}
	}
}

func TestBegin(t *testing.T) {
	list := []contract.Extension{ext("vpn", false), ext("disk", true), ext("nvidia", false)}
	b := Begin(list, choice(t, "vpn", "gone", "disk"), nil)
	var enabled []string
	for _, s := range b.States {
		if s.Enabled {
			enabled = append(enabled, s.Name)
		}
	}
	if !slices.Equal(enabled, []string{"disk", "vpn"}) || len(b.States) != 3 || !slices.Equal(b.Unknown, []string{"gone"}) || !b.Calls() || b.Stops() != nil {
		t.Errorf("%+v, stops for %v", b, b.Stops())
	}
	if b := Begin(list, Choice{}, nil); b.Calls() || b.Stops() != nil || len(b.Lines()) > 0 {
		t.Errorf("nothing is enabled: %+v", b)
	}
	if b := Begin(nil, choice(t, "vpn"), nil); !b.Calls() || len(b.Lines()) != 1 || b.Stops() != nil {
		t.Errorf("a release without extensions: %q", b.Lines())
	}
	unreadable := errors.New("it is a link")
	if b := Begin(list[:1], Choice{}, unreadable); !b.Calls() || b.Stops() != nil || !strings.Contains(strings.Join(b.Lines(), "\n"), "it is a link") {
		t.Errorf("none is essential: %q, stops for %v", b.Lines(), b.Stops())
	}
	if err := Begin(list, Choice{}, unreadable).Stops(); err == nil || !strings.Contains(err.Error(), "disk") || strings.Contains(err.Error(), "vpn") {
		t.Errorf("an essential one may be enabled: %v", err)
	}
}

func TestStops(t *testing.T) {
	b := Begin([]contract.Extension{ext("a", true), ext("b", false)}, choice(t, "a", "b"), nil)
	b.States[1].LeftOut = "its file is missing"
	if b.Stops() != nil || !slices.Equal(b.Lines(), []string{"extension b is left out: its file is missing"}) {
		t.Errorf("%v, %q", b.Stops(), b.Lines())
	}
	b.States[0].LeftOut = "its file is short"
	if err := b.Stops(); err == nil || err.Error() != "extension a is essential, and is left out: its file is short" {
		t.Error(err)
	}
}

// The register is what a TPM has after TPM2_PCR_Event with these texts.
func TestRegister(t *testing.T) {
	if Register(nil) != (pcr.Digest{}) {
		t.Error("none changes the register")
	}
	b := Begin([]contract.Extension{ext("a", false), ext("b", false), ext("c", false)}, choice(t, "a", "b"), nil)
	b.States[0].Measured, b.States[2].Measured = true, true
	m := b.Measured()
	if len(m) != 2 || m[0].Name != "a" || m[1].Name != "c" {
		t.Fatalf("%+v", m)
	}
	value := make([]byte, sha256.Size)
	for _, e := range m {
		event := sha256.Sum256([]byte("halogen-extension:" + e.Name + ":" + fmt.Sprintf("%x", []byte(e.RootHash))))
		sum := sha256.Sum256(append(bytes.Clone(value), event[:]...))
		value = sum[:]
	}
	if got := Register(m); !bytes.Equal(got[:], value) {
		t.Errorf("%x, want %x", got, value)
	}
	if FileName(verity.Root(m[0].RootHash)) != fmt.Sprintf("%x.raw", []byte(m[0].RootHash)) {
		t.Error(FileName(verity.Root(m[0].RootHash)))
	}
}

func FuzzParseChoice(f *testing.F) {
	f.Add([]byte(`{"format":1,"enabled":["nvidia","vpn"]}`))
	f.Add([]byte(`{"format":1,"enabled":["a","a"]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseChoice(text)
		if err != nil {
			return
		}
		again, err := ParseChoice(c.Encode())
		if err != nil || !slices.Equal(again.Enabled(), c.Enabled()) {
			t.Errorf("%q: %v became %v, %v", text, c, again, err)
		}
		b := Begin([]contract.Extension{ext("nvidia", true)}, c, nil)
		if b.States[0].Enabled != c.Has("nvidia") || b.Stops() != nil || len(b.Unknown) > len(c.Enabled()) {
			t.Errorf("%q: %+v", text, b)
		}
	})
}
