package policy

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"halogenos.internal/boot/pcr"
)

// bootOf is how a version boots: by which boot manager, and after how many failed
// boot options.
func bootOf(version, manager byte) Boot {
	return Boot{PCR4: pcr.Digest{version, manager}, PCR7: pcr.Digest{7}, PCR11: pcr.Digest{version}}
}

func systemOf(version byte, epoch uint64, managers ...byte) System {
	s := System{Version: uint64(version), Epoch: epoch}
	for _, m := range managers {
		s.Boots = append(s.Boots, bootOf(version, m))
	}
	return s
}

// record is one of version 1 over systems, each with its epoch.
func record(t *testing.T, floor uint64, programs bool, systems ...System) *Record {
	t.Helper()
	r, err := Compose(floor, [32]byte{1}, programs, systems...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func sameRecord(a, b *Record) bool {
	return a.Floor == b.Floor && a.Volume == b.Volume && a.Programs == b.Programs && slices.Equal(a.Branches, b.Branches)
}

func TestRenew(t *testing.T) {
	one, two, three := systemOf(1, 5, 1), systemOf(2, 5, 1), systemOf(3, 5, 1)
	higher := systemOf(2, 6, 1)
	for _, c := range []struct {
		name      string
		floor     uint64
		old       []System
		running   byte
		startable []uint64
		noted     uint64   // the root partition's floor
		want      []System // nil: the old one
		to        uint64
	}{
		{"one system", 5, []System{one}, 1, nil, 0, nil, 5},
		{"fallback stays", 5, []System{one, two}, 2, []uint64{1}, 0, nil, 5},
		{"fallback is gone", 5, []System{one, two}, 2, nil, 0, []System{two}, 5},
		{"back on the old one", 5, []System{one, higher}, 1, nil, 0, []System{one}, 5},
		{"trial may still be started", 5, []System{one, higher}, 1, []uint64{2}, 0, nil, 5},
		{"floor rises", 5, []System{higher}, 2, nil, 0, []System{higher}, 6},
		{"fallback is under it", 5, []System{one, higher}, 2, []uint64{1}, 0, []System{higher}, 6},
		{"the note is higher", 5, []System{one, higher}, 2, []uint64{1}, 6, []System{higher}, 6},
		{"the note is lower", 6, []System{higher}, 2, nil, 3, nil, 6},
		{"floor never falls", 5, []System{higher, one}, 1, []uint64{2}, 0, nil, 5},
		{"three", 5, []System{one, two, three}, 2, []uint64{3}, 0, []System{two, three}, 5},
		{"no other is let in", 5, []System{one}, 1, []uint64{2, 3}, 0, nil, 5},
	} {
		for _, programs := range []bool{false, true} {
			old := record(t, c.floor, programs, c.old...)
			want := old
			if c.want != nil {
				want = record(t, c.to, programs, c.want...)
			}
			q := Renewal{Boot: bootOf(c.running, 1), Startable: c.startable, Floor: c.noted}
			next, err := old.Renew(q)
			if err != nil || !sameRecord(next, want) || (next == old) != (c.want == nil) {
				t.Errorf("%s: %+v, %v, want %+v", c.name, next, err, want)
				continue
			}
			if err := next.Succeeds(old); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			if again, err := next.Renew(q); again != next || err != nil {
				t.Errorf("%s: renewed again it is %+v, %v", c.name, again, err)
			}
		}
	}
}

// While a boot manager is replaced each system may be started by either; then by
// the one that is left alone. FAULTS 94
func TestRenewPassing(t *testing.T) {
	both := func(version byte) System {
		return System{Version: uint64(version), Epoch: 5, Boots: []Boot{bootOf(version, 2)}, Passing: []Boot{bootOf(version, 1)}}
	}
	r := record(t, 5, true, both(1), both(2))
	if len(r.Branches) != 4 || !r.Passing() {
		t.Fatalf("%+v", r)
	}
	for _, manager := range []byte{1, 2} {
		q := Renewal{Boot: bootOf(2, manager), Startable: []uint64{1}}
		if next, err := r.Renew(q); next != r || err != nil {
			t.Errorf("while it goes on: %+v, %v", next, err)
		}
		q.OneManager = true
		next, err := r.Renew(q)
		if want := record(t, 5, true, systemOf(1, 5, manager), systemOf(2, 5, manager)); err != nil || !sameRecord(next, want) {
			t.Errorf("boot manager %d is left: %+v, %v, want %+v", manager, next, err, want)
			continue
		}
		other := bootOf(2, 3-manager)
		if next.Allows(&other) {
			t.Error("the other boot manager still unlocks")
		}
		if again, err := next.Renew(q); again != next || err != nil {
			t.Errorf("once more: %+v, %v", again, err)
		}
	}
}

// Whose boot manager the machine has outlives every system. FAULTS 94
func TestManagerStays(t *testing.T) {
	r := record(t, 5, true, systemOf(1, 5, 1), systemOf(2, 6, 1))
	r.TakeManager(2, bootOf(1, 1))
	renewed, err := r.Renew(Renewal{Boot: bootOf(1, 1)})
	if err != nil || renewed.Manager != 2 || len(renewed.Branches) != 1 {
		t.Fatalf("%+v, %v", renewed, err)
	}
	admitted, err := renewed.Admit(bootOf(1, 1), true, systemOf(1, 5, 1), systemOf(3, 5, 1))
	if err != nil || admitted.Manager != 2 || len(admitted.Branches) != 2 {
		t.Errorf("%+v, %v", admitted, err)
	}
}

// What does not fit is what is least likely: each system keeps one boot by each
// boot manager.
func TestComposeFull(t *testing.T) {
	wide := func(version byte) System {
		s := systemOf(version, 5, 1, 2, 3, 4)
		s.Passing = []Boot{bootOf(version, 11), bootOf(version, 12), bootOf(version, 13)}
		return s
	}
	r := record(t, 5, true, wide(1), wide(2))
	if len(r.Branches) != MaxBranches {
		t.Fatalf("%d branches", len(r.Branches))
	}
	for _, b := range []Boot{bootOf(1, 1), bootOf(2, 1), bootOf(1, 11), bootOf(2, 11), bootOf(1, 2), bootOf(2, 2), bootOf(1, 12), bootOf(2, 12)} {
		if !r.Allows(&b) {
			t.Errorf("%v is not allowed", b.PCR4)
		}
	}
	// Boots that differ in PCR 4 alone are one where that is not bound.
	if v1 := record(t, 5, false, wide(1), wide(2)); len(v1.Branches) != 2 || v1.Passing() {
		t.Errorf("%+v", v1)
	}
}

// FAULTS 74
func TestAdmit(t *testing.T) {
	one, two, third := systemOf(1, 5, 1), systemOf(2, 5, 1), systemOf(3, 6, 1)
	another := systemOf(2, 5, 1)
	another.Boots[0].PCR11 = pcr.Digest{99}
	for _, c := range []struct {
		name             string
		old              []System
		before, programs bool
		running          byte
		mine, fresh      System
		same             bool
	}{
		{"the first", []System{one}, false, false, 1, one, two, false},
		{"again", []System{one, two}, false, false, 1, one, two, true},
		{"in place of the fallback", []System{one, two}, false, false, 2, two, third, false},
		{"in place of one that failed", []System{one, two}, true, true, 1, one, third, false},
		{"in place of another of its version", []System{one, another}, false, false, 1, one, two, false},
		{"with PCR 4 from now on", []System{one, two}, false, true, 2, two, third, false},
	} {
		old := record(t, 5, c.before, c.old...)
		next, err := old.Admit(bootOf(c.running, 1), c.programs, c.mine, c.fresh)
		want := record(t, 5, c.programs, c.mine, c.fresh)
		if err != nil || !sameRecord(next, want) || (next == old) != c.same {
			t.Errorf("%s: %+v, %v, want %+v", c.name, next, err, want)
		}
	}
}

func TestRenewRefuses(t *testing.T) {
	one := systemOf(1, 5, 1)
	admit := func(r *Record, programs bool, mine, fresh System) error {
		_, err := r.Admit(mine.Boots[0], programs, mine, fresh)
		return err
	}
	renew := func(r *Record, q Renewal) error {
		_, err := r.Renew(q)
		return err
	}
	provisional := &Record{Floor: 5, Branches: []Branch{{Policy: Digest{1}, Version: 1, Epoch: 5}}}
	v1, v2 := record(t, 5, false, one), record(t, 5, true, one)
	other := systemOf(1, 5, 9)
	for name, err := range map[string]error{
		"renewed without the running system":  renew(v1, Renewal{Boot: bootOf(2, 1)}),
		"renewed under the note's floor":      renew(v1, Renewal{Boot: bootOf(1, 1), Floor: 6}),
		"admitted without the running system": admit(v1, false, systemOf(2, 5, 1), systemOf(3, 5, 1)),
		"by another boot manager":             admit(v2, true, other, systemOf(3, 5, 1)),
		"a provisional one is renewed":        renew(provisional, Renewal{Boot: bootOf(1, 1)}),
		"a provisional one admits":            admit(provisional, false, one, systemOf(2, 5, 1)),
		"under the floor":                     admit(v1, false, one, systemOf(2, 4, 1)),
		"an older version":                    admit(record(t, 5, false, systemOf(2, 5, 1)), false, systemOf(2, 5, 1), one),
		"the same version":                    admit(v1, false, one, systemOf(1, 5, 2)),
		"without PCR 4, with which it was":    admit(v2, false, one, systemOf(2, 5, 1)),
	} {
		if !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever a record holds and whatever may be started, a renewed one allows the
// running system, nothing that the old one did not, and nothing under the floor.
func TestRenewExhaustively(t *testing.T) {
	cases := 0
	for bits := range 1 << 13 {
		var systems []System
		var startable []uint64
		for v := range byte(3) {
			if bits>>v&1 == 1 {
				s := systemOf(v+1, uint64(bits>>(6+2*v)&3)+1, 1)
				s.Passing = []Boot{bootOf(v+1, 2)}
				systems = append(systems, s)
			}
			if bits>>(3+v)&1 == 1 {
				startable = append(startable, uint64(v+1))
			}
		}
		if len(systems) == 0 {
			continue
		}
		old := record(t, 1, bits>>12 == 1, systems...)
		for running := range byte(6) {
			q := Renewal{Boot: bootOf(running/2+1, running%2+1), Startable: startable, OneManager: bits&1 == 1}
			next, err := old.Renew(q)
			if has := old.Allows(&q.Boot); has != (err == nil) {
				t.Fatalf("%+v: %v", old, err)
			}
			if err != nil {
				continue
			}
			cases++
			what := fmt.Sprintf("%+v with %v running and %v startable became %+v", old, q.Boot.PCR4, startable, next)
			if next.Validate() != nil || next.Succeeds(old) != nil || !next.Allows(&q.Boot) || next.Programs != old.Programs {
				t.Fatal(what)
			}
			for _, b := range next.Branches {
				known := slices.ContainsFunc(old.Branches, func(o Branch) bool { return o.Policy == b.Policy && o.Version == b.Version && o.Epoch == b.Epoch })
				if !known || b.Version != uint64(running/2+1) && !slices.Contains(startable, b.Version) {
					t.Fatal(what)
				}
			}
		}
	}
	t.Logf("%d records", cases)
}
