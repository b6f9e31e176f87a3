package bls

import (
	"slices"
	"testing"
)

func TestNames(t *testing.T) {
	for _, c := range []struct {
		file string
		want Name
	}{
		{"desktop_2025091101.efi", Name{ImageID: "desktop", Version: 2025091101}},
		{"desktop_7+3.efi", Name{ImageID: "desktop", Version: 7, Counted: true, Left: 3}},
		{"desktop_7+2-1.efi", Name{ImageID: "desktop", Version: 7, Counted: true, Left: 2, Done: 1}},
		{"desktop_7+0-3.efi", Name{ImageID: "desktop", Version: 7, Counted: true, Done: 3}},
	} {
		got, err := Parse(c.file)
		if err != nil || got != c.want {
			t.Errorf("Parse(%q) = %+v, %v, want %+v", c.file, got, err, c.want)
		}
		if got.String() != c.file {
			t.Errorf("Parse(%q).String() = %q", c.file, got)
		}
	}
}

// FAULTS 3, 44
func TestBadNames(t *testing.T) {
	for _, file := range []string{
		"", ".efi", "desktop.efi", "desktop_7", "desktop_07.efi", "desktop_-7.efi", "desktop_0.efi", "desktop_7x.efi",
		"desktop_9223372036854775808.efi", "desktop_7+.efi", "desktop_7+-1.efi", "desktop_7++1.efi", "desktop_7+255.efi", "desktop_7+1-.efi",
		"desktop_7+1-2-3.efi", "desktop_7+03.efi", "desktop_7+3-0.efi", "desktop_7+0-2147483648.efi", "desktop_7+1-x.efi", "Desktop_7.efi", "desk top_7.efi", "_7.efi", "../a_7.efi",
	} {
		if n, err := Parse(file); err == nil {
			t.Errorf("Parse(%q) = %+v, want an error", file, n)
		}
	}
}

// FAULTS 45, 46
func TestChoose(t *testing.T) {
	for _, c := range []struct {
		names []string
		want  string
	}{
		{[]string{"os_1.efi", "os_2+3.efi"}, "os_2+3.efi"},
		{[]string{"os_1.efi", "os_2+0-3.efi"}, "os_1.efi"},
		{[]string{"os_10.efi", "os_9.efi"}, "os_10.efi"},
		{[]string{"os_1+0-3.efi", "os_2+0-3.efi"}, "os_2+0-3.efi"},
		{[]string{"os_1+0.efi"}, "os_1+0.efi"},
		{[]string{"os_1+3.efi", "os_1.efi"}, "os_1.efi"},
		{[]string{"os_1+1-2.efi", "os_1+2-1.efi"}, "os_1+2-1.efi"},
	} {
		var names []Name
		for _, file := range c.names {
			n, err := Parse(file)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, n)
		}
		if got, ok := Choose(names); !ok || got.String() != c.want {
			t.Errorf("Choose(%q) = %q, want %q", c.names, got, c.want)
		}
	}
	if _, ok := Choose(nil); ok {
		t.Error("Choose of nothing chose something")
	}
}

func TestLife(t *testing.T) {
	n, _ := Parse("os_2+2.efi")
	for _, want := range []string{"os_2+1-1.efi", "os_2+0-2.efi", "os_2+0-3.efi"} {
		if n = n.Tried(); n.String() != want {
			t.Fatalf("after a try the name is %q, want %q", n, want)
		}
	}
	if got := n.Blessed().String(); got != "os_2.efi" {
		t.Errorf("blessed: %q", got)
	}
	if n, _ := Parse("os_2.efi"); n.Condemned().String() != "os_2+0.efi" {
		t.Errorf("condemned: %q", n.Condemned())
	}
}

// FAULTS 45, 46
func TestStart(t *testing.T) {
	for _, c := range []struct{ names, want []string }{
		{[]string{"os_1.efi", "os_2+3.efi"}, []string{"os_1.efi", "os_2+2-1.efi"}},
		{[]string{"os_1.efi", "os_2+0-3.efi"}, []string{"os_1.efi", "os_2+0-3.efi"}},
		{[]string{"os_2+0-3.efi"}, []string{"os_2+0-4.efi"}},
		{[]string{"os_2+3.efi", "os_2+2-1.efi"}, []string{"os_2+3.efi", "os_2+2-1.efi"}},
	} {
		var names []Name
		for _, file := range c.names {
			n, err := Parse(file)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, n)
		}
		started, then, ok := Start(names)
		var got []string
		for _, n := range then {
			got = append(got, n.String())
		}
		if !ok || !slices.Equal(got, c.want) || !slices.Contains(got, started.String()) {
			t.Errorf("Start(%q) = %v, %q, %v; want %q", c.names, started, got, ok, c.want)
		}
	}
	if _, _, ok := Start(nil); ok {
		t.Error("Start of nothing started something")
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"os_2+1-1.efi", "os_2.efi", "os_2+0.efi"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, file string) {
		n, err := Parse(file)
		if err != nil {
			return
		}
		if n.String() != file {
			t.Fatalf("%q parses to %+v, whose name is %q", file, n, n)
		}
	})
}
