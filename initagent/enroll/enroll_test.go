package enroll

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/secureboot"
)

var buildDate = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// keySets are made once: RSA keys take a while, and no test changes them.
var keySets = sync.OnceValues(func() ([2]*secureboot.KeySet, error) {
	var sets [2]*secureboot.KeySet
	for i := range sets {
		var err error
		if sets[i], err = secureboot.Generate(rand.Reader, buildDate); err != nil {
			return sets, err
		}
	}
	return sets, nil
})

func testSets(t testing.TB) (mine, other *secureboot.KeySet) {
	t.Helper()
	sets, err := keySets()
	if err != nil {
		t.Fatal(err)
	}
	return sets[0], sets[1]
}

func vendorOf(k *secureboot.KeySet) secureboot.Vendor {
	return secureboot.Vendor{
		DB:  secureboot.Database{secureboot.Certificate(k.Owner, k.KEK.Certificate)},
		DBX: secureboot.Database{secureboot.Hash(k.Owner, [32]byte{1})},
	}
}

func enroller(n *nvram, k *secureboot.KeySet, w secureboot.Wanted) *Enroller {
	return &Enroller{
		Variables: n, Keys: k, Wanted: w, Time: buildDate,
		Signed: func() error { return nil }, Pause: func(time.Duration) {}, Say: func(string) {},
	}
}

