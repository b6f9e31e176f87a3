package journal

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
)

var now = time.Date(2026, 11, 23, 9, 0, 0, 123, time.UTC)

func add(t testing.TB, old []byte, e Entry) []byte {
	t.Helper()
	if e.Time.IsZero() {
		e.Time = now
	}
	out, err := Append(old, e)
	if err != nil {
		t.Fatal(err)
	}
	if len(out) > MaxSize {
		t.Fatalf("the journal has %d bytes", len(out))
	}
	return out
}

func TestAppend(t *testing.T) {
	e := Entry{Time: now, Boot: "4c5a", Kind: Boot, Version: 2, Slot: layout.SlotB, Trial: true, Reason: "it is on <trial>: \"try\" 1", Watchdog: true}
	text := add(t, nil, e)
	want := `{"time":"2026-11-23T09:00:00Z","boot":"4c5a","kind":"boot","version":"2","slot":"b","trial":true,"reason":"it is on <trial>: \"try\" 1","watchdog":true}` + "\n"
	if string(text) != want {
		t.Errorf("line is\n%swant\n%s", text, want)
	}
	text = add(t, text, Entry{Kind: Recovery, Reason: "no version"})
	got := Parse(text)
	e.Time = now.Truncate(time.Second)
	if len(got) != 2 || got[0] != e || got[1].Kind != Recovery || got[1].Version != 0 {
		t.Errorf("read back: %+v", got)
	}
	if line := got[0].String(); line != `2026-11-23 09:00:00 boot      version 2 slot b (trial) (the watchdog ended the boot before): it is on <trial>: "try" 1` {
		t.Errorf("for people: %s", line)
	}
}

// What is torn, hostile, or of another version of this code costs itself alone.
func TestParse(t *testing.T) {
	good := string(add(t, nil, Entry{Kind: Failed, Version: 7, Reason: "seven"}))
	for _, c := range []struct{ name, before, after string }{
		{"nothing", "", ""},
		{"a torn last line", "", `{"time":"2026-11-23T09:00:00Z","kind":"boo`},
		{"a torn first line", `00Z","kind":"boot"}` + "\n", ""},
		{"empty lines", "\n\n", "\n\n\n"},
		{"garbage", "\x00\xff\xfe{{{{\n", "\x00"},
		{"zeros, as a cut leaves a file", strings.Repeat("\x00", 4096) + "\n", strings.Repeat("\x00", 4096)},
		{"another kind of JSON", "[1,2]\n17\nnull\n\"x\"\n", "{}\n"},
		{"versions that are none", `{"kind":"failed","version":"07"}` + "\n" + `{"kind":"failed","version":7}` + "\n", `{"kind":"failed","version":"-1"}` + "\n"},
		{"a slot that is none", `{"kind":"boot","slot":"c"}` + "\n", ""},
		{"deep nesting", strings.Repeat("[", 3000) + "\n", ""},
		{"a line too long", strings.Repeat("x", 3*MaxSize/4) + "\n", ""},
		{"a huge file", strings.Repeat(`{"kind":7}`+"\n", MaxSize/8), ""},
	} {
		entries := Parse([]byte(c.before + good + c.after))
		if len(entries) != 1 || entries[0].Version != 7 || Failures(entries)[7] != "seven" {
			t.Errorf("%s: %+v", c.name, entries)
		}
		// And it can be written on.
		text := add(t, []byte(c.before+good+c.after), Entry{Kind: Failed, Version: 8})
		if failed := Failures(Parse(text)); len(failed) != 2 {
			t.Errorf("%s: after one more entry, failed are %v", c.name, failed)
		}
	}
	// Newer code may write more.
	e := Parse([]byte(`{"kind":"levitated","version":"3","altitude":7}` + "\n"))
	if len(e) != 1 || e[0].Kind != "levitated" {
		t.Errorf("of newer code: %+v", e)
	}
}

