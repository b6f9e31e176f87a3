package setup

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/keynote"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/prompt"
	"halogenos.internal/initagent/recoverykey"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// BetweenBoots reports whether this machine's first boot has left its keys, and
// no second one has finished since. Where the TPM holds a record that is for it
// to say, since on the ESP anybody can put back what was there; where it can hold none,
// it counts its starts, of which the first boot's object gets a few.
func BetweenBoots(h *host.Host) (bool, error) {
	if h.Left.Pending == nil || h.Chip.Err != nil || h.State.Keys != bootflow.KeysEnrolled {
		return false, nil
	}
	sealed, err := h.Left.Pending.SealedSecret()
	if err != nil {
		return false, err
	}
	if sealed.Kind != policy.KindNV {
		expired, err := h.Chip.TPM.Expired(sealed)
		return err == nil && !expired, err
	}
	record, err := h.Chip.TPM.ReadRecord(sealed)
	return err == nil && record.Provisional(), err
}

// owner is what a new root partition is made with.
type owner struct {
	secret  *policy.Secret
	keys    *secureboot.KeySet // nil where there are none
	wrapped []byte             // the keys and their list under the secret; nil where there are none
	sealed  *policy.Sealed     // nil without a TPM
	start   *rootpart.Start    // nil without a TPM
	answers []byte             // for the first start; nil where there are none
}

func (o *owner) wipe() {
	if o.secret != nil {
		o.secret.Wipe()
	}
	if o.keys != nil {
		o.keys.Wipe()
	}
}

func (o *owner) ownerKey() *rsa.PrivateKey {
	if o.keys == nil {
		return nil
	}
	return o.keys.DB.Key
}

// errMade refuses to make a root partition where there was one: what is left on
// the ESP, and in the header, anybody can write.
var errMade = errors.New("the TPM knows that this machine's root partition was made before: it is not made again by itself")

