package policy

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

// system is a version's branch; its epoch is given.
func system(version byte, epoch uint64) Branch {
	return Branch{Policy: Digest{version}, Version: uint64(version), Epoch: epoch}
}

func recordOf(floor uint64, branches ...Branch) *Record {
	return &Record{Floor: floor, Volume: [32]byte{1}, Branches: branches}
}

func TestRenew(t *testing.T) {
	for _, c := range []struct {
		name      string
		old       *Record
		running   byte
		startable []uint64
		want      *Record // nil: the old one
	}{
		{"one system", recordOf(5, system(1, 5)), 1, nil, nil},
		{"fallback stays", recordOf(5, system(1, 5), system(2, 5)), 2, []uint64{1}, nil},
		{"fallback is gone", recordOf(5, system(1, 5), system(2, 5)), 2, nil, recordOf(5, system(2, 5))},
		{"back on the old one", recordOf(5, system(1, 5), system(2, 6)), 1, nil, recordOf(5, system(1, 5))},
		{"trial may still be started", recordOf(5, system(1, 5), system(2, 6)), 1, []uint64{2}, nil},
		{"floor rises", recordOf(5, system(2, 6)), 2, nil, recordOf(6, system(2, 6))},
		{"fallback is under it", recordOf(5, system(1, 5), system(2, 6)), 2, []uint64{1}, recordOf(6, system(2, 6))},
		{"floor never falls", recordOf(5, system(2, 6), system(1, 5)), 1, []uint64{2}, nil},
		{"three", recordOf(5, system(1, 5), system(2, 5), system(3, 5)), 2, []uint64{3}, recordOf(5, system(2, 5), system(3, 5))},
		{"no other is let in", recordOf(5, system(1, 5)), 1, []uint64{2, 3}, nil},
		{"another of its own version", recordOf(5, system(1, 5), Branch{Digest{9}, 1, 5}), 1, []uint64{1}, recordOf(5, system(1, 5))},
	} {
		next, err := c.old.Renew(Digest{c.running}, c.startable)
		want := c.want
		if want == nil {
			want = c.old
		}
		if err != nil || next.Floor != want.Floor || next.Volume != want.Volume || !slices.Equal(next.Branches, want.Branches) || (next == c.old) != (c.want == nil) {
			t.Errorf("%s: %+v, %v, want %+v", c.name, next, err, want)
			continue
		}
		if err := next.Succeeds(c.old); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if again, err := next.Renew(Digest{c.running}, c.startable); again != next || err != nil {
			t.Errorf("%s: renewed again it is %+v, %v", c.name, again, err)
		}
	}
}

// FAULTS 74
func TestAdmit(t *testing.T) {
	for _, c := range []struct {
		name    string
		old     *Record
		running byte
		fresh   Branch
		want    *Record
	}{
		{"the first", recordOf(5, system(1, 5)), 1, system(2, 5), recordOf(5, system(1, 5), system(2, 5))},
		{"again", recordOf(5, system(1, 5), system(2, 5)), 1, system(2, 5), nil},
		{"in place of the fallback", recordOf(5, system(1, 5), system(2, 5)), 2, system(3, 6), recordOf(5, system(2, 5), system(3, 6))},
		{"in place of one that failed", recordOf(5, system(1, 5), system(2, 5)), 1, system(3, 6), recordOf(5, system(1, 5), system(3, 6))},
		{"in place of another of its version", recordOf(5, system(1, 5), Branch{Digest{9}, 2, 5}), 1, system(2, 5), recordOf(5, system(1, 5), system(2, 5))},
	} {
		next, err := c.old.Admit(Digest{c.running}, c.fresh)
		want := c.want
		if want == nil {
			want = c.old
		}
		if err != nil || next.Floor != want.Floor || next.Volume != want.Volume || !slices.Equal(next.Branches, want.Branches) || (next == c.old) != (c.want == nil) {
			t.Errorf("%s: %+v, %v, want %+v", c.name, next, err, want)
		}
	}
}

func TestRenewRefuses(t *testing.T) {
	admit := func(r *Record, running byte, fresh Branch) error {
		_, err := r.Admit(Digest{running}, fresh)
		return err
	}
	renew := func(r *Record, running byte) error {
		_, err := r.Renew(Digest{running}, nil)
		return err
	}
	provisional := &Record{Floor: 5, Branches: []Branch{system(1, 5)}}
	for name, err := range map[string]error{
		"renewed without the running system":  renew(recordOf(5, system(1, 5)), 2),
		"admitted without the running system": admit(recordOf(5, system(1, 5)), 2, system(3, 5)),
		"a provisional one is renewed":        renew(provisional, 1),
		"a provisional one admits":            admit(provisional, 1, system(2, 5)),
		"under the floor":                     admit(recordOf(5, system(1, 5)), 1, system(2, 4)),
		"an older version":                    admit(recordOf(5, system(2, 5)), 2, system(1, 5)),
		"the same version":                    admit(recordOf(5, system(2, 5)), 2, Branch{Digest{9}, 2, 5}),
		"the same policy":                     admit(recordOf(5, system(1, 5)), 1, Branch{Digest{1}, 2, 5}),
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
	for bits := range 1 << 12 {
		var branches []Branch
		var startable []uint64
		for v := range byte(3) {
			if bits>>v&1 == 1 {
				branches = append(branches, system(v+1, uint64(bits>>(6+2*v)&3)+1))
			}
			if bits>>(3+v)&1 == 1 {
				startable = append(startable, uint64(v+1))
			}
		}
		old := recordOf(1, branches...)
		for running := byte(1); running <= 3; running++ {
			next, err := old.Renew(Digest{running}, startable)
			if has := slices.ContainsFunc(branches, func(b Branch) bool { return b.Policy == Digest{running} }); has != (err == nil) {
				t.Fatalf("%+v: %v", old, err)
			}
			if err != nil {
				continue
			}
			cases++
			what := fmt.Sprintf("%+v with version %d running and %v startable became %+v", old, running, startable, next)
			if next.Validate() != nil || next.Succeeds(old) != nil || !slices.ContainsFunc(next.Branches, func(b Branch) bool { return b.Policy == Digest{running} }) {
				t.Fatal(what)
			}
			for _, b := range next.Branches {
				if !slices.Contains(old.Branches, b) || b.Policy != (Digest{running}) && !slices.Contains(startable, b.Version) {
					t.Fatal(what)
				}
			}
		}
	}
	t.Logf("%d records", cases)
}
