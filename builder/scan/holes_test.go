package scan

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Holes are passed over, and nothing that is between them: 6 TB are searched in no
// time, and an archive of which parts are zeros is still one.
func TestHoles(t *testing.T) {
	secret := "\nAGE-SECRET-KEY-1" + chance(t, 58, upper+digits) + "\n"
	dir := t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sparse := func(name string, size int64, at map[int64]string) {
		t.Helper()
		f, err := os.Create(filepath.Join(dir, name))
		check(err)
		for offset, text := range at {
			_, err := f.WriteAt([]byte(text), offset)
			check(err)
		}
		check(f.Truncate(size))
		check(f.Close())
	}
	const far = 2 << 40
	sparse("nothing", 3<<40, nil)
	sparse("two", 3<<40, map[int64]string{100: secret, far: secret})
	sparse("near", 8<<20, map[int64]string{0: "text", 200 << 10: secret, 8<<20 - 200: secret})
	archive := filepath.Join(dir, "archive")
	sparse("member", 4<<20, map[int64]string{3 << 20: secret})
	content, err := os.ReadFile(filepath.Join(dir, "member"))
	check(err)
	packed := tarOf(t, "member", content)
	check(os.Remove(filepath.Join(dir, "member")))
	f, err := os.Create(archive)
	check(err)
	for at := 0; at < len(packed); at += 4096 {
		if b := packed[at:min(at+4096, len(packed))]; string(b) != string(make([]byte, len(b))) {
			_, err := f.WriteAt(b, int64(at))
			check(err)
		}
	}
	check(f.Truncate(int64(len(packed))))
	check(f.Close())

	s := New(nil)
	check(s.Tree(t.Context(), dir))
	found, _ := s.Findings()
	want := []Finding{
		{"/archive!/member", 3<<20 + 1, ruleAge}, {"/near", 200<<10 + 1, ruleAge}, {"/near", 8<<20 - 200 + 1, ruleAge},
		{"/two", 101, ruleAge}, {"/two", far + 1, ruleAge},
	}
	if !slices.Equal(found, want) {
		t.Errorf("have %v\nwant %v", found, want)
	}
	if _, n := s.Searched(); n > 32<<20 {
		t.Errorf("%d bytes were searched", n)
	}
}