func observe(t testing.TB, n *nvram) State {
	t.Helper()
	s, err := Observe(n)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// put stores content as the factory or somebody else would.
func put(t testing.TB, n *nvram, v secureboot.Variable, d secureboot.Database) {
	t.Helper()
	b, err := d.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	n.vars[v.Name] = record{secureboot.KeyAttributes, b}
}

func TestEnroll(t *testing.T) {
	k, other := testSets(t)
	w := k.Wanted(vendorOf(other))
	n := newNVRAM(always())
	if got := Keys(observe(t, n), secureboot.Wanted{}); got != bootflow.KeysMissing {
		t.Errorf("before: keys %v", got)
	}
	var said []string
	e := enroller(n, k, w)
	e.Say = func(m string) { said = append(said, m) }
	if err := e.Run(0); err != nil {
		t.Fatal(err)
	}
	if want := []string{"dbx", "db", "KEK", "PK"}; !slices.Equal(n.writes, want) {
		t.Errorf("wrote %v, want %v", n.writes, want)
	}
	if len(said) != 4 || !strings.Contains(said[3], "ends Setup Mode") {
		t.Errorf("said %q", said)
	}
	if got := Keys(observe(t, n), w); got != bootflow.KeysOff {
		t.Errorf("before the restart: keys %v", got)
	}
	n.restart(always())
	if d := Enforced(observe(t, n), w); len(d) != 0 {
		t.Errorf("after the restart: %v", d)
	}
	if got := Keys(observe(t, n), w); got != bootflow.KeysEnrolled {
		t.Errorf("after the restart: keys %v", got)
	}
	n.writes = nil
	if err := e.Run(1); err != nil || len(n.writes) != 0 {
		t.Errorf("a second run wrote %v (%v)", n.writes, err)
	}
}

// Some firmware leaves Setup Mode at the restart only.
func TestFinishedInSetupMode(t *testing.T) {
	k, _ := testSets(t)
	w := k.Wanted(secureboot.Vendor{})
	n := newNVRAM(always())
	if err := enroller(n, k, w).Run(0); err != nil {
		t.Fatal(err)
	}
	n.flag("SetupMode", 1)
	if got := Keys(observe(t, n), w); got != bootflow.KeysFinished {
		t.Errorf("keys %v", got)
	}
	if plan, err := Plan(observe(t, n), w, 1); err != nil || len(plan) != 0 {
		t.Errorf("plan %v, %v", plan, err)
	}
	delete(n.vars, "db")
	plan, err := Plan(observe(t, n), w, 1)
	if err != nil || len(plan) != 1 || plan[0].Variable != secureboot.DB {
		t.Errorf("with db lost: plan %v, %v", plan, err)
	}
}

// Whatever was written already is not written again, and what is missing comes
// in order. FAULTS 42, 60
func TestPlanResumes(t *testing.T) {
	k, other := testSets(t)
	w := k.Wanted(vendorOf(other))
	all := []secureboot.Variable{secureboot.DBX, secureboot.DB, secureboot.KEK, secureboot.PK}
	for done := range 1 << 3 {
		n := newNVRAM(always())
		var want []string
		for i, v := range all[:3] {
			if done>>i&1 == 1 {
				put(t, n, v, w.Of(v))
			} else {
				want = append(want, v.Name)
			}
		}
		want = append(want, "PK")
		plan, err := Plan(observe(t, n), w, 0)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range plan {
			got = append(got, a.Variable.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("with %03b done: %v, want %v", done, got, want)
		}
	}
}

// The power goes at every read and every write, and again during what follows;
// the next start finishes. The set of keys may have been lost in between.
// FAULTS 42, 60
func TestEnrollIsCut(t *testing.T) {
	k, other := testSets(t)
	w, lost := k.Wanted(vendorOf(other)), other.Wanted(secureboot.Vendor{})
	for _, first := range []struct {
		keys   *secureboot.KeySet
		wanted secureboot.Wanted
	}{{k, w}, {other, lost}} {
		seen := map[int]bool{} // numbers of variables; a cut between reads leaves the same
		for cut := 0; ; cut++ {
			n := newNVRAM(&plug{left: cut})
			err := enroller(n, first.keys, first.wanted).Run(0)
			if err == nil {
				if cut < 20 {
					t.Fatalf("done after %d operations", cut)
				}
				break
			}
			n.restart(always())
			if first.keys != k && n.vars["PK"].data != nil {
				continue // PK is in, so its keys had been stored: nothing is lost
			}
			if seen[len(n.vars)] {
				continue
			}
			seen[len(n.vars)] = true
			for again := 0; ; again++ {
				m := n.clone()
				m.plug = &plug{left: again}
				err := enroller(m, k, w).Run(0)
				m.restart(always())
				if err != nil {
					if !errors.Is(err, errCut) {
						t.Fatalf("cut at %d and %d: %v", cut, again, err)
					}
					if err := enroller(m, k, w).Run(0); err != nil {
						t.Fatalf("cut at %d and %d, third run: %v", cut, again, err)
					}
					m.restart(always())
				}
				if d := Enforced(observe(t, m), w); len(d) != 0 {
					t.Fatalf("cut at %d and %d: %v", cut, again, d)
				}
				if err == nil {
					break
				}
			}
		}
	}
}

// noDB fails when PK is there without the db and KEK that belong to it.
func noDB(t *testing.T, n *nvram, w secureboot.Wanted) {
	t.Helper()
	s := observe(t, n)
	if len(s.PK.Content) > 0 && (!s.DB.holds(w.DB) || !s.KEK.holds(w.KEK)) {
		t.Errorf("PK is there, and db (%s) or KEK (%s) is not: this machine does not start", s.DB.Content, s.KEK.Content)
	}
}

func TestFirmwareFaults(t *testing.T) {
	k, _ := testSets(t)
	w := k.Wanted(secureboot.Vendor{})
	for _, c := range []struct {
		name string
		set  func(*nvram)
		kind Kind   // none: it ends well
		says string // part of the message
	}{
		{"db refused twice", func(n *nvram) { n.refuse = map[string]int{"db": 2} }, 0, ""},
		{"db refused for good", func(n *nvram) { n.refuse = map[string]int{"db": 99} }, Refused, "security violation"},
		{"KEK refused, store full", func(n *nvram) { n.refuse, n.why = map[string]int{"KEK": 99}, syscall.ENOSPC }, Refused, "full"},
		{"PK refused, locked", func(n *nvram) { n.refuse, n.why = map[string]int{"PK": 99}, syscall.EROFS }, Refused, "protection"},
		{"db refused, aborted", func(n *nvram) { n.refuse, n.why = map[string]int{"db": 99}, syscall.EINTR }, Refused, "aborted"},
		{"db forgotten once", func(n *nvram) { n.drop = map[string]int{"db": 1} }, 0, ""},
		{"db forgotten for good", func(n *nvram) { n.drop = map[string]int{"db": 99} }, Refused, "nothing is there"},
		{"PK forgotten for good", func(n *nvram) { n.drop = map[string]int{"PK": 99} }, Refused, "nothing is there"},
		{"written and reported as failed", func(n *nvram) { n.lie = map[string]bool{"db": true, "KEK": true, "PK": true} }, 0, ""},
		{"db open to everybody", func(n *nvram) { n.open = map[string]bool{"db": true} }, Refused, "let anybody change it"},
		{"db changed", func(n *nvram) { n.garble = map[string]bool{"db": true} }, Refused, "reads back as"},
		{"db lost when KEK is written", func(n *nvram) { n.loseAt = map[string]string{"KEK": "db"} }, Unsafe, "db no longer holds"},
		{"lower-case names", func(n *nvram) { n.lower, n.restarted = true, true }, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNVRAM(always())
			c.set(n)
			var waited time.Duration
			e := enroller(n, k, w)
			e.Pause = func(d time.Duration) { waited += d }
			err := e.Run(0)
			noDB(t, n, w)
			if waited > 5*time.Second || len(n.writes) > 9 {
				t.Errorf("waited %s, wrote %v", waited, n.writes)
			}
			if c.kind == 0 {
				if err != nil {
					t.Fatal(err)
				}
				n.restart(always())
				if d := Enforced(observe(t, n), w); len(d) != 0 {
					t.Errorf("after a restart: %v", d)
				}
				return
			}
			var p *Problem
			if !errors.As(err, &p) || p.Kind != c.kind || len(p.Cure) == 0 || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("error %v, want kind %d that says %q", err, c.kind, c.says)
			}
			if n.vars["PK"].data != nil {
				t.Error("PK was written")
			}
			// What was fixed goes on where it stopped.
			m := n.clone()
			if err := enroller(m, k, w).Run(0); err != nil {
				t.Errorf("without the fault: %v", err)
			}
		})
	}
}

