package otatest

import (
	"bytes"
	"crypto"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"halogenos.internal/boot/pgp"
)

// A Key signs releases.
type Key struct {
	t      testing.TB
	entity *openpgp.Entity
	Public []byte
	at     time.Time // when it signs
}

// NewKey makes a key that never expires.
func NewKey(t testing.TB) *Key { return NewKeyFor(t, 0) }

// NewKeyFor makes a key that expires after a time; 0 is never.
func NewKeyFor(t testing.TB, life time.Duration) *Key {
	t.Helper()
	e, err := openpgp.NewEntity("release", "", "release@example.org", config(Date, life))
	must(t, err)
	k := &Key{t: t, entity: e, at: Date}
	k.export()
	return k
}

func config(at time.Time, life time.Duration) *packet.Config {
	return &packet.Config{Time: func() time.Time { return at }, Algorithm: packet.PubKeyAlgoEdDSA, DefaultHash: crypto.SHA256, KeyLifetimeSecs: uint32(life / time.Second)}
}

// For returns the key for another test's use.
func (k *Key) For(t testing.TB) *Key {
	out := *k
	out.t = t
	return &out
}

func (k *Key) export() {
	k.t.Helper()
	var public bytes.Buffer
	must(k.t, k.entity.Serialize(&public))
	parsed, err := pgp.ParseKey(public.Bytes())
	must(k.t, err)
	k.Public = parsed.Bytes()
}

// Renewed returns the key with another expiry date, so long after Date; 0 is never.
// It signs from then on.
func (k *Key) Renewed(at time.Time, life time.Duration) *Key {
	k.t.Helper()
	out := k.again(at)
	seconds := uint32(life / time.Second)
	for _, name := range out.entity.Identities {
		s, err := name.LatestValidSelfCertification(Date, config(Date, 0))
		must(k.t, err)
		s.CreationTime, s.KeyLifetimeSecs = at, &seconds
		must(k.t, s.SignUserId(name.UserId.Id, out.entity.PrimaryKey, out.entity.PrivateKey, config(at, life)))
	}
	out.export()
	return out
}

// WithSubkey returns the key with a subkey that signs in its place from then on.
func (k *Key) WithSubkey(at time.Time) *Key {
	k.t.Helper()
	out := k.again(at)
	must(k.t, out.entity.AddSigningSubkey(config(at, 0)))
	out.export()
	return out
}

// again returns a copy of the key that signs at another time.
func (k *Key) again(at time.Time) *Key {
	k.t.Helper()
	var secret bytes.Buffer
	must(k.t, k.entity.SerializePrivateWithoutSigning(&secret, nil))
	e, err := openpgp.ReadEntity(packet.NewReader(&secret))
	must(k.t, err)
	return &Key{t: k.t, entity: e, at: at, Public: k.Public}
}

// Sign returns a detached signature; without a key there is none.
func (k *Key) Sign(text []byte) []byte {
	if k == nil {
		return nil
	}
	k.t.Helper()
	var out bytes.Buffer
	must(k.t, openpgp.DetachSign(&out, []*openpgp.Entity{k.entity}, bytes.NewReader(text), config(k.at, 0)))
	return out.Bytes()
}

func (k *Key) public() []byte {
	if k == nil {
		return nil
	}
	return k.Public
}
