package growth

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// Machines have these forms: the two sides may be of different releases.
func TestForms(t *testing.T) {
	text, err := Request{SlotSize: 3 << 30, By: ByOwner, Tries: 1}.Encode()
	if want := `{"format":1,"slot_size":3221225472,"by":"owner","tries":1}` + "\n"; err != nil || string(text) != want {
		t.Errorf("a request is %s, want %s (%v)", text, want, err)
	}
	if r, err := ParseRequest(text); err != nil || *r != (Request{1, 3 << 30, ByOwner, 1}) {
		t.Errorf("%+v, %v", r, err)
	}
	o := Outcome{Format: 1, SlotSize: 3 << 30, Reason: "too full", Missing: 7 << 20, When: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)}
	text, err = o.Encode()
	if want := `{"format":1,"slot_size":3221225472,"done":false,"reason":"too full","missing":7340032,"when":"2026-03-04T05:06:07Z"}` + "\n"; err != nil || string(text) != want {
		t.Errorf("an outcome is %s, want %s (%v)", text, want, err)
	}
	if got, err := ParseOutcome(text); err != nil || !reflect.DeepEqual(*got, o) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, wrong := range []string{
		``, `{}`, `{"format":2,"slot_size":3221225472,"by":"owner","tries":1}`, `{"format":1,"slot_size":3221225473,"by":"owner","tries":1}`,
		`{"format":1,"slot_size":-1048576,"by":"owner","tries":1}`, `{"format":1,"slot_size":1099511627776,"by":"owner","tries":1}`, `{"format":1,"slot_size":1048576,"by":"me","tries":1}`,
		`{"format":1,"slot_size":1048576,"by":"owner","tries":-1}`, `{"format":1,"slot_size":1048576,"by":"owner","tries":1,"x":1}`, strings.Repeat(" ", MaxSize+1),
	} {
		if r, err := ParseRequest([]byte(wrong)); err == nil {
			t.Errorf("%.80s is taken for %+v", wrong, r)
		}
	}
	for _, wrong := range []string{`{"format":1,"slot_size":1048576,"done":true,"reason":"x","missing":0,"when":"2026-03-04T05:06:07Z"}`, `{"format":1,"slot_size":1048576,"done":false,"reason":"","missing":0,"when":"2026-03-04T05:06:07Z"}`} {
		if o, err := ParseOutcome([]byte(wrong)); err == nil {
			t.Errorf("%s is taken for %+v", wrong, o)
		}
	}
	if text, err := (Request{SlotSize: 1, By: ByOwner}).Encode(); err == nil {
		t.Errorf("%s is written", text)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"format":1,"slot_size":3221225472,"by":"owner","tries":1}`))
	f.Add([]byte(`{"format":1,"slot_size":3221225472,"done":true,"reason":"","missing":0,"when":"2026-03-04T05:06:07Z"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if r, err := ParseRequest(text); err == nil {
			if again, err := r.Encode(); err != nil {
				t.Errorf("%s is read and not written: %v", again, err)
			}
		}
		if o, err := ParseOutcome(text); err == nil {
			if again, err := o.Encode(); err != nil {
				t.Errorf("%s is read and not written: %v", again, err)
			}
		}
	})
}

// What e2fsck has said of a file system with many errors is no reason that nobody can read.
func TestLongReason(t *testing.T) {
	t.Parallel()
	for _, c := range []string{"x", "\x01", "<", "é", "\xff"} {
		text, err := Outcome{SlotSize: 1 << 30, Reason: "e2fsck: " + strings.Repeat(c, 3*MaxSize), When: time.Unix(1, 0)}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		o, err := ParseOutcome(text)
		if err != nil || !strings.HasPrefix(o.Reason, "e2fsck: ") || !strings.HasSuffix(o.Reason, " ...") {
			t.Errorf("%q: %d bytes, %v, %v", c, len(text), o, err)
		}
	}
}
