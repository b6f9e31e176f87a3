package agent

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/rootpart"
)

// keysCondition is what can be said of a machine without power that replaces its secret
// and its Secure Boot keys, as far as it matters to what it will do; whose each is, and
// not what, since that is made again each time.
func (m *machine) keysCondition(w *world, old *policy.Secret) string {
	m.t.Helper()
	sets, err := keySets()
	m.must(err)
	var out strings.Builder
	of := func(has func(*secureboot.KeySet) bool) (numbers []int) {
		for i, k := range sets {
			if has(k) {
				numbers = append(numbers, i)
			}
		}
		return numbers
	}
	for _, name := range []string{"PK", "KEK", "db"} {
		data := w.vars[name].data
		fmt.Fprintln(&out, name, of(func(k *secureboot.KeySet) bool {
			return bytes.Contains(data, k.PK.Certificate.Raw) || bytes.Contains(data, k.KEK.Certificate.Raw) || bytes.Contains(data, k.DB.Certificate.Raw)
		}))
	}
	for _, name := range slices.Sorted(maps.Keys(w.esp)) {
		f := w.esp[name]
		if f.absent || !bytes.HasPrefix(f.data, []byte("MZ")) && path.Base(name) != "HALOGEN.NEW" {
			continue
		}
		fmt.Fprintln(&out, name, f.unreadable, of(func(k *secureboot.KeySet) bool { return authenticode.VerifyOwn(f.data, k.DB.Certificate) == nil }))
	}
	m.powerOn(w)
	lock, volumeKey, secret := m.unlocked()
	fmt.Fprintln(&out, "header", lock.Health.Good(), lock.Replaced, len(lock.Header.Keyslots()), len(lock.Header.Tokens()), old.Equal(secret), of(func(k *secureboot.KeySet) bool {
		return lock.CheckOwnerSignature(volumeKey, []*x509.Certificate{k.DB.Certificate}) == nil
	}), len(lock.NextOwnerSignature) > 0)
	files := m.rootFiles()
	keys, err := firstboot.UnwrapKeys(secret, files[rootpart.ListFile])
	fmt.Fprintln(&out, "list", err == nil, of(func(k *secureboot.KeySet) bool { return err == nil && k.DB.Certificate.Equal(keys.DB.Certificate) }))
	for name, purpose := range map[string]string{rootpart.NextFile: "next-secret", rootpart.NextKeysFile: "next-keys", rootpart.GuaranteesFile: "guarantees"} {
		text, err := secret.Unbox(purpose, files[name])
		counts := ""
		if _, after, found := strings.Cut(string(text), `"taken"`); found {
			counts = after
		}
		fmt.Fprintln(&out, name, files[name] != nil, err == nil, counts)
	}
	fmt.Fprintf(&out, "record %x\n", sha256.Sum256(w.record))
	lines := strings.Split(out.String(), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// Every state that a cut leaves while the machine secret and the Secure Boot keys are
// replaced, at the console, and every state that a cut of the starts after it leaves, as
// far as they differ: each opens by itself, without a question, and comes to its end, with
// the old keys or with the new ones, and none of both. FAULTS 42, 100
func TestEveryCutOfNewKeys(t *testing.T) {
	m := provisionedMachine(t, nil)
	old := m.machineSecret()
	first, err := m.enrolledSet()
	m.must(err)
	r, c := m.asked()
	m.types("y", m.recoveryKey())
	random := mrand.New(mrand.NewPCG(71, 72))
	next, _ := m.recording(func() string {
		m.works(r.NewSecret(c, true))
		return ""
	}, random, "")
	known := map[string]bool{}
	states, ends := 0, map[bool]int{}
	for len(next) > 0 {
		s := next[0]
		next = next[1:]
		states++
		key := m.keysCondition(s.world, old)
		if known[key] {
			continue
		}
		known[key] = true
		m.powerOn(s.world)
		m.typed = nil
		m.said.Reset()
		m.printed.Reset()
		inner, end := m.recording(m.run, random, s.how+"; then ")
		if end != "system" || m.printed.Len() > 0 || m.openVolume == nil {
			t.Fatalf("%s: ends in %s, asks %q:\n%s", s.how, end, m.printed.String(), m.said.String())
		}
		now, err := m.enrolledSet()
		m.must(err)
		stays := now.DB.Certificate.Equal(first.DB.Certificate)
		if err = m.oneSecret(); err == nil && !stays {
			err = m.replaced(first)
		}
		if err != nil {
			t.Fatalf("%s: %v\n%s", s.how, err, m.said.String())
		}
		if stays != old.Equal(m.machineSecret()) {
			t.Errorf("%s: the keys are old: %v, and the secret is another", s.how, stays)
		}
		ends[stays]++
		next = append(next, inner...)
	}
	t.Logf("%d states after a cut, %d different conditions, each of them started", states, len(known))
	if ends[true] == 0 || ends[false] < 20 {
		t.Errorf("%d conditions end with the old keys, %d with new ones", ends[true], ends[false])
	}
}

// The same where the firmware takes nothing: whatever is cut, the old keys stay, with the
// secret that has come into force.
func TestEveryCutOfKeysTakenBack(t *testing.T) {
	m := provisionedMachine(t, nil)
	first, err := m.enrolledSet()
	m.must(err)
	r, c := m.asked()
	r.Variables.(*firmware).refuse = errNotNow
	m.refuse = errNotNow
	m.types("y", m.recoveryKey())
	states, _ := m.recording(func() string {
		m.refuses(r.NewSecret(c, true), "the Secure Boot keys stay as they are")
		return ""
	}, mrand.New(mrand.NewPCG(73, 74)), "")
	for _, s := range states {
		m.powerOn(s.world)
		m.opensByItself()
		m.opensByItself()
		if err := m.oneSecret(); err != nil {
			t.Fatalf("%s: %v\n%s", s.how, err, m.said.String())
		}
		now, err := m.enrolledSet()
		m.must(err)
		if !now.DB.Certificate.Equal(first.DB.Certificate) || m.keysUnfinished() {
			t.Fatalf("%s: other keys are enrolled, or it is not taken back:\n%s", s.how, m.said.String())
		}
	}
}