// newOwner takes up what the first boot left, or, where Secure Boot is optional and
// nothing was enrolled, makes a secret. The caller wipes it.
func newOwner(h *host.Host) (*owner, error) {
	o := new(owner)
	var err error
	if h.Left.Pending != nil && h.State.Keys == bootflow.KeysEnrolled {
		err = takePending(h, o)
	} else {
		h.Released = true
		o.answers = unboundAnswers(h)
		o.secret, err = policy.NewSecret(h.Random)
	}
	if err == nil && h.Chip.Err == nil {
		err = bind(h, o)
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

func takePending(h *host.Host, o *owner) (err error) {
	var record *policy.Record
	if o.secret, o.keys, record, err = openPending(h); err != nil {
		return fmt.Errorf("the keys of the first boot: %w", err)
	}
	if h.List, err = firstboot.UnwrapList(o.secret, h.Left.Pending.Keys); err != nil {
		return fmt.Errorf("the keys of the first boot: %w", err)
	}
	if err := checkEnforced(h, h.List.Wanted); err != nil {
		return err
	}
	if record != nil && !record.Provisional() {
		return errMade
	}
	if !slices.ContainsFunc(rootpart.Certificates(h.FirmwareKeys), o.keys.DB.Certificate.Equal) {
		return errPlanted
	}
	if o.answers, err = pendingAnswers(h, o.secret); err != nil {
		return err
	}
	return freshSecret(h, o)
}

// freshSecret gives the machine another secret than the first boot's, which was
// sealed to the UKI alone: anyone who had the machine between the two boots could
// unseal it with any firmware setting.
//
// The first boot's index stays until the volume is finished, so that a start that
// is cut finds the keys again; it goes before the full record is written
// (RecordVolume). Where the TPM has no room for two, because it is small or because
// somebody has filled it meanwhile, the first one makes room (dropFirst).
func freshSecret(h *host.Host, o *owner) error {
	first, err := h.Left.Pending.SealedSecret()
	if err != nil {
		return err
	}
	fresh, err := policy.NewSecret(h.Random)
	if err != nil {
		return err
	}
	sealed, err := SealProvisionally(h, fresh, first)
	if errors.Is(err, tpm.ErrNoSpace) && first.Kind == policy.KindNV {
		if err = dropFirst(h, o, first); err == nil {
			sealed, err = SealProvisionally(h, fresh, nil)
		}
	}
	if err == nil {
		o.wrapped, err = firstboot.WrapKeys(h.Random, fresh, o.keys, h.List)
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
// that finishes (RecordVolume), or makes room for its own (rootpart.Binding.Seal).
func dropFirst(h *host.Host, o *owner, first *policy.Sealed) error {
	h.Log.Say("this TPM has no room for a second record: what the first boot left in it goes before")
	start, err := h.Expected()
	if err != nil {
		return err
	}
	between, err := policy.NewSecret(h.Random)
	if err != nil {
		return err
	}
	defer between.Wipe()
	sealed, err := h.Binding().SealBetween(between, start.Boot)
	if err != nil {
		return err
	}
	next := *h.Left.Pending
	if next.Keys, err = firstboot.WrapKeys(h.Random, between, o.keys, h.List); err != nil {
		return err
	}
	if next.Sealed, err = sealed.Encode(); err != nil {
		return err
	}
	if next.Answers, err = boxAnswers(h, between, o.answers); err != nil {
		return err
	}
	if err := h.WriteESP(func(dir hw.ESPDir) error { return succeedPending(dir, h.Left.Pending, &next) }); err != nil {
		return err
	}
	h.Left.Pending = &next
	return h.Chip.TPM.Undefine(first.NVIndex)
}

// bind seals the secret, where it is not: to an index whose record says that
// there is no volume yet, or to this boot alone.
func bind(h *host.Host, o *owner) (err error) {
	if o.start, err = h.Expected(); err != nil {
		return err
	}
	if o.sealed == nil {
		if o.sealed, err = SealProvisionally(h, o.secret, nil); err != nil {
			return err
		}
	}
	if o.sealed.Kind == policy.KindPCR {
		// The provisional object leaves PCR 7 out.
		o.sealed, err = h.Chip.TPM.SealPCR(o.secret, policy.WithoutPrograms(), o.start.Boot)
	}
	return err
}

// MakeRoot makes the root partition.
//
// The order: the volume is formatted with a mark that says unfinished; file
// system, the note of what the machine has, and keys follow; the recovery key is shown; the mark goes; and the
// TPM's record binds everything to this volume and to PCR 7. Cut before the mark
// is gone, all of it is made again, with another recovery key, and nobody has
// used the one that was shown. Cut after it, the volume opens under a provisional
// record, which the unlock then completes. Once the record is complete
// nothing on the disk makes this machine make another root partition. What the
// first boot left on the ESP goes last.
func MakeRoot(h *host.Host) error {
	o, err := newOwner(h)
	if err != nil {
		return err
	}
	defer o.wipe()
	recovery, err := luks2.NewRecoveryKey(h.Random)
	if err != nil {
		return err
	}
	defer recovery.Wipe()
	f, err := h.Disks.OpenPartition(h.Disk, layout.Root, true)
	if err != nil {
		return err
	}
	defer f.Close()
	lock, volumeKey, err := formatRoot(h, f, o, &recovery)
	if err != nil {
		return err
	}
	defer luks2.Wipe(volumeKey)
	if err := h.OpenRoot(lock, volumeKey, true); err != nil {
		return err
	}
	if err := keepInRoot(h, o); err != nil {
		return err
	}
	if err := showRecoveryKey(h, &recovery); err != nil {
		return err
	}
	if err := lock.Finish(h.Random, f); err != nil {
		return err
	}
	record, err := RecordVolume(h, o.secret, o.sealed, o.start, volumeKey)
	if err != nil {
		return err
	}
	if err := h.CheckFloor(h.Chip.Err == nil, record, o.secret); err != nil {
		return err
	}
	if err := h.CapVolume(volumeKey); err != nil {
		return err
	}
	h.Lock, h.State.Root = lock, bootflow.RootOpen
	if h.Chip.Err == nil {
		if err := h.KeepLog(o.secret); err != nil { // it explains a later failure
			h.Log.Say("the event log of this boot was not kept: %v", err)
		}
	} else {
		h.Secret, o.secret = o.secret, nil // the Secure Boot keys are still to come
		h.Chip.Untold = true               // there is nothing that it could release
	}
	TidyUp(h)
	return nil
}

func formatRoot(h *host.Host, f hw.File, o *owner, recovery *luks2.RecoveryKey) (*rootlock.Lock, []byte, error) {
	partition, err := layout.Find(h.Table, layout.Root)
	if err != nil {
		return nil, nil, err
	}
	_, size := h.Table.Bytes(partition)
	uuid, err := gpt.RandomGUID(h.Random)
	if err != nil {
		return nil, nil, err
	}
	memory, err := h.Memory()
	if err != nil {
		return nil, nil, err
	}
	return rootlock.Make(h.Random, f, rootlock.Options{
		UUID: uuid.String(), Size: size, Memory: rootpart.KeyMemory(memory, runtime.NumCPU()), CPUs: runtime.NumCPU(),
		Secret: o.secret, Recovery: recovery, Sealed: o.sealed, Phrase: prompt.Make(h, o.secret, o.sealed), Owner: o.ownerKey(),
	})
}

// keepInRoot notes what this machine has and that it is at its first start, and moves what
// the installer and the first boot left on the ESP to the root partition.
func keepInRoot(h *host.Host, o *owner) error {
	if err := rootpart.NoteFirstStart(h.Store, h.Contract.Version); err != nil {
		return err
	}
	if err := keepAnswers(h, o.answers); err != nil {
		return err
	}
	g := rootpart.NewGuarantees(o.sealed, h.Contract.Epoch, rootpart.Enforces(h.FirmwareKeys))
	if err := g.Keep(h.Random, h.Store, o.secret); err != nil || o.keys == nil {
		return err
	}
	return rootpart.KeepKeys(h.Store, o.wrapped)
}

// RecordVolume binds the TPM's record to the volume and to PCR 7 as it is now.
// Nothing that an earlier record allowed unseals any more.
func RecordVolume(h *host.Host, secret *policy.Secret, sealed *policy.Sealed, start *rootpart.Start, volumeKey []byte) (*policy.Record, error) {
	if sealed == nil || sealed.Kind != policy.KindNV {
		return nil, nil
	}
	// The first boot's index and those of starts that were cut: a provisional record
	// beside the full one would say that the root partition may be made again.
	b := h.Binding()
	b.Needed = sealed
	if err := b.Clear(); err != nil {
		return nil, fmt.Errorf("clear what earlier starts left in the TPM: %w", err)
	}
	if start.Unbound != nil {
		h.Log.Say("PCR 4, which boot manager started the machine, is left out: %v", start.Unbound)
	}
	record, err := policy.Compose(h.Contract.Epoch, policy.VolumeFingerprint(volumeKey), start.Unbound == nil, start.System(start.Running, start.Current(), nil))
	if err != nil {
		return nil, err
	}
	return record, h.WriteRecord(secret, sealed, record)
}

// TidyUp removes what the installer and the first boot left on the ESP. Anyone who finds it in free
// space has nothing: its NV index is gone, or, where the TPM had no room for a second
// one or for any, its starts are over before long. It is not worth a boot: what stays is
// removed at the next one.
func TidyUp(h *host.Host) {
	if !h.Left.Keys && h.Left.Pending == nil && !h.Left.Handed {
		return
	}
	ours := func(name string) bool { return isPending(name) || isAnswers(name) }
	if err := h.WriteESP(func(dir hw.ESPDir) error { return removeFiles(dir, ours) }); err != nil {
		h.Log.Say("%s on the ESP was not tidied up: %v", firstboot.Directory, err)
		return
	}
	h.Left.Pending, h.Left.Keys, h.Left.Answers, h.Left.Handed = nil, false, nil, false
}

// showRecoveryKey shows the key on the screen, or where there is none on every
// console, and nowhere else. Where nobody types two groups of it back that is noted, for
// the starts to come: before the volume counts as finished, so that a cut loses no note.
func showRecoveryKey(h *host.Host, key *luks2.RecoveryKey) error {
	c, err := h.Person.Open(h.Language)
	if err != nil {
		return fmt.Errorf("the recovery key cannot be shown: %w", err)
	}
	defer c.Close()
	about := h.Language.Text(words.KeyKeep)
	if h.Phrase != nil {
		about += prompt.Text(h.Language, h.Phrase)
	}
	confirmed, err := recoverykey.Confirm(c, h.Random, key, recoverykey.Text{Title: h.Language.Text(words.KeyName), About: about, Later: h.Language.Text(words.KeyLater)}, time.Minute)
	if err != nil || confirmed {
		return err
	}
	return recoverykey.Note(h.Store, keynote.Note{Unconfirmed: true, Shown: 1})
}