func TestNothingSignedNoPK(t *testing.T) {
	k, _ := testSets(t)
	n := newNVRAM(always())
	e := enroller(n, k, k.Wanted(secureboot.Vendor{}))
	e.Signed = func() error { return errors.New("the boot manager is not signed") }
	var p *Problem
	if err := e.Run(0); !errors.As(err, &p) || p.Kind != Unsafe || !strings.Contains(err.Error(), "boot manager is not signed") {
		t.Errorf("error %v", err)
	}
	if n.vars["PK"].data != nil || n.vars["db"].data == nil {
		t.Errorf("variables %v", n.vars)
	}
}

// Firmware that loses its keys at every restart does not make the machine
// restart for ever.
func TestForgetfulFirmware(t *testing.T) {
	k, _ := testSets(t)
	w := k.Wanted(secureboot.Vendor{})
	n := newNVRAM(always())
	n.forgetful = true
	for done := 0; ; done++ {
		err := enroller(n, k, w).Run(done)
		var p *Problem
		if errors.As(err, &p) && p.Kind == Forgetful && done == MaxEnrollments {
			return
		}
		if err != nil || done > MaxEnrollments {
			t.Fatalf("enrollment %d: %v", done, err)
		}
		n.restart(always())
		if d := Enforced(observe(t, n), w); len(d) == 0 || !strings.Contains(describe(d), "PK is gone") {
			t.Errorf("differences %v", d)
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	k, other := testSets(t)
	w := k.Wanted(secureboot.Vendor{})
	enrolled := func(n *nvram, keys *secureboot.KeySet) {
		for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB} {
			put(t, n, v, keys.Wanted(secureboot.Vendor{}).Of(v))
		}
		n.flag("SetupMode", 0)
		n.flag("SecureBoot", 1)
	}
	for _, c := range []struct {
		name string
		set  func(*nvram)
		kind Kind
		says string
		keys bootflow.Keys
	}{
		{"no Secure Boot", func(n *nvram) { clear(n.vars) }, NoSecureBoot, "UEFI", bootflow.KeysForeign},
		{"somebody else's", func(n *nvram) { enrolled(n, other) }, NotSetupMode, other.Owner.String(), bootflow.KeysForeign},
		{"foreign PK in Setup Mode", func(n *nvram) { enrolled(n, other); n.flag("SetupMode", 1) }, ForeignPK, "off and on", bootflow.KeysForeign},
		{"PK is malformed", func(n *nvram) { n.vars["PK"] = record{secureboot.KeyAttributes, []byte("x")} }, Unreadable, "malformed", bootflow.KeysForeign},
		{"db of another", func(n *nvram) { enrolled(n, k); put(t, n, secureboot.DB, other.Wanted(secureboot.Vendor{}).DB) }, NotSetupMode, "db lacks", bootflow.KeysForeign},
		{"KEK gone", func(n *nvram) { enrolled(n, k); delete(n.vars, "KEK") }, NotSetupMode, "KEK is gone", bootflow.KeysForeign},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNVRAM(always())
			c.set(n)
			plan, err := Plan(observe(t, n), w, 0)
			var p *Problem
			if len(plan) != 0 || !errors.As(err, &p) || p.Kind != c.kind || len(p.Cure) == 0 || !strings.Contains(err.Error(), c.says) {
				t.Errorf("plan %v, error %v; want kind %d that says %q", plan, err, c.kind, c.says)
			}
			if got := Keys(observe(t, n), w); got != c.keys {
				t.Errorf("keys %v, want %v", got, c.keys)
			}
		})
	}
	if _, err := Plan(observe(t, newNVRAM(always())), secureboot.Wanted{}, 0); err == nil {
		t.Error("a plan to enroll nothing")
	}
}

