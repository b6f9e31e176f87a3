package command

import (
	"context"
	"io"
	"testing"

	"halogenos.internal/boot/secretmem"
)

// FAULTS 104: what a command of the console knows is erased when it ends.
func TestSecrets(t *testing.T) {
	for _, secrets := range []bool{false, true} {
		c := Command{Name: "x", Secrets: secrets, Run: func(context.Context, *Call) error {
			if secretmem.Inside() != (secrets && secretmem.Enabled()) {
				t.Errorf("secrets %v: it runs inside %v", secrets, secretmem.Inside())
			}
			return nil
		}}
		if code := c.Exec(t.Context(), nil, io.Discard, io.Discard, 0); code != OK {
			t.Errorf("exit code %d", code)
		}
	}
}
