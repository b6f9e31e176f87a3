package main

import (
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
)

// Where a name starts is said only of one that starts there.
func TestWhereNamesStart(t *testing.T) {
	_, here := os.Stat("not-here")
	_, whole := os.Stat("/not-there")
	inside := &fs.PathError{Op: "find", Path: "usr/lib/modules", Err: fs.ErrNotExist}
	for _, c := range []struct {
		err  error
		here bool
	}{{here, true}, {whole, false}, {inside, false}, {fmt.Errorf("in words: %w", fs.ErrNotExist), false}} {
		text := cure(c.err)
		if !strings.Contains(text, "check the name") || strings.Contains(text, "current directory") != c.here {
			t.Errorf("%v%s", c.err, text)
		}
	}
}
