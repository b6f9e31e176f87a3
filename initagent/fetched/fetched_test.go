package fetched

import (
	"errors"
	"syscall"
	"testing"
)

// Staging asks what is behind a refusal, and whether it is one.
func TestRefusal(t *testing.T) {
	for _, err := range []error{Refuse("%w", syscall.EIO), Refused(syscall.EIO)} {
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("%v hides its cause", err)
		}
		if _, refused := errors.AsType[Refusal](errors.Join(err)); !refused {
			t.Errorf("%v is not known for a refusal", err)
		}
	}
}
