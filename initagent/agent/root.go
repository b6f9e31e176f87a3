package agent

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
	"halogenos.internal/initagent/vault"
)

// observeRoot looks at the root partition, until it is open.
func (a *Agent) observeRoot() error {
	if a.State.Root == slot.RootOpen {
		return nil
	}
	root, lock, err := rootpart.Look(a.Disks, a.Disk, a.Table)
	a.State.Root, a.Lock = root, lock
	if root == slot.RootAbsent {
		return err
	}
	if err != nil {
		a.facts.Cause = err.Error()
	}
	return nil
}

// observeLoss tells a root partition that was never finished from one that was lost.
func (a *Agent) observeLoss() error {
	if !a.State.Root.Making() && a.State.Root != slot.RootDamaged {
		return nil
	}
	between, err := a.betweenBoots()
	if err != nil {
		a.Log.Say("whether the root partition was made before is not known: %v", err)
	}
	judged := slot.JudgeRoot(a.State, slot.Past{Between: between, Unlocked: a.unlocked, OwnKeys: a.OwnEnforced()})
	if judged == slot.RootDamaged && a.State.Root.Making() {
		a.facts.Cause = "its header is empty, although it was made before"
	}
	a.State.Root = judged
	return nil
}

// betweenBoots reports whether this machine's first boot has left its keys, and
// no second one has finished since. Where the TPM holds a record that is for it
// to say, since on the ESP anybody can put back what was there; where it can hold none,
// it counts its starts, of which the first boot's object gets a few.
func (a *Agent) betweenBoots() (bool, error) {
	if a.pending == nil || a.Chip.Err != nil || a.State.Keys != slot.KeysEnrolled {
		return false, nil
	}
	sealed, err := a.pending.SealedSecret()
	if err != nil {
		return false, err
	}
	if sealed.Kind != policy.KindNV {
		expired, err := a.Chip.TPM.Expired(sealed)
		return err == nil && !expired, err
	}
	record, err := a.Chip.TPM.ReadRecord(sealed)
	return err == nil && record.Provisional(), err
}

// owner is what a new root partition is made with.
type owner struct {
	secret  *policy.Secret
	keys    *secureboot.KeySet // nil where there are none
	wrapped []byte             // the keys and their list under the secret; nil where there are none
	sealed  *policy.Sealed     // nil without a TPM
	start   *rootpart.Start    // nil without a TPM
}

func (o *owner) wipe() {
	if o.secret != nil {
		o.secret.Wipe()
	}
	if o.keys != nil {
		o.keys.Wipe()
	}
}

func (o *owner) deedKey() *rsa.PrivateKey {
	if o.keys == nil {
		return nil
	}
	return o.keys.DB.Key
}

// errMade refuses to make a root partition where there was one: what is left on
// the ESP, and in the header, anybody can write.
var errMade = errors.New("the TPM knows that this machine's root partition was made before: it is not made again by itself")

// owner takes up what the first boot left, or, where Secure Boot is optional and
// nothing was enrolled, makes a secret. The caller wipes it.
func (a *Agent) owner() (*owner, error) {
	o := new(owner)
	var err error
	if a.pending != nil && a.State.Keys == slot.KeysEnrolled {
		err = a.takePending(o)
	} else {
		a.Released = true
		o.secret, err = policy.NewSecret(a.Random)
	}
	if err == nil && a.Chip.Err == nil {
		err = a.bind(o)
	}
	if err != nil {
		o.wipe()
		return nil, err
	}
	return o, nil
}

// errPlanted refuses to make a root partition with what somebody else has put on
// the ESP. They can seal a secret of their own to this TPM, with a record of their
// own, and say of the firmware what it holds; what they do not have is the private
// key of the certificate that it enforces, and a key set is taken whole.
var errPlanted = errors.New("the keys that lie on the ESP are not those that the firmware enforces: this machine did not make them")