// What others left in Setup Mode goes, but for the revocations.
func TestForeignContentsInSetupMode(t *testing.T) {
	k, other := testSets(t)
	w := k.Wanted(vendorOf(other))
	n := newNVRAM(always())
	theirs := secureboot.Database{secureboot.Certificate(other.Owner, other.DB.Certificate)}
	revoked := secureboot.Database{secureboot.Hash(other.Owner, [32]byte{7})}
	put(t, n, secureboot.DB, theirs)
	put(t, n, secureboot.DBX, revoked)
	n.vars["KEK"] = record{secureboot.KeyAttributes, []byte("nonsense")}
	plan, err := Plan(observe(t, n), w, 0)
	if err != nil || len(plan) != 4 || !strings.Contains(plan[1].Reason, "loses certificate") || !strings.Contains(plan[2].Reason, "is malformed") {
		t.Fatalf("plan %v, %v", plan, err)
	}
	if err := enroller(n, k, w).Run(0); err != nil {
		t.Fatal(err)
	}
	n.restart(always())
	s := observe(t, n)
	if d := Enforced(s, w); len(d) != 0 {
		t.Error(d)
	}
	if !s.DBX.Content.Same(slices.Concat(revoked, w.DBX)) {
		t.Errorf("dbx is %s", s.DBX.Content)
	}
}

