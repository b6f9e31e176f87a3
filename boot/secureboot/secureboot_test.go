package secureboot

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"halogenos.internal/boot/gpt"
)

var buildDate = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// keySets are made once: RSA keys take a while, and no test changes them.
var keySets = sync.OnceValues(func() ([2]*KeySet, error) {
	var sets [2]*KeySet
	for i := range sets {
		var err error
		if sets[i], err = Generate(rand.Reader, buildDate); err != nil {
			return sets, err
		}
	}
	return sets, nil
})

func testSets(t testing.TB) (mine, other *KeySet) {
	t.Helper()
	sets, err := keySets()
	if err != nil {
		t.Fatal(err)
	}
	return sets[0], sets[1]
}

func TestGenerate(t *testing.T) {
	k, other := testSets(t)
	if k.Owner.IsZero() || k.Owner == other.Owner {
		t.Errorf("owner %s, of another set %s", k.Owner, other.Owner)
	}
	seen := map[string]bool{}
	for _, role := range k.roles() {
		if err := role.pair.check(); err != nil {
			t.Errorf("%s: %v", role.name, err)
		}
		c := role.pair.Certificate
		if !c.NotBefore.Equal(buildDate) || c.NotAfter.Year() != 2066 {
			t.Errorf("%s is valid from %s to %s", role.name, c.NotBefore, c.NotAfter)
		}
		if c.Subject.CommonName != "HalogenOS "+role.name || c.Subject.OrganizationalUnit[0] != k.Owner.String() {
			t.Errorf("%s is called %s", role.name, c.Subject)
		}
		if c.IsCA || c.SerialNumber.Sign() <= 0 || seen[c.SerialNumber.String()] {
			t.Errorf("%s: CA %v, serial number %s", role.name, c.IsCA, c.SerialNumber)
		}
		seen[c.SerialNumber.String()] = true
	}
}

func TestGenerateRefuses(t *testing.T) {
	if _, err := Generate(rand.Reader, time.Unix(0, 0)); err == nil {
		t.Error("a build date of 1970 was accepted")
	}
	for _, n := range []int64{0, 15, 16, 40} {
		if _, err := Generate(io.LimitReader(rand.Reader, n), buildDate); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("with %d random bytes: %v", n, err)
		}
	}
}

func TestPairCheckRefuses(t *testing.T) {
	k, other := testSets(t)
	for name, p := range map[string]Pair{
		"nothing":               {},
		"another's certificate": {k.DB.Key, other.DB.Certificate},
		"another role's":        {k.DB.Key, k.PK.Certificate},
	} {
		if p.check() == nil {
			t.Errorf("%s passed", name)
		}
	}
	forged := *k.DB.Certificate
	forged.Signature = bytes.Clone(forged.Signature)
	forged.Signature[9] ^= 1
	if (Pair{k.DB.Key, &forged}).check() == nil {
		t.Error("a certificate with a broken signature passed")
	}
}

func TestWrap(t *testing.T) {
	k, _ := testSets(t)
	key := [32]byte{1, 2, 3}
	wrapped, err := Wrap(rand.Reader, &key, "root", k)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Unwrap(&key, "root", wrapped)
	if err != nil || !sameKeys(back, k) {
		t.Fatalf("unwrap: %v", err)
	}
	again, err := Wrap(rand.Reader, &key, "root", k)
	if err != nil || bytes.Equal(again, wrapped) {
		t.Errorf("a second wrapping is the same as the first (%v)", err)
	}
	for _, role := range k.roles() {
		if bytes.Contains(wrapped, role.pair.Certificate.RawSubject) {
			t.Errorf("%s can be read in the wrapped form", role.name)
		}
	}

	if _, err := Unwrap(&[32]byte{1, 2, 4}, "root", wrapped); !errors.Is(err, ErrUnwrap) {
		t.Errorf("another key: %v", err)
	}
	if _, err := Unwrap(&key, "esp", wrapped); !errors.Is(err, ErrUnwrap) {
		t.Errorf("another context: %v", err)
	}
	for i := range wrapped {
		bad := bytes.Clone(wrapped)
		bad[i] ^= 0x10
		if _, err := Unwrap(&key, "root", bad); err == nil {
			t.Fatalf("byte %d changed, and it unwraps", i)
		}
	}
	for n := range len(wrapped) {
		if _, err := Unwrap(&key, "root", wrapped[:n]); err == nil {
			t.Fatalf("cut to %d bytes, and it unwraps", n)
		}
	}
	if _, err := Unwrap(&key, "root", make([]byte, MaxWrapped+1)); err == nil {
		t.Error("an oversized file was read")
	}
}