func (a *Agent) takePending(o *owner) (err error) {
	var record *policy.Record
	if o.secret, o.keys, record, err = a.openPending(); err != nil {
		return fmt.Errorf("the keys of the first boot: %w", err)
	}
	if a.List, err = firstboot.UnwrapList(o.secret, a.pending.Keys); err != nil {
		return fmt.Errorf("the keys of the first boot: %w", err)
	}
	if err := a.checkEnforced(a.List.Wanted); err != nil {
		return err
	}
	if record != nil && !record.Provisional() {
		return errMade
	}
	if !slices.ContainsFunc(rootpart.Certificates(a.FirmwareKeys), o.keys.DB.Certificate.Equal) {
		return errPlanted
	}
	return a.freshSecret(o)
}

// freshSecret gives the machine another secret than the first boot's, which was
// sealed to the UKI alone: whoever had the machine between the two boots could
// unseal it with any firmware setting.
//
// The first boot's index stays until the volume is finished, so that a start that
// is cut finds the keys again; it goes before the full record is written
// (recordVolume). Where the TPM has no room for two, because it is small or because
// somebody has filled it meanwhile, the first one makes room (dropFirst).
func (a *Agent) freshSecret(o *owner) error {
	first, err := a.pending.SealedSecret()
	if err != nil {
		return err
	}
	fresh, err := policy.NewSecret(a.Random)
	if err != nil {
		return err
	}
	sealed, err := a.sealProvisionally(fresh, first)
	if errors.Is(err, tpm.ErrNoSpace) && first.Kind == policy.KindNV {
		if err = a.dropFirst(o, first); err == nil {
			sealed, err = a.sealProvisionally(fresh, nil)
		}
	}
	if err == nil {
		o.wrapped, err = firstboot.WrapKeys(a.Random, fresh, o.keys, a.List)
	}
	if err != nil {
		fresh.Wipe()
		return err
	}
	o.secret.Wipe()
	o.secret, o.sealed = fresh, sealed
	return nil
}

// dropFirst deletes the first boot's index, and with it all that its secret is worth.
//
// Before, what a start that is cut must find is put under a secret that is sealed to the
// registers, in the file that counts from then on. Cut before it is written, the first
// boot's file and index are there, and all of this is done again; cut after it, this
// file opens, and the index is of no use to anybody: it is deleted now, or by the start
// that finishes (recordVolume), or makes room for its own (rootpart.Binding.Seal).
func (a *Agent) dropFirst(o *owner, first *policy.Sealed) error {
	a.Log.Say("this TPM has no room for a second record: what the first boot left in it goes before")
	start, err := a.Expected()
	if err != nil {
		return err
	}
	between, err := policy.NewSecret(a.Random)
	if err != nil {
		return err
	}
	defer between.Wipe()
	sealed, err := a.Binding().SealBetween(between, start.Boot)
	if err != nil {
		return err
	}
	next := *a.pending
	if next.Keys, err = firstboot.WrapKeys(a.Random, between, o.keys, a.List); err != nil {
		return err
	}
	if next.Sealed, err = sealed.Encode(); err != nil {
		return err
	}
	if err := a.WriteESP(func(dir hw.ESPDir) error { return succeedPending(dir, a.pending, &next) }); err != nil {
		return err
	}
	a.pending = &next
	return a.Chip.TPM.Undefine(first.NVIndex)
}

// bind seals the secret, where it is not: to an index whose record says that
// there is no volume yet, or to this boot alone.
func (a *Agent) bind(o *owner) (err error) {
	if o.start, err = a.Expected(); err != nil {
		return err
	}
	if o.sealed == nil {
		if o.sealed, err = a.sealProvisionally(o.secret, nil); err != nil {
			return err
		}
	}
	if o.sealed.Kind == policy.KindPCR {
		// The provisional object leaves PCR 7 out.
		o.sealed, err = a.Chip.TPM.SealPCR(o.secret, policy.WithoutPrograms(), o.start.Boot)
	}
	return err
}

