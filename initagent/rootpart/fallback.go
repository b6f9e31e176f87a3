package rootpart

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/rootlock"
)

// A fallback is a system besides the running one that can be started.
type fallback struct {
	image  *Image
	system policy.System // as it will boot
}

// Fallbacks finds the systems that a machine whose owner accepts it must not
// lose: a record with the running system alone would make every rollback ask for
// the recovery key.
type Fallbacks struct {
	Table    *gpt.Table
	Running  *contract.Contract
	Start    *Start // of the running system
	Firmware enroll.State
	List     *secureboot.List // of this machine's own images; nil where it has no keys
	Had      Guarantees
	Known    []policy.Boot // earlier boots that were good
	Also     []pcr.Digest  // what PCR 7 may be in boots to come, besides
	Say      func(format string, args ...any)

	old *policy.Record // that is to be replaced; nil where it cannot be read
}

// find looks at the UKIs on the ESP, and reports whether the running one is on
// trial. Anybody can put a UKI there, so one counts only when a slot holds its
// content, it is not under the floor, and it is known to be this machine's own: the
// old record has its version, where there is one, and it is signed by this machine's
// key, or, where that means nothing, the old record had this very UKI.
func (q Fallbacks) find(files fs.FS) (out []fallback, trial bool, err error) {
	entries, err := fs.ReadDir(files, bls.Directory)
	for _, e := range entries {
		n, err := bls.Parse(e.Name())
		if err != nil || n.ImageID != q.Running.ImageID {
			continue
		}
		if n.Version == q.Running.Version {
			trial = trial || n.Counted
			continue
		}
		if n.Bad() {
			continue
		}
		f, err := q.look(files, n)
		if err != nil {
			q.Say("%s is not taken along: %v", n, err)
			continue
		}
		out = append(out, f)
	}
	return out, trial, err
}

func (q Fallbacks) look(files fs.FS, n bls.Name) (fallback, error) {
	image, err := ReadUKI(files, n)
	if err != nil {
		return fallback{}, err
	}
	im, err := ReadImage(image)
	if err != nil {
		return fallback{}, err
	}
	c := im.Contract
	if c.ImageID != n.ImageID || c.Version != n.Version {
		return fallback{}, fmt.Errorf("it is %s %s inside", c.ImageID, c.Version)
	}
	if s, named := layout.FindSlot(q.Table, layout.SystemUUID(c.Root()), layout.VerityUUID(c.Root())); !s.Valid() || !named {
		return fallback{}, errors.New("no slot holds its content")
	}
	if floor := q.floor(); c.Epoch < floor {
		return fallback{}, fmt.Errorf("its epoch is %d and the floor is %d", c.Epoch, floor)
	}
	f := fallback{im, q.Start.System(im, q.Start.Current(), nil)}
	return f, q.own(image, f)
}

// floor is the lowest epoch that may run, as far as it is known.
func (q Fallbacks) floor() uint64 {
	if q.old == nil {
		return q.Had.Floor
	}
	return max(q.old.Floor, q.Had.Floor)
}

// own reports why a UKI may be somebody else's.
func (q Fallbacks) own(image []byte, f fallback) error {
	version := func(b policy.Branch) bool { return b.Version == f.system.Version }
	if q.old != nil && !slices.ContainsFunc(q.old.Branches, version) {
		return errors.New("the TPM's record does not have it")
	}
	if q.List != nil && Enforces(q.Firmware) {
		return CheckOwn(image, q.Firmware, q.List)
	}
	for _, known := range append(q.Known, q.Start.Boot) {
		for _, b := range f.system.Boots {
			b.PCR7 = known.PCR7
			if q.old != nil && q.old.Allows(&b) {
				return nil
			}
		}
	}
	return errors.New("nothing shows that it is this machine's own")
}

// ReadUKI reads a UKI of the ESP.
func ReadUKI(files fs.FS, n bls.Name) ([]byte, error) {
	name := path.Join(bls.Directory, n.String())
	return bounded.File(files, name, enroll.MaxEFIFile)
}

