package keynote

import (
	"strings"
	"testing"
	"time"
)

func TestNote(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		note Note
		text string
		due  bool
		says string
	}{
		{Note{}, `{"format":1}`, false, ""},
		{Note{Unconfirmed: true, Shown: 1}, `{"format":1,"unconfirmed":true,"shown":1}`, true, "halogenctl recovery-key new, and restart"},
		{Note{Unconfirmed: true, Shown: MaxShown}, `{"format":1,"unconfirmed":true,"shown":3}`, false, "halogenctl recovery-key new, and restart"},
		{Note{Unconfirmed: true, Shown: MaxShown, Wanted: true}, `{"format":1,"unconfirmed":true,"shown":3,"wanted":true}`, true, "is asked for"},
		{Note{Wanted: true}, `{"format":1,"wanted":true}`, true, "is asked for"},
		{Note{Keep: "3-ab"}, `{"format":1,"keep":"3-ab"}`, false, ""},
		{Note{Unconfirmed: true, Shown: MaxShown, Void: true}, `{"format":1,"unconfirmed":true,"shown":3,"void":true}`, false, "throw away what was written down"},
		{Note{Replaced: "2026-11-01"}, `{"format":1,"replaced":"2026-11-01"}`, false, "was replaced on 2026-11-01"},
		{Note{Replaced: "2026-10-01"}, `{"format":1,"replaced":"2026-10-01"}`, false, ""}, // long ago
	} {
		text, err := tt.note.Encode()
		if err != nil || string(text) != tt.text+"\n" {
			t.Errorf("%+v is %s, %v", tt.note, text, err)
		}
		back, err := Parse(text)
		tt.note.Format = format
		if err != nil || back != tt.note || back.Due() != tt.due || !strings.Contains(back.Warning(now), tt.says) || (tt.says == "") != (back.Warning(now) == "") {
			t.Errorf("%s becomes %+v, %v, due %t, says %q", text, back, err, back.Due(), back.Warning(now))
		}
		if back.Nothing() != (tt.text == `{"format":1}`) {
			t.Errorf("%s has nothing to say: %t", text, back.Nothing())
		}
	}
	for _, bad := range []string{"", "{}", `{"format":2}`, `{"format":1,"shown":-1}`, `{"format":1,"keep":3}`, `{"format":1,"replaced":"yesterday"}`, `{"format":1,"x":1}`, strings.Repeat(" ", MaxSize) + `{"format":1}`} {
		if n, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%q becomes %+v", bad, n)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"format":1,"unconfirmed":true,"shown":2,"wanted":true,"keep":"1-ab","void":true,"replaced":"2026-11-29"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		n, err := Parse(text)
		if err != nil {
			return
		}
		again, err := n.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := Parse(again); err != nil || back != n {
			t.Errorf("%q becomes %+v, then %+v, %v", text, n, back, err)
		}
	})
}
