package staging

import (
	"encoding/json"
	"testing"

	"halogenos.internal/boot/layout"
)

// Fetchers of earlier and later releases write it.
func TestNoteIsAsDocumented(t *testing.T) {
	text, err := json.Marshal(stagedNote{Format: noteFormat, Version: 2, Slot: layout.SlotB})
	if want := `{"format":1,"version":"2","slot":"b"}`; err != nil || string(text) != want {
		t.Errorf("%s, %v, want %s", text, err, want)
	}
}