// Describe returns a UKI's boot contract, and what it leaves in PCR 11 before the
// kernel starts. It looks at no signature.
func Describe(image []byte) (*contract.Contract, pcr.Digest, error) {
	parsed, err := uki.Parse(image)
	if err != nil {
		return nil, pcr.Digest{}, err
	}
	initrd, ok := parsed.Section(".initrd")
	if !ok {
		return nil, pcr.Digest{}, errors.New("it has no initramfs")
	}
	c, err := contract.FromInitrd(initrd)
	if err != nil {
		return nil, pcr.Digest{}, err
	}
	started, err := pcr.PredictUKI(parsed)
	return c, started, err
}

// CheckStarts reports why firmware in this state does not start an image: it is
// signed by none of the certificates, or its hash or its signer is in dbx.
func CheckStarts(image []byte, s enroll.State, certificates []*x509.Certificate) error {
	signer, err := authenticode.Verify(image, certificates)
	if err != nil {
		return err
	}
	return checkRevoked(image, signer, s.DBX.Content)
}

// Acceptable returns the record of a machine that its owner accepts as it is, and
// the boots that it allows. read reads the ESP; where that fails nothing is taken
// along.
//
// Where there is no old record to say how low an epoch may be, and no note of it on
// the root partition, it is the running system's that does, unless that is on trial:
// its fallback must not be shut out before it has proven itself.
//
// The record is over PCR 4 where that is accounted for and every system in it reads
// such a record. A machine that has had one takes no system along that does not.
func (b Binding) Acceptable(q Fallbacks, lock *rootlock.Lock, secret *policy.Secret, volumeKey []byte, read func(func(fs.FS) error) error) (*policy.Record, []policy.Boot, error) {
	if old, err := b.ownRecord(lock, secret); err == nil && !old.Provisional() {
		q.old = old
		q.Had = q.Had.Raise(Of(old, q.Had.SecureBoot)) // where there is no note, this is what the machine had
	}
	var others []fallback
	trial := false
	if err := read(func(files fs.FS) (err error) { others, trial, err = q.find(files); return err }); err != nil {
		q.Say("the ESP's other systems are not taken along: %v", err)
	}
	floor := q.floor()
	if floor == 0 || q.Running.Epoch < floor { // which Accept refuses
		floor = q.Running.Epoch
		for _, o := range others {
			if trial && q.floor() == 0 {
				floor = min(floor, o.system.Epoch)
			}
		}
	}
	programs := q.Start.Unbound == nil
	systems := []policy.System{q.Start.System(q.Start.Running, q.Start.Current(), nil)}
	for _, o := range others {
		able := o.image.Abilities.PolicyRecord >= policy.RecordNewest
		switch {
		case o.system.Epoch < floor:
			continue
		case programs && !able && q.Had.Programs:
			q.Say("version %d is not taken along: it cannot read a record over PCR 4", o.system.Version)
			continue
		}
		programs = programs && able
		systems = append(systems, o.system)
	}
	if err := q.Start.Unbound; err != nil {
		q.Say("PCR 4, which boot manager started the machine, is left out: %v", err)
	}
	for i := range systems {
		systems[i].Boots = q.also(systems[i].Boots)
	}
	r, err := policy.Compose(floor, policy.VolumeFingerprint(volumeKey), programs, systems...)
	if err != nil {
		return nil, nil, err
	}
	if q.List != nil {
		r.Manager = q.List.ManagerOf() // the old record says it where there is one
	}
	return r, admitted(r, systems), nil
}

// also adds to each boot the same one with the other values of PCR 7.
func (q Fallbacks) also(boots []policy.Boot) (out []policy.Boot) {
	for _, b := range boots {
		out = append(out, b)
		for _, value := range q.Also {
			b.PCR7 = value
			out = append(out, b)
		}
	}
	return out
}

// admitted are those boots of the systems that the record has.
func admitted(r *policy.Record, systems []policy.System) (boots []policy.Boot) {
	for _, s := range systems {
		for _, b := range slices.Concat(s.Boots, s.Passing) {
			if r.Allows(&b) {
				boots = append(boots, b)
			}
		}
	}
	return boots
}
