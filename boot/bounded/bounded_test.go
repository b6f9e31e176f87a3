package bounded

import (
	"errors"
	"io/fs"
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

// Who opens a file names it.
func TestFile(t *testing.T) {
	files := fstest.MapFS{"name": {Data: []byte("abc")}}
	if b, err := File(files, "name", 3); err != nil || string(b) != "abc" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := File(files, "name", 2); !errors.Is(err, ErrTooLarge) || err.Error() != "read name: too large: more than 2 bytes" {
		t.Errorf("a byte less: %v", err)
	}
	if _, err := File(files, "other", 2); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one that is missing: %v", err)
	}
}
