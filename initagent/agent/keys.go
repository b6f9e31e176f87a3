package agent

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/enrol"
	"halogenos.internal/initagent/provision"
)

// observeKeys says how far the Secure Boot keys have come.
func (a *Agent) observeKeys() error {
	state, err := enrol.Observe(a.Variables)
	if err != nil {
		if a.contract.SecureBoot == contract.Optional {
			a.state.Keys = slot.KeysUnneeded
			return nil
		}
		return err
	}
	a.firmware = state
	var wanted secureboot.Wanted
	if a.pending != nil {
		if wanted, err = secureboot.ParseWanted(a.pending.Wanted); err != nil {
			return err
		}
	}
	a.state.Keys = a.judgeKeys(state, wanted)
	return nil
}

// judgeKeys: a machine in use has no list of what it enrolled within reach
// before its root partition is open; whether the firmware holds the same keys
// still is for PCR 7 to say.
func (a *Agent) judgeKeys(state enrol.State, wanted secureboot.Wanted) slot.Keys {
	inUse := a.pending == nil && (a.state.Root == slot.RootLocked || a.state.Root == slot.RootOpen || a.state.Root == slot.RootDamaged)
	enforced := state.SecureBoot == enrol.On && state.SetupMode != enrol.On
	switch {
	case a.facts.Enrol == slot.Done:
		return slot.KeysFinished
	case inUse && enforced:
		return slot.KeysEnrolled
	case inUse && state.SetupMode == enrol.On:
		return slot.KeysMissing
	case inUse:
		return slot.KeysOff
	}
	keys := enrol.Keys(state, wanted)
	if (keys == slot.KeysForeign || keys == slot.KeysOff) && a.contract.SecureBoot == contract.Optional {
		return slot.KeysUnneeded
	}
	return keys
}

// readPending reads what the first boot left for the second, the newest file
// that makes sense. None is nil.
func (a *Agent) readPending() error {
	a.pending = nil
	return a.readESP(func(esp *fat.FS) error {
		entries, err := fs.ReadDir(esp, provision.Folder)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		newest := -1
		for _, e := range entries {
			n, ok := provision.Count(e.Name())
			if !ok || n < newest {
				continue
			}
			text, err := fs.ReadFile(esp, path.Join(provision.Folder, e.Name()))
			if err != nil {
				return err
			}
			// A file that a cut left unfinished is as good as none: it is
			// written before anything depends on it.
			if p, err := provision.Parse(text); err == nil {
				a.pending, newest = p, n
			}
		}
		return nil
	})
}

// enrol makes this machine's Secure Boot keys, signs with them what the machine
// starts, and enrols them.
//
// The order: the private keys are on the disk, sealed, before anything is signed
// by them; everything is signed before the firmware is told; and PK, which makes
// it count, comes last (enrol.Plan). Cut anywhere, the machine is in Setup Mode,
// starts anything, and comes back here; cut after PK, everything is in place.
func (a *Agent) enrol() error {
	secret, keys, err := a.ownKeys()
	if err != nil {
		return err
	}
	defer secret.Wipe()
	defer keys.Wipe()
	vendor, err := a.vendorKeys(keys)
	if err != nil {
		return err
	}
	wanted := keys.Wanted(vendor)
	a.Log.Say("vendor keys: %s", vendor.Reason)
	if a.pending == nil {
		if err := a.keepKeys(secret, keys, wanted); err != nil {
			return err
		}
	}
	signer := enrol.DBSigner{Pair: keys.DB, Time: keys.DB.Certificate.NotBefore}
	return a.writeESP(func(dir enrol.MountedDir) error {
		results, err := enrol.SignAll(dir, a.firmware, signer)
		for _, r := range results {
			a.Log.Say("%s: %s", r.Name, r.Outcome)
		}
		if err != nil {
			return err
		}
		enrolments := 0
		if a.pending != nil {
			enrolments = a.pending.Enrolments
		}
		e := enrol.Enroller{
			Variables: a.Variables, Keys: keys, Wanted: wanted,
			Time:   secureboot.Timestamp(a.Now(), a.contract.Date()),
			Signed: func() error { return enrol.CheckSigned(dir, signer) },
			Pause:  time.Sleep,
			Say:    func(m string) { a.Log.Say("%s", m) },
		}
		if err := e.Run(enrolments); err != nil {
			return err
		}
		return a.countEnrolment(dir)
	})
}

// countEnrolment makes firmware that forgets its keys at every restart end in
// the recovery console and not in a loop. Cut before it, one enrolment is not
// counted.
func (a *Agent) countEnrolment(dir enrol.MountedDir) error {
	if a.pending == nil {
		return nil
	}
	next := *a.pending
	next.Enrolments++
	text, err := next.Encode()
	if err != nil {
		return err
	}
	return enrol.Replace(dir, provision.Name(next.Enrolments), text, provision.Name(a.pending.Enrolments))
}

