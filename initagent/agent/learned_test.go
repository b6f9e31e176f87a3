package agent

import (
	"bytes"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/release"
)

// renewed returns a signer's public key as it is once its owner has taken its end
// away, on a later day.
func renewed(s *signer, at time.Time) ([]byte, error) {
	var secret, public bytes.Buffer
	if err := s.entity.SerializePrivateWithoutSigning(&secret, nil); err != nil {
		return nil, err
	}
	e, err := openpgp.ReadEntity(packet.NewReader(&secret))
	if err != nil {
		return nil, err
	}
	config := &packet.Config{Time: func() time.Time { return at }}
	for _, name := range e.Identities {
		for _, made := range name.SelfCertifications {
			made.Packet.CreationTime, made.Packet.KeyLifetimeSecs = at, nil
			if err := made.Packet.SignUserId(name.UserId.Id, e.PrimaryKey, e.PrivateKey, config); err != nil {
				return nil, err
			}
		}
	}
	err = e.Serialize(&public)
	return public.Bytes(), err
}

// The boot knows of the release key what the fetcher has learned, and no more than
// the pinned key itself has signed. FAULTS 112 (R3): a renewed expiry
func TestStageLearnsTheKey(t *testing.T) {
	old, err := expired()
	if err != nil {
		t.Fatal(err)
	}
	public, err := renewed(old, buildDate.AddDate(0, 0, 20))
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := stranger()
	if err != nil {
		t.Fatal(err)
	}
	expiring := func(c *contract.Contract) { c.ReleaseKey = old.public }
	m := provisionedMachine(t, expiring)
	provisioned := m.world(true, nil)
	second := newRelease(t, 2, 5, expiring)
	for name, c := range map[string]struct {
		key    []byte // that the fetcher has left
		signer *signer
		good   bool
	}{
		"not learned":                 {nil, old, false},
		"learned":                     {public, old, true},
		"another's key":               {foreign.public, old, false},
		"another's key and signature": {foreign.public, foreign, false},
		"damaged":                     {public[:40], old, false},
		"the old one":                 {old.public, old, false},
	} {
		t.Run(name, func(t *testing.T) {
			m.t = t
			m.again(provisioned, 1)
			m.clock = buildDate.AddDate(0, 2, 0)
			p := m.parcel(second)
			p.signer, p.signedAt = c.signer, buildDate.AddDate(0, 1, 0)
			if c.key != nil {
				p.files[release.KeyFile] = c.key
			}
			m.deliver(p)
			m.releases[2] = second
			if !c.good {
				m.refusesRelease("release.json: judged as of")
				return
			}
			m.runs(2)
		})
	}
}