// No entry can reach beyond its line, or write to a terminal.
func TestClean(t *testing.T) {
	long := strings.Repeat("\"\\<é\x1b[31m\u202e\u2028\n", 2000)
	text := add(t, nil, Entry{Kind: Unhealthy, Version: 1, Reason: long, Boot: long})
	if len(text) > maxLine || bytes.Count(text, []byte("\n")) != 1 {
		t.Fatalf("%d bytes, %d lines", len(text), bytes.Count(text, []byte("\n")))
	}
	raw := append([]byte(`{"kind":"boot\u001b[31m","reason":"a\u0007b\nc\u202ed"}`), '\n')
	for _, e := range append(Parse(text), Parse(raw)...) {
		if line := e.String(); !utf8.ValidString(line) || strings.ContainsAny(line, "\x1b\x07\n\u202e\u2028") {
			t.Errorf("for a terminal: %q", line)
		}
	}
	if _, err := Append(nil, Entry{Time: time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC), Kind: Boot}); err != nil {
		t.Errorf("a clock that is far off: %v", err)
	}
}

// A journal that grows for ever keeps its size, its newest lines, and what
// failed.
func TestCompaction(t *testing.T) {
	var text []byte
	for v := range 40 {
		text = add(t, text, Entry{Kind: Failed, Version: contract.Version(v + 1), Reason: "it never reached the system"})
	}
	text = add(t, text, Entry{Kind: Retry, Version: 77, Reason: strings.Repeat("x", maxReason)})
	text = add(t, text, Entry{Kind: Failed, Version: 99, Reason: "by mistake"})
	text = add(t, text, Entry{Kind: Blessed, Version: 99})
	for i := range 5000 {
		text = add(t, text, Entry{Kind: Boot, Version: 100, Boot: fmt.Sprint(i), Reason: "it is the newest that was blessed"})
	}
	entries := Parse(text)
	if last := entries[len(entries)-1]; last.Boot != "4999" {
		t.Errorf("the last entry is %+v", last)
	}
	failed := Failures(entries)
	if len(failed) != 40 || failed[1] != "it never reached the system" {
		t.Errorf("%d versions failed: %v", len(failed), failed)
	}
	retries := 0
	for _, e := range entries {
		if e.Kind == Retry && e.Version == 77 {
			retries++
		}
	}
	if retries != 1 || len(entries) < 500 {
		t.Errorf("%d entries, %d about the second round", len(entries), retries)
	}
}

// More failures than there is room for: the greatest versions are kept.
func TestCompactionOfFailures(t *testing.T) {
	var text []byte
	for v := range 5000 {
		text = add(t, text, Entry{Kind: Failed, Version: contract.Version(v + 1), Reason: strings.Repeat("it failed ", 90)})
	}
	for i := range 3000 {
		text = add(t, text, Entry{Kind: Boot, Version: 100, Boot: fmt.Sprint(i), Reason: strings.Repeat("x", 200)})
	}
	failed := Failures(Parse(text))
	if len(failed) < 200 {
		t.Errorf("%d versions are known to have failed", len(failed))
	}
	for v := range 100 {
		if _, ok := failed[contract.Version(5000-v)]; !ok {
			t.Fatalf("version %d is forgotten", 5000-v)
		}
	}
}

// What became of the systems outlives years of starts; a start as any other does not.
func TestHistoryOutlivesStarts(t *testing.T) {
	var text []byte
	starts := func(v contract.Version, n int) {
		for i := range n {
			text = add(t, text, Entry{Kind: Boot, Version: v, Boot: fmt.Sprint(v, i), Reason: "it is the newest that was blessed"})
		}
	}
	starts(1, 10)
	text = add(t, text, Entry{Kind: Failed, Version: 2, Reason: "the watchdog ended it"})
	text = add(t, text, Entry{Kind: Forgiven, Version: 2, Reason: "the disk was at fault"})
	text = add(t, text, Entry{Kind: Accepted, Version: 1, Reason: "by the recovery key"})
	text = add(t, text, Entry{Kind: Failed, Version: 4, Reason: "its health check failed"})
	text = add(t, text, Entry{Kind: Boot, Version: 3, Trial: true})
	text = add(t, text, Entry{Kind: Blessed, Version: 3})
	for range 3 { // compacted several times
		starts(3, 2000)
	}
	var got []string
	for _, e := range History(Parse(text)) {
		got = append(got, fmt.Sprint(e.Kind, " ", e.Version))
	}
	want := "boot 1, failed 2, forgiven 2, accepted 1, boot 3, blessed 3, failed 4, boot 3"
	if h := strings.Join(got, ", "); h != want && h != strings.TrimSuffix(want, ", boot 3") {
		t.Errorf("history is %s\nwant %s", h, want)
	}
	if failed := Failures(Parse(text)); len(failed) != 1 || failed[4] != "its health check failed" {
		t.Errorf("failed are %v", failed)
	}
}