// A caller that asks for the certificate alone learns whether its own private key is there.
func TestUnwrapCertificate(t *testing.T) {
	k, other := testSets(t)
	key := [32]byte{1, 2, 3}
	wrapped, err := Wrap(rand.Reader, &key, "root", k)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := UnwrapCertificate(&key, "root", wrapped); err != nil || !c.Equal(k.DB.Certificate) {
		t.Errorf("certificate is %v, %v", c, err)
	}
	if _, err := UnwrapCertificate(&[32]byte{1}, "root", wrapped); !errors.Is(err, ErrUnwrap) {
		t.Errorf("another key: %v", err)
	}
	plain, err := decrypt(&key, "root", wrapped)
	if err != nil {
		t.Fatal(err)
	}
	own, theirs := x509.MarshalPKCS1PrivateKey(k.DB.Key), x509.MarshalPKCS1PrivateKey(other.DB.Key)
	at := bytes.Index(plain, own) - 4
	longer := func(b []byte) []byte { return append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...) }
	bad := map[string][]byte{
		"a key that is another's": slices.Concat(plain[:at], longer(theirs), plain[at+4+len(own):]),
		"no private key":          slices.Concat(plain[:at], longer(nil), plain[at+4+len(own):]),
	}
	for _, n := range []int{0, 20, 40, at - 1, at + 3, len(plain) - 1} {
		bad[fmt.Sprintf("cut at %d", n)] = plain[:n]
	}
	aead, err := newAEAD(&key)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range bad {
		header, nonce := wrapped[:headerSize], wrapped[headerSize:][:nonceSize]
		sealed := aead.Seal(slices.Concat(header, nonce), nonce, text, associated(header, "root"))
		if c, err := UnwrapCertificate(&key, "root", sealed); err == nil {
			t.Errorf("%s: certificate %v", name, c.Subject)
		}
	}
}

// FAULTS 75
func TestWipe(t *testing.T) {
	sets, _ := testSets(t)
	plain, err := sets.marshal()
	if err != nil {
		t.Fatal(err)
	}
	k, err := unmarshal(plain)
	if err != nil {
		t.Fatal(err)
	}
	words := k.DB.Key.D.Bits()
	prime := k.DB.Key.Primes[0].Bits()
	k.Wipe()
	for _, w := range append(words[:len(words):len(words)], prime...) {
		if w != 0 {
			t.Fatal("a private number survives")
		}
	}
	if k.DB.Key != nil || k.PK.Key != nil || k.KEK.Key != nil {
		t.Error("a private key is still there")
	}
	if _, err := Wrap(rand.Reader, new([32]byte), "", k); err == nil {
		t.Error("a wiped set was wrapped")
	}
	if _, err := k.Update(PK, nil, buildDate); err == nil {
		t.Error("a wiped set signs")
	}
	k.Wipe() // a second time does no harm
}

