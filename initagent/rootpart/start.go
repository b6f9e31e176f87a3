package rootpart

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/enroll"
)

// An Image is a UKI with all that it leaves in the TPM. No signature was looked at.
type Image struct {
	Contract  *contract.Contract
	Abilities contract.Abilities
	PCR11     pcr.Digest  // when the initramfs phase has begun
	Digest    pcr.Digest  // as the firmware measures it
	Kernel    *pcr.Digest // likewise; nil where it cannot be hashed
	parsed    *uki.Image
	stub      int // major version
}

// ReadImage reads a UKI.
func ReadImage(image []byte) (*Image, error) {
	parsed, err := uki.Parse(image)
	if err != nil {
		return nil, err
	}
	im := &Image{parsed: parsed}
	initrd, ok := parsed.Section(".initrd")
	if !ok {
		return nil, errors.New("it has no initramfs")
	}
	if im.Contract, err = contract.FromInitrd(initrd); err != nil {
		return nil, err
	}
	im.Abilities = contract.AbilitiesFromInitrd(initrd)
	started, err := pcr.PredictUKI(parsed)
	if err != nil {
		return nil, err
	}
	im.PCR11 = pcr.Phases(started, pcr.EnterInitrd)
	stub, err := parsed.Stub()
	if err != nil {
		return nil, err
	}
	im.stub = stub.Major
	digest, err := authenticode.Measured(image)
	if err != nil {
		return nil, err
	}
	im.Digest = digest
	if linux, ok := parsed.Section(".linux"); ok {
		if kernel, err := authenticode.Measured(linux); err == nil {
			im.Kernel = (*pcr.Digest)(&kernel)
		}
	}
	return im, nil
}

// Foreign reports what in PCR 12 and 13 has not come from the UKI itself, by its
// boot manager and its stub.
func (im *Image) Foreign(boot policy.Boot) error {
	if _, own := pcr.CommandLineTimes(im.parsed, boot.PCR12); !own {
		return errForeign("a command line, credential or addon", pcr.KernelConfig)
	}
	if boot.PCR13 != (pcr.Digest{}) {
		return errForeign("a system extension", pcr.SystemExts)
	}
	return nil
}

// ErrForeign is wrapped where something from outside the UKI was added to a boot.
var ErrForeign = errors.New("it does not come from this system")

func errForeign(what string, register int) error {
	return fmt.Errorf("%s from outside the UKI was added to this boot (PCR %d): %w. Take it away, and start again: this machine does not open its data for such a boot, and the recovery key does not change that", what, register, ErrForeign)
}

// Clean reports that nothing was measured into PCR 12 and 13 at all, so that no UKI
// has to be read for it.
func Clean(boot policy.Boot) bool {
	return boot.PCR12 == (pcr.Digest{}) && boot.PCR13 == (pcr.Digest{})
}

// A Manager is a boot manager on the ESP.
type Manager struct {
	Digest pcr.Digest // as the firmware measures it
	Signed pcr.Digest // the same once it is signed
	Major  int        // version; 0 where it does not say
}

// NewManager reads a boot manager.
func NewManager(image []byte) (Manager, error) {
	digest, err := authenticode.Measured(image)
	if err != nil {
		return Manager{}, err
	}
	m := Manager{Digest: digest}
	if m.Signed, err = authenticode.Digest(image); err != nil {
		return Manager{}, err
	}
	if parsed, err := uki.Parse(image); err == nil {
		if mark, err := parsed.Stub(); err == nil && mark.Program == "systemd-boot" {
			m.Major = mark.Major
		}
	}
	return m, nil
}

