package pgp

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

var document = []byte("a release\r\nof two lines\n")

func pinned() (forgedKey, []byte) {
	k := newForgedKey(1, epoch.Add(-time.Hour))
	return k, certificate(k, forgedSig{hashed: mayCertifyAndSign()})
}

func mustParse(t testing.TB, b []byte) *Key {
	t.Helper()
	k, err := ParseKey(b)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestVerify(t *testing.T) {
	secret, cert := pinned()
	good := forgedSig{}.packet(secret, document)
	for name, text := range map[string][]byte{"binary": cert, "armored": enarmor("PUBLIC KEY BLOCK", cert)} {
		k := mustParse(t, text)
		if k.Fingerprint() != secret.fingerprint() || !bytes.Equal(k.Bytes(), cert) {
			t.Errorf("%s: fingerprint %s, %d bytes", name, k.Fingerprint(), len(k.Bytes()))
		}
		if err := k.Check(epoch); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, sig := range [][]byte{good, enarmor("SIGNATURE", good), bytes.ReplaceAll(enarmor("SIGNATURE", good), []byte("\n"), []byte("\r\n"))} {
			if err := k.Verify(iotest.OneByteReader(bytes.NewReader(document)), sig, epoch); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := k.Verify(strings.NewReader("another"), good, epoch); err == nil || !strings.Contains(err.Error(), "does not fit") {
			t.Errorf("%s: another document: %v", name, err)
		}
	}
	broken := errors.New("broken")
	if err := mustParse(t, cert).Verify(iotest.ErrReader(broken), good, epoch); !errors.Is(err, broken) {
		t.Errorf("a document that cannot be read: %v", err)
	}
}

// FAULTS 1
func TestNoBitCanBeChanged(t *testing.T) {
	secret, cert := pinned()
	k := mustParse(t, cert)
	f := secret.fingerprint()
	good := forgedSig{unhashed: sub(16, f[12:]...)}.packet(secret, document)
	if err := k.Verify(bytes.NewReader(document), good, epoch); err != nil {
		t.Fatal(err)
	}
	for i := range 8 * len(good) {
		bad := bytes.Clone(good)
		bad[i/8] ^= 1 << (i % 8)
		if bytes.HasPrefix(bad, []byte{0x80 | 2<<2}) {
			continue // an older header with the same length
		}
		if err := k.Verify(bytes.NewReader(document), bad, epoch); err == nil {
			t.Errorf("bit %d of byte %d changed, and accepted", i%8, i/8)
		}
	}
	for i := range len(good) {
		if err := k.Verify(bytes.NewReader(document), good[:i], epoch); err == nil {
			t.Errorf("accepted the first %d of %d bytes", i, len(good))
		}
	}
}

// Signatures by the right key that are refused all the same.
func TestVerifyRefused(t *testing.T) {
	secret, cert := pinned()
	k := mustParse(t, cert)
	f := secret.fingerprint()
	good := forgedSig{}.packet(secret, document)
	literal := pack(11, append([]byte("b\x00\x00\x00\x00\x00"), document...))
	onePass := pack(4, append([]byte{3, 0, 8, 22}, append(bytes.Clone(f[12:]), 1)...))
	other := newForgedKey(9, secret.created)
	colliding := f
	colliding[0] ^= 1 // another key of the same 64-bit ID
	issuer := func(f Fingerprint) []byte { return sub(33, append([]byte{4}, f[:]...)...) }
	notation := append(append([]byte{0x80, 0, 0, 0, 0, 3, 0, 1}, "a@b"...), 'c')
	for _, c := range []struct {
		name string
		sig  []byte
		want string
	}{
		{"empty", nil, "no data"},
		// FAULTS 13
		{"signed message", append(append(bytes.Clone(onePass), literal...), good...), "packet of type 4"},
		{"signature and literal", append(bytes.Clone(good), literal...), "bytes follow the signature"},
		{"literal", literal, "packet of type 11"},
		{"marker first", append(pack(10, []byte("PGP")), good...), "packet of type 10"},
		{"padding behind", append(bytes.Clone(good), pack(21, []byte("x"))...), "bytes follow"},
		{"compressed", pack(8, append([]byte{0}, good...)), "packet of type 8"},
		// FAULTS 14
		{"cleartext", append([]byte("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\na\n"), enarmor("SIGNATURE", good)...), "starts with"},
		{"hash header", bytes.Replace(enarmor("SIGNATURE", good), []byte("\n\n"), []byte("\nHash: MD5\n\n"), 1), "not known"},
		{"message armor", enarmor("MESSAGE", good), "starts with"},
		// FAULTS 16
		{"SHA-1", forgedSig{hash: 2}.packet(secret, document), "SHA-1"},
		{"MD5", forgedSig{hash: 1}.packet(secret, document), "MD5"},
		{"SHA-224", forgedSig{hash: 11}.packet(secret, document), "SHA-224"},
		// FAULTS 17
		{"older than its key", forgedSig{created: secret.created.Add(-time.Second)}.packet(secret, document), "before its key"},
		{"from the future", forgedSig{created: epoch.Add(Tolerance + time.Second)}.packet(secret, document), "set the clock"},
		{"expired", forgedSig{created: epoch.Add(-time.Minute), hashed: sub(3, 0, 0, 0, 60)}.packet(secret, document), "has expired"},
		// FAULTS 19
		{"text", forgedSig{sigType: 1}.packet(secret, document), "type 0x01"},
		{"standalone", forgedSig{sigType: 2}.packet(secret, document), "type 0x02"},
		{"certification", forgedSig{sigType: 0x13}.packet(secret, nameHashed(secret)), "type 0x13"},
		{"timestamp", forgedSig{sigType: 0x40}.packet(secret, document), "type 0x40"},
		// FAULTS 20
		{"critical subpacket", forgedSig{hashed: sub(101|critical, 1)}.packet(secret, document), "critical subpacket of type 101"},
		{"critical key flags", forgedSig{hashed: sub(27|critical, 1)}.packet(secret, document), "critical subpacket of type 27"},
		{"critical subpacket, not signed", forgedSig{unhashed: sub(101|critical, 1)}.packet(secret, document), "critical subpacket of type 101"},
		{"critical notation", forgedSig{hashed: sub(20|critical, notation...)}.packet(secret, document), "critical notation"},
		// FAULTS 21
		{"two, good first", append(bytes.Clone(good), forgedSig{}.packet(other, document)...), "bytes follow"},
		{"two, bad first", append(forgedSig{}.packet(other, document), good...), "bytes follow"},
		{"the same twice", append(bytes.Clone(good), good...), "bytes follow"},
		// FAULTS 22
		{"another key", forgedSig{}.packet(other, document), "signature is by the OpenPGP key"},
		{"another key that claims the fingerprint", forgedSig{noIssuer: true, hashed: issuer(f)}.packet(other, document), "does not fit"},
		{"another key with the same ID", forgedSig{noIssuer: true, hashed: issuer(colliding)}.packet(other, document), "signature is by the OpenPGP key"},
		{"only a key ID", forgedSig{noIssuer: true, hashed: sub(16, f[12:]...)}.packet(secret, document), "does not say"},
		{"a key ID that differs", forgedSig{unhashed: sub(16, 1, 2, 3, 4, 5, 6, 7, 8)}.packet(secret, document), "names the key ID"},
		{"fingerprint not signed", forgedSig{noIssuer: true, unhashed: issuer(f)}.packet(secret, document), "does not sign"},
		{"two fingerprints", forgedSig{hashed: issuer(colliding)}.packet(secret, document), "two subpackets of type 33"},
		// FAULTS 23
		{"form feed", append([]byte("\f"), enarmor("SIGNATURE", good)...), "byte 0x0c"},
		{"text before", append([]byte("hello\n"), enarmor("SIGNATURE", good)...), "starts with"},
		{"text behind", append(enarmor("SIGNATURE", good), "hello\n"...), "ends with"},
		{"two blocks", bytes.Repeat(enarmor("SIGNATURE", good), 2), "line 7 of the armor"},
		{"wrong checksum", bytes.Replace(enarmor("SIGNATURE", good), []byte("\n="), []byte("\n=AAAA\n="), 1), ""},
		{"huge", bytes.Repeat([]byte("-"), MaxSignature+1), "more than"},

		{"trailing bytes inside", forgedSig{tail: []byte{0}}.packet(secret, document), "bytes too many"},
		{"trailing byte outside", append(bytes.Clone(good), 0), "bytes follow"},
		{"unknown subpacket that is not signed", forgedSig{unhashed: sub(101, 1)}.packet(secret, document), "does not sign"},
		{"version 3", forgedSig{version: 3}.packet(secret, document), "version 4"},
		{"another signature inside", forgedSig{unhashed: sub(32, 0)}.packet(secret, document), "holds another"},
		{"length in parts", append([]byte{0xc2, 0xe0}, good[2:]...), "in parts"},
		{"no length", append([]byte{0x80 | 2<<2 | 3}, good[2:]...), "no length"},
	} {
		err := k.Verify(bytes.NewReader(document), c.sig, epoch)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestVerifyHarmless(t *testing.T) {
	secret, cert := pinned()
	k := mustParse(t, cert)
	f := secret.fingerprint()
	notation := append(append([]byte{0x80, 0, 0, 0, 0, 3, 0, 1}, "a@b"...), 'c')
	for name, sig := range map[string]forgedSig{
		"SHA-384":                {hash: 9},
		"SHA-512":                {hash: 10},
		"notations":              {hashed: append(sub(20, notation...), sub(20, notation...)...)},
		"an unknown subpacket":   {hashed: sub(101, 1)},
		"a critical name":        {hashed: sub(28|critical, []byte(forgedName)...)},
		"a key ID":               {unhashed: sub(16, f[12:]...)},
		"a lifetime that lasts":  {created: epoch.Add(-time.Minute), hashed: sub(3, 0, 0, 0, 61)},
		"a clock that is behind": {created: epoch.Add(Tolerance)},
		"as old as the key":      {created: secret.created},
	} {
		if err := k.Verify(bytes.NewReader(document), sig.packet(secret, document), epoch); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FAULTS 17, 18
func TestKeysThatMayNotSign(t *testing.T) {
	hour := []byte{0, 0, 14, 16}
	secret := newForgedKey(1, epoch.Add(-time.Hour))
	young := newForgedKey(2, epoch.Add(time.Hour))
	child := newForgedKey(3, epoch.Add(-time.Hour))
	self := forgedSig{hashed: mayCertifyAndSign()}
	binding := forgedSig{hashed: sub(27, 2)}
	data := append(secret.hashed(), child.hashed()...)
	revoked := forgedSig{sigType: 0x20, hashed: sub(29, 3), created: epoch.Add(time.Hour)}.packet(secret, secret.hashed())
	with := func(parts ...[]byte) []byte { return certificate(secret, self, parts...) }
	for _, c := range []struct {
		name   string
		cert   []byte
		signer forgedKey
		want   string // "": accepted
	}{
		{"subkey", with(signingSubkey(secret, child, binding, &forgedSig{})), child, ""},
		{"primary beside a subkey", with(signingSubkey(secret, child, binding, &forgedSig{})), secret, ""},
		{"subkey without cross-signature", with(signingSubkey(secret, child, binding, nil)), child, "no signature over its primary key"},
		{"cross-signature by another", with(signingSubkey(secret, child, forgedSig{hashed: sub(27, 2), unhashed: sub(32, forgedSig{sigType: 0x19}.by(secret, data)...)}, nil)), child, "no valid signature"},
		{"cross-signature with SHA-1", with(signingSubkey(secret, child, binding, &forgedSig{hash: 2})), child, "no valid signature over"},
		{"cross-signature that expired", with(signingSubkey(secret, child, binding, &forgedSig{hashed: sub(3, 0, 0, 0, 60)})), child, "no valid signature"},
		{"subkey to encrypt", with(signingSubkey(secret, child, forgedSig{hashed: sub(27, 12)}, &forgedSig{})), child, "not for signing"},
		{"subkey without flags", with(signingSubkey(secret, child, forgedSig{}, &forgedSig{})), child, "not for signing"},
		{"subkey of another", with(signingSubkey(young, child, binding, &forgedSig{})), child, "no valid signature by its primary key"},
		{"subkey expired", with(signingSubkey(secret, child, forgedSig{hashed: append(sub(27, 2), sub(9, hour...)...)}, &forgedSig{})), child, "has expired"},
		{"binding expired", with(signingSubkey(secret, child, forgedSig{hashed: append(sub(27, 2), sub(3, 0, 0, 0, 1)...)}, &forgedSig{})), child, "no valid signature by its primary key"},
		{"binding with SHA-1", with(signingSubkey(secret, child, forgedSig{hash: 2, hashed: sub(27, 2)}, &forgedSig{})), child, "by its primary key with SHA-1"},
		{"subkey from the future", with(signingSubkey(secret, young, binding, &forgedSig{})), young, "not valid yet"},
		{"subkey revoked", with(signingSubkey(secret, child, binding, &forgedSig{}), forgedSig{sigType: 0x28, hashed: sub(29, 1), created: epoch.Add(time.Hour)}.packet(secret, data)), child, "is revoked"},
		{"subkey of an expired key", certificate(secret, forgedSig{hashed: append(mayCertifyAndSign(), sub(9, hour...)...)}, signingSubkey(secret, child, binding, &forgedSig{})), child, "has expired"},
		{"expired", certificate(secret, forgedSig{hashed: append(mayCertifyAndSign(), sub(9, hour...)...)}), secret, "has expired"},
		{"extended", certificate(secret, forgedSig{hashed: append(mayCertifyAndSign(), sub(9, hour...)...)}, forgedSig{sigType: 0x13, created: epoch, hashed: append(mayCertifyAndSign(), sub(9, 1, 0, 0, 0)...)}.packet(secret, nameHashed(secret))), secret, ""},
		{"revoked", append(append(pack(6, secret.body()), revoked...), with()[len(pack(6, secret.body())):]...), secret, "is revoked"},
		{"name revoked", with(forgedSig{sigType: 0x30, created: epoch}.packet(secret, nameHashed(secret))), secret, "no name"},
		{"not yet valid", certificate(young, self), young, "not valid yet"},
		{"only to certify", certificate(secret, forgedSig{hashed: sub(27, 1)}), secret, "only keys"},
		{"without flags", certificate(secret, forgedSig{}), secret, "only keys"},
		{"name signed with SHA-1", certificate(secret, forgedSig{hash: 2, hashed: mayCertifyAndSign()}), secret, "its own name with SHA-1"},
		{"name with a critical subpacket", certificate(secret, forgedSig{hashed: append(mayCertifyAndSign(), sub(101|critical, 1)...)}), secret, "without any identities"},
	} {
		k, err := ParseKey(c.cert)
		if err == nil {
			err = k.Verify(bytes.NewReader(document), forgedSig{}.packet(c.signer, document), epoch)
			if (c.want == "" || c.signer.fingerprint() == k.Fingerprint()) && c.want != "only keys" && (k.Check(epoch) == nil) != (err == nil) {
				t.Errorf("%s: Check says %v, Verify %v", c.name, k.Check(epoch), err)
			}
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestParseKeyRefused(t *testing.T) {
	secret, cert := pinned()
	_, second := newForgedKey(2, epoch), certificate(newForgedKey(2, epoch), forgedSig{hashed: mayCertifyAndSign()})
	for _, c := range []struct {
		name string
		key  []byte
		want string
	}{
		{"empty", nil, "no data"},
		{"two keys", append(bytes.Clone(cert), second...), "want one public key"},
		{"private", pack(5, secret.body()), "private"},
		{"private, armored", enarmor("PRIVATE KEY BLOCK", cert), "private"},
		{"subkey first", append(pack(14, secret.body()), cert...), "want one public key"},
		{"literal behind", append(bytes.Clone(cert), pack(11, []byte("b"))...), "type 11"},
		{"compressed", pack(8, append([]byte{0}, cert...)), "want one public key"},
		{"the same name twice", append(bytes.Clone(cert), pack(13, []byte(forgedName))...), "twice"},
		{"bytes behind", append(bytes.Clone(cert), "more"...), "no OpenPGP packet"},
		{"packet too long", append(pack(6, append(secret.body(), 0)), cert[len(pack(6, secret.body())):]...), "too many"},
		{"cut", cert[:len(cert)-1], "are left"},
		{"no name", pack(6, secret.body()), "without any identities"},
		{"armored signature", enarmor("SIGNATURE", cert), "starts with"},
		{"huge", bytes.Repeat([]byte{0x99}, MaxKey+1), "more than"},
	} {
		if _, err := ParseKey(c.key); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	secret, cert := pinned()
	child := newForgedKey(3, epoch)
	f.Add(cert)
	f.Add(enarmor("PUBLIC KEY BLOCK", cert))
	f.Add(append(bytes.Clone(cert), signingSubkey(secret, child, forgedSig{hashed: sub(27, 2)}, &forgedSig{})...))
	good := forgedSig{}.packet(child, document)
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseKey(b)
		if err != nil {
			return
		}
		_ = k.Check(epoch)
		_ = k.Verify(bytes.NewReader(document), good, epoch)
		again, err := ParseKey(k.Bytes())
		if err != nil || again.Fingerprint() != k.Fingerprint() {
			t.Fatalf("%s read again: %v", k.Fingerprint(), err)
		}
	})
}

// FAULTS 23
func FuzzVerify(f *testing.F) {
	secret, cert := pinned()
	good := forgedSig{}.packet(secret, document)
	f.Add(good)
	f.Add(enarmor("SIGNATURE", good))
	f.Add(forgedSig{hashed: sub(20, 0), unhashed: sub(101, 1)}.packet(secret, document))
	f.Add(forgedSig{hashed: sub(3, 0, 0, 0, 60), unhashed: sub(16, 1, 2, 3, 4, 5, 6, 7, 8)}.packet(secret, document))
	k := mustParse(f, cert)
	f.Fuzz(func(t *testing.T, sig []byte) {
		if k.Verify(strings.NewReader("never signed"), sig, epoch) == nil {
			t.Fatal("accepted a signature that nobody made")
		}
	})
}

func TestCreated(t *testing.T) {
	secret, _ := pinned()
	at := epoch.Add(90 * time.Minute)
	if got, err := Created(forgedSig{created: at}.packet(secret, document)); err != nil || !got.Equal(at) {
		t.Errorf("made on %s, %v, want %s", got, err, at)
	}
	if got, err := Created([]byte("no signature")); err == nil {
		t.Errorf("made on %s", got)
	}
}
