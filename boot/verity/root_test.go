package verity

import (
	"strings"
	"testing"
)

func TestParseRoot(t *testing.T) {
	good := strings.Repeat("0aF9", 16)
	r, err := ParseRoot(good)
	if err != nil || r.String() != strings.ToLower(good) {
		t.Errorf("%s: %v", r, err)
	}
	for _, bad := range []string{"", good[1:], good + "0", " " + good[1:], good[:62] + "0x", "0x" + good} {
		if _, err := ParseRoot(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
