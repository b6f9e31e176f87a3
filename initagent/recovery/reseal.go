package recovery

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/lastgood"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// Reseal lets the TPM open the root partition for this machine as it is now:
// by one write of the record, or, where the TPM was cleared or is another, by
// sealing again. A cut leaves the old record or the new one; the recovery key
// opens whatever the TPM says.
func (m *Machine) Reseal(c hw.Console) error {
	return m.accepting(c, false, "Accept this machine as it is now, so that it opens by itself from the next start on?\n"+
		"Say yes only if you know what changed it (a firmware update, new hardware).", m.accept)
}

// An acceptance is what a person has agreed to.
type acceptance struct {
	open    *Opened
	lock    *rootlock.Lock
	chip    *tpm.TPM
	state   enroll.State
	log     *pcr.Log
	query   rootpart.Fallbacks
	binding rootpart.Binding
	noted   rootpart.Guarantees // on the root partition
	record  *policy.Record
	boots   []policy.Boot
}

// close wipes what was opened, and leaves the TPM.
func (a *acceptance) close() {
	a.open.Wipe()
	_ = a.chip.Close()
}

// accepting asks the question about this machine as it is now, and does what the answer
// calls for. replacing: it is for a machine whose Secure Boot keys are being replaced.
func (m *Machine) accepting(c hw.Console, replacing bool, question string, then func(c hw.Console, a *acceptance) error) error {
	a, err := m.acceptable(c, replacing)
	if err != nil {
		return err
	}
	defer a.close()
	c.Print(m.changes(a.open.Secret, a.log))
	if err := confirm(c, question); err != nil {
		return err
	}
	if err := m.compose(a); err != nil {
		return err
	}
	return then(c, a)
}

// acceptable is this machine as it is now, where that may be accepted. The caller
// closes it.
func (m *Machine) acceptable(c hw.Console, replacing bool) (_ *acceptance, err error) {
	open, err := m.kept()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			open.Wipe()
		}
	}()
	lock, err := m.lockOf(open)
	if err != nil {
		return nil, err
	}
	if rootpart.KeysUnfinished(m.Store, lock) != replacing {
		return nil, errKeysUnfinished
	}
	lock.TakePIN(open.VolumeKey, open.Secret) // only the secret itself was kept
	state, err := enroll.Observe(m.Variables)
	if err != nil {
		return nil, err
	}
	list, err := m.ownList(c, open, lock, &state)
	if err != nil {
		return nil, err
	}
	if err := rootpart.MayAccept(state, m.Contract.SecureBoot, lock, list); err != nil {
		return nil, err
	}
	chip, err := m.TPM.Open()
	if err != nil {
		return nil, err
	}
	start, log, err := m.accountedFor(chip, rootpart.Enforces(state))
	if err != nil {
		return nil, errors.Join(err, chip.Close())
	}
	a := &acceptance{open: open, lock: lock, chip: chip, state: state, log: log, noted: rootpart.ReadGuarantees(m.Store, open.Secret)}
	b := rootpart.Binding{TPM: chip, Store: m.Store, Say: func(format string, args ...any) { c.Print(fmt.Sprintf(format+"\n", args...)) }}
	b.Had, b.Enforces, b.Older = rootpart.Had(a.noted, lock, open.Secret), rootpart.Enforces(state), start.Older(list, m.LastGoodLog(open.Secret))
	b.Consent = func(lost []words.Line) error { return rootpart.AskWeaker(c, lost, 0) }
	a.query = rootpart.Fallbacks{Table: m.Table, Running: m.Contract, Start: start, Firmware: state, List: list, Had: b.Had, Say: b.Say}
	a.binding = b
	return a, nil
}

// compose makes the record.
func (m *Machine) compose(a *acceptance) (err error) {
	known := m.LastGoodLog(a.open.Secret)
	if known != nil {
		if good, err := rootpart.Logged(known); err == nil {
			a.query.Known = append(a.query.Known, good)
		}
	}
	start := a.query.Start
	a.binding.Seen = func(old *policy.Record) bool { return start.Seen(old, known) }
	read := m.ReadESP
	a.record, a.boots, err = a.binding.Acceptable(a.query, a.lock, a.open.Secret, a.open.VolumeKey, read)
	return err
}

// note says what the machine has, where that is new. It comes last: cut before it, the
// owner is asked once more at most, and a floor does not rise here.
func (m *Machine) note(a *acceptance) error {
	if now := a.binding.Now(a.record, a.lock); now != a.noted {
		return now.Keep(m.Random, m.Store, a.open.Secret)
	}
	return nil
}

func (m *Machine) accept(c hw.Console, a *acceptance) error {
	accepted, err := a.binding.Accept(a.lock, a.open.Secret, a.record)
	if err != nil {
		return err
	}
	if accepted {
		// The record counts now, so that it is noted even where the keyslot stays broken.
		if err := errors.Join(m.opensByTPM(a), m.note(a)); err != nil {
			return fmt.Errorf("the TPM has accepted this machine, but not all that goes with it was written: %w", err)
		}
		c.Print(c.Language().Text(words.Accepted))
		return nil
	}
	if err := m.rebind(a); err != nil {
		return err
	}
	c.Print(c.Language().Text(words.Bound))
	return m.note(a)
}

