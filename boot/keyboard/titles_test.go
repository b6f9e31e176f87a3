package keyboard

import (
	"testing"

	"golang.org/x/text/encoding/charmap"

	"halogenos.internal/boot/answers"
)

// Each keymap can be told from the others in a list, on a screen with the kernel's font, and is one
// that a new system can be told to have.
func TestTitles(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, k := range keymaps {
		title := k.Title()
		if title == "" || seen[title] != "" {
			t.Errorf("%s is called %q, as %q is", k.Name, title, seen[title])
		}
		seen[title] = k.Name
		if _, err := charmap.CodePage437.NewEncoder().String(title); err != nil {
			t.Errorf("%s: a screen cannot show %q: %v", k.Name, title, err)
		}
		if err := answers.Keyboard(k.Layout()); err != nil {
			t.Errorf("%s: %v", k.Name, err)
		}
	}
	if len(titles) != len(keymaps) {
		t.Errorf("%d titles of %d keymaps", len(titles), len(keymaps))
	}
	for name, want := range map[string]string{"fi": "fi", "ch-fr": "ch(fr)", "us": "us"} {
		if k, err := FindKeymap(name); err != nil || k.Layout() != want {
			t.Errorf("%s is the layout %q, want %q (%v)", name, k.Layout(), want, err)
		}
	}
}
