// Package files reads what somebody names on a command line, or what lies where they say.
package files

import (
	"os"

	"halogenos.internal/boot/bounded"
)

// Read reads a file of at most limit bytes. The error names it.
func Read(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return bounded.Named(f, path, limit)
}
