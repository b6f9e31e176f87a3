package machinetest

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/rootlock"
)

// keeper implements recovery.Keeper in the test's memory.
type keeper struct{ open *recovery.Opened }

func (k *keeper) Keep(o *recovery.Opened) error {
	copied := *o.Secret
	k.open = &recovery.Opened{Secret: &copied, VolumeKey: slices.Clone(o.VolumeKey)}
	return nil
}

func (k *keeper) Kept() (*recovery.Opened, error) {
	if k.open == nil {
		return nil, recovery.ErrLocked
	}
	copied := *k.open.Secret
	return &recovery.Opened{Secret: &copied, VolumeKey: slices.Clone(k.open.VolumeKey)}, nil
}

func (k *keeper) Forget() error {
	k.open.Wipe()
	k.open = nil
	return nil
}

// Console is the machine at whose recovery console somebody sits.
func (m *Machine) Console() (*recovery.Machine, hw.Console) {
	m.Printed.Reset()
	return &recovery.Machine{
		Host:   host.Host{Given: host.Given{Machine: m.Agent.Machine, Variables: m.Agent.Variables, Random: m.Random, NewKeys: m.newKeys, Root: m.Root}},
		Keeper: &keeper{},
		Discard: func(f hw.File, off, length int64) error {
			_, err := f.WriteAt(bytes.Repeat([]byte{0xaa}, 1<<20), off)
			return err
		},
	}, person{m: m}
}

// InConsole makes a machine in use and starts it into the recovery console.
func InConsole(t *testing.T, change func(m *Machine)) *Machine {
	t.Helper()
	m := New(t, nil)
	for range 2 { // the second one is opened by the TPM
		if end := m.Run(); end != "system" {
			t.Fatalf("ends in %s:\n%s", end, m.Said.String())
		}
	}
	change(m)
	m.Typed = []string{""}
	if end := m.Boot(); end != "recovery" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	m.Typed = nil
	return m
}

// NewFirmware is what an update of the firmware changes in PCR 7.
func NewFirmware(m *Machine) { m.Extra = "new firmware" }

// Types adds answers that somebody will type.
func (m *Machine) Types(answers ...string) { m.Typed = append(m.Typed, answers...) }

// Works ends the test where a command of the console has failed, or has not said this.
func (m *Machine) Works(err error, says ...string) {
	m.T.Helper()
	if err != nil {
		m.T.Fatalf("%v\n%s", err, m.Printed.String())
	}
	for _, s := range says {
		if !strings.Contains(m.Printed.String(), s) {
			m.T.Errorf("lacks %q:\n%s", s, m.Printed.String())
		}
	}
}

// Refuses fails the test where a command of the console has not failed for this.
func (m *Machine) Refuses(err error, says string) {
	m.T.Helper()
	if err == nil || !strings.Contains(err.Error(), says) {
		m.T.Errorf("%v, want %q\n%s", err, says, m.Printed.String())
	}
}

// OpensByItself starts the machine and expects that it asks nothing.
func (m *Machine) OpensByItself() {
	m.T.Helper()
	m.Typed = nil
	m.Printed.Reset()
	m.Said.Reset()
	if end := m.Run(); end != "system" || m.Printed.Len() > 0 {
		m.T.Fatalf("ends in %s, asks %q:\n%s", end, m.Printed.String(), m.Said.String())
	}
	if m.OpenVolume == nil {
		m.T.Error("runs without its root partition")
	}
}

// Opens reports whether a recovery key opens the root partition.
func (m *Machine) Opens(key string) bool {
	s, err := m.Partition(layout.Root)
	if err != nil {
		m.T.Fatal(err)
	}
	_, lock, err := rootlock.Look(s, s.Size())
	if err != nil {
		m.T.Fatal(err)
	}
	volumeKey, secret, err := lock.OpenRecovery(s, []byte(key), 1<<20)
	if err != nil {
		return false
	}
	luks2.Wipe(volumeKey)
	secret.Wipe()
	return true
}

// OpensAnew starts the machine after a reset: it has to make a root partition that the old recovery key does not open.
func (m *Machine) OpensAnew(old string) {
	m.T.Helper()
	m.Typed = nil
	if end := m.Run(); end != "system" || m.OpenVolume == nil {
		m.T.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	if len(m.Shown) != 1 || m.Opens(old) || !m.Opens(m.Shown[0]) {
		m.T.Errorf("recovery keys %q, or the old one opens", m.Shown)
	}
	if err := m.Provisioned(); err != nil {
		m.T.Error(err)
	}
}
