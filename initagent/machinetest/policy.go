package machinetest

import (
	"testing"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/bls"
)

// Accepts boots a machine that has changed, with somebody at it who says yes.
func (m *Machine) Accepts(says ...string) {
	m.T.Helper()
	m.AcceptsBy([]string{"y"}, says...)
}

// Rebinds is accepts on a machine whose TPM has lost the record.
func (m *Machine) Rebinds(says ...string) {
	m.T.Helper()
	m.AcceptsBy([]string{"y", "weaker"}, says...)
}

// AcceptsBy starts the machine with the recovery key and these answers, which it has to ask for.
func (m *Machine) AcceptsBy(answers []string, says ...string) {
	m.T.Helper()
	m.Typed = append([]string{m.RecoveryKey()}, answers...)
	m.Ends("system", says...)
	if m.OpenVolume == nil || len(m.Typed) > 0 {
		m.T.Fatalf("the root partition is closed, or nobody asks for %q:\n%s", m.Typed, m.Said.String())
	}
}

// Updated is a machine on which the second release has proven itself.
func Updated(t *testing.T) *Machine {
	m := ProvisionedMachine(t, Pinned)
	m.Fetch(NewRelease(t, 2, 5, Pinned))
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	return m
}

// FillTPM takes all the room that the TPM has.
func (m *Machine) FillTPM() {
	m.T.Helper()
	m.Must(m.Emulator.PowerOn(m.World(true, nil).Chip))
	m.FillRest()
}

// EmptyTPM makes room again.
func (m *Machine) EmptyTPM() {
	m.T.Helper()
	m.Must(m.Emulator.PowerOn(m.World(true, nil).Chip))
	for i := range uint32(200) {
		index := tpm2.TPMHandle(0x01800000 + i)
		there, err := tpm2.NVReadPublic{NVIndex: index}.Execute(m.Emulator)
		if err != nil {
			continue
		}
		_, err = tpm2.NVUndefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, NVIndex: tpm2.NamedHandle{Handle: index, Name: there.NVName},
		}.Execute(m.Emulator)
		m.Must(err)
	}
	m.ChipChanged = true
}

// FillRest takes the room that is left.
func (m *Machine) FillRest() {
	m.T.Helper()
	size := uint16(2048)
	for i := uint32(0); size > 0; i++ {
		_, err := tpm2.NVDefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{NVIndex: tpm2.TPMHandle(0x01800000 + i), NameAlg: tpm2.TPMAlgSHA256, DataSize: size,
				Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true}}),
		}.Execute(m.Emulator)
		if err != nil {
			size /= 2
		}
	}
	m.ChipChanged = true
}

// UkisSigned checks that the firmware starts every UKI.
func (m *Machine) UkisSigned() error {
	for _, name := range m.Systems() {
		n, err := bls.Parse(name)
		if err != nil {
			return err
		}
		if err := m.Startable("EFI/Linux/"+name, m.Releases[n.Version].UKI); err != nil {
			return err
		}
	}
	return nil
}
