package nextboot

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestRequest(t *testing.T) {
	long := strings.Repeat("<ä\"\\", 400)
	for _, want := range []Console{
		{Version: 7, Failed: "mount-state", Reason: "the state directories could not be mounted"},
		{Person: true, Reason: "asked for"},
		{Version: 1<<63 - 1, Failed: "unlock", Reason: long},
	} {
		text, err := Request{Console: &want}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if c := got.Console; c.Version != want.Version || c.Person != want.Person || c.Failed != want.Failed || !strings.HasPrefix(clean(want.Reason), c.Reason) || c.Reason == "" {
			t.Errorf("%+v becomes %+v", want, *c)
		}
	}
	if text, err := (Request{}).Encode(); err != nil || string(text) != `{"format":1}` {
		t.Errorf("nothing is %s, %v", text, err)
	}
}

// A request for a new secret is of another format, so that an initagent that knows the
// first one alone ignores it.
func TestSecretRequest(t *testing.T) {
	for keys, want := range map[bool]string{false: `{"format":2,"secret":{}}`, true: `{"format":2,"secret":{"keys":true}}`} {
		text, err := Request{Secret: &NewSecret{Keys: keys}}.Encode()
		if err != nil || string(text) != want {
			t.Errorf("%s, %v, want %s", text, err, want)
		}
		if r, err := Parse(text); err != nil || r.Console != nil || r.Secret == nil || r.Secret.Keys != keys {
			t.Errorf("%s becomes %+v, %v", text, r, err)
		}
	}
	if text, err := (Request{Console: &Console{Reason: "x"}, Secret: &NewSecret{}}).Encode(); err == nil {
		t.Errorf("both are written: %s", text)
	}
}

// One for a PIN is of a format of its own: an initagent that knows of no PIN must not make
// a new secret without one of it.
func TestPINRequest(t *testing.T) {
	for _, pin := range []PIN{SetPIN, RemovePIN} {
		want := `{"format":5,"secret":{"pin":"` + string(pin) + `"}}`
		text, err := Request{Secret: &NewSecret{PIN: pin}}.Encode()
		if err != nil || string(text) != want {
			t.Errorf("%s, %v, want %s", text, err, want)
		}
		if r, err := Parse(text); err != nil || r.Secret == nil || r.Secret.PIN != pin {
			t.Errorf("%s becomes %+v, %v", text, r, err)
		}
	}
	for _, bad := range []string{
		`{"format":2,"secret":{"pin":"set"}}`, `{"format":5,"secret":{}}`, `{"format":5,"secret":{"pin":"1234"}}`,
		`{"format":5,"secret":{"pin":"set","keys":true}}`, `{"format":5,"secret":{"pin":"set"},"reset":{}}`,
	} {
		if r, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%s becomes %+v", bad, r)
		}
	}
	if text, err := (Request{Secret: &NewSecret{PIN: SetPIN, Keys: true}}).Encode(); err == nil {
		t.Errorf("a PIN and keys are written: %s", text)
	}
}

// So is one for a factory reset, and it comes alone.
func TestResetRequest(t *testing.T) {
	const want = `{"format":3,"reset":{}}`
	text, err := Request{Reset: &Reset{}}.Encode()
	if err != nil || string(text) != want {
		t.Errorf("%s, %v, want %s", text, err, want)
	}
	if r, err := Parse([]byte(want)); err != nil || r.Reset == nil || r.Secret != nil || r.Console != nil {
		t.Errorf("%s becomes %+v, %v", want, r, err)
	}
	for _, r := range []Request{{Reset: &Reset{}, Secret: &NewSecret{}}, {Reset: &Reset{}, Console: &Console{Reason: "x"}}} {
		if text, err := r.Encode(); err == nil {
			t.Errorf("both are written: %s", text)
		}
	}
	for _, text := range []string{`{"format":3}`, `{"format":2,"reset":{}}`, `{"format":1,"reset":{}}`, `{"format":3,"reset":{"yes":true}}`, `{"format":3,"reset":{},"secret":{}}`, `{"format":3,"reset":null}`, `{"format":3,"reset":{},"console":{"reason":"x"}}`} {
		if r, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s is taken: %+v", text, r)
		}
	}
}

func TestConcerns(t *testing.T) {
	for _, c := range []struct {
		console *Console
		want    bool
	}{{nil, false}, {&Console{Version: 3}, true}, {&Console{Version: 4}, false}, {&Console{Version: 4, Person: true}, true}} {
		if got := c.console.Concerns(3); got != c.want {
			t.Errorf("%+v concerns version 3: %v, want %v", c.console, got, c.want)
		}
	}
}

func TestRefuses(t *testing.T) {
	for _, text := range []string{
		"", "{", "null", `{"format":0}`, `{"format":2}`, `{"format":1,"shell":true}`, `{"format":1} {"format":1}`, `{"format":1}x`,
		`{"format":2}`, `{"format":2,"console":{"reason":"x"}}`, `{"format":1,"secret":{}}`, `{"format":3,"secret":{}}`, `{"format":2,"secret":{"key":"x"}}`,
		`{"format":2,"secret":{},"console":{"reason":"x"}}`, `{"format":2,"secret":`, `{"format":2,"secret":null}`,
		`{"format":1,"console":{"version":-1,"reason":"x"}}`, `{"format":1,"Format":1,"console":{"reason":"x"}}`,
		`{"format":1,"console":{"person":false,"reason":"x","person":true}}`, `{"format":1,"console":{"Person":true,"reason":"x"}}`,
		`{"format":1` + strings.Repeat(" ", MaxSize) + "}",
	} {
		if r, err := Parse([]byte(text)); err == nil {
			t.Errorf("%.60q is taken: %+v", text, r)
		}
	}
}

// What is read can be shown on a terminal, and written again.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"format":1,"console":{"version":"7","person":true,"failed":"unlock","reason":"x\u001b[2J\n"}}`))
	f.Add([]byte(`{"format":2,"secret":{"keys":true}}`))
	f.Add([]byte(`{"format":3,"reset":{}}`))
	f.Add([]byte(`{"format":2,"secret":{"keys":false,"Keys":true}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := Parse(text)
		if err != nil {
			return
		}
		if c := r.Console; c != nil {
			for _, s := range []string{c.Reason, c.Failed} {
				if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) || len(s) > maxReason {
					t.Errorf("%q is to be shown", s)
				}
			}
		}
		if r.Console != nil && len(r.Console.Failed) > 32 {
			return // no step has such a name, and it may not fit
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatalf("%+v cannot be written: %v", r, err)
		}
		if _, err := Parse(again); err != nil {
			t.Errorf("%s cannot be read again: %v", again, err)
		}
	})
}
