package enroll

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/secureboot"
)

// successor has the firmware's old keys give way to others. The firmware takes what a key
// that it holds has signed.
func successor(t *testing.T, n *nvram, old, fresh *secureboot.KeySet) *Successor {
	t.Helper()
	copied := *fresh
	copied.Owner = old.Owner
	had := secureboot.NewList(old, secureboot.Vendor{DB: secureboot.Database{secureboot.Hash(old.Owner, [32]byte{1})}})
	next, err := had.Rekey(old, &copied)
	if err != nil {
		t.Fatal(err)
	}
	n.trusts = func(name string, attributes uint32, payload []byte) bool {
		at, _, content, err := secureboot.SplitUpdate(payload)
		above := map[string]string{"PK": "PK", "KEK": "PK", "db": "KEK"}[name]
		have, perr := secureboot.ParseDatabase(n.vars[above].data)
		if err != nil || perr != nil {
			return false
		}
		for _, k := range []*secureboot.KeySet{old, fresh} {
			pair := map[string]secureboot.Pair{"PK": k.PK, "KEK": k.KEK}[above]
			v := map[string]secureboot.Variable{"PK": secureboot.PK, "KEK": secureboot.KEK, "db": secureboot.DB}[name]
			trusted := slices.ContainsFunc(have, func(e secureboot.Entry) bool { return bytes.Equal(e.Data, pair.Certificate.Raw) })
			if want, err := secureboot.SignUpdate(v, attributes, at, content, pair); trusted && err == nil && bytes.Equal(want, payload) {
				return true
			}
		}
		return false
	}
	return &Successor{
		Variables: n, Old: old, Fresh: &copied, Had: had.Wanted, Wanted: next.Wanted, Time: buildDate.AddDate(0, 2, 0),
		Signed: func() error { return nil }, Foretell: func(State) error { return nil }, Pause: func(time.Duration) {}, Say: func(string) {},
	}
}

// The keys of firmware that enforces Secure Boot give way to others, each signed by one
// that is there, db last. Cut at every operation, the next run finishes it. FAULTS 42, 60
func TestSucceed(t *testing.T) {
	old, fresh := testSets(t)
	for at := 0; ; at++ {
		w := successor(t, newNVRAM(always()), old, fresh)
		n := inUse(t, old, w.Had)
		e := successor(t, n, old, fresh)
		n.plug = &plug{left: at}
		done := e.Run()
		n.plug = always()
		if n.vars["SetupMode"].data[0] != 0 {
			t.Fatalf("cut at operation %d: Setup Mode", at)
		}
		count, err := Succeeded(observe(t, n), e.Had, e.Wanted)
		if err != nil || !slices.Equal(slices.Compact(slices.Clone(n.writes)), []string{"PK", "KEK", "db"}[:count]) {
			t.Fatalf("cut at operation %d: %d have succeeded (%v), written %q", at, count, err, n.writes)
		}
		if err := e.Run(); err != nil {
			t.Fatalf("cut at operation %d: %v", at, err)
		}
		if d := Enforced(observe(t, n), e.Wanted); len(d) > 0 || len(n.writes) != 3 {
			t.Fatalf("cut at operation %d: %v, written %q", at, d, n.writes)
		}
		if done == nil {
			break
		}
	}
}

// Firmware whose last update is later than the clock is given one that is later still;
// one that refuses for another reason is not asked again with other times.
func TestSucceedLater(t *testing.T) {
	old, fresh := testSets(t)
	last := buildDate.AddDate(30, 0, 0)
	n := inUse(t, old, successor(t, newNVRAM(always()), old, fresh).Had)
	e := successor(t, n, old, fresh)
	trusts := n.trusts
	var times []time.Time
	n.trusts = func(name string, attributes uint32, payload []byte) bool {
		at, _, _, err := secureboot.SplitUpdate(payload)
		times = append(times, at)
		return err == nil && (name != "KEK" || at.After(last)) && trusts(name, attributes, payload)
	}
	if err := e.Run(); err != nil {
		t.Fatal(err)
	}
	if d := Enforced(observe(t, n), e.Wanted); len(d) > 0 || len(times) != 8 || times[6].Year() != e.Time.Year()+100 || times[7] != e.Time {
		t.Errorf("%v, at %v", d, times)
	}
}

// The TPM is told what comes of it before each write, and after the last one; where it
// cannot be, nothing is written.
func TestSucceedForetold(t *testing.T) {
	old, fresh := testSets(t)
	for fails := range 4 {
		n := inUse(t, old, successor(t, newNVRAM(always()), old, fresh).Had)
		e := successor(t, n, old, fresh)
		var seen []int
		e.Foretell = func(s State) error {
			done, err := Succeeded(s, e.Had, e.Wanted)
			if seen = append(seen, done); len(seen) > fails && fails < 3 {
				err = errors.New("not now")
			}
			return err
		}
		err := e.Run()
		if want := []int{0, 1, 2, 3}; fails == 3 && (err != nil || !slices.Equal(seen, want)) {
			t.Errorf("told of %v, want %v: %v", seen, want, err)
		}
		if fails < 3 && (err == nil || len(n.writes) != fails) {
			t.Errorf("written %q after %d were told of: %v", n.writes, fails, err)
		}
	}
}

// What does not go as it should stops before db, and says how far it came.
func TestSucceedRefused(t *testing.T) {
	tries := attempts + len(laterTimes)
	old, fresh := testSets(t)
	for _, c := range []struct {
		name, says string
		done       int
		change     func(n *nvram, e *Successor)
	}{
		{"PK", "did not take PK", 0, func(n *nvram, e *Successor) { n.refuse = map[string]int{"PK": tries} }},
		{"KEK", "did not take KEK", 1, func(n *nvram, e *Successor) { n.refuse = map[string]int{"KEK": tries} }},
		{"db is dropped", "did not take db", 2, func(n *nvram, e *Successor) { n.drop = map[string]int{"db": tries} }},
		{"nothing starts", "the machine would not start with it", 2, func(n *nvram, e *Successor) { e.Signed = func() error { return errors.New("unsigned") } }},
		{"PK vanishes", "PK no longer holds", 1, func(n *nvram, e *Successor) { n.loseAt = map[string]string{"KEK": "PK"} }},
		{"a stranger's KEK", "neither this machine's old keys nor its new ones", 0, func(n *nvram, e *Successor) {
			raw, err := secureboot.Database{secureboot.Certificate(fresh.Owner, fresh.DB.Certificate)}.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			n.vars["KEK"] = record{secureboot.KeyAttributes, raw}
		}},
		{"Setup Mode", "Setup Mode", 0, func(n *nvram, e *Successor) { n.flag("SetupMode", 1) }},
		{"a signature by nobody", "did not take PK", 0, func(n *nvram, e *Successor) { e.Old = e.Fresh }},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := inUse(t, old, successor(t, newNVRAM(always()), old, fresh).Had)
			e := successor(t, n, old, fresh)
			c.change(n, e)
			if err := e.Run(); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
			if count, err := Succeeded(observe(t, n), e.Had, e.Wanted); err == nil && count != c.done {
				t.Errorf("%d have succeeded, want %d", count, c.done)
			}
			if slices.Contains(n.writes, "db") && c.name != "db is dropped" {
				t.Errorf("db was written: %q", n.writes)
			}
		})
	}
}