// A history that is longer than its room loses its oldest entries alone, and never the
// newest lines.
func TestHistoryIsBounded(t *testing.T) {
	var text []byte
	for i := range 1000 {
		v := contract.Version(i + 1)
		text = add(t, text, Entry{Kind: Failed, Version: v, Reason: strings.Repeat("x", maxReason)})
		text = add(t, text, Entry{Kind: Forgiven, Version: v})
	}
	if failed := Failures(Parse(text)); len(failed) > 0 {
		t.Errorf("%d versions failed again that were forgiven", len(failed))
	}
	if entries := Parse(text); len(entries) < 300 || entries[len(entries)-1].Version != 1000 {
		t.Errorf("%d entries, the last is %+v", len(entries), entries[len(entries)-1])
	}
}

// FAULTS 49, 50
func TestJudge(t *testing.T) {
	staged, trial := Entry{Kind: Staged, Version: 2}, Entry{Kind: Boot, Version: 2, Trial: true}
	old := Entry{Kind: Boot, Version: 1}
	hung := Entry{Kind: Boot, Version: 1, Watchdog: true}
	retry := Entry{Kind: Retry, Version: 2}
	of := func(k Kind) Entry { return Entry{Kind: k, Version: 2, Reason: "so"} }
	for _, c := range []struct {
		name    string
		entries []Entry
		want    bootflow.Verdict
		reason  string
	}{
		{"nothing is known", nil, bootflow.Unfit, "never reached"},
		{"it died before the system each time", []Entry{old, staged, old}, bootflow.Unfit, "never reached"},
		{"it was cut off three times", []Entry{staged, trial, trial, trial, old}, bootflow.Interrupted, "nothing says"},
		{"it was cut off once, and twice before the system", []Entry{staged, trial, old}, bootflow.Interrupted, "nothing says"},
		{"a boot of the trial before it was staged is none of this round", []Entry{trial, staged, old}, bootflow.Unfit, "never reached"},
		{"its second round was cut off as well", []Entry{staged, trial, retry, trial, trial, trial, old}, bootflow.Unfit, "two rounds"},
		{"the power was cut between the journal and the name", []Entry{staged, trial, retry, old}, bootflow.Unfit, "never reached"},
		{"staged once more, it begins again", []Entry{staged, trial, retry, trial, staged, trial, old}, bootflow.Interrupted, "nothing says"},
		{"it hung once, and was cut off", []Entry{staged, trial, {Kind: Boot, Version: 2, Trial: true, Watchdog: true}, trial, old}, bootflow.Unfit, "watchdog"},
		{"it hung the last time", []Entry{staged, trial, trial, trial, hung}, bootflow.Unfit, "watchdog"},
		{"something hung before it was staged", []Entry{hung, staged, trial, old}, bootflow.Interrupted, "nothing says"},
		{"its health check failed", []Entry{staged, trial, of(Unhealthy), old}, bootflow.Unfit, "unhealthy: so"},
		{"initagent condemned it", []Entry{staged, trial, of(Condemned), old}, bootflow.Unfit, "condemned: so"},
		{"somebody gave it up", []Entry{staged, trial, of(Rollback), old}, bootflow.Unfit, "rollback: so"},
		{"the running system's trouble is not its own", []Entry{staged, trial, {Kind: Unhealthy, Version: 1}, old}, bootflow.Interrupted, "nothing says"},
		{"there was no room for it", []Entry{staged, of(NoRoom), of(Recovery), of(NoRoom), old}, bootflow.NoTrial, "no room"},
		{"there was no room for it once, and it ran then", []Entry{staged, of(NoRoom), trial, old}, bootflow.Interrupted, "nothing says"},
		{"there was no room for it, and its health check failed", []Entry{staged, of(NoRoom), trial, of(Unhealthy), old}, bootflow.Unfit, "unhealthy: so"},
		{"there was no room for it in the first round", []Entry{staged, of(NoRoom), trial, retry, old}, bootflow.Unfit, "never reached"},
		{"there was no room for it when it was staged before", []Entry{of(NoRoom), staged, old}, bootflow.Unfit, "never reached"},
		{"it failed before", []Entry{staged, trial, of(Failed), old}, bootflow.NoTrial, "judged before"},
		{"it failed, and somebody blessed it since", []Entry{staged, trial, of(Failed), of(Blessed), of(Condemned)}, bootflow.NoTrial, "blessed once"},
		{"it was blessed once, and lost its tries later", []Entry{staged, trial, of(Blessed), {Kind: Boot, Version: 2}, old}, bootflow.NoTrial, "blessed once"},
		{"it ran without a trial", []Entry{{Kind: Boot, Version: 2}, old}, bootflow.NoTrial, "blessed once"},
	} {
		got, reason := Judge(c.entries, 2)
		if got != c.want || !strings.Contains(reason, c.reason) {
			t.Errorf("%s: verdict %d (%s), want %d (%s)", c.name, got, reason, c.want, c.reason)
		}
	}
}

