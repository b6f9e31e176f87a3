package secureboot

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// testList is a list with something of everything in it.
func testList(t testing.TB) (*KeySet, *List) {
	t.Helper()
	k, other := testSets(t)
	l := NewList(k, Vendor{
		DB:  Database{Certificate(other.Owner, other.DB.Certificate), Hash(k.Owner, [32]byte{1})},
		DBX: Database{Hash(other.Owner, [32]byte{2})}, From: FromFirmware,
	})
	l.Allow([32]byte{3}, "test_1.efi")
	l.Allow([32]byte{4}, "the boot manager")
	return k, l
}

func same(t testing.TB, a, b *List) bool {
	t.Helper()
	x, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	y, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}

func TestList(t *testing.T) {
	k, l := testList(t)
	_, other := testSets(t)
	for _, c := range []struct {
		entry Entry
		want  Origin
	}{
		{Certificate(k.Owner, k.PK.Certificate), ""}, {Certificate(k.Owner, k.DB.Certificate), ""},
		{Certificate(other.Owner, other.DB.Certificate), FromFirmware}, {Hash(k.Owner, [32]byte{1}), FromOptionROM}, {Hash(other.Owner, [32]byte{2}), FromFirmware},
	} {
		if got := l.Origin(c.entry); got != c.want {
			t.Errorf("%s comes from %q, want %q", c.entry, got, c.want)
		}
	}
	if own, err := l.DBCertificate(); err != nil || !own.Equal(k.DB.Certificate) {
		t.Errorf("the db certificate is %v, %v", own, err)
	}
	if !l.Allows([32]byte{3}) || l.Allows([32]byte{1}) || !l.Names("test_1.efi") || l.Names("test_2.efi") {
		t.Errorf("images %v", l.Images())
	}
	if l.Allow([32]byte{3}, "test_1.efi") || !l.Allow([32]byte{3}, "another name") || len(l.Images()) != 2 || l.Images()[1].Name != "another name" {
		t.Errorf("allowed again: %v", l.Images())
	}
	if !l.Revoke([32]byte{3}, "replaced") || l.Revoke([32]byte{3}, "again") || l.Allows([32]byte{3}) || l.Allow([32]byte{3}, "again") || len(l.Wanted.DBX) != 2 {
		t.Errorf("revoked: %v, dbx %s", l.Images(), l.Wanted.DBX)
	}
	if l.Origin(l.Wanted.DBX[1]) != "revoked: replaced" {
		t.Errorf("the revocation comes from %q", l.Origin(l.Wanted.DBX[1]))
	}
	for i := range maxImages + 5 {
		l.Allow([32]byte{byte(i), 9}, fmt.Sprint(i))
	}
	if got := l.Images(); len(got) != maxImages || got[0].Name != "5" {
		t.Errorf("%d images, the first is %v", len(got), got[0])
	}
	live := Wanted{PK: l.Wanted.PK, KEK: append(Database{}, l.Wanted.KEK...), DB: l.Wanted.DB[:1], DBX: Database{Hash(other.Owner, [32]byte{7})}}
	live.KEK = append(live.KEK, Certificate(other.Owner, other.KEK.Certificate))
	l.Adopt(live)
	if len(l.Wanted.DB) != 1 || len(l.Wanted.KEK) != 2 || l.Origin(live.KEK[1]) != FromLive || len(l.Wanted.DBX) != 3 || l.AdoptRevocations(live.DBX) {
		t.Errorf("adopted: %+v", l.Wanted)
	}
}

