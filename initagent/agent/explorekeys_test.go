package agent_test

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
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
)

// keysCondition is what can be said of a machine without power that replaces its secret
// and its Secure Boot keys, as far as it matters to what it will do; whose each is, and
// not what, since that is made again each time.
func keysCondition(m *machinetest.Machine, w *machinetest.World, old *policy.Secret) string {
	m.T.Helper()
	sets, err := machinetest.KeySets()
	m.Must(err)
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
		data := w.Vars[name].Data
		fmt.Fprintln(&out, name, of(func(k *secureboot.KeySet) bool {
			return bytes.Contains(data, k.PK.Certificate.Raw) || bytes.Contains(data, k.KEK.Certificate.Raw) || bytes.Contains(data, k.DB.Certificate.Raw)
		}))
	}
	for _, name := range slices.Sorted(maps.Keys(w.ESP)) {
		f := w.ESP[name]
		if f.Absent || !bytes.HasPrefix(f.Data, []byte("MZ")) && path.Base(name) != "HALOGEN.NEW" {
			continue
		}
		fmt.Fprintln(&out, name, f.Unreadable, of(func(k *secureboot.KeySet) bool { return authenticode.VerifyOwn(f.Data, k.DB.Certificate) == nil }))
	}
	m.PowerOn(w)
	lock, volumeKey, secret := m.Unlocked()
	fmt.Fprintln(&out, "header", lock.Health.Good(), lock.Replaced, len(lock.Header.Keyslots()), len(lock.Header.Tokens()), old.Equal(secret), of(func(k *secureboot.KeySet) bool {
		return lock.CheckOwnerSignature(volumeKey, []*x509.Certificate{k.DB.Certificate}) == nil
	}), len(lock.NextOwnerSignature) > 0)
	files := m.RootFiles()
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
	fmt.Fprintf(&out, "record %x\n", sha256.Sum256(w.Record))
	lines := strings.Split(out.String(), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// Every state that a cut leaves while the machine secret and the Secure Boot keys are
// replaced, at the console, and every state that a cut of the starts after it leaves, as
// far as they differ: each opens by itself, without a question, and comes to its end, with
// the old keys or with the new ones, and none of both. FAULTS 42, 100
func TestEveryCutOfNewKeys(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	old := m.MachineSecret()
	first, err := m.EnrolledSet()
	m.Must(err)
	r, c := m.Asked()
	m.Types("y", m.RecoveryKey())
	random := mrand.New(mrand.NewPCG(71, 72))
	next, _ := m.Recording(func() string {
		m.Works(r.NewSecret(c, true))
		return ""
	}, random, "")
	known := map[string]bool{}
	states, ends := 0, map[bool]int{}
	for len(next) > 0 {
		s := next[0]
		next = next[1:]
		states++
		key := keysCondition(m, s.World, old)
		if known[key] {
			continue
		}
		known[key] = true
		m.PowerOn(s.World)
		m.Typed = nil
		m.Said.Reset()
		m.Printed.Reset()
		inner, end := m.Recording(m.Run, random, s.How+"; then ")
		if end != "system" || m.Printed.Len() > 0 || m.OpenVolume == nil {
			t.Fatalf("%s: ends in %s, asks %q:\n%s", s.How, end, m.Printed.String(), m.Said.String())
		}
		now, err := m.EnrolledSet()
		m.Must(err)
		stays := now.DB.Certificate.Equal(first.DB.Certificate)
		if err = m.OneSecret(); err == nil && !stays {
			err = m.Replaced(first)
		}
		if err != nil {
			t.Fatalf("%s: %v\n%s", s.How, err, m.Said.String())
		}
		if stays != old.Equal(m.MachineSecret()) {
			t.Errorf("%s: the keys are old: %v, and the secret is another", s.How, stays)
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
	m := machinetest.ProvisionedMachine(t, nil)
	first, err := m.EnrolledSet()
	m.Must(err)
	r, c := m.Asked()
	r.Variables.(*machinetest.Firmware).Refuse = machinetest.ErrNotNow
	m.Refuse = machinetest.ErrNotNow
	m.Types("y", m.RecoveryKey())
	states, _ := m.Recording(func() string {
		m.Refuses(r.NewSecret(c, true), "the Secure Boot keys stay as they are")
		return ""
	}, mrand.New(mrand.NewPCG(73, 74)), "")
	for _, s := range states {
		m.PowerOn(s.World)
		m.OpensByItself()
		m.OpensByItself()
		if err := m.OneSecret(); err != nil {
			t.Fatalf("%s: %v\n%s", s.How, err, m.Said.String())
		}
		now, err := m.EnrolledSet()
		m.Must(err)
		if !now.DB.Certificate.Equal(first.DB.Certificate) || m.KeysUnfinished() {
			t.Fatalf("%s: other keys are enrolled, or it is not taken back:\n%s", s.How, m.Said.String())
		}
	}
}
