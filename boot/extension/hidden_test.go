package extension

import (
	"slices"
	"testing"

	"halogenos.internal/boot/stateconf"
)

func TestHidden(t *testing.T) {
	t.Parallel()
	entries, err := stateconf.Parse([]byte(stateconf.Default + "bind /usr/share/own\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"usr/lib/os-release", "usr/lib/halogen", "usr/libexec/fwupd/efi", "usr/local", "usr/share/own"}
	if got := Hidden(entries); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if entries, err = stateconf.Parse([]byte("bind /opt/own\n")); err != nil || !slices.Contains(Hidden(entries), "opt/own") {
		t.Errorf("%v, %v", entries, err)
	}
}
