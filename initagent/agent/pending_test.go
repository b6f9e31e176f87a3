package agent

import (
	"bytes"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/rootlock"
)

// strangersPending is what somebody can write who has this machine in hand: their
// own secret, which this TPM releases to this machine's boots, their own keys under
// it, and as what the firmware shall hold what it holds.
func (m *machine) strangersPending(index bool) []byte {
	m.t.Helper()
	secret, err := policy.NewSecret(m.random)
	m.must(err)
	boot, sealed := m.sealForAttacker(secret)
	if !index {
		sealed, err = m.agent.Chip.TPM.SealPCR(secret, policy.Provisional(), boot)
		m.must(err)
	}
	m.chipChanged = true
	sets, err := keySets()
	m.must(err)
	p := new(firstboot.Pending)
	now, err := enroll.Observe(&firmware{vars: m.vars})
	m.must(err)
	keys := sets[(m.keysNo+1)%len(sets)]
	list := secureboot.NewList(keys, secureboot.Vendor{})
	list.Wanted = now.Live()
	p.Keys, err = firstboot.WrapKeys(m.random, secret, keys, list)
	m.must(err)
	p.Sealed, err = sealed.Encode()
	m.must(err)
	p.Wanted, err = list.Wanted.Marshal()
	m.must(err)
	text, err := p.Encode()
	m.must(err)
	return text
}

// A machine whose root partition was emptied makes no new one with a secret and keys
// that somebody else has put on the ESP: its owner would go on with a volume that
// another can open. FAULTS 63, 66
func TestStrangersPending(t *testing.T) {
	for name, index := range map[string]bool{"sealed to an index of theirs": true, "sealed to registers": false} {
		t.Run(name, func(t *testing.T) {
			m := provisionedMachine(t, nil)
			text := m.strangersPending(index)
			part, err := m.partition(layout.RootNumber)
			m.must(err)
			_, err = part.WriteAt(bytes.Repeat([]byte{0}, rootlock.HeaderArea), 0)
			m.must(err)
			m.plantPending(text)
			m.ops = nil
			m.ends("recovery", "are not those that the firmware enforces")
			if len(m.shown) != 1 || m.openVolume != nil || len(m.written("disk")) > 0 {
				t.Errorf("%d recovery keys were shown, written: %q", len(m.shown), m.ops)
			}
		})
	}
}
