package bounded

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"testing/iotest"
)

func TestRead(t *testing.T) {
	for _, c := range []struct {
		text  string
		limit int64
		want  string
		err   error
	}{
		{"", 0, "", nil}, {"ab", 3, "ab", nil}, {"abc", 3, "abc", nil}, {"abcd", 3, "abc", ErrTooLarge}, {"a", 0, "", ErrTooLarge},
	} {
		got, err := Read(strings.NewReader(c.text), c.limit)
		if string(got) != c.want || !errors.Is(err, c.err) {
			t.Errorf("%q, at most %d: %q, %v", c.text, c.limit, got, err)
		}
	}
	broken := errors.New("broken")
	if _, err := Read(iotest.ErrReader(broken), 3); !errors.Is(err, broken) {
		t.Errorf("a reader that fails: %v", err)
	}
}

// The two that open a file are the same, and name it.
func TestFiles(t *testing.T) {
	name := filepath.Join(t.TempDir(), "name")
	if err := os.WriteFile(name, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{"name": {Data: []byte("abc")}}
	for which, read := range map[string]func(name string, limit int64) ([]byte, error){
		"file": func(n string, limit int64) ([]byte, error) { return File(files, filepath.Base(n), limit) },
		"path": Path,
	} {
		if b, err := read(name, 3); err != nil || string(b) != "abc" {
			t.Errorf("%s: %q, %v", which, b, err)
		}
		if _, err := read(name, 2); !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "name: too large: more than 2 bytes") {
			t.Errorf("%s of a byte less: %v", which, err)
		}
		if _, err := read(name+"x", 2); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s that is missing: %v", which, err)
		}
	}
}
