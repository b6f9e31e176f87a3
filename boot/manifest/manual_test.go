package manifest

import (
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/testkit"
)

// manifest.env(5) explains each variable that a manifest can have.
func TestManual(t *testing.T) {
	full := Entry{Version: 7, Limited: true, Percent: 1}
	m := Manifest{Stable: full, Beta: full, Alpha: full, Steps: []contract.Version{7}, PubKey: "key", Image: "x86_64/halogen", Expires: time.Unix(1, 0), Sequence: 1}
	for _, c := range Channels() {
		m.Withdrawn = append(m.Withdrawn, Withdrawal{c, 7})
	}
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for line := range strings.Lines(string(text)) {
		name, _, _ := strings.Cut(line, "=")
		want = append(want, name)
	}
	testkit.Explains(t, "manifest.env.5", want)
}
