package host

import (
	"crypto/rsa"
	"errors"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/rootpart"
)

// KeyLimit is rootpart.KeyLimit of this machine.
func (h *Host) KeyLimit() (uint64, error) {
	memory, err := h.Memory()
	return rootpart.KeyLimit(memory), err
}

// KeyMemory is rootpart.KeyMemory of this machine.
func (h *Host) KeyMemory(cpus int) (uint64, error) {
	memory, err := h.Memory()
	if err != nil {
		return 0, err
	}
	return rootpart.KeyMemory(memory, cpus), nil
}

// HealHeader restores the copy of the LUKS2 header that a cut or a bad sector has
// left behind the other one. It is not worth a boot.
func (h *Host) HealHeader() {
	if h.Lock.Health.Good() {
		return
	}
	f, err := h.Disks.OpenPartition(h.Disk, layout.RootNumber, true)
	if err == nil {
		err = errors.Join(h.Lock.Header.Heal(h.Random, f), f.Close())
	}
	if err != nil {
		h.Log.Say("one copy of the root partition's header is damaged, and was not restored: %v", err)
		return
	}
	h.Log.Say("one copy of the root partition's header was damaged, and is restored")
}

// StoredKeys are this machine's Secure Boot keys, from the open root partition.
func (h *Host) StoredKeys(secret *policy.Secret) (*secureboot.KeySet, error) {
	return rootpart.StoredKeys(h.Store, secret, h.Lock)
}

// MayOpen refuses a volume that this machine did not make.
func (h *Host) MayOpen(record *policy.Record, volumeKey []byte) error {
	return rootpart.MayOpen(h.Lock, record, volumeKey, h.FirmwareKeys, h.Contract.SecureBoot)
}

// deedKey is the key that signs the root partition's deed; nil where there is none.
func deedKey(keys *secureboot.KeySet) *rsa.PrivateKey {
	if keys == nil {
		return nil
	}
	return keys.DB.Key
}
