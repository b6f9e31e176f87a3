package tpm

import (
	"crypto/rand"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
)

// The key of a phrase comes to the boots of the machine secret, without the PIN, and in no other.
// In the place of one object the TPM does not take the other, whatever is said of it.
func TestPhrase(t *testing.T) { // FAULTS 109
	m := provision(t, "uki 1", "uki 2")
	m.withPIN(pinned(t, "1234"))
	key, err := policy.NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := m.open()
	defer closed(t, c)
	bare, err := c.Seal(m.without(), m.index) // as a machine without a PIN has it
	if err != nil {
		t.Fatal(err)
	}
	for name, like := range map[string]*policy.Sealed{"without a PIN": bare, "with a PIN": m.sealed} {
		s, err := c.SealPhrase(key, like)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, record, err := c.Unseal(s)
		if err != nil || !got.Equal(key) || record == nil {
			t.Errorf("%s: %v, %v", name, record, err)
		}
		if !s.LikeBoots(like) {
			t.Errorf("%s: it is of other boots", name)
		}
	}
	s, err := c.SealPhrase(key, bare)
	if err != nil {
		t.Fatal(err)
	}

	// The secret in the phrase's place, as it is and with the phrase's public area, and back.
	for name, swap := range map[string]func() policy.Sealed{
		"the secret's object as a phrase":                  func() policy.Sealed { o := *bare; o.Phrase = true; return o },
		"the secret's private area as a phrase's":          func() policy.Sealed { o := *s; o.Private = bare.Private; return o },
		"the secret under the phrase's policy":             func() policy.Sealed { return renamed(t, bare, true) },
		"the phrase's object as a secret":                  func() policy.Sealed { o := *s; o.Phrase = false; return o },
		"the phrase's private area as a secret's":          func() policy.Sealed { o := *bare; o.Private = s.Private; return o },
		"the phrase under the secret's policy":             func() policy.Sealed { return renamed(t, s, false) },
		"the secret that asks for a PIN, without its PIN":  func() policy.Sealed { o := *s; o.Private, o.Public = m.sealed.Private, m.sealed.Public; return o },
		"the phrase's private area, which asks for no PIN": func() policy.Sealed { o := *m.sealed; o.Private = s.Private; return o },
	} {
		o := swap()
		if got, _, err := c.UnsealBy(&o, m.secret.PIN()); got != nil || !errors.Is(err, policy.ErrSealed) && !errors.Is(err, ErrPIN) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}

	if err := c.ExtendText(pcr.KernelImage, pcr.LeaveInitrd); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Unseal(s); err == nil {
		t.Error("the running system gets the phrase")
	}
}

// renamed is an object with the public area that it would have as the other kind.
func renamed(t *testing.T, s *policy.Sealed, phrase bool) policy.Sealed {
	t.Helper()
	o := *s
	o.Phrase = phrase
	d, err := o.Policy()
	if err != nil {
		t.Fatal(err)
	}
	template := tpm2.Marshal(policy.SealedTemplate(d))
	o.Public = slices.Concat(template[:len(template)-2], s.Public[len(template)-2:])
	if err := o.Validate(); err != nil {
		t.Fatal(err) // only the TPM is to refuse it
	}
	return o
}

// without is the machine's secret without its PIN.
func (m *machine) without() *policy.Secret {
	s := *m.secret
	s.SetPIN(nil)
	return &s
}
