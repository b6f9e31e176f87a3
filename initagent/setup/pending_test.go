package setup_test

import (
	"bytes"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootlock"
)

// strangersPending is what somebody can write who has this machine in hand: their
// own secret, which this TPM releases to this machine's boots, their own keys under
// it, and as what the firmware shall hold what it holds.
func strangersPending(m *machinetest.Machine, index bool) []byte {
	m.T.Helper()
	secret, err := policy.NewSecret(m.Random)
	m.Must(err)
	boot, sealed := m.SealForAttacker(secret)
	if !index {
		sealed, err = m.Agent.Chip.TPM.SealPCR(secret, policy.Provisional(), boot)
		m.Must(err)
	}
	m.ChipChanged = true
	sets, err := machinetest.KeySets()
	m.Must(err)
	p := new(firstboot.Pending)
	now, err := enroll.Observe(&machinetest.Firmware{Vars: m.Vars})
	m.Must(err)
	keys := sets[(m.KeysNo+1)%len(sets)]
	list := secureboot.NewList(keys, secureboot.Vendor{})
	list.Wanted = now.Live()
	p.Keys, err = firstboot.WrapKeys(m.Random, secret, keys, list)
	m.Must(err)
	p.Sealed, err = sealed.Encode()
	m.Must(err)
	p.Wanted, err = list.Wanted.Marshal()
	m.Must(err)
	text, err := p.Encode()
	m.Must(err)
	return text
}

// A machine whose root partition was emptied makes no new one with a secret and keys
// that somebody else has put on the ESP: its owner would go on with a volume that
// another can open. FAULTS 63, 66
func TestStrangersPending(t *testing.T) {
	for name, index := range map[string]bool{"sealed to an index of theirs": true, "sealed to registers": false} {
		t.Run(name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, nil)
			text := strangersPending(m, index)
			part, err := m.Partition(layout.Root)
			m.Must(err)
			_, err = part.WriteAt(bytes.Repeat([]byte{0}, rootlock.HeaderArea), 0)
			m.Must(err)
			m.PlantPending(text)
			m.Ops = nil
			m.Ends("recovery", "are not those that the firmware enforces")
			if len(m.Shown) != 1 || m.OpenVolume != nil || len(m.Written("disk")) > 0 {
				t.Errorf("%d recovery keys were shown, written: %q", len(m.Shown), m.Ops)
			}
		})
	}
}