// However often the power is cut, a trial gets two rounds and no more.
func TestJudgeEnds(t *testing.T) {
	text := add(t, nil, Entry{Kind: Staged, Version: 2})
	for round := 1; ; round++ {
		for range 3 {
			text = add(t, text, Entry{Kind: Boot, Version: 2, Trial: true})
		}
		for i := range 2000 { // even when the journal is compacted in between
			text = add(t, text, Entry{Kind: Healed, Version: 2, Trial: true, Reason: fmt.Sprint(i)})
		}
		text = add(t, text, Entry{Kind: Boot, Version: 2, Trial: true})
		verdict, _ := Judge(Parse(text), 2)
		if verdict == bootflow.Unfit {
			if round != 2 {
				t.Errorf("%d rounds", round)
			}
			return
		}
		text = add(t, text, Entry{Kind: Retry, Version: 2})
	}
}

func FuzzParse(f *testing.F) {
	seed := add(f, nil, Entry{Kind: Failed, Version: 7, Reason: "seven"})
	f.Add(seed)
	f.Add(append(seed, `{"time":"2026`...))
	f.Add([]byte("{\"kind\":\"boot\",\"version\":\"9\",\"slot\":\"b\",\"trial\":true}\n\n\x00\xff"))
	f.Fuzz(func(t *testing.T, text []byte) {
		before := Parse(text)
		for _, e := range before {
			if s := e.String(); strings.ContainsAny(s, "\n\x1b") {
				t.Errorf("entry %q", s)
			}
		}
		failed := Failures(before)
		out, err := Append(text, Entry{Time: now, Kind: Failed, Version: 5, Reason: string(text)})
		if err != nil {
			t.Fatal(err)
		}
		if len(out) > MaxSize {
			t.Fatalf("%d bytes", len(out))
		}
		after := Failures(Parse(out))
		if _, ok := after[5]; !ok {
			t.Fatal("the new entry is not read")
		}
		if len(failed) > 50 {
			return
		}
		for v := range failed {
			if _, ok := after[v]; !ok {
				t.Errorf("version %s is forgotten", v)
			}
		}
		verdict, reason := Judge(Parse(out), 5)
		if verdict != bootflow.NoTrial || reason == "" {
			t.Errorf("judged as %d", verdict)
		}
	})
}
