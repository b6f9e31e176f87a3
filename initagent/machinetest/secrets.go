package machinetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// Asked starts a machine into a console that somebody has asked for, and unlocks there.
func (m *Machine) Asked() (*recovery.Machine, hw.Console) {
	m.T.Helper()
	m.Presses, m.Looks = 1, 0
	m.Typed = nil
	if end := m.Boot(); end != "recovery" {
		m.T.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	m.Presses = 0
	r, c := m.Console()
	m.Types(m.RecoveryKey())
	m.Works(r.Unlock(c))
	return r, c
}

// OneSecret reports what is left of any machine secret but the one that the recovery
// key gives, on a machine that has started.
func (m *Machine) OneSecret() error {
	lock, volumeKey, secret := m.Unlocked()
	defer luks2.Wipe(volumeKey)
	defer secret.Wipe()
	s, err := m.Partition(layout.Root)
	if err != nil {
		return err
	}
	if _, err := lock.OpenTPM(s, secret, 1<<20); err != nil {
		return err
	}
	if lock.Replaced || len(lock.Header.Keyslots()) != 2 || len(lock.Header.Tokens()) != 3 {
		return fmt.Errorf("%d keyslots, %d tokens", len(lock.Header.Keyslots()), len(lock.Header.Tokens()))
	}
	keys, err := rootpart.StoredKeys(Store{m}, secret, lock)
	if err != nil || keys == nil {
		return fmt.Errorf("keys %v, %w", keys, err)
	}
	_, certificates, err := CertificatesIn(m.Vars)
	if err != nil || !keys.DB.Certificate.Equal(certificates[0]) {
		return fmt.Errorf("the db key that is kept is not the one enrolled: %w", err)
	}
	if err := rootlock.CheckOwnerSignature(lock.OwnerSignature, volumeKey, certificates); err != nil {
		return err
	}
	list, err := rootpart.StoredList(Store{m}, secret, lock)
	if err != nil || list.Bare || !list.Names("test_1.efi") {
		return fmt.Errorf("list %v, %w", list, err)
	}
	want := rootpart.Guarantees{Format: 1, Floor: 5, Record: true, Programs: true, SecureBoot: true}
	if g := rootpart.ReadGuarantees(Store{m}, secret); g != want {
		return fmt.Errorf("guarantees %+v, want %+v", g, want)
	}
	for _, name := range []string{rootpart.NextFile, rootpart.KeysFile} {
		if _, there := m.RootFiles()[name]; there {
			return fmt.Errorf("%s is still there", name)
		}
	}
	chip := tpm.OpenTransport(m.Emulator)
	indexes, err := chip.Indexes()
	if err != nil || len(indexes) != 1 || indexes[0].Handle != lock.Sealed.NVIndex {
		return fmt.Errorf("NV indexes %v, %w", indexes, err)
	}
	record, err := chip.ReadRecord(lock.Sealed)
	if err != nil || record.Floor != 5 || !record.Programs {
		return fmt.Errorf("record %+v, %w", record, err)
	}
	return rootlock.CheckFingerprint(record, volumeKey)
}

// AsksForSecret is root of the running system.
func (m *Machine) AsksForSecret(keys bool) {
	m.T.Helper()
	r := &recovery.Machine{Host: host.Host{Given: host.Given{Machine: m.Agent.Machine, Variables: m.Agent.Variables, Root: m.T.TempDir()}}}
	if r.AtConsole() {
		m.T.Error("the running system is taken for the recovery console")
	}
	m.Must(r.AskForSecret(keys))
}

// request is the content of the variable.
func (m *Machine) Requested() []byte { return m.Vars[nextboot.Variable].Data }

// OtherSecret is what the boot says of a machine secret that is not this machine's.
const OtherSecret = "does not open the Secure Boot keys that the firmware enforces"

// AsksForPIN is root of the running system.
func (m *Machine) AsksForPIN(what nextboot.PIN) {
	m.T.Helper()
	m.memory = 128 << 20
	r := &recovery.Machine{Host: host.Host{Given: host.Given{Machine: m.Agent.Machine, Variables: m.Agent.Variables, Root: m.T.TempDir()}}}
	m.Must(r.AskForPIN(what))
}

// WithPIN is a provisioned machine with a PIN.
func WithPIN(t *testing.T, pin string) *Machine {
	t.Helper()
	m := ProvisionedMachine(t, Pinned)
	m.SetsPIN(pin)
	return m
}

// SetsPIN has the running system ask for a PIN, and the owner type it at the next start.
func (m *Machine) SetsPIN(pin string) {
	m.T.Helper()
	m.AsksForPIN(nextboot.SetPIN)
	m.orderly = true
	m.Printed.Reset()
	m.Typed = []string{m.RecoveryKey(), pin, pin}
	if end := m.Boot(); end != "reboot" {
		m.T.Fatalf("setting the PIN ends in %s:\n%s\n%s", end, m.Said.String(), m.Printed.String())
	}
	if !strings.Contains(m.Printed.String(), "A NEW PIN: this was asked for from the running system") || !strings.Contains(m.Printed.String(), "The PIN is set") {
		m.T.Errorf("it says:\n%s", m.Printed.String())
	}
}

// StartsBy starts the machine with what is typed.
func (m *Machine) StartsBy(typed ...string) {
	m.T.Helper()
	m.Printed.Reset()
	m.Waits, m.Typed = nil, typed
	m.Ends("system")
	if m.OpenVolume == nil || len(m.Typed) > 0 {
		m.T.Fatalf("it does not open, or %q was not asked for:\n%s\n%s", m.Typed, m.Printed.String(), m.Said.String())
	}
}

// Noted is what the root partition says that the machine has had.
func (m *Machine) Noted() (g rootpart.Guarantees) {
	m.T.Helper()
	_, volumeKey, secret := m.Unlocked()
	defer luks2.Wipe(volumeKey)
	defer secret.Wipe()
	text, err := secret.Unbox("guarantees", m.RootFiles()[rootpart.GuaranteesFile])
	m.Must(err)
	m.Must(json.Unmarshal(text, &g))
	return g
}

// Undefine deletes the TPM's index, as anybody with the machine in hand can.
func (m *Machine) Undefine() {
	m.T.Helper()
	lock, volumeKey, secret := m.Unlocked()
	luks2.Wipe(volumeKey)
	secret.Wipe()
	m.Must(tpm.OpenTransport(m.Emulator).Undefine(lock.Sealed.NVIndex))
	m.ChipChanged = true
}

// StartsTyped boots a machine whose TPM opens nothing, by the recovery key and what
// else is asked, until it runs a system or stops.
func (m *Machine) StartsTyped(answers ...string) (end string) {
	m.T.Helper()
	for range 4 {
		m.Typed = append([]string{m.RecoveryKey()}, answers...)
		m.Printed.Reset()
		if end = m.Boot(); end != "reboot" {
			return end
		}
	}
	return end
}

// KeysAreKept checks that the firmware has the keys of the root partition.
func (m *Machine) KeysAreKept() {
	m.T.Helper()
	list, err := m.StoredList()
	m.Must(err)
	own, err := list.DBCertificate()
	m.Must(err)
	if !bytes.Contains(m.Vars["db"].Data, own.Raw) {
		m.T.Error("the firmware's keys are not those of the root partition")
	}
}

// OptionalTPM is a change to a contract: updates are signed, and a TPM is not required.
func OptionalTPM(c *contract.Contract) { Pinned(c); c.TPM = contract.Optional }

// ErrDead is of a TPM that the firmware has, and the kernel has not.
var ErrDead = errors.New("the firmware has a TPM 2.0, and the kernel has no device for it")
