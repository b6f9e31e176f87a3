package upper

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden tables")

// hash gives short names root hashes: "b" is 64 times that.
func hash(short string) string { return strings.Repeat(short, 64) }

func short(long string) string {
	if long == "" {
		return "-"
	}
	return long[:1]
}

// Every combination of what the root partition and the disk can have, as a table.
// The system that starts is a, the one in the other slot is b, and c is a third one.
func TestChoose(t *testing.T) {
	var out strings.Builder
	fmt.Fprintf(&out, "%-8s %-8s %-8s %-8s %s\n", "systems", "unnamed", "current", "other", "source")
	for _, systems := range [][]string{nil, {"b"}, {"c"}, {"b", "c"}, {"c", "d"}} {
		for _, unnamed := range []bool{false, true} {
			for _, current := range []string{"", "b", "c"} {
				for _, other := range []string{"", "b", "b+"} { // + has a UKI
					f := Found{Unnamed: unnamed}
					for _, s := range systems {
						f.Systems = append(f.Systems, hash(s))
					}
					o := Other{Starts: strings.HasSuffix(other, "+")}
					if other != "" {
						o.System = hash("b")
					}
					if current != "" {
						f.Blessed = []string{hash("d"), hash(current)}
					}
					s := Choose(f, hash("a"), o)
					got := "none"
					if s.Unnamed {
						got = "unnamed"
					} else if s.System != "" {
						got = short(s.System)
					}
					fmt.Fprintf(&out, "%-8s %-8v %-8s %-8s %s: %s\n", dash(strings.Join(systems, ",")), unnamed, dash(current), dash(other), got, s.Why)
				}
			}
		}
	}
	golden(t, "testdata/choose.txt", out.String())
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: have\n%swant\n%s", file, got, want)
	}
}

// A state of one's own is never somebody else's, and nothing is chosen that is not
// there.
func TestChooseIsThere(t *testing.T) {
	f := Found{Systems: []string{hash("a")}, Blessed: []string{hash("a")}}
	if s := Choose(f, hash("a"), Other{System: hash("a"), Starts: true}); s.System != "" || s.Unnamed {
		t.Errorf("a system takes over from itself: %+v", s)
	}
}

func TestStale(t *testing.T) {
	f := Found{Systems: []string{hash("a"), hash("b"), hash("c")}, Blessed: []string{hash("c"), hash("d"), hash("a")}}
	for own, want := range map[string]string{"a": "b", "b": "", "c": "b", "d": ""} {
		var got string
		for _, s := range Stale(f, hash(own)) {
			got += short(s)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", own, got, want)
		}
	}
	for own, want := range map[string]string{"a": "ca", "b": "cab", "c": "ac"} {
		var got string
		for _, s := range f.Settled(hash(own)) {
			got += short(s)
		}
		if got != want || !strings.HasSuffix(got, own) {
			t.Errorf("%s: %s, want %s", own, got, want)
		}
	}
}

func TestSystems(t *testing.T) {
	if got := Systems([]string{"blessed", hash("a"), hash("b") + unfinished, hash("a")[1:], "A" + hash("a")[1:]}); len(got) != 1 || got[0] != hash("a") {
		t.Errorf("systems are %v", got)
	}
}
