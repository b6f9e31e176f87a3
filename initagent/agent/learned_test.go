package agent_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/release"
	"halogenos.internal/initagent/machinetest"
)

// renewed returns a signer's public key as it is once its owner has taken its end
// away, on a later day.
func renewed(s *machinetest.Signer, at time.Time) ([]byte, error) {
	var secret, public bytes.Buffer
	if err := s.Entity.SerializePrivateWithoutSigning(&secret, nil); err != nil {
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
	old, err := machinetest.Expired()
	if err != nil {
		t.Fatal(err)
	}
	public, err := renewed(old, machinetest.BuildDate.AddDate(0, 0, 20))
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := machinetest.Stranger()
	if err != nil {
		t.Fatal(err)
	}
	expiring := func(c *contract.Contract) { c.ReleaseKey = old.Public }
	m := machinetest.ProvisionedMachine(t, expiring)
	provisioned := m.World(true, nil)
	second := machinetest.NewRelease(t, 2, 5, expiring)
	for name, c := range map[string]struct {
		key    []byte // that the fetcher has left
		signer *machinetest.Signer
		good   bool
	}{
		"not learned":                 {nil, old, false},
		"learned":                     {public, old, true},
		"another's key":               {foreign.Public, old, false},
		"another's key and signature": {foreign.Public, foreign, false},
		"damaged":                     {public[:40], old, false},
		"the old one":                 {old.Public, old, false},
	} {
		t.Run(name, func(t *testing.T) {
			m.T = t
			m.Again(provisioned, 1)
			m.Clock = machinetest.BuildDate.AddDate(0, 2, 0)
			p := m.Parcel(second)
			p.Signer, p.SignedAt = c.signer, machinetest.BuildDate.AddDate(0, 1, 0)
			if c.key != nil {
				p.Files[release.KeyFile] = c.key
			}
			m.Deliver(p)
			m.Releases[2] = second
			if !c.good {
				m.RefusesRelease("release.json: judged as of")
				return
			}
			m.Runs(2)
		})
	}
}
