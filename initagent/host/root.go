package host

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"path"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/lastgood"
	"halogenos.internal/initagent/rootpart"
)

// KeyLimit is rootpart.KeyLimit of this machine.
func (h *Host) KeyLimit() (uint64, error) {
	memory, err := h.Memory()
	return rootpart.KeyLimit(memory), err
}

// HealHeader restores the copy of the LUKS2 header that a cut or a bad sector has
// left behind the other one. It is not worth a boot.
func (h *Host) HealHeader() {
	if h.Lock.Health.Good() {
		return
	}
	f, err := h.Disks.OpenPartition(h.Disk, layout.Root, true)
	if err == nil {
		err = errors.Join(h.Lock.Header.Heal(h.Random, f), f.Close())
	}
	if err != nil {
		h.Log.Say("one copy of the root partition's header is damaged, and was not restored: %v", err)
		return
	}
	h.Log.Say("one copy of the root partition's header was damaged, and is restored")
}

// ErrNoSecret says that what needs the machine secret was asked of a boot that does not have
// it: it was never opened, or it was wiped when nothing needed it any more.
var ErrNoSecret = errors.New("the machine's keys are not at hand in this boot")

// StoredKeys are this machine's Secure Boot keys, from the open root partition.
func (h *Host) StoredKeys(secret *policy.Secret) (*secureboot.KeySet, error) {
	if secret == nil {
		return nil, ErrNoSecret
	}
	return rootpart.StoredKeys(h.Store, secret, h.Lock)
}

// ownerKey is the key that signs the root partition's owner signature; nil where there is none.
func ownerKey(keys *secureboot.KeySet) *rsa.PrivateKey {
	if keys == nil {
		return nil
	}
	return keys.DB.Key
}

// CheckFloor reads what the machine has had, once its root partition is open, and
// refuses a system under the floor. Where the TPM has released the secret, what it did
// so by counts as well: the record, or nil where it can hold none. That is noted, which
// is not worth a boot: on a full file system it is noted at a later one. Where a person
// has opened the root partition, nothing is: what is missing stays missing.
func (h *Host) CheckFloor(released bool, record *policy.Record, secret *policy.Secret) error {
	have := rootpart.ReadGuarantees(h.Store, secret)
	h.Had = have
	if released {
		now := rootpart.Of(record, rootpart.Enforces(h.FirmwareKeys))
		now.PIN = secret.PIN() != nil
		if err := h.Guarantee(have.Raise(now), secret); err != nil {
			h.Log.Say("what this machine has had was not noted: %v", err)
		}
	}
	h.State.Floor = max(h.State.Floor, h.Had.Floor)
	if h.Contract.Epoch < h.Had.Floor {
		return fmt.Errorf("this system's epoch is %d and the floor is %d: %w", h.Contract.Epoch, h.Had.Floor, rootpart.ErrReplaced)
	}
	return nil
}

// KeepLog keeps this boot's event log where it differs from the last one in a
// PCR that matters. The new file is there before the old one goes.
func (h *Host) KeepLog(secret *policy.Secret) error {
	now, raw, err := h.ReadLog()
	if err != nil {
		return err
	}
	if last := h.LastGood(secret); last != nil && last.Authentic && len(lastgood.Differences(last.Log, now)) == 0 {
		return nil
	}
	return h.WriteESP(func(dir hw.ESPDir) error {
		if err := dir.MakeDirectory(firstboot.Directory); err != nil {
			return err
		}
		names, err := dir.List(firstboot.Directory)
		if err != nil {
			return err
		}
		var old []string
		fresh := lastgood.Fresh(h.Now(), secret, raw)
		for _, n := range names {
			if full := path.Join(firstboot.Directory, n.Name); lastgood.Is(n.Name) && full != fresh {
				old = append(old, full)
			}
		}
		return enroll.Replace(dir, fresh, raw, old...)
	})
}
