package pgp

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// at executes gpg at a time.
func (g gnupg) at(now time.Time, args ...string) []byte {
	g.t.Helper()
	return g.run(append([]string{"--faked-system-time", now.Format("20060102T150405!")}, args...)...)
}

// sign signs the document with one key of gpg's.
func (g gnupg) sign(now time.Time, key Fingerprint, doc string) []byte {
	g.t.Helper()
	return g.at(now, "-u", key.String()+"!", "-o", "-", "--detach-sign", doc)
}

func merged(t testing.TB, k, with *Key) *Key {
	t.Helper()
	out, err := k.Merge(with)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func years(n int) time.Time { return epoch.AddDate(n, 0, 0) }

// subkeys returns the signing keys of a certificate but its primary one, and when
// each ends.
func subkeysAt(t testing.TB, k *Key, at time.Time) []Fingerprint {
	t.Helper()
	all, err := k.SigningKeys(at)
	if err != nil {
		t.Fatal(err)
	}
	var out []Fingerprint
	for f := range all {
		if f != k.Fingerprint() {
			out = append(out, f)
		}
	}
	return out
}

// A key over ten years, as gpg makes and renews it: what a machine has pinned
// learns all of it from later copies, in whatever order they come.
// FAULTS 112 (R3): a key's expiry that is renewed, new and revoked subkeys
func TestTenYears(t *testing.T) {
	g := newGnuPG(t)
	doc := g.file("doc", document)
	const id = "distributor@example.org"
	g.at(epoch, "--quick-generate-key", id, "ed25519", "cert", "2y")
	parse := func() *Key { return mustParse(t, g.at(years(9), "--export", id)) }
	fpr := mustParse(t, g.at(epoch, "--export", id)).Fingerprint()
	g.at(epoch, "--quick-add-key", fpr.String(), "ed25519", "sign", "2y")
	first := parse()
	old := subkeysAt(t, first, epoch)[0]
	signed := g.sign(years(1), old, doc)

	if end, err := first.Ends(epoch); err != nil || end.Before(years(2).AddDate(0, 0, -3)) || end.After(years(2).AddDate(0, 0, 3)) {
		t.Errorf("ends on %s, %v", end, err)
	}
	// Renewed before it passed, and once more after it had.
	g.at(years(1), "--quick-set-expire", fpr.String(), "5y")
	g.at(years(1), "--quick-set-expire", fpr.String(), "5y", "*")
	second := parse()
	g.at(years(8), "--quick-set-expire", fpr.String(), "5y")
	g.at(years(8), "--quick-set-expire", fpr.String(), "5y", old.String()) // "*" leaves out what has expired
	g.at(years(8), "--quick-add-key", fpr.String(), "ed25519", "sign", "5y")
	third := parse()
	var fresh Fingerprint
	for _, f := range subkeysAt(t, third, years(8)) {
		if f != old {
			fresh = f
		}
	}
	later := g.sign(years(8).Add(time.Hour), fresh, doc)
	verify := func(name string, k *Key, sig []byte, at time.Time, want string) {
		t.Helper()
		err := k.Verify(bytes.NewReader(document), sig, at)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	verify("at once", first, signed, years(1), "")
	verify("when it has expired", first, signed, years(3), "has expired")
	verify("renewed", merged(t, first, second), signed, years(3), "")
	verify("renewed, and expired again", merged(t, first, second), signed, years(7), "has expired")
	verify("a subkey that is not known", first, later, years(1), "it is")
	verify("a subkey that is not known", second, later, years(8).Add(2*time.Hour), "expired")
	asleep := merged(t, first, third)
	verify("renewed after it had passed", asleep, later, years(9), "")
	verify("the old subkey, renewed", asleep, signed, years(9), "")
	// Whatever is learned stays: an old copy takes nothing away.
	if again := merged(t, asleep, first); !bytes.Equal(again.Bytes(), asleep.Bytes()) {
		t.Error("an old copy changed what is known")
	}
	verify("an old one that learns", merged(t, merged(t, third, first), second), later, years(9), "")
	if x, y := merged(t, first, third), merged(t, third, first); len(x.Bytes()) == 0 || len(y.Bytes()) == 0 || x.Check(years(9)) != nil || y.Check(years(9)) != nil {
		t.Error("the order matters")
	}
	// A subkey is revoked, and only a machine that knows refuses it.
	revoke := "key 1\nrevkey\ny\n1\n\ny\nsave\n"
	g.revoke(years(9), fpr, revoke)
	fourth := parse()
	if left := subkeysAt(t, fourth, years(9)); len(left) != 1 || left[0] != fresh {
		t.Fatalf("gpg left %v", left)
	}
	verify("not known to be revoked", asleep, signed, years(9), "")
	known := merged(t, asleep, fourth)
	verify("known to be revoked", known, signed, years(9), "is revoked")
	verify("still known after an old copy", merged(t, known, first), signed, years(9), "is revoked")
	// What was published before is still what the distributor made.
	if err := known.VerifyMade(bytes.NewReader(document), signed, years(9)); err != nil {
		t.Errorf("as it was made: %v", err)
	}
	if err := known.VerifyMade(strings.NewReader("another"), signed, years(9)); err == nil {
		t.Error("another document")
	}
	// gpg reads what was merged.
	file := g.file("merged", known.Bytes())
	if out := g.run("--show-keys", "--with-colons", file); !bytes.Contains(out, []byte(fpr.String())) || bytes.Count(out, []byte("\nsub:")) != 2 {
		t.Errorf("gpg sees %s", out)
	}
}

// revoke has gpg revoke a subkey, as a person does who types.
func (g gnupg) revoke(now time.Time, key Fingerprint, typed string) {
	g.t.Helper()
	g.runWith(typed, "--faked-system-time", now.Format("20060102T150405!"), "--no-tty", "--command-fd", "0", "--status-fd", "2", "--no-batch", "--edit-key", key.String())
}

// Old signatures are judged when they were made. FAULTS 112 (R4): a previous release's
// subkey that has expired since
func TestVerifyMade(t *testing.T) {
	hour := []byte{0, 0, 14, 16}
	secret := newForgedKey(1, epoch.Add(-30*time.Minute))
	self := forgedSig{hashed: append(mayCertifyAndSign(), sub(9, hour...)...)}
	k := mustParse(t, certificate(secret, self))
	good := forgedSig{}.packet(secret, document)
	for _, c := range []struct {
		name string
		sig  []byte
		want string
	}{
		{"in time", good, ""},
		{"after it had expired", forgedSig{created: epoch.Add(time.Hour)}.packet(secret, document), "has expired"},
		{"before it was made", forgedSig{created: epoch.Add(-time.Hour)}.packet(secret, document), "not valid yet"},
		{"ahead of time", forgedSig{created: epoch.AddDate(11, 0, 0)}.packet(secret, document), "set the clock"},
		{"whose own lifetime is over", forgedSig{hashed: sub(3, 0, 0, 0, 60)}.packet(secret, document), ""},
	} {
		err := k.VerifyMade(bytes.NewReader(document), c.sig, years(10))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if err := k.Verify(bytes.NewReader(document), good, years(10)); err == nil {
		t.Error("a machine takes it too")
	}
}

// What others made of a certificate teaches nothing.
func TestMergeLearnsNothingForged(t *testing.T) {
	secret, stranger := newForgedKey(1, epoch.Add(-time.Hour)), newForgedKey(7, epoch.Add(-time.Hour))
	child := newForgedKey(3, epoch.Add(-time.Hour))
	self := forgedSig{hashed: mayCertifyAndSign()}
	plain := certificate(secret, self)
	k := mustParse(t, plain)
	binding := forgedSig{hashed: sub(27, 2)}
	subkey := signingSubkey(secret, child, binding, &forgedSig{})
	name := func(s forgedSig, by forgedKey) []byte { return s.packet(by, nameHashed(secret)) }
	other := stranger.fingerprint()
	for n, forged := range map[string][]byte{
		"a subkey bound by a stranger":                      append(bytes.Clone(plain), signingSubkey(stranger, child, binding, &forgedSig{})...),
		"a subkey without a cross-signature":                append(bytes.Clone(plain), signingSubkey(secret, child, binding, nil)...),
		"a name that a stranger signed":                     append(append(bytes.Clone(plain), pack(13, []byte("Other"))...), name(forgedSig{sigType: 0x13}, stranger)...),
		"an expiry by a stranger":                           append(bytes.Clone(plain), name(forgedSig{sigType: 0x13, created: epoch, hashed: sub(9, 0, 0, 0, 1)}, stranger)...),
		"a revocation by a stranger":                        append(append(pack(6, secret.body()), forgedSig{sigType: 0x20}.packet(stranger, secret.hashed())...), plain[len(pack(6, secret.body())):]...),
		"the same signature, padded":                        append(bytes.Clone(plain), name(forgedSig{sigType: 0x13, created: secret.created, hashed: mayCertifyAndSign(), unhashed: sub(101, 1, 2, 3)}, secret)...),
		"a signature with much beside it":                   append(bytes.Clone(plain), name(forgedSig{sigType: 0x13, created: epoch, hashed: mayCertifyAndSign(), unhashed: bytes.Repeat(sub(101, make([]byte, 100)...), 30)}, secret)...),
		"a user attribute":                                  append(bytes.Clone(plain), pack(17, []byte{2, 1, 0})...),
		"a renewal beside which another fingerprint stands": append(bytes.Clone(plain), name(forgedSig{sigType: 0x13, created: epoch, hashed: mayCertifyAndSign(), unhashed: sub(33, append([]byte{4}, other[:]...)...)}, secret)...),
		"a renewal beside which another key ID stands":      append(bytes.Clone(plain), name(forgedSig{sigType: 0x13, created: epoch, hashed: mayCertifyAndSign(), unhashed: sub(16, other[12:]...)}, secret)...),
	} {
		shown, err := ParseKey(forged)
		if err != nil {
			t.Errorf("%s: %v", n, err)
			continue
		}
		if got := merged(t, k, shown); !bytes.Equal(got.Bytes(), plain) {
			t.Errorf("%s: learned %d bytes", n, len(got.Bytes())-len(plain))
		}
	}
	got := merged(t, k, mustParse(t, append(bytes.Clone(plain), subkey...)))
	if err := got.Verify(bytes.NewReader(document), forgedSig{}.packet(child, document), epoch); err != nil {
		t.Errorf("a genuine subkey: %v", err)
	}
	// One whose cross-signature somebody took away does not keep the whole one out.
	stripped := mustParse(t, append(bytes.Clone(plain), signingSubkey(secret, child, binding, nil)...))
	if got := merged(t, stripped, got); got.Verify(bytes.NewReader(document), forgedSig{}.packet(child, document), epoch) != nil {
		t.Error("what is whole was not learned")
	}
	if _, err := k.Merge(mustParse(t, certificate(stranger, self))); err == nil {
		t.Error("merged with another key")
	}
	// An old copy with a name that has gone since cannot take the key's time back.
	short := append(append(bytes.Clone(plain), pack(13, []byte("Old"))...), forgedSig{sigType: 0x13, created: epoch.Add(-time.Minute), hashed: append(mayCertifyAndSign(), sub(9, 0, 0, 0, 60)...)}.packet(secret,
		append(append(secret.hashed(), 0xb4, 0, 0, 0, 3), "Old"...))...)
	renewed := mustParse(t, append(bytes.Clone(plain), name(forgedSig{sigType: 0x13, created: epoch, hashed: mayCertifyAndSign()}, secret)...))
	if got := merged(t, renewed, mustParse(t, short)); got.Check(epoch.Add(time.Hour)) != nil {
		t.Errorf("an old name ends the key: %v", got.Check(epoch.Add(time.Hour)))
	}
}

// A server that shows a renewal with another issuer beside it, in what nothing signs,
// does not keep the genuine one out for ever: the library takes such a signature for a
// stranger's.
func TestMergeAfterForgedIssuer(t *testing.T) {
	secret, other := newForgedKey(1, epoch.Add(-time.Hour)), newForgedKey(7, epoch).fingerprint()
	ends := func(hours byte) []byte { return append(mayCertifyAndSign(), sub(9, 0, 0, 14*hours, 16)...) }
	k := mustParse(t, certificate(secret, forgedSig{hashed: ends(1)}))
	renewal := forgedSig{sigType: 0x13, created: epoch, hashed: ends(9)}
	with := func(unhashed []byte) *Key {
		s := renewal
		s.unhashed = unhashed
		return mustParse(t, append(k.Bytes(), s.packet(secret, nameHashed(secret))...))
	}
	later := epoch.Add(time.Hour)
	if k.Check(later) == nil {
		t.Fatal("the key does not end")
	}
	for name, unhashed := range map[string][]byte{"fingerprint": sub(33, append([]byte{4}, other[:]...)...), "key ID": sub(16, other[12:]...)} {
		if got := merged(t, merged(t, k, with(unhashed)), with(nil)); got.Check(later) != nil {
			t.Errorf("%s: the renewal was not learned: %v", name, got.Check(later))
		}
	}
}

func FuzzMerge(f *testing.F) {
	secret, cert := pinned()
	child := newForgedKey(3, epoch)
	f.Add(cert)
	f.Add(append(bytes.Clone(cert), signingSubkey(secret, child, forgedSig{hashed: sub(27, 2)}, &forgedSig{})...))
	f.Add(append(bytes.Clone(cert), forgedSig{sigType: 0x13, created: epoch, hashed: mayCertifyAndSign()}.packet(secret, nameHashed(secret))...))
	k := mustParse(f, cert)
	stranger := newForgedKey(9, epoch.Add(-time.Hour))
	good := forgedSig{}.packet(stranger, document)
	f.Fuzz(func(t *testing.T, b []byte) {
		other, err := ParseKey(b)
		if err != nil || other.Fingerprint() != k.Fingerprint() {
			return
		}
		got, err := k.Merge(other)
		if err != nil {
			return
		}
		if got.Fingerprint() != k.Fingerprint() || !bytes.HasPrefix(got.Bytes()[2:], k.Bytes()[2:50]) && len(got.Bytes()) < len(k.Bytes()) {
			t.Fatal("something was lost")
		}
		if got.Verify(bytes.NewReader(document), good, epoch) == nil {
			t.Fatal("learned a stranger's key")
		}
		if again, err := got.Merge(other); err != nil || !bytes.Equal(again.Bytes(), got.Bytes()) {
			t.Fatalf("learned twice: %v", err)
		}
	})
}

// FAULTS 112 (R16): words that a distributor understands
func TestWords(t *testing.T) {
	secret, cert := pinned()
	for want, key := range map[string][]byte{
		"holds 2 OpenPGP keys": append(bytes.Clone(cert), certificate(newForgedKey(2, epoch), forgedSig{hashed: mayCertifyAndSign()})...),
		"a signature":          forgedSig{}.packet(secret, document),
		"compressed data":      pack(8, append([]byte{0}, cert...)),
	} {
		if _, err := ParseKey(key); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if algorithm(18) != "ECDH, which encrypts and does not sign" || algorithm(99) != "99, which is not known" {
		t.Error("names of algorithms")
	}
	if by, err := Issuer(forgedSig{}.packet(secret, document)); err != nil || by != secret.fingerprint() {
		t.Errorf("by %s, %v", by, err)
	}
}