// bind writes the record, or, where the TPM does not have its index or has no room for
// one, seals the secret.
func (m *Machine) bind(a *acceptance) error {
	accepted, err := a.binding.Accept(a.lock, a.open.Secret, a.record)
	switch {
	case err != nil:
		return err
	case accepted:
		return m.opensByTPM(a)
	}
	return m.rebind(a)
}

// opensByTPM repairs the keyslot that the TPM's token names, where the secret does not
// open it.
func (m *Machine) opensByTPM(a *acceptance) error {
	f, err := m.root()
	if err != nil {
		return err
	}
	return errors.Join(rootpart.OpensByTPM(m.Random, f, a.lock, a.open.VolumeKey, a.open.Secret), f.Close())
}

// rebind seals the secret to a TPM that does not know it.
func (m *Machine) rebind(a *acceptance) error {
	keys, err := rootpart.StoredKeys(m.Store, a.open.Secret, a.lock)
	if err != nil {
		return err
	}
	if keys != nil {
		defer keys.Wipe()
	}
	f, err := m.root()
	if err != nil {
		return err
	}
	return errors.Join(a.binding.Rebind(m.Random, f, a.lock, rootpart.Rebinding{VolumeKey: a.open.VolumeKey, Secret: a.open.Secret, Keys: keys, Record: a.record, Boots: a.boots}), f.Close())
}

// accountedFor is this boot as it was when the initramfs phase had begun. The
// registers cannot be asked: the console opened after they were capped. So it is
// computed from the event log and from the UKI on the ESP, and what the log says
// must come out at what the registers hold: what nobody can explain is not
// accepted. Where the log does not account for PCR 4, that is left out.
func (m *Machine) accountedFor(chip *tpm.TPM, enforces bool) (*rootpart.Start, *pcr.Log, error) {
	raw, err := m.TPM.EventLog()
	if err != nil {
		return nil, nil, err
	}
	log, err := pcr.ParseLog(raw)
	if err != nil {
		return nil, nil, err
	}
	values, err := log.PCRs()
	if err != nil {
		return nil, nil, err
	}
	now, err := chip.Now()
	if err != nil {
		return nil, nil, err
	}
	boot, err := rootpart.Logged(log)
	if err != nil {
		return nil, nil, err
	}
	boot.PCR4 = now.PCR4
	capped := boot
	capped.PCR15 = now.PCR15 // capped, by what depends on how far the boot came
	for _, phases := range [][]string{{pcr.EnterInitrd, pcr.Recovery}, {pcr.EnterInitrd, pcr.LeaveInitrd, pcr.Recovery}} {
		if capped.PCR11 = pcr.Phases(values[pcr.KernelImage], phases...); capped.PCR11 == now.PCR11 {
			break
		}
	}
	if differ := capped.Differ(&now); len(differ) > 0 {
		return nil, nil, fmt.Errorf("the event log does not account for PCR %v", differ)
	}
	image, managers, err := m.runningUKI()
	if err != nil {
		return nil, nil, err
	}
	if boot.PCR11 != image.PCR11 {
		return nil, nil, errors.New("PCR 11: the running UKI is not the file on the ESP")
	}
	if err := errors.Join(image.Foreign(boot), boot.Check()); err != nil {
		return nil, nil, err
	}
	return rootpart.NewStart(log, boot, image, managers, enforces), log, nil
}

// runningUKI reads the file that this boot was started from, and the boot managers.
func (m *Machine) runningUKI() (image *rootpart.Image, managers []rootpart.Manager, err error) {
	err = m.ReadESP(func(files fs.FS) (err error) { managers, err = rootpart.FindManagers(files); return err })
	if err != nil {
		return nil, nil, err
	}
	if m.Names, err = m.UKINames(); err != nil {
		return nil, nil, err
	}
	image, err = m.RunningImage()
	if errors.Is(err, host.ErrNoUKI) {
		err = fmt.Errorf("%w: `esp-rebuild` first", err)
	}
	return image, managers, err
}

// changes says what is about to be accepted.
func (m *Machine) changes(secret *policy.Secret, now *pcr.Log) string {
	var out strings.Builder
	last, err := m.lastGood(secret)
	if err != nil {
		fmt.Fprintf(&out, "What changed is not known: %v\n", err)
	} else {
		out.WriteString(lastgood.Explain(last, now))
	}
	return out.String()
}

func (m *Machine) lastGood(secret *policy.Secret) (log *lastgood.Log, err error) {
	err = m.ReadESP(func(files fs.FS) (err error) {
		log, err = lastgood.Read(files, secret)
		return err
	})
	return log, err
}
