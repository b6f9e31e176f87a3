package machinetest

import (
	"crypto/sha256"
	"strings"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki"
	"halogenos.internal/initagent/agent"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/setup"
	"halogenos.internal/initagent/tpm"
)

// Rogue puts a volume of the attacker's own in place of the root partition,
// sealed to this TPM for this boot where token is set, and returns its recovery key.
func (m *Machine) Rogue(token bool) string {
	m.T.Helper()
	secret, err := policy.NewSecret(m.Random)
	m.Must(err)
	recovery, err := luks2.NewRecoveryKey(m.Random)
	m.Must(err)
	sets, err := KeySets()
	m.Must(err)
	s, err := m.Partition(layout.Root)
	m.Must(err)
	o := rootlock.Options{UUID: m.Agent.Lock.Header.UUID, Size: s.Size(),
		Memory: 64 << 10, CPUs: 1, Secret: secret, Recovery: &recovery, Owner: sets[(m.KeysNo+1)%len(sets)].DB.Key}
	var boot policy.Boot
	if token {
		boot, o.Sealed = m.SealForAttacker(secret)
	}
	lock, volumeKey, err := rootlock.Make(m.Random, s, o)
	m.Must(err)
	m.Must(lock.Finish(m.Random, s))
	if token {
		key, err := secret.WriteKey()
		m.Must(err)
		m.Must(tpm.OpenTransport(m.Emulator).WriteRecord(o.Sealed.NVIndex, key, &policy.Record{
			Volume: policy.VolumeFingerprint(volumeKey), Branches: []policy.Branch{{Policy: boot.Branch(), Version: 1, Epoch: 5}},
		}))
		m.ChipChanged = true
	}
	m.Volumes[policy.VolumeFingerprint(volumeKey)] = map[string][]byte{}
	m.Ops = nil
	m.Printed.Reset()
	return string(recovery.Passphrase())
}

// SealForAttacker seals to what this machine's boots look like, which is no
// secret. It takes a machine that stands at the beginning of one.
func (m *Machine) SealForAttacker(secret *policy.Secret) (policy.Boot, *policy.Sealed) {
	m.T.Helper()
	m.Must(m.Emulator.PowerOn(m.World(true, nil).Chip))
	_, _, err := m.Start()
	m.Must(err)
	a := &agent.Agent{Host: host.Host{Given: host.Given{Machine: m.Agent.Machine, Root: m.Root, Random: m.Random}, Contract: m.Agent.Contract, Found: host.Found{Disk: m.Agent.Disk}}}
	a.Chip.TPM, err = m.OpenTPM()
	m.Must(err)
	m.Must(a.EnterPhase())
	start, err := a.Expected()
	m.Must(err)
	boot := start.Boot
	sealed, err := setup.SealProvisionally(&a.Host, secret, nil)
	m.Must(err)
	return boot, sealed
}

// ForgedPending is a file that claims other Secure Boot keys.
func (m *Machine) ForgedPending() []byte {
	m.T.Helper()
	sets, err := KeySets()
	m.Must(err)
	wanted, err := sets[(m.KeysNo+1)%3].Wanted(secureboot.Vendor{}).Marshal()
	m.Must(err)
	sealed, err := m.Agent.Lock.Sealed.Encode()
	m.Must(err)
	text, err := (&firstboot.Pending{Sealed: sealed, Keys: []byte("x"), Wanted: wanted}).Encode()
	m.Must(err)
	return text
}

// PlantPending puts a note of the first boot on the ESP, as somebody with the disk in hand can.
func (m *Machine) PlantPending(text []byte) {
	r := Remains{Data: text}
	m.ESP.Files[firstboot.Name(0)] = &ESPFile{r, []Remains{r}}
}

// StealPending unseals what the first boot has left on the ESP, as somebody does
// who has the machine in hand before its second boot: with any firmware setting, and
// with the UKI's measurements replayed.
func (m *Machine) StealPending() (*policy.Sealed, *policy.Secret) {
	m.T.Helper()
	var p *firstboot.Pending
	for name, f := range m.ESP.Files {
		if strings.HasPrefix(name, firstboot.Directory) && !f.Now.Absent {
			if q, err := firstboot.Parse(f.Now.Data); err == nil {
				p = q
			}
		}
	}
	sealed, err := p.SealedSecret()
	m.Must(err)
	m.Must(m.Emulator.PowerOn(m.World(true, nil).Chip))
	m.ReplayFirstBoot()
	chip := tpm.OpenTransport(m.Emulator)
	secret, _, err := chip.Unseal(sealed)
	m.Must(err)
	return sealed, secret
}

// ReplayFirstBoot makes the TPM hold what a start of the first release leaves in it, with
// any firmware setting.
func (m *Machine) ReplayFirstBoot() {
	m.T.Helper()
	m.Must(m.Emulator.Extend(7, pcr.Digest(sha256.Sum256([]byte("Secure Boot is off, any program")))))
	parsed, err := uki.Parse(m.Releases[1].UKI)
	m.Must(err)
	b := newLog()
	for _, name := range []string{".linux", ".osrel", ".cmdline", ".initrd", ".sbat"} {
		data, _ := parsed.Section(name)
		b.event(pcr.KernelImage, pcr.EventIPL, []byte(name+"\x00"))
		b.event(pcr.KernelImage, pcr.EventIPL, data)
	}
	for _, e := range b.events {
		m.Must(m.Emulator.Extend(e.register, e.digest))
	}
	m.Must(tpm.OpenTransport(m.Emulator).ExtendText(pcr.KernelImage, pcr.EnterInitrd))
}
