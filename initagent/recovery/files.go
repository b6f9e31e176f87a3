package recovery

import (
	"errors"
	"io/fs"
)

// notMissing is nil where the error says that nothing is there.
func notMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