// FindManagers reads those of the ESP, without doubles. Where the name has another
// case, as FAT allows, it is found all the same.
func FindManagers(files fs.FS) (managers []Manager, err error) {
	for _, name := range layout.Managers() {
		image, err := readAnyCase(files, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		m, err := NewManager(image)
		if err != nil {
			continue // it does not start
		}
		if !slices.Contains(managers, m) {
			managers = append(managers, m)
		}
	}
	return managers, nil
}

func readAnyCase(files fs.FS, name string) ([]byte, error) {
	entries, err := fs.ReadDir(files, path.Dir(name))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !strings.EqualFold(e.Name(), path.Base(name)) {
			continue
		}
		return bounded.File(files, path.Join(path.Dir(name), e.Name()), enroll.MaxEFIFile)
	}
	return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

// A Start is how this boot came about, from which others are predicted.
type Start struct {
	Boot       policy.Boot // this boot, as the TPM has it
	Running    *Image
	Managers   []Manager // of the ESP
	SecureBoot bool      // is enforced
	enrolls    bool      // the boots to come are the first with Secure Boot enforced
	programs   *pcr.Programs
	others     []pcr.Digest // programs that are neither boot manager nor system of this machine
	// Unbound is why PCR 4 is not bound; nil where it is.
	Unbound error
}

// NewStart judges whether the event log accounts for PCR 4 as a whole. boot must
// hold what the TPM holds. Without a log PCR 4 is left out.
func NewStart(log *pcr.Log, boot policy.Boot, running *Image, managers []Manager, secureBoot bool) *Start {
	s := &Start{Boot: boot, Running: running, Managers: managers, SecureBoot: secureBoot}
	s.programs, s.Unbound = account(log, boot, running, managers)
	if log != nil {
		s.others = slices.DeleteFunc(log.BootPrograms(), s.own)
	}
	return s
}

// own reports whether a program is one of this machine's.
func (s *Start) own(program pcr.Digest) bool {
	return program == s.Running.Digest || s.Running.Kernel != nil && program == *s.Running.Kernel ||
		slices.ContainsFunc(s.Managers, func(m Manager) bool { return m.Digest == program })
}

func account(log *pcr.Log, boot policy.Boot, running *Image, managers []Manager) (*pcr.Programs, error) {
	if log == nil {
		return nil, errors.New("there is no event log")
	}
	var digests []pcr.Digest
	for _, m := range managers {
		digests = append(digests, m.Digest)
	}
	p, err := log.Programs(digests)
	switch {
	case err != nil:
		return nil, err
	case p.Value() != boot.PCR4:
		return nil, errors.New("the event log does not account for PCR 4")
	case p.UKI != running.Digest:
		return nil, errors.New("the event log has another UKI in PCR 4 than the file on the ESP")
	case p.Kernel != nil && (running.Kernel == nil || *p.Kernel != *running.Kernel):
		return nil, errors.New("the event log has another kernel in PCR 4 than the UKI")
	}
	return p, nil
}

// Enrolled is a start once the firmware enforces this machine's keys, with PCR 7 as
// it will be then.
func (s *Start) Enrolled(pcr7 pcr.Digest) *Start {
	next := *s
	next.Boot.PCR7, next.SecureBoot, next.enrolls = pcr7, true, true
	return &next
}

// WithDBX is a start with another content of dbx, as far as PCR 7 goes; see With.
func (s *Start) WithDBX(log *pcr.Log, now enroll.State, dbx []byte) (*Start, error) {
	return s.With(log, now, secureboot.DBX, dbx)
}

// With is a start with another content of db or dbx, as far as PCR 7 goes. It is predicted
// only where the log, replayed with what the firmware holds now, comes to what PCR 7 was:
// on firmware that measures otherwise nothing is foretold.
func (s *Start) With(log *pcr.Log, now enroll.State, v secureboot.Variable, content []byte) (*Start, error) {
	authorities, err := log.Authorities()
	if err != nil {
		return nil, err
	}
	holds := pcr.SecureBootVariables{SecureBoot: s.SecureBoot, PK: now.PK.Raw, KEK: now.KEK.Raw, DB: now.DB.Raw, DBX: now.DBX.Raw}
	next := *s
	if next.Boot.PCR7, err = pcr.PredictPCR7(log, holds, authorities); err != nil {
		return nil, err
	}
	if next.Boot.PCR7 != s.Boot.PCR7 {
		return nil, fmt.Errorf("the firmware measures its Secure Boot variables otherwise than they can be read, so that PCR 7 with another %s is not known", v)
	}
	switch v {
	case secureboot.DB:
		holds.DB = content
	case secureboot.DBX:
		holds.DBX = content
	default:
		return nil, fmt.Errorf("PCR 7 with another %s is not foretold", v)
	}
	next.Boot.PCR7, err = pcr.PredictPCR7(log, holds, authorities)
	return &next, err
}

// Older says what an owner would give up by accepting this start: a boot manager that
// another has replaced may have been put back for a hole that it has, and a program that was
// not there in the last good boot, by its log or nil, may have started this one.
func (s *Start) Older(l *secureboot.List, last *pcr.Log) (lost []words.Line) {
	old := func(m Manager) bool { return l != nil && l.Replaced(m.Signed) }
	if s.programs != nil && slices.ContainsFunc(s.Current(), old) {
		lost = append(lost, words.Fixed(words.LostManager))
	}
	known := func(d pcr.Digest) bool { return last != nil && slices.Contains(last.BootPrograms(), d) }
	for _, d := range slices.DeleteFunc(slices.Clone(s.others), known) {
		lost = append(lost, words.Linef(words.LostProgram, d))
	}
	return lost
}

// Seen reports whether a record over PCR 4 has a boot of this system by the boot manager
// that has started it, with what PCR 7 is now, or was in the last good boot; last is that
// boot's log, or nil. The register has other values than the boot manager's in it, so that
// a firmware that measures more than before is looked for as it measured then, too.
func (s *Start) Seen(old *policy.Record, last *pcr.Log) bool {
	if s.programs == nil {
		return true // it says already that PCR 4 is lost
	}
	boots := s.boots(s.Running, s.Current())
	values := []pcr.Digest{s.Boot.PCR7}
	if last != nil {
		if was, err := Logged(last); err == nil {
			values = append(values, was.PCR7)
		}
		boots = append(boots, s.asLogged(last)...)
	}
	for _, b := range boots {
		for _, b.PCR7 = range values {
			if old.Allows(&b) {
				return true
			}
		}
	}
	return false
}

// asLogged are the boots of this system by the boot manager that has started it, measured
// as an earlier log has them.
func (s *Start) asLogged(last *pcr.Log) (boots []policy.Boot) {
	then := *s
	var digests []pcr.Digest
	for _, m := range s.Current() {
		digests = append(digests, m.Digest)
	}
	var err error
	if then.programs, err = last.Programs(digests); err != nil {
		return nil
	}
	return then.boots(s.Running, s.Current())
}

// Provisional returns the record, and the boots, of the time between the first boot
// and the second, which is the first with Secure Boot enforced, or is not.
func (s *Start) Provisional() (*policy.Record, []policy.Boot, error) {
	c := s.Running.Contract
	boots := slices.Concat([]policy.Boot{s.Boot}, s.boots(s.Running, s.Managers), s.Enrolled(s.Boot.PCR7).boots(s.Running, s.Managers))
	r := &policy.Record{Floor: c.Epoch}
	var distinct []policy.Boot
	for _, b := range boots {
		over, err := b.BranchOver(policy.Provisional())
		if err != nil {
			return nil, nil, err
		}
		branch := policy.Branch{Policy: over, Version: uint64(c.Version), Epoch: c.Epoch}
		if !slices.Contains(r.Branches, branch) {
			r.Branches, distinct = append(r.Branches, branch), append(distinct, b)
		}
	}
	return r, distinct, r.Validate()
}

// System returns the boots of a system, the likeliest first, as the boot managers
// start it; those of passing ones apart.
func (s *Start) System(im *Image, managers, passing []Manager) policy.System {
	return policy.System{
		Version: uint64(im.Contract.Version), Epoch: im.Contract.Epoch,
		Boots: s.boots(im, managers), Passing: s.boots(im, passing),
	}
}

// Current is the boot manager that started this boot; of all on the ESP, where
// PCR 4 does not tell.
func (s *Start) Current() []Manager {
	if s.programs == nil {
		return s.Managers
	}
	return slices.DeleteFunc(slices.Clone(s.Managers), func(m Manager) bool { return m.Digest != s.programs.Manager })
}

// boots are ordered by how likely they are, for each boot manager alike.
func (s *Start) boots(im *Image, managers []Manager) (boots []policy.Boot) {
	for _, way := range s.ways(im) {
		for _, m := range managers {
			b := policy.Boot{PCR7: s.Boot.PCR7, PCR11: im.PCR11, PCR12: pcr.OwnCommandLine(im.parsed, s.times(m))}
			manager := m.Digest
			if s.enrolls {
				manager = m.Signed
			}
			if way.programs != nil {
				b.PCR4 = way.programs.Predict(manager, im.Digest, way.kernel)
			}
			if !slices.Contains(boots, b) {
				boots = append(boots, b)
			}
		}
	}
	return boots
}

// times is how often the UKI's own command line is measured: as it was in this boot,
// if the same boot manager starts the next, or one that does not say what it is; by
// its version otherwise.
func (s *Start) times(m Manager) int {
	now, own := pcr.CommandLineTimes(s.Running.parsed, s.Boot.PCR12)
	switch {
	case own && s.enrolls && (m.Major == 0 || slices.Contains(s.Current(), m)):
		return min(now, 1) // the stub leaves it alone then
	case own && (m.Major == 0 || slices.Contains(s.Current(), m)):
		return now
	}
	return pcr.ManagerTimes(m.Major, s.SecureBoot)
}

// A way is one in which firmware and stub may come to a kernel.
type way struct {
	programs *pcr.Programs
	kernel   *pcr.Digest
}

// ways are as this boot was, as it is without and with a boot option that failed
// before. Whether the kernel is measured depends on the firmware and on how the stub
// starts it: a stub of another version may do it otherwise.
func (s *Start) ways(im *Image) (ways []way) {
	if s.programs == nil {
		return []way{{}}
	}
	straight, detour := s.programs.Usual()
	for _, p := range []*pcr.Programs{s.programs, straight, detour} {
		var as, other *pcr.Digest
		if s.programs.Kernel != nil {
			as = im.Kernel
		} else {
			other = im.Kernel
		}
		ways = append(ways, way{p, as})
		if im.stub != s.Running.stub || s.enrolls {
			ways = append(ways, way{p, other})
		}
	}
	return ways
}
