package etcmerge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

// mergeText merges with as much as a plan may cost.
func mergeText(base, theirs, ours []byte) ([]byte, bool) {
	text, ok, err := (&budget{ctx: context.Background(), steps: planSteps, content: 1}).mergeText(base, theirs, ours)
	return text, ok && err == nil
}

func TestMergeText(t *testing.T) {
	for _, c := range []struct{ name, base, theirs, ours, want string }{
		{"nothing", "", "", "", ""},
		{"one side", "a\nb\n", "a\nc\n", "a\nb\n", "a\nc\n"},
		{"other side", "a\nb\n", "a\nb\n", "c\nb\n", "c\nb\n"},
		{"both", "a\nb\nc\n", "a\nb\nd\n", "x\nb\nc\n", "x\nb\nd\n"},
		{"both alike", "a\nb\nc\n", "a\nx\nc\ny\n", "a\nx\nc\n", "a\nx\nc\ny\n"},
		{"lines that touch", "a\nb\n", "a\nd\n", "c\nb\n", "!"},
		{"both at the end", "a\n", "a\nb\n", "a\nc\n", "!"},
		{"both into nothing", "", "a\n", "b\n", "!"},
		{"deleted and changed", "a\nb\nc\n", "a\nx\nc\n", "a\nc\n", "!"},
		{"deleted, and something added next to it", "a\nb\nd\n", "a\nb\nc\nd\n", "a\nd\n", "!"},
		{"the last line feed", "a\nb\nc", "x\nb\nc", "a\nb\nc\n", "x\nb\nc\n"},
		{"no last line feed", "a\nb\nc\n", "a\nb\nc", "a\nb\nc\nd\n", "!"},
		{"carriage returns", "a\r\nb\r\nc\r\n", "x\r\nb\r\nc\r\n", "a\r\nb\r\nd\r\n", "x\r\nb\r\nd\r\n"},
		{"all lines replaced", "a\n", strings.Repeat("x\n", 3*maxEdits), strings.Repeat("y\n", 3*maxEdits), "!"},
		{"many lines of one kind", strings.Repeat("x\n", 3*maxEdits), "a\n" + strings.Repeat("x\n", 3*maxEdits), strings.Repeat("x\n", 3*maxEdits) + "b\n", "a\n" + strings.Repeat("x\n", 3*maxEdits) + "b\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := mergeText([]byte(c.base), []byte(c.theirs), []byte(c.ours))
			if ok != (c.want != "!") || ok && string(got) != c.want {
				t.Errorf("%v %.200q, want %.200q", ok, got, c.want)
			}
			checkText(t, []byte(c.base), []byte(c.theirs), []byte(c.ours))
		})
	}
}

// Lines that make the comparison take long end it.
func TestMergeTextGivesUp(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func() []byte {
		var out []byte
		for range MaxText / 2 {
			out = append(out, "ab"[r.IntN(2)], '\n')
		}
		return out
	}
	if _, ok := mergeText(random(), random(), random()); ok {
		t.Error("three random texts merge")
	}
}

func count(text []byte) map[string]int {
	lines := map[string]int{}
	for line := range bytes.SplitAfterSeq(text, []byte("\n")) {
		if len(line) > 0 {
			lines[string(line)]++
		}
	}
	return lines
}

// checkText holds a merge against what any merge keeps.
func checkText(t testing.TB, base, theirs, ours []byte) {
	t.Helper()
	got, ok := mergeText(base, theirs, ours)
	swapped, okSwapped := mergeText(base, ours, theirs)
	if ok != okSwapped || !bytes.Equal(got, swapped) {
		t.Fatalf("merged with sides exchanged: %q %v, not %q %v", swapped, okSwapped, got, ok)
	}
	if !ok {
		if bytes.Equal(ours, base) || bytes.Equal(theirs, base) {
			t.Fatalf("a conflict of one side")
		}
		return
	}
	if bytes.Equal(ours, base) && !bytes.Equal(got, theirs) || bytes.Equal(theirs, base) && !bytes.Equal(got, ours) || bytes.Equal(ours, theirs) && !bytes.Equal(got, ours) {
		t.Fatalf("%q is not the side that changed", got)
	}
	was, there, here, now := count(base), count(theirs), count(ours), count(got)
	for line, n := range now {
		if here[line]+there[line] == 0 {
			t.Fatalf("line %q is of neither side", line)
		}
		if n > here[line]+there[line] {
			t.Fatalf("line %q comes %d times", line, n)
		}
	}
	for line := range here {
		if now[line] < here[line]-was[line] {
			t.Fatalf("line %q of this machine's is lost", line)
		}
	}
	for line := range there {
		if now[line] < there[line]-was[line] {
			t.Fatalf("line %q of the image's is lost", line)
		}
	}
}

