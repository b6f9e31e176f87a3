package secureboot

import (
	"slices"
	"testing"
)

// The life of an image that another replaces: noted, asked for as often as may be, and
// in dbx in the end, also where a cut came before the list was told. All of it outlives
// being stored. FAULTS 94
func TestReplaced(t *testing.T) {
	_, l := testList(t)
	old, other := [32]byte{4}, [32]byte{3}
	stored := func() {
		t.Helper()
		b, err := l.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if l, err = ParseList(b); err != nil {
			t.Fatal(err)
		}
	}
	if l.Replace([32]byte{77}) || l.Replaced([32]byte{77}) {
		t.Error("an image that is not this machine's own is replaced")
	}
	if !l.Replace(old) || l.Replace(old) || !l.Restore(old) || l.Restore(old) || l.Replaced(old) {
		t.Error("it is not replaced once, and restored once")
	}
	l.Replace(old)
	for n := range MaxTries {
		stored()
		images := l.ToRevoke()
		if len(images) != 1 || [32]byte(images[0].Digest) != old || !l.Replaced(old) || l.Replaced(other) || l.Revoked(old) {
			t.Fatalf("after %d attempts it is %v", n, images)
		}
		l.Try(images)
		if again := l.ToRevoke(); len(again) != min(1, MaxTries-n-1) {
			t.Errorf("after %d attempts %d are to be revoked", n+1, len(again))
		}
	}
	l.Try(l.Images())
	stored()
	if len(l.ToRevoke()) > 0 || !l.Replaced(old) || !l.Allows(old) {
		t.Error("it is not left alone, or forgotten")
	}
	live := slices.Concat(l.Wanted.DBX, Database{Hash(l.Owner, old), Hash(l.Owner, [32]byte{9})})
	if !l.AdoptRevocations(live) || !l.Revoked(old) || l.Allows(old) || !l.Replaced(old) || l.AdoptRevocations(live) || !l.Wanted.DBX.Same(live) {
		t.Errorf("adopted: %v, %s", l.Images(), l.Wanted.DBX)
	}
	if o := l.Origin(Hash(l.Owner, [32]byte{9})); o != FromLive {
		t.Errorf("another revocation comes from %q", o)
	}
	l.Replace(other)
	l.Try(l.ToRevoke())
	l.RevokeReplaced([]Image{{Digest: other[:]}})
	stored()
	if !l.Revoked(other) || !l.Replaced(other) || l.Restore(other) || l.Allow(other, "again") {
		t.Error("it is not revoked")
	}
}

// dbx gets a bounded number of entries: of more the newest, and then none.
func TestReplacedBounded(t *testing.T) {
	_, l := testList(t)
	for i := range MaxRevoked + 3 {
		d := [32]byte{1, byte(i)}
		l.Allow(d, "old")
		l.Replace(d)
	}
	images := l.ToRevoke()
	if len(images) != MaxRevoked || images[0].Digest[1] != 3 {
		t.Fatalf("%d are to be revoked, from %x", len(images), images[0].Digest)
	}
	l.RevokeReplaced(images[1:])
	if left := l.ToRevoke(); len(left) != 1 || left[0].Digest[1] != 3 {
		t.Errorf("then %d are", len(left))
	}
	l.RevokeReplaced(images[:1])
	if left := l.ToRevoke(); len(left) != 0 {
		t.Errorf("with all the room taken %d are", len(left))
	}
	added, err := l.Wanted.DBX[1:].Marshal()
	if err != nil || len(added) > 76*MaxRevoked {
		t.Errorf("dbx gets %d bytes, %v", len(added), err)
	}
}

// Which release has put its boot manager in place is stored, and never goes back.
func TestManagerOf(t *testing.T) {
	_, l := testList(t)
	if l.ManagerOf() != 0 || !l.TakeManager(7) || l.TakeManager(7) || l.TakeManager(3) || l.ManagerOf() != 7 {
		t.Fatalf("it is of version %d", l.ManagerOf())
	}
	b, err := l.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if l, err = ParseList(b); err != nil || l.ManagerOf() != 7 || !l.TakeManager(8) {
		t.Errorf("stored, it is of version %d (%v)", l.ManagerOf(), err)
	}
}
