package etcmerge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What cannot be merged ends with an error that says what it was, and which of the
// trees. FAULTS 107
func TestPlanFails(t *testing.T) {
	many, deep := memory{}, memory{"a": text("")}
	for i := range MaxEntries {
		many[fmt.Sprint(i)] = text("")
	}
	deep[strings.Repeat("d/", MaxDepth+1)+"x"] = text("")
	ended, end := context.WithCancel(context.Background())
	end()
	broken := errors.New("input/output error")
	one := memory{"a": text("1")}
	for _, c := range []struct {
		name                string
		ctx                 context.Context
		base, theirs, upper Tree
		want                string
		is                  error
	}{
		{"too many files", nil, nil, one, many, "more than 500000 files", nil},
		{"too deep", nil, nil, one, deep, "more than 256 directories within one another", nil},
		{"ended", ended, one, one, one, "", context.Canceled},
		{"the old image is broken", nil, failing{one, "a", broken}, one, memory{"a": text("2")}, "the old image cannot be read: a: input/output error", ErrBase},
		{"the old image is broken, and its cause", nil, failing{one, "a", broken}, one, memory{"a": text("2")}, "", broken},
		{"the new image is broken", nil, one, failing{memory{"a": text("3")}, "a", broken}, memory{"a": text("2")}, "the new image: a: input/output error", broken},
		{"the upper directory is broken", nil, one, one, failing{memory{"a": text("3")}, "a", broken}, "the upper directory: a: input/output error", broken},
		{"a name with a slash", nil, one, one, naming{one, []string{"../x"}}, `the upper directory: .: no file can have the name "../x"`, nil},
		{"a name of dots", nil, one, one, naming{one, []string{".."}}, "no file can have the name", nil},
		{"an unknown type", nil, one, one, memory{"a": {Entry: Entry{Type: 99}}}, "type 99", nil},
		{"a file for a directory", nil, one, memory{".": text("")}, one, "the new image: .: it is not a directory", nil},
		{"a link for a directory", nil, one, one, memory{".": link("/")}, "the upper directory: .: it is not a directory", nil},
		{"a file for the old directory", nil, memory{".": text("")}, one, one, "", ErrBase},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := c.ctx
			if ctx == nil {
				ctx = context.Background()
			}
			_, err := Plan(ctx, c.base, c.theirs, c.upper, Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("error %v, want %q and %v", err, c.want, c.is)
			}
			if c.is != ErrBase && errors.Is(err, ErrBase) && !errors.Is(err, broken) {
				t.Errorf("%v blames the old image", err)
			}
		})
	}
}

// naming is a tree whose top has names of any kind.
type naming struct {
	memory
	names []string
}

func (n naming) Names(p string) ([]string, error) {
	if p == "." {
		return n.names, nil
	}
	return n.memory.Names(p)
}

// strict is a tree that fails the test when a path leads through anything but
// directories, as one through a link does.
type strict struct {
	memory
	t *testing.T
}

func (s strict) check(p string) {
	for i, c := range p {
		if c != '/' {
			continue
		}
		if n, ok := s.node(p[:i]); !ok || n.Type != Directory {
			s.t.Errorf("%q leads through %s", p, kindOf(&n.Entry))
		}
	}
}

func (s strict) Entry(p string) (Entry, error) { s.check(p); return s.memory.Entry(p) }

func (s strict) Names(p string) ([]string, error) { s.check(p + "/"); return s.memory.Names(p) }

func (s strict) Open(p string) (io.ReadCloser, error) { s.check(p); return s.memory.Open(p) }

// No path is followed through a link, wherever the links are: for the trees, and in
// what is made. FAULTS 107
func TestLinksAreNotFollowed(t *testing.T) {
	trees := []memory{
		{"d": link("/"), "halogen": link("/tmp"), "passwd": link("/etc/shadow")},
		{"d/passwd": text("1"), "d/e/f": text("1"), "halogen/changes.json": text("{}"), "passwd": text(passwdBase)},
		{"d": text("1"), "halogen": dir(), "halogen/changes.json": link("/etc/shadow"), "passwd": {Entry: Entry{Type: CharDevice}}},
		{"d": opaque, "d/e": link("../.."), "halogen": dir(), "halogen/changes.json": {Entry: Entry{Type: Pipe}}, "passwd": dir()},
		{"d": gone, "halogen": gone, "passwd": gone},
	}
	for b, base := range trees {
		for th, theirs := range trees {
			for up, upper := range trees {
				r, err := Plan(context.Background(), strict{base, t}, strict{theirs, t}, strict{upper, t}, Options{From: 1, To: 2})
				if err != nil {
					t.Fatalf("%d %d %d: %v", b, th, up, err)
				}
				checkListed(t, r, applied(t, r, base, theirs, upper))
			}
		}
	}
}

// used is the processor time of this process so far.
func used(t *testing.T) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// An /etc as a machine has it: 2,000 files, of which 50 were changed, 10 by both.
func TestTime(t *testing.T) {
	base := memory{}
	for i := range 2000 {
		var content strings.Builder
		for line := range 60 {
			fmt.Fprintf(&content, "option%d = %d\n", line, i)
		}
		base[fmt.Sprintf("dir%d/file%d", i%100, i)] = text(content.String())
	}
	theirs, upper := base.clone(), memory{}
	for i := range 50 {
		path := fmt.Sprintf("dir%d/file%d", i%100, i)
		upper[path] = text(base[path].content + "mine = 1\n")
		if i < 10 {
			theirs[path] = text("theirs = 1\n" + base[path].content)
		}
	}
	before := used(t)
	r, _ := plan(t, base, theirs, upper)
	took := used(t) - before
	merged := 0
	for _, c := range r.Changes {
		if c.Action == Merge {
			merged++
		}
	}
	if merged != 10 || len(r.Conflicts) > 0 {
		t.Errorf("%d files are merged, conflicts %v", merged, r.Conflicts)
	}
	if took > 200*time.Millisecond {
		t.Errorf("it took %v of processor time", took)
	}
	t.Logf("%v of processor time", took)
}

// 100,000 files of this machine's pass. FAULTS 107
func TestManyFiles(t *testing.T) {
	upper, theirs := memory{}, memory{}
	for i := range 100_000 {
		upper[fmt.Sprintf("file%d", i)] = text("1")
		if i%2 == 0 {
			theirs[fmt.Sprintf("file%d", i)] = text("2")
		}
	}
	before := used(t)
	r, err := Plan(context.Background(), memory{"a": text("1")}, flat{theirs}, flat{upper}, Options{From: 1, To: 2})
	if err != nil {
		t.Fatal(err)
	}
	if took := used(t) - before; took > 30*time.Second {
		t.Errorf("it took %v of processor time", took)
	}
	if len(r.Conflicts) != 50_000 {
		t.Errorf("%d conflicts", len(r.Conflicts))
	}
	list := r.Changes[slices.IndexFunc(r.Changes, func(c Change) bool { return c.Path == ListPath })]
	got, err := ParseList(list.Content)
	if err != nil || len(list.Content) > MaxList || got.More == 0 || got.More+len(got.Conflicts) != 50_000 {
		t.Errorf("the list has %d bytes, %d conflicts and %d more; %v", len(list.Content), len(got.Conflicts), got.More, err)
	}
}

// flat is a tree without directories, which is quick to ask.
type flat struct{ memory }

func (f flat) Entry(p string) (Entry, error) {
	if _, ok := f.memory[p]; !ok && p != "." {
		return memory{}.Entry(p)
	}
	return f.memory.Entry(p)
}