// FAULTS 61
func TestEnforcedExplains(t *testing.T) {
	k, other := testSets(t)
	w := k.Wanted(vendorOf(other))
	for _, c := range []struct {
		name string
		set  func(*nvram)
		says []string // every part, in one difference each; none: enforced
		keys bootflow.Keys
	}{
		{"all is well", func(*nvram) {}, nil, bootflow.KeysEnrolled},
		{"revocations were added", func(n *nvram) {
			put(t, n, secureboot.DBX, append(w.DBX.Without(nil), secureboot.Hash(other.Owner, [32]byte{9})))
		}, nil, bootflow.KeysEnrolled},
		{"switched off", func(n *nvram) { n.flag("SecureBoot", 0) }, []string{"Secure Boot is off"}, bootflow.KeysOff},
		{"Setup Mode again", func(n *nvram) {
			delete(n.vars, "PK")
			n.flag("SetupMode", 1)
			n.flag("SecureBoot", 0)
		}, []string{"Setup Mode", "Secure Boot is off", "PK is gone"}, bootflow.KeysMissing},
		{"Audit Mode", func(n *nvram) { n.flag("AuditMode", 1) }, []string{"Audit Mode"}, bootflow.KeysForeign},
		{"another PK", func(n *nvram) { put(t, n, secureboot.PK, other.Wanted(secureboot.Vendor{}).PK) }, []string{"PK lacks", "PK also holds"}, bootflow.KeysForeign},
		{"one more in db", func(n *nvram) {
			put(t, n, secureboot.DB, append(w.DB.Without(nil), secureboot.Certificate(other.Owner, other.DB.Certificate)))
		}, []string{"db also holds certificate"}, bootflow.KeysForeign},
		{"revocations gone", func(n *nvram) { delete(n.vars, "dbx") }, []string{"dbx is gone"}, bootflow.KeysForeign},
		{"db open", func(n *nvram) { n.vars["db"] = record{7, n.vars["db"].data} }, []string{"let anybody change it"}, bootflow.KeysForeign},
		{"db cut", func(n *nvram) { n.vars["db"] = record{0x27, n.vars["db"].data[:50]} }, []string{"signature list"}, bootflow.KeysForeign},
		{"no Secure Boot at all", func(n *nvram) { clear(n.vars) }, []string{"Secure Boot is absent", "PK is gone", "KEK is gone", "db is gone", "dbx is gone"}, bootflow.KeysForeign},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNVRAM(always())
			if err := enroller(n, k, w).Run(0); err != nil {
				t.Fatal(err)
			}
			n.restart(always())
			c.set(n)
			d := Enforced(observe(t, n), w)
			if len(d) != len(c.says) {
				t.Fatalf("differences %v, want %q", d, c.says)
			}
			for i, says := range c.says {
				if !strings.Contains(d[i].What, says) || d[i].Cure == "" {
					t.Errorf("difference %+v does not say %q", d[i], says)
				}
			}
			if got := Keys(observe(t, n), w); got != c.keys {
				t.Errorf("keys %v, want %v", got, c.keys)
			}
		})
	}
}

func TestObserveRefuses(t *testing.T) {
	for _, value := range [][]byte{{}, {2}, {1, 0, 0, 0}} {
		n := newNVRAM(always())
		n.vars["SetupMode"] = record{6, value}
		if _, err := Observe(n); err == nil {
			t.Errorf("SetupMode %v was read", value)
		}
	}
	if _, err := Observe(newNVRAM(&plug{})); !errors.Is(err, errCut) {
		t.Errorf("error %v", err)
	}
	n := newNVRAM(always())
	n.vars["dbDefault"] = record{6, []byte("nonsense")}
	if s := observe(t, n); len(s.Factory.DBDefault) != 0 {
		t.Error("nonsense was read as dbDefault")
	}
}

// What others can have written is not the firmware's: a default with the attribute NV has
// no certificate that is known by its name alone, and its revocations count.
func TestDefaultsOfOthers(t *testing.T) {
	k, _ := testSets(t)
	theirs, err := secureboot.Database{secureboot.Certificate(k.Owner, k.KEK.Certificate)}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	revoked, err := secureboot.Database{secureboot.Hash(k.Owner, [32]byte{1})}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	const volatile = secureboot.BootServiceAccess | secureboot.RuntimeAccess
	for attributes, want := range map[uint32]int{volatile: 1, volatile | secureboot.NonVolatile: 0, volatile | secureboot.NonVolatile | secureboot.TimeBasedAuthenticated: 0} {
		n := newNVRAM(always())
		n.vars["dbDefault"], n.vars["KEKDefault"], n.vars["dbxDefault"] = record{attributes, theirs}, record{attributes, theirs}, record{attributes, revoked}
		if f := observe(t, n).Factory; len(f.DBDefault) != want || len(f.KEKDefault) != want || len(f.DBXDefault) != 1 {
			t.Errorf("attributes %#x: %+v, want %d certificates each", attributes, f, want)
		}
	}
}

func TestProblemText(t *testing.T) {
	p := &Problem{Kind: Refused, What: "it failed", Cure: []string{"do this", "do that"}, Err: fmt.Errorf("write: %w", syscall.EIO)}
	if got := p.Error(); got != "it failed: write: input/output error; to cure it: do this; or else: do that" {
		t.Error(got)
	}
	if !errors.Is(p, syscall.EIO) {
		t.Error("the cause is lost")
	}
}