// ownKeys returns the machine secret and the keys: those that an enrolment which
// was cut has made, or new ones.
func (a *Agent) ownKeys() (*policy.Secret, *secureboot.KeySet, error) {
	if a.pending != nil {
		secret, keys, err := a.openPending()
		if err == nil {
			return secret, keys, nil
		}
		// In Setup Mode with an empty root partition nothing depends on them.
		a.Log.Say("the keys of an earlier start cannot be used (%v): making new ones", err)
		a.pending = nil
	}
	secret := a.secret
	if secret == nil {
		var err error
		if secret, err = policy.NewSecret(rand.Reader); err != nil {
			return nil, nil, err
		}
	}
	keys, err := secureboot.Generate(rand.Reader, a.contract.Date())
	if err != nil {
		secret.Wipe()
		return nil, nil, err
	}
	return secret, keys, nil
}

// openPending unseals what the first boot left.
func (a *Agent) openPending() (*policy.Secret, *secureboot.KeySet, error) {
	if a.TPM.Err != nil {
		return nil, nil, a.TPM.Err
	}
	sealed, err := a.pending.SealedSecret()
	if err != nil {
		return nil, nil, err
	}
	secret, _, err := a.TPM.tpm.Unseal(sealed)
	if err != nil {
		return nil, nil, err
	}
	keys, err := provision.UnwrapKeys(secret, a.pending.Keys)
	if err != nil {
		secret.Wipe()
		return nil, nil, err
	}
	return secret, keys, nil
}

// keepKeys puts the private keys where only the initramfs phase of this UKI on
// this machine can read them.
func (a *Agent) keepKeys(secret *policy.Secret, keys *secureboot.KeySet, wanted secureboot.Wanted) error {
	wrapped, err := provision.WrapKeys(rand.Reader, secret, keys)
	if err != nil {
		return err
	}
	if a.state.Root == slot.RootOpen {
		return a.storeKeys(wrapped, wanted)
	}
	sealed, err := a.sealProvisionally(secret)
	if err != nil {
		return err
	}
	p := &provision.Pending{Keys: wrapped}
	if p.Sealed, err = sealed.Encode(); err != nil {
		return err
	}
	if p.Wanted, err = wanted.Marshal(); err != nil {
		return err
	}
	text, err := p.Encode()
	if err != nil {
		return err
	}
	if err := a.writeESP(func(dir enrol.MountedDir) error { return writePending(dir, text) }); err != nil {
		return err
	}
	a.pending = p
	return nil
}

// writePending writes the first file of its kind. What lies under its name is
// of a start that was cut before anything depended on it.
func writePending(dir enrol.MountedDir, text []byte) error {
	if err := os.MkdirAll(filepath.Join(dir.Root, provision.Folder), 0o700); err != nil {
		return err
	}
	if err := dir.SyncDir(path.Dir(provision.Folder)); err != nil {
		return err
	}
	names, err := dir.List(provision.Folder)
	if err != nil {
		return err
	}
	for _, n := range names {
		if _, ours := provision.Count(n.Name); ours {
			if err := dir.Remove(path.Join(provision.Folder, n.Name)); err != nil {
				return err
			}
		}
	}
	return enrol.Replace(dir, provision.Name(0), text)
}

// sealProvisionally seals the machine secret to the initramfs phase of the
// running UKI. Where the TPM has an NV index, this object is the one that will
// open the root partition later, under the full record.
func (a *Agent) sealProvisionally(secret *policy.Secret) (*policy.Sealed, error) {
	boot, err := a.expected()
	if err != nil {
		return nil, err
	}
	over, err := boot.BranchOver(policy.Provisional())
	if err != nil {
		return nil, err
	}
	return a.seal(secret, boot, &policy.Record{
		Floor:    a.contract.Epoch,
		Branches: []policy.Branch{{Policy: over, Version: uint64(a.contract.Version), Epoch: a.contract.Epoch}},
	})
}

// vendorKeys decides about the certificates of others, from the event log.
func (a *Agent) vendorKeys(keys *secureboot.KeySet) (secureboot.Vendor, error) {
	var drivers secureboot.Drivers
	if log, _, err := readLog(); err == nil {
		drivers = log.Drivers()
	} else {
		a.Log.Say("option ROMs are not known: %v", err)
	}
	return secureboot.VendorCertificates(a.contract.VendorKeys, keys.Owner, drivers, a.firmware.Factory)
}

// ownCertificates are the certificates that the firmware's db holds.
func (a *Agent) ownCertificates() []*x509.Certificate {
	var out []*x509.Certificate
	for _, e := range a.firmware.DB.Content {
		if e.Type != secureboot.TypeX509 {
			continue
		}
		if c, err := x509.ParseCertificate(e.Data); err == nil {
			out = append(out, c)
		}
	}
	return out
}

// checkEnforced is the check after the restart that ends an enrolment.
func (a *Agent) checkEnforced() error {
	wanted, err := secureboot.ParseWanted(a.pending.Wanted)
	if err != nil {
		return err
	}
	for _, d := range enrol.Enforced(a.firmware, wanted) {
		return fmt.Errorf("the firmware does not enforce what was enrolled: %s", d)
	}
	return nil
}