func FuzzMergeText(f *testing.F) {
	f.Add([]byte("a\nb\nc\n"), []byte("a\nb\nd\n"), []byte("x\nb\nc\n"))
	f.Add([]byte("}\n}\n\n}\n"), []byte("}\n\n}\n"), []byte("}\n}\n\n\n}\n}"))
	f.Fuzz(func(t *testing.T, base, theirs, ours []byte) { checkText(t, base, theirs, ours) })
}

// edited is a text with some changes.
func edited(r *rand.Rand, lines []string, words func() string) []string {
	out := slices.Clone(lines)
	for range 1 + r.IntN(3) {
		at := r.IntN(len(out) + 1)
		switch to := min(len(out), at+1+r.IntN(2)); r.IntN(3) {
		case 0:
			out = slices.Insert(out, at, words())
		case 1:
			out = slices.Delete(out, at, to)
		default:
			for i := at; i < to; i++ {
				out[i] = words()
			}
		}
	}
	return out
}

// judge runs a tool that merges files. It reports whether the tool found it clean.
func judge(t *testing.T, name string, args ...string) ([]byte, bool) {
	t.Helper()
	out, err := exec.Command(testkit.Need(t, name), args...).Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() < 0 || exit.ExitCode() > 127) {
		t.Fatalf("%s: %v", name, err)
	}
	return out, err == nil
}

// GNU diff3 and git merge the same texts in the same way, and find the same conflicts.
// Where lines come more than once there may be several ways: then a result has to be one
// of theirs more often than not, and never breaks the rules of checkText.
func TestOthersMergeAlike(t *testing.T) {
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(18, 106))
	differ, clean := 0, 0
	for i := range 240 {
		unique, n := i%2 == 0, 0
		words := func() string {
			if n++; unique {
				return fmt.Sprintf("key%d = %d\n", n, r.IntN(10))
			}
			return []string{"\n", "}\n", "# comment\n", "a = 1\n", "b = 2\n", "section {\n"}[r.IntN(6)]
		}
		var base []string
		for range 4 + r.IntN(30) {
			base = append(base, words())
		}
		texts := map[string]string{"base": strings.Join(base, ""), "theirs": strings.Join(edited(r, base, words), ""), "ours": strings.Join(edited(r, base, words), "")}
		for name, content := range texts {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		at := func(name string) string { return filepath.Join(dir, name) }
		checkText(t, []byte(texts["base"]), []byte(texts["theirs"]), []byte(texts["ours"]))
		got, ok := mergeText([]byte(texts["base"]), []byte(texts["theirs"]), []byte(texts["ours"]))
		diff3, diff3OK := judge(t, "diff3", "-m", at("ours"), at("base"), at("theirs"))
		git, gitOK := judge(t, "git", "merge-file", "-p", at("ours"), at("base"), at("theirs"))
		if ok {
			clean++
		}
		agree := ok == gitOK && (!ok || bytes.Equal(got, git)) && (!diff3OK || ok && bytes.Equal(got, diff3))
		switch {
		case agree:
		case unique:
			t.Errorf("%q\nmerged to %v %q\ngit says %v %q\ndiff3 says %v %q", texts, ok, got, gitOK, git, diff3OK, diff3)
		case ok && !(gitOK && bytes.Equal(got, git)) && !(diff3OK && bytes.Equal(got, diff3)):
			differ++
			t.Logf("%q\nmerged to %q\ngit says %v %q\ndiff3 says %v %q", texts, got, gitOK, git, diff3OK, diff3)
		}
	}
	t.Logf("%d merged cleanly, %d like neither tool", clean, differ)
	if clean < 60 || differ > 6 {
		t.Errorf("%d of 240 merged cleanly, %d like neither tool", clean, differ)
	}
}