func TestListIsStoredWithItsKeys(t *testing.T) { // FAULTS 90
	k, l := testList(t)
	key, context := new([32]byte), "test"
	wrapped, err := Wrap(rand.Reader, key, context, k)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := UnwrapList(key, context, wrapped); !errors.Is(err, ErrNoList) {
		t.Errorf("keys alone: %v", err)
	}
	both, err := WrapList(rand.Reader, key, context, wrapped, l)
	if err != nil {
		t.Fatal(err)
	}
	l.Allow([32]byte{5}, "test_2.efi")
	if both, err = WrapList(rand.Reader, key, context, both, l); err != nil { // in place of the first
		t.Fatal(err)
	}
	got, err := UnwrapList(key, context, both)
	if err != nil || !same(t, got, l) || got.Bare {
		t.Fatalf("%+v, %v", got, err)
	}
	keys, _, err := SplitList(both)
	if err != nil || !bytes.Equal(keys, wrapped) {
		t.Errorf("the keys have changed: %v", err)
	}
	again, err := Wrap(rand.Reader, key, context, k) // the same keys, wrapped once more
	if err != nil {
		t.Fatal(err)
	}
	_, sealed, _ := SplitList(both)
	mixed := append(appendPart([]byte(withList), again), sealed...)
	if _, err := UnwrapList(key, context, mixed); !errors.Is(err, ErrUnwrap) {
		t.Errorf("a list passes for that of other keys: %v", err)
	}
	if _, err := UnwrapList(&[32]byte{1}, context, both); !errors.Is(err, ErrUnwrap) {
		t.Errorf("another key: %v", err)
	}
	if _, err := UnwrapList(key, "other", both); !errors.Is(err, ErrUnwrap) {
		t.Errorf("another context: %v", err)
	}
	for i := range both {
		if i%7 != 0 && i > 64 {
			continue
		}
		both[i] ^= 4
		if l, err := UnwrapList(key, context, both); err == nil {
			t.Fatalf("byte %d changed, and it is read as %+v", i, l)
		}
		both[i] ^= 4
		if i < 2000 {
			if l, err := UnwrapList(key, context, both[:i]); err == nil {
				t.Fatalf("%d bytes of it are read as %+v", i, l)
			}
		}
	}
}

func TestParseListRefuses(t *testing.T) {
	_, l := testList(t)
	good, err := l.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	text, rest, err := cutPart(good[len(listMagic):], maxListText)
	if err != nil {
		t.Fatal(err)
	}
	public, _, err := cutPart(rest, uint32(MaxList))
	if err != nil {
		t.Fatal(err)
	}
	with := func(text string, public []byte) []byte {
		return appendPart(appendPart([]byte(listMagic), []byte(text)), public)
	}
	if back, err := ParseList(with(string(text), public)); err != nil || !same(t, back, l) {
		t.Fatalf("%+v, %v", back, err)
	}
	for what, b := range map[string][]byte{
		"nothing": nil, "the beginning": good[:len(good)-1], "more": append(bytes.Clone(good), 0), "another magic": append([]byte("HSBLIST2"), good[8:]...),
		"an unknown field": with(strings.Replace(string(text), `"owner"`, `"new":1,"owner"`, 1), public), "no owner": with(`{}`, public),
		"a short hash": with(`{"owner":"`+l.Owner.String()+`","origins":{},"images":[{"digest":"00","name":"x"}]}`, public),
		"no contents":  with(string(text), nil),
		"many images":  with(`{"owner":"`+l.Owner.String()+`","images":[`+strings.Repeat(`{"digest":"`+strings.Repeat("00", 32)+`","name":"x"},`, maxImages)+`{"digest":"`+strings.Repeat("00", 32)+`","name":"x"}]}`, public),
	} {
		if l, err := ParseList(b); err == nil {
			t.Errorf("%s is read as %+v", what, l)
		}
	}
}

func FuzzParseList(f *testing.F) {
	_, l := testList(f)
	good, err := l.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _ = SplitList(b)
		l, err := ParseList(b)
		if err != nil {
			return
		}
		again, err := l.Marshal()
		if err != nil {
			t.Fatalf("what was read is not written: %v", err)
		}
		if back, err := ParseList(again); err != nil || !same(t, back, l) {
			t.Errorf("read back: %v", err)
		}
	})
}

func TestTakesHashes(t *testing.T) {
	types := appendGUID(appendGUID(nil, TypeX509), TypeSHA256)
	if !TakesHashes(types) || TakesHashes(types[:16]) || TakesHashes(types[:31]) || TakesHashes(nil) {
		t.Error("the array of signature types is not understood")
	}
}

