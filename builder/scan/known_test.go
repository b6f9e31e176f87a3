package scan

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// kept are results in memory.
type kept struct {
	mu      sync.Mutex
	results map[[sha256.Size]byte][]byte
	known   int // how often one was there
}

func (k *kept) Get(key [sha256.Size]byte) ([]byte, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r, ok := k.results[key]
	if ok {
		k.known++
	}
	return r, ok
}

func (k *kept) Put(key [sha256.Size]byte, r []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.results[key] = r
}

func newKept() *kept { return &kept{results: make(map[[sha256.Size]byte][]byte)} }

func files(t *testing.T, all map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range all {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func resultsOf(t *testing.T, dir string, k *kept, allow ...Allow) (refused, allowed []Finding, bytes int64) {
	t.Helper()
	s := New(allow)
	if k != nil {
		s.Results = k
	}
	if err := s.Tree(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	refused, allowed = s.Findings()
	_, bytes = s.Searched()
	return refused, allowed, bytes
}

// All that is found is found again where the results are known, under whatever name the
// file has by then and whatever is allowed now.
func TestKnownResults(t *testing.T) {
	t.Parallel()
	all := make(map[string][]byte)
	for i, p := range plants(t) {
		all[fmt.Sprintf("file%d", i)] = p.data
	}
	all["clean"] = []byte("nothing is in here")
	dir, k := files(t, all), newKept()
	want, _, bytes := resultsOf(t, dir, nil)
	if len(want) < len(all)-1 {
		t.Fatalf("%d findings in %d files", len(want), len(all))
	}
	for i := range 2 {
		have, _, n := resultsOf(t, dir, k)
		if !slices.Equal(have, want) || n != bytes {
			t.Errorf("search %d: %d findings of %d, %d bytes of %d", i, len(have), len(want), n, bytes)
		}
	}
	if k.known < len(all)*9/10 { // some have more findings than are kept
		t.Errorf("%d files of %d were known", k.known, len(all))
	}
	allow, err := ParseAllow(want[0].Rule, "/file* because")
	if err != nil {
		t.Fatal(err)
	}
	if refused, allowed, _ := resultsOf(t, dir, k, allow...); len(refused)+len(allowed) != len(want) || len(allowed) == 0 {
		t.Errorf("%d refused and %d allowed of %d", len(refused), len(allowed), len(want))
	}
	moved := make(map[string][]byte)
	for name, data := range all {
		moved["moved-"+name] = data
	}
	have, _, _ := resultsOf(t, files(t, moved), k)
	for i := range have {
		have[i].File = strings.Replace(have[i].File, "/moved-", "/", 1)
	}
	if !slices.Equal(have, want) {
		t.Errorf("under other names: %d findings, want %d", len(have), len(want))
	}
}

// A result that the allow list has a part in is not kept: many findings that are allowed
// would hide one that no longer is.
func TestTooManyAreNotKept(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	for range 2 * maxPerRule {
		fmt.Fprintf(&text, "key = AKIA%s\n", chance(t, 16, upper))
	}
	dir, k := files(t, map[string][]byte{"many": []byte(text.String())}), newKept()
	if refused, _, _ := resultsOf(t, dir, k); len(refused) != maxPerRule || len(k.results) != 0 {
		t.Errorf("%d findings, %d results", len(refused), len(k.results))
	}
}

// A file of accounts and an example of the same text are two things, whichever comes first.
func TestKnownAccounts(t *testing.T) {
	t.Parallel()
	text := []byte("root::20000:0:99999:7:::\n")
	for _, names := range [][]string{{"usr/share/x/shadow.example", "etc/shadow"}, {"etc/shadow", "usr/share/x/shadow.example"}} {
		k := newKept()
		for range 2 {
			for _, name := range names {
				dir := t.TempDir()
				if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
					t.Fatal(err)
				}
				if refused, _, _ := resultsOf(t, dir, k); (len(refused) > 0) != (name == "etc/shadow") {
					t.Errorf("%s: %v", name, refused)
				}
			}
		}
	}
}

// A text that has the form of a module's key is not that module.
func TestKnownDomains(t *testing.T) {
	t.Parallel()
	s := New(nil)
	s.Unpacked, s.Depends = func(string, []byte) ([]byte, error) { return nil, nil }, func(string) string { return "kernel" }
	content := []byte("module")
	sum := sha256.Sum256(content)
	for _, text := range []string{fmt.Sprintf("file %x 0 module %q %q", sum, "x.ko", "kernel"), fmt.Sprintf("module %x %q %q", sum, "x.ko", "kernel")} {
		if s.key("/text", []byte(text)) == s.key("/x.ko", content) {
			t.Errorf("%q has the key of the module", text)
		}
	}
}

// A file with holes has no digest: it would be read as a whole for that.
func TestHolesAreNotKept(t *testing.T) {
	t.Parallel()
	dir, k := files(t, nil), newKept()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("AKIA"+chance(t, 16, upper)), 8<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if refused, _, _ := resultsOf(t, dir, k); len(refused) != 1 || len(k.results) != 0 {
			t.Errorf("%d findings, %d results", len(refused), len(k.results))
		}
	}
}

// A module is judged by its name and by what else it depends on, and not by content alone.
func TestKnownModules(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string][]byte{"a.ko": []byte("one"), "b.ko": []byte("one"), "c.ko.xz": xzOf(t, []byte("two"))})
	k, depends, takes := newKept(), "this kernel", true
	search := func() (unpacked, known []string) {
		var mu sync.Mutex
		s := New(nil)
		s.Results = k
		s.Unpacked = func(name string, content []byte) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			unpacked = append(unpacked, name)
			return []byte(name + string(content)), nil
		}
		s.Known = func(name string, note []byte) bool {
			mu.Lock()
			defer mu.Unlock()
			known = append(known, string(note))
			return takes
		}
		s.Depends = func(string) string { return depends }
		if err := s.Tree(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		slices.Sort(unpacked)
		slices.Sort(known)
		return unpacked, known
	}
	all := []string{"/a.ko", "/b.ko", "/c.ko.xz"}
	if unpacked, known := search(); !slices.Equal(unpacked, all) || known != nil {
		t.Errorf("first: %q, %q", unpacked, known)
	}
	if unpacked, known := search(); unpacked != nil || !slices.Equal(known, []string{"/a.koone", "/b.koone", "/c.ko.xztwo"}) {
		t.Errorf("again: %q, %q", unpacked, known)
	}
	takes = false
	if unpacked, _ := search(); !slices.Equal(unpacked, all) {
		t.Errorf("with results that nobody takes: %q", unpacked)
	}
	takes, depends = true, "another kernel"
	if unpacked, known := search(); !slices.Equal(unpacked, all) || known != nil {
		t.Errorf("for another kernel: %q, %q", unpacked, known)
	}
	if err := os.Rename(filepath.Join(dir, "a.ko"), filepath.Join(dir, "d.ko")); err != nil {
		t.Fatal(err)
	}
	if unpacked, _ := search(); !slices.Equal(unpacked, []string{"/d.ko"}) {
		t.Errorf("renamed: %q", unpacked)
	}
}