// makeRoot makes the root partition.
//
// The order: the volume is formatted with a mark that says unfinished; file
// system, the note of what the machine has, and keys follow; the recovery key is shown; the mark goes; and the
// TPM's record binds everything to this volume and to PCR 7. Cut before the mark
// is gone, all of it is made again, with another recovery key, and nobody has
// used the one that was shown. Cut after it, the volume opens under a provisional
// record, which the unlock then completes. Once the record is complete
// nothing on the disk makes this machine make another root partition. What the
// first boot left on the ESP goes last.
func (a *Agent) makeRoot() error {
	o, err := a.owner()
	if err != nil {
		return err
	}
	defer o.wipe()
	recovery, err := luks2.NewRecoveryKey(a.Random)
	if err != nil {
		return err
	}
	defer recovery.Wipe()
	f, err := a.Disks.OpenPartition(a.Disk, layout.RootNumber, true)
	if err != nil {
		return err
	}
	defer f.Close()
	lock, volumeKey, err := a.formatRoot(f, o, &recovery)
	if err != nil {
		return err
	}
	defer luks2.Wipe(volumeKey)
	if err := a.OpenRoot(lock, volumeKey, true); err != nil {
		return err
	}
	if err := a.keepInRoot(o); err != nil {
		return err
	}
	if err := a.showRecoveryKey(&recovery); err != nil {
		return err
	}
	if err := lock.Finish(a.Random, f); err != nil {
		return err
	}
	record, err := a.recordVolume(o.secret, o.sealed, o.start, volumeKey)
	if err != nil {
		return err
	}
	if err := a.checkFloor(a.Chip.Err == nil, record, o.secret); err != nil {
		return err
	}
	if err := a.CapVolume(volumeKey); err != nil {
		return err
	}
	a.Lock, a.State.Root, a.facts.RootMade = lock, slot.RootOpen, true
	if a.Chip.Err == nil {
		if err := a.keepLog(o.secret); err != nil { // it explains a later failure
			a.Log.Say("the event log of this boot was not kept: %v", err)
		}
	} else {
		a.Secret, o.secret = o.secret, nil // the Secure Boot keys are still to come
		a.Chip.Untold = true               // there is nothing that it could release
	}
	a.tidyUp()
	return nil
}

func (a *Agent) formatRoot(f hw.File, o *owner, recovery *luks2.RecoveryKey) (*vault.Lock, []byte, error) {
	partition, _ := a.Table.ByNumber(layout.RootNumber)
	_, size := a.Table.Bytes(partition)
	uuid, err := gpt.RandomGUID(a.Random)
	if err != nil {
		return nil, nil, err
	}
	memory, err := a.KeyMemory(runtime.NumCPU())
	if err != nil {
		return nil, nil, err
	}
	return vault.Make(a.Random, f, vault.Options{
		UUID: uuid.String(), Size: size, Memory: memory, CPUs: runtime.NumCPU(),
		Secret: o.secret, Recovery: recovery, Sealed: o.sealed, Owner: o.deedKey(),
	})
}

// keepInRoot notes what this machine has, and moves what the first boot left on the ESP
// to the root partition.
func (a *Agent) keepInRoot(o *owner) error {
	g := rootpart.NewGuarantees(o.sealed, a.Contract.Epoch, rootpart.Enforces(a.FirmwareKeys))
	if err := g.Keep(a.Random, a.Store, o.secret); err != nil || o.keys == nil {
		return err
	}
	return rootpart.KeepKeys(a.Store, o.wrapped)
}

// recordVolume binds the TPM's record to the volume and to PCR 7 as it is now.
// Nothing that an earlier record allowed unseals any more.
func (a *Agent) recordVolume(secret *policy.Secret, sealed *policy.Sealed, start *rootpart.Start, volumeKey []byte) (*policy.Record, error) {
	if sealed == nil || sealed.Kind != policy.KindNV {
		return nil, nil
	}
	// The first boot's index and those of starts that were cut: a provisional record
	// beside the full one would say that the root partition may be made again.
	b := a.Binding()
	b.Needed = sealed
	if err := b.Clear(); err != nil {
		return nil, fmt.Errorf("clear what earlier starts left in the TPM: %w", err)
	}
	if start.Unbound != nil {
		a.Log.Say("PCR 4, which boot manager started the machine, is left out: %v", start.Unbound)
	}
	record, err := policy.Compose(a.Contract.Epoch, policy.VolumeFingerprint(volumeKey), start.Unbound == nil, start.System(start.Running, start.Current(), nil))
	if err != nil {
		return nil, err
	}
	return record, a.WriteRecord(secret, sealed, record)
}