// New keys take the places of the old ones in a list, and leave all else as it is.
func TestRekey(t *testing.T) {
	old, other := testSets(t)
	copied := *other
	fresh := &copied
	fresh.Owner = old.Owner
	l := NewList(old, Vendor{})
	rom, image := [32]byte{1}, [32]byte{2}
	l.Add(DB, Hash(l.Owner, rom), FromOwner)
	l.Allow(image, "test_1.efi")
	l.Revoke([32]byte{3}, "replaced")
	next, err := l.Rekey(old, fresh)
	if err != nil {
		t.Fatal(err)
	}
	own, err := next.DBCertificate()
	if err != nil || !own.Equal(fresh.DB.Certificate) {
		t.Errorf("db's own certificate is %v, %v", own, err)
	}
	for v, p := range map[Variable][2]Pair{PK: {old.PK, fresh.PK}, KEK: {old.KEK, fresh.KEK}, DB: {old.DB, fresh.DB}} {
		if next.Wanted.Of(v).Contains(Certificate(l.Owner, p[0].Certificate)) || !next.Wanted.Of(v).Contains(Certificate(l.Owner, p[1].Certificate)) {
			t.Errorf("%s holds %s", v, next.Wanted.Of(v))
		}
		if !l.Wanted.Of(v).Contains(Certificate(l.Owner, p[0].Certificate)) {
			t.Errorf("%s of the first list has changed", v)
		}
	}
	if !next.Allows(image) || !next.Revoked([32]byte{3}) || next.Origin(Hash(l.Owner, rom)) != FromOwner || len(next.Wanted.DB) != 2 {
		t.Errorf("the rest has changed: %+v", next)
	}
	next.Allow([32]byte{4}, "test_2.efi")
	if l.Allows([32]byte{4}) {
		t.Error("both lists are one")
	}
	if _, err := next.Rekey(old, fresh); err == nil {
		t.Error("keys that the list does not have are replaced")
	}
}

// Which release's entries for dbx were dealt with is kept, and how often the firmware was
// asked.
func TestListOfRevocations(t *testing.T) {
	_, l := testList(t)
	again := func() {
		t.Helper()
		b, err := l.Marshal()
		if err == nil {
			l, err = ParseList(b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for n := range MaxTries {
		if !l.RevocationsWait(7) {
			t.Errorf("after %d attempts it is given up", n)
		}
		l.TryRevocations(7, nil)
		again()
	}
	if l.RevocationsWait(7) || !l.RevocationsWait(8) {
		t.Error("a release is asked for too often, or the next one never")
	}
	e := Hash(l.Owner, [32]byte{9})
	l.TryRevocations(8, nil)
	l.TakeRevocations(8, Database{e, e})
	again()
	if l.RevocationsWait(8) || l.RevocationsWait(7) || !l.RevocationsWait(9) || !l.Revoked([32]byte{9}) || l.Origin(e) != "release: 8" {
		t.Errorf("after it was taken: %+v", l)
	}
	// What the firmware has refused from one release it is not asked for the next, and other
	// entries are.
	for range MaxTries {
		if l.RevocationsRefused(Database{e}) {
			t.Error("it counts as refused too early")
		}
		l.TryRevocations(10, Database{e})
		again()
	}
	l.TakeRevocations(11, nil)
	again()
	if !l.RevocationsRefused(Database{e}) || l.RevocationsRefused(nil) || l.RevocationsRefused(Database{e, e}) || l.RevocationsWait(11) || !l.RevocationsWait(12) {
		t.Errorf("after it was refused: %+v", l)
	}
	l.TakeRevocations(12, Database{Hash(l.Owner, [32]byte{8})})
	if again(); l.RevocationsRefused(Database{e}) || l.RevocationsWait(12) {
		t.Errorf("after others were taken: %+v", l)
	}
	// An image of this machine's own that a release names under its owner's name is not its own
	// any more, and stays a replaced one; the list wants nothing that dbx does not hold.
	foreign := Hash(DBX.GUID, [32]byte{7})
	for _, take := range []func(){func() { l.TakeRevocations(9, Database{foreign}) }, func() { l.AdoptRevocations(Database{foreign}) }} {
		_, l = testList(t)
		l.Allow([32]byte{7}, "the boot manager that came with test_1.efi")
		l.Replace([32]byte{7})
		before := len(l.Wanted.DBX)
		take()
		again()
		if l.Allows([32]byte{7}) || !l.Replaced([32]byte{7}) || len(l.ToRevoke()) > 0 || len(l.Wanted.DBX) != before+1 || !l.Wanted.DBX.Contains(foreign) {
			t.Errorf("an image of its own: %+v", l)
		}
	}
}

// sameKeys reports whether both hold the same keys, certificates and owner.
func sameKeys(a, b *KeySet) bool {
	theirs := b.roles()
	return a.Owner == b.Owner && !slices.ContainsFunc([]int{0, 1, 2}, func(i int) bool {
		x, y := a.roles()[i].pair, theirs[i].pair
		return x.Key == nil || y.Key == nil || !x.Key.Equal(y.Key) || !bytes.Equal(x.Certificate.Raw, y.Certificate.Raw)
	})
}