func TestDatabaseRoundTrip(t *testing.T) {
	k, other := testSets(t)
	d := Database{
		Certificate(k.Owner, k.DB.Certificate), Certificate(k.Owner, k.KEK.Certificate),
		Hash(k.Owner, [32]byte{1}), Hash(other.Owner, [32]byte{2}),
		{Type: gpt.MustGUID("452e8ced-dfff-4b8c-ae01-5118862e682c"), Owner: k.Owner, Data: []byte{7}},
		Hash(k.Owner, [32]byte{3}),
	}
	b, err := d.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseDatabase(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(back) != len(d) || !back.Same(d) {
		t.Errorf("got %s, want %s", back, d)
	}
	clear(b)
	if !back.Same(d) {
		t.Error("the entries refer to the bytes they were read from")
	}
	if s := d.String(); !strings.Contains(s, "HalogenOS Signature Database Key") || !strings.Contains(s, "hash 01000000") {
		t.Errorf("described as %s", s)
	}
}

func TestDatabaseComparison(t *testing.T) {
	a, b := Hash(gpt.GUID{1}, [32]byte{1}), Hash(gpt.GUID{1}, [32]byte{2})
	foreignOwner := Hash(gpt.GUID{2}, [32]byte{1})
	for _, c := range []struct {
		x, y Database
		same bool
	}{
		{nil, nil, true},
		{Database{a, b}, Database{b, a}, true},
		{Database{a, a}, Database{a}, true},
		{Database{a}, nil, false},
		{Database{a}, Database{a, b}, false},
		{Database{a}, Database{foreignOwner}, false},
	} {
		if got := c.x.Same(c.y); got != c.same {
			t.Errorf("%s and %s: same %v", c.x, c.y, got)
		}
	}
	if got := (Database{a, b, a}).Without(Database{b}); len(got) != 1 || !got[0].Equal(a) {
		t.Errorf("without: %s", got)
	}
}

func TestParseDatabaseRefuses(t *testing.T) {
	good, err := Database{Hash(gpt.GUID{1}, [32]byte{1})}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	put := func(off int, v uint32) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[off:], v)
		return b
	}
	for name, b := range map[string][]byte{
		"short header":           good[:27],
		"short body":             good[:len(good)-1],
		"trailing byte":          append(bytes.Clone(good), 0),
		"list of 0 bytes":        put(16, 0),
		"list of 4 GiB":          put(16, 0xffffffff),
		"header":                 put(20, 4),
		"header of 4 GiB":        put(20, 0xfffffff0),
		"signature of 0 bytes":   put(24, 0),
		"signature of 16 bytes":  put(24, 16),
		"hash of 31 bytes":       put(24, 47),
		"signature of 4 GiB":     put(24, 0xffffffff),
		"list with half a hash":  put(16, listHeader+24),
		"more than is ever read": make([]byte, MaxDatabase+1),
	} {
		if d, err := ParseDatabase(b); err == nil {
			t.Errorf("%s: read as %s", name, d)
		}
	}
	if d, err := ParseDatabase(nil); err != nil || len(d) != 0 {
		t.Errorf("nothing: %s, %v", d, err)
	}
	for name, d := range map[string]Database{
		"hash of 31 bytes": {{Type: TypeSHA256, Data: make([]byte, 31)}},
		"empty":            {{Type: TypeX509}},
		"too large":        {{Type: TypeX509, Data: make([]byte, MaxDatabase)}},
	} {
		if _, err := d.Marshal(); err == nil {
			t.Errorf("marshal of %s", name)
		}
	}
}

func TestEntryStringIsPrintable(t *testing.T) {
	if s := printable("a\x1b[2Jb\n\u009bc"); s != "a?[2Jb??c" {
		t.Errorf("got %q", s)
	}
	if s := printable("a\u202eb\u2067c\u2028d"); s != "a?b?c?d" {
		t.Errorf("got %q", s)
	}
	if s := printable(strings.Repeat("x", 1000)); len(s) > 130 {
		t.Errorf("%d bytes are left", len(s))
	}
}

// FAULTS 81
func TestTimestamp(t *testing.T) {
	for _, c := range []struct {
		clock, want time.Time
	}{
		{time.Unix(0, 0), buildDate},
		{buildDate.Add(-time.Second), buildDate},
		{buildDate.Add(90*time.Minute + 5), buildDate.Add(90 * time.Minute)},
		{buildDate.AddDate(19, 0, 0), buildDate.AddDate(19, 0, 0)},
		{time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC), buildDate},
	} {
		if got := Timestamp(c.clock, buildDate); !got.Equal(c.want) {
			t.Errorf("clock %s: %s, want %s", c.clock, got, c.want)
		}
	}
}

