package statefiles

import (
	"encoding/json"
	"testing"

	"halogenos.internal/boot/layout"
)

// Machines have these names and this form since their first release: the system that fetches and
// the one that stages may be of different releases.
func TestOfEarlierReleases(t *testing.T) {
	text, err := json.Marshal(Staged{Format: StagedFormat, Version: 3, Slot: layout.SlotB})
	if want := `{"format":1,"version":"3","slot":"b"}`; err != nil || string(text) != want {
		t.Errorf("the note is %s, want %s (%v)", text, want, err)
	}
	for name, want := range map[string]string{
		Directory: "/var/lib/halogen", AtConsole: "/run/state/halogen/shared", RunDirectory: "/run/halogen",
		StagedName: "staged.json", FetchDirectory: "fetch", LockName: "ota.lock",
	} {
		if name != want {
			t.Errorf("%q was %q", name, want)
		}
	}
}
