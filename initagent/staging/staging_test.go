package staging

import (
	"encoding/json"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/statefiles"
)

// Fetchers of earlier and later releases write it.
func TestNoteIsAsDocumented(t *testing.T) {
	text, err := json.Marshal(statefiles.Staged{Format: statefiles.StagedFormat, Version: 2, Slot: layout.SlotB})
	if want := `{"format":1,"version":"2","slot":"b"}`; err != nil || string(text) != want {
		t.Errorf("%s, %v, want %s", text, err, want)
	}
}