func TestSplitUpdate(t *testing.T) {
	k, _ := testSets(t)
	payload, err := SignUpdate(DB, KeyAttributes, buildDate, []byte("content"), k.KEK)
	if err != nil {
		t.Fatal(err)
	}
	at, _, content, err := SplitUpdate(payload)
	if err != nil || !at.Equal(buildDate) || string(content) != "content" {
		t.Errorf("%s, %q, %v", at, content, err)
	}
	for name, change := range map[string]func([]byte) []byte{
		"short":        func(b []byte) []byte { return b[:39] },
		"no length":    func(b []byte) []byte { clear(b[16:20]); return b },
		"length 4 GiB": func(b []byte) []byte { b[16], b[17], b[18], b[19] = 255, 255, 255, 255; return b },
		"revision":     func(b []byte) []byte { b[21] = 1; return b },
		"kind":         func(b []byte) []byte { b[22] = 0; return b },
		"type":         func(b []byte) []byte { b[24] ^= 1; return b },
	} {
		if _, _, _, err := SplitUpdate(change(bytes.Clone(payload))); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestSignUpdateRefuses(t *testing.T) {
	k, _ := testSets(t)
	if _, err := SignUpdate(DB, KeyAttributes, time.Unix(0, 0), nil, k.KEK); err == nil {
		t.Error("a timestamp of 1970")
	}
	if _, err := SignUpdate(DB, KeyAttributes&^TimeBasedAuthenticated, buildDate, nil, k.KEK); err == nil {
		t.Error("attributes without authentication")
	}
	if _, err := SignUpdate(DB, KeyAttributes, buildDate, make([]byte, MaxDatabase+1), k.KEK); err == nil {
		t.Error("too much content")
	}
	if _, err := k.Update(SecureBoot, nil, buildDate); err == nil {
		t.Error("an update of SecureBoot")
	}
}

func TestWantedRoundTrip(t *testing.T) {
	k, other := testSets(t)
	w := k.Wanted(Vendor{DB: Database{Certificate(other.Owner, other.DB.Certificate)}, DBX: Database{Hash(gpt.GUID{3}, [32]byte{9})}})
	b, err := w.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseWanted(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []Variable{PK, KEK, DB, DBX} {
		if !back.Of(v).Same(w.Of(v)) {
			t.Errorf("%s: %s, want %s", v, back.Of(v), w.Of(v))
		}
	}
	if len(w.PK) != 1 || len(w.KEK) != 1 || len(w.DB) != 2 || len(w.DBX) != 1 || w.Of(SetupMode) != nil {
		t.Errorf("wanted %+v", w)
	}
	for n := range len(b) {
		if _, err := ParseWanted(b[:n]); err == nil {
			t.Fatalf("cut to %d bytes, and it is read", n)
		}
	}
	if _, err := ParseWanted(append(b, 0)); err == nil {
		t.Error("a trailing byte was accepted")
	}
}

func FuzzParseDatabase(f *testing.F) {
	k, _ := testSets(f)
	b, err := Database{Certificate(k.Owner, k.DB.Certificate), Hash(k.Owner, [32]byte{1}), Hash(k.Owner, [32]byte{2})}.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDatabase(b)
		if err != nil {
			return
		}
		_ = d.String()
		out, err := d.Marshal()
		if err != nil {
			// Certificates that shared a list get one each, which is larger.
			if len(b) > MaxDatabase/4 {
				return
			}
			t.Fatalf("read, but not written: %v", err)
		}
		back, err := ParseDatabase(out)
		if err != nil || len(back) != len(d) || !back.Same(d) {
			t.Fatalf("read %s, wrote and read %s (%v)", d, back, err)
		}
	})
}

func FuzzUnmarshal(f *testing.F) {
	k, _ := testSets(f)
	b, err := k.marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := unmarshal(b)
		if err != nil {
			return
		}
		for _, role := range k.roles() {
			if err := role.pair.check(); err != nil {
				t.Errorf("%s: %v", role.name, err)
			}
		}
	})
}

func FuzzSplitUpdate(f *testing.F) {
	k, _ := testSets(f)
	payload, err := SignUpdate(DB, KeyAttributes, buildDate, []byte("content"), k.KEK)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(payload)
	f.Fuzz(func(t *testing.T, b []byte) {
		_, signature, content, err := SplitUpdate(b)
		if err == nil && len(signature)+len(content)+authenticationHeaders != len(b) {
			t.Errorf("%d bytes fell apart into %d and %d", len(b), len(signature), len(content))
		}
	})
}

func FuzzParseWanted(f *testing.F) {
	k, _ := testSets(f)
	b, err := k.Wanted(Vendor{}).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if w, err := ParseWanted(b); err == nil {
			_ = w.DB.String()
		}
	})
}

// parse is for tests that take what a foreign tool wrote.
func parse(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
