package luks2

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestRecoveryKey(t *testing.T) {
	// The digits 0 to f twice over, in systemd's alphabet.
	raw := bytes.Repeat([]byte{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}, 4)
	k, err := NewRecoveryKey(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	const made = "cbdefghv-jklnrtuf-cbdefght-jklnrtuh-cbdefghn-jklnrtuc-cbdefghk-jklnrtud"
	if got := string(k.Passphrase()); got != made || !k.Checked() {
		t.Fatalf("%s, want %s", got, made)
	}
	// Earlier releases made keys without checks, and those still open.
	want := strings.TrimSuffix(strings.Repeat("cbdefghi-jklnrtuv-", 4), "-")
	if k, err = ParseRecoveryKey([]byte(want)); err != nil || string(k.Passphrase()) != want || k.Checked() {
		t.Fatalf("%s, %v, want %s", k.Passphrase(), err, want)
	}
	for _, text := range []string{
		want, strings.ToUpper(want), strings.ReplaceAll(want, "-", ""), strings.ReplaceAll(want, "-", " "), " " + want + "\r\n",
		strings.ReplaceAll(want, "-", "\u2010"), strings.ReplaceAll(want, "-", "\u2013"), strings.ReplaceAll(want, "-", "\u2212"),
		strings.ReplaceAll(want, "-", "/"), strings.ReplaceAll(want, "-", "6"), strings.ReplaceAll(want, "-", "\u00a0"),
	} {
		got, err := ParseRecoveryKey([]byte(text))
		if err != nil || got != k {
			t.Errorf("%q: %s, %v", text, got.Passphrase(), err)
		}
	}
	bad := map[string]string{
		"nothing":             "",
		"one letter missing":  want[1:],
		"one letter more":     want + "c",
		"a foreign letter":    "a" + want[1:],
		"a digit":             "0" + want[1:],
		"no ASCII":            "ç" + want[1:],
		"a NUL":               want + "\x00",
		"very long":           strings.Repeat(want, 1000),
		"letter before digit": "@" + want[1:],
	}
	for name, text := range bad {
		_, err := ParseRecoveryKey([]byte(text))
		if err == nil {
			t.Errorf("%s was taken", name)
		} else if len(text) > 20 && strings.Contains(err.Error(), text[1:20]) {
			t.Errorf("%s: the error repeats the key: %v", name, err)
		}
	}
	if _, err := NewRecoveryKey(bytes.NewReader(raw[:31])); err == nil {
		t.Error("31 random bytes were enough")
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, value := range []any{k, &k, struct{ K RecoveryKey }{k}} {
			if out := fmt.Sprintf(verb, value); !strings.Contains(out, "(recovery key)") || strings.Contains(out, "67") {
				t.Errorf("%s of %T prints %s", verb, value, out)
			}
		}
	}
	if out, err := json.Marshal(k); err == nil {
		t.Errorf("marshalled as %s", out)
	}
	k.Wipe()
	if k != (RecoveryKey{}) {
		t.Error("not wiped")
	}
}

func FuzzParseRecoveryKey(f *testing.F) {
	f.Add([]byte("cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv"))
	f.Add([]byte(strings.Repeat("V", 64)))
	f.Add([]byte(strings.Repeat("כ", 64)))
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := ParseRecoveryKey(text)
		if err != nil {
			return
		}
		again, err := ParseRecoveryKey(k.Passphrase())
		if err != nil || again != k {
			t.Errorf("%q: %v", text, err)
		}
	})
}
