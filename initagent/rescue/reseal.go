package rescue

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/uki"
	"halogenos.internal/initagent/enrol"
	"halogenos.internal/initagent/goodlog"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// Reseal lets the TPM open the root partition for this machine as it is now:
// by one write of the record, or, where the TPM was cleared or is another, by
// sealing anew. A cut leaves the old record or the new one; the recovery key
// opens whatever the TPM says.
func (m *Machine) Reseal(c hw.Console) error {
	p, open, err := m.kept()
	if err != nil {
		return err
	}
	defer open.Wipe()
	lock, err := m.locked(p)
	if err != nil {
		return err
	}
	state, err := enrol.Observe(m.Variables)
	if err != nil {
		return err
	}
	list, err := rootpart.StoredList(m.Store, open.Secret)
	if err != nil {
		return err
	}
	if err := rootpart.MayAccept(state, p.contract.SecureBoot, lock, list); err != nil {
		return err
	}
	chip, err := m.TPM.Open()
	if err != nil {
		return err
	}
	defer chip.Close()
	boot, log, err := m.accountedFor(p, chip)
	if err != nil {
		return err
	}
	c.Print(m.changes(p, open.Secret, log, boot))
	if err := confirm(c, "Accept this machine as it is now, so that it opens by itself from the next start on?\n"+
		"Say yes only if you know what changed it (a firmware update, new hardware)."); err != nil {
		return err
	}
	b := rootpart.Binding{TPM: chip, Say: func(format string, args ...any) { c.Print(fmt.Sprintf(format+"\n", args...)) }}
	q := rootpart.Fallbacks{Table: p.table, Running: p.contract, Boot: boot, Firmware: state, List: list, Say: b.Say}
	if last, err := m.lastGood(p, open.Secret); err == nil && last != nil && last.Authentic {
		if good, err := rootpart.Logged(last.Log); err == nil {
			q.Known = append(q.Known, good)
		}
	}
	read := func(read func(fs.FS) error) error { return m.ESP.Read(p.disk, read) }
	record, others := b.Acceptable(q, lock, open.VolumeKey, read)
	accepted, err := b.Accept(lock, open.Secret, record)
	if err != nil {
		return err
	}
	if accepted {
		c.Print("Accepted.\n")
		return nil
	}
	keys, err := rootpart.StoredKeys(m.Store, open.Secret)
	if err != nil {
		return err
	}
	if keys != nil {
		defer keys.Wipe()
	}
	f, err := m.root(p)
	if err != nil {
		return err
	}
	if err := errors.Join(b.Rebind(m.Random, f, lock, open.VolumeKey, open.Secret, keys, boot, record, others...), f.Close()); err != nil {
		return err
	}
	c.Print("Bound to this TPM.\n")
	return nil
}

// accountedFor is this boot as it was when the initramfs phase had begun. The
// registers cannot be asked: the console opened after they were capped. So it is
// computed from the event log and from the UKI on the ESP, and what the log says
// must come out at what the registers hold: what nobody can explain is not
// accepted.
func (m *Machine) accountedFor(p *place, chip *tpm.TPM) (policy.Boot, *pcr.Log, error) {
	none := policy.Boot{}
	raw, err := m.TPM.EventLog()
	if err != nil {
		return none, nil, err
	}
	log, err := pcr.ParseLog(raw)
	if err != nil {
		return none, nil, err
	}
	values, err := log.PCRs()
	if err != nil {
		return none, nil, err
	}
	now, err := chip.Now()
	if err != nil {
		return none, nil, err
	}
	boot, err := rootpart.Logged(log)
	if err != nil {
		return none, nil, err
	}
	capped := boot
	capped.PCR15 = now.PCR15 // capped, by what depends on how far the boot came
	for _, phases := range [][]string{{pcr.EnterInitrd, pcr.Recovery}, {pcr.EnterInitrd, pcr.LeaveInitrd, pcr.Recovery}} {
		if capped.PCR11 = pcr.Phases(values[pcr.KernelImage], phases...); capped.PCR11 == now.PCR11 {
			break
		}
	}
	if differ := capped.Differ(&now); len(differ) > 0 {
		return none, nil, fmt.Errorf("the event log does not account for PCR %v", differ)
	}
	image, err := m.runningUKI(p)
	if err != nil {
		return none, nil, err
	}
	started, err := pcr.PredictUKI(image)
	if err != nil {
		return none, nil, fmt.Errorf("the UKI on the ESP: %w", err)
	}
	if boot.PCR11 != pcr.Phases(started, pcr.EnterInitrd) {
		return none, nil, errors.New("PCR 11: the running UKI is not the file on the ESP")
	}
	return boot, log, boot.Check()
}

// runningUKI reads the file that this boot was started from.
func (m *Machine) runningUKI(p *place) (image *uki.Image, err error) {
	err = m.ESP.Read(p.disk, func(files fs.FS) error {
		entries, err := fs.ReadDir(files, bls.Folder)
		if err != nil {
			return err
		}
		for _, e := range entries {
			n, err := bls.Parse(e.Name())
			if err != nil || n.ImageID != p.contract.ImageID || n.Version != p.contract.Version {
				continue
			}
			text, err := readFile(files, path.Join(bls.Folder, e.Name()), enrol.MaxEFIFile)
			if err != nil {
				return err
			}
			image, err = uki.Parse(text)
			return err
		}
		return fmt.Errorf("the ESP has no UKI of %s %s: `esp-rebuild` first", p.contract.ImageID, p.contract.Version)
	})
	return image, err
}

// changes says what is about to be accepted.
func (m *Machine) changes(p *place, secret *policy.Secret, now *pcr.Log, boot policy.Boot) string {
	var out strings.Builder
	last, err := m.lastGood(p, secret)
	if err != nil {
		fmt.Fprintf(&out, "What changed is not known: %v\n", err)
	} else {
		out.WriteString(goodlog.Explain(last, now))
	}
	if boot.PCR12 != (pcr.Digest{}) {
		out.WriteString("WARNING: a command line, credential or addon from outside the UKI was added to this boot (PCR 12).\n")
	}
	if boot.PCR13 != (pcr.Digest{}) {
		out.WriteString("WARNING: a system extension from outside the UKI was added to this boot (PCR 13).\n")
	}
	return out.String()
}

func (m *Machine) lastGood(p *place, secret *policy.Secret) (log *goodlog.Log, err error) {
	err = m.ESP.Read(p.disk, func(files fs.FS) (err error) {
		log, err = goodlog.Read(files, secret)
		return err
	})
	return log, err
}
