package host

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/lastgood"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// A Chip is the machine's TPM, or the reason why there is none: absence is a
// fact, and everything that needs a TPM asks Err first.
type Chip struct {
	TPM    *tpm.TPM
	Err    error
	Capped bool // PCR 15 was extended in this boot
	Ended  bool // PCR 11 says that the initramfs phase is over
	// Untold: the system is started although the TPM may not know that. Either the
	// owner has agreed to it, or the TPM was never given anything.
	Untold bool
}

// ReadLog reads the firmware's event log.
func (h *Host) ReadLog() (*pcr.Log, []byte, error) {
	raw, err := h.TPM.EventLog()
	if err != nil {
		return nil, nil, err
	}
	log, err := pcr.ParseLog(raw)
	if err == nil && h.Contract != nil && h.Contract.TPM == contract.Optional {
		err = h.accounts(log)
	}
	return log, raw, err
}

// accounts reports a log with holes, as some firmware writes it. Where the TPM is
// optional, such a log is as good as none. Where it is required, what depends on the log
// compares it with the TPM and stops.
func (h *Host) accounts(log *pcr.Log) error {
	if h.Chip.Err != nil {
		return nil
	}
	told, err := rootpart.Logged(log)
	if err != nil {
		return err
	}
	now, err := h.Chip.TPM.Now()
	if err == nil && now.PCR7 != told.PCR7 {
		err = errors.New(Meaning(pcr.SecureBoot))
	}
	return err
}

// Meaning says what an unexpected value of a PCR comes from.
func Meaning(n int) string {
	switch n {
	case pcr.SecureBoot:
		return "the firmware's event log does not account for its Secure Boot state: update the firmware, or choose another TPM in its setup; a system built with TPM=optional runs without"
	case pcr.KernelImage:
		return "the running UKI is not the file on the ESP"
	case pcr.KernelConfig:
		return "a command line, credential or addon from outside the UKI was added to this boot"
	case pcr.SystemExts:
		return "a system extension from outside the UKI was added to this boot"
	case pcr.SystemID:
		return "a volume was opened in this boot before"
	}
	return "unknown"
}

// CapVolume measures the volume key, so that nothing unseals a second time.
func (h *Host) CapVolume(volumeKey []byte) error {
	if h.Chip.Err != nil {
		return nil
	}
	event := policy.VolumeEvent(volumeKey)
	if err := h.Chip.TPM.Extend(pcr.SystemID, event[:]); err != nil {
		return err
	}
	h.Chip.Capped = true
	return nil
}

// Binding is the TPM for what is sealed in this phase.
func (h *Host) Binding() rootpart.Binding {
	return rootpart.Binding{TPM: h.Chip.TPM, Store: h.Store, Say: h.Log.Say, Proves: true}
}

// WriteRecord is rootpart.Binding.WriteRecord of this machine's TPM.
func (h *Host) WriteRecord(secret *policy.Secret, sealed *policy.Sealed, r *policy.Record) error {
	return h.Binding().WriteRecord(secret, sealed, r)
}

// OpenByTPM returns the volume key that the machine secret opens. The caller wipes it.
func (h *Host) OpenByTPM(secret *policy.Secret) ([]byte, error) {
	limit, err := h.KeyLimit()
	if err != nil {
		return nil, err
	}
	f, err := h.Disks.OpenPartition(h.Disk, layout.Root, false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return h.Lock.OpenTPM(f, secret, limit)
}

// LastGood reads the kept event log; none, or one that is malformed, is nil. Only
// with the machine secret is it known to be this machine's own.
func (h *Host) LastGood(secret *policy.Secret) (log *lastgood.Log) {
	err := h.ReadESP(func(esp fs.FS) (err error) {
		log, err = lastgood.Read(esp, secret)
		return err
	})
	if err != nil {
		return nil
	}
	return log
}

// LastGoodLog is the last good boot's log where it is known to be this machine's own; or
// nil.
func (h *Host) LastGoodLog(secret *policy.Secret) *pcr.Log {
	if last := h.LastGood(secret); last != nil && last.Authentic {
		return last.Log
	}
	return nil
}

// TPMTimeout is how long a TPM that the firmware knows may take to show itself.
const TPMTimeout = 5 * time.Second

// OpenTPM opens the TPM; that one is missing is a fact and not an error. A driver that
// is a module may have to wait for the bus that its TPM is at.
func (h *Host) OpenTPM() {
	for start := h.Now(); ; {
		h.Chip.TPM, h.Chip.Err = h.TPM.Open()
		if !errors.Is(h.Chip.Err, hw.ErrNoDevice) || h.Now().Sub(start) > TPMTimeout {
			break
		}
		if tried, err := h.Kernel.Coldplug(h.Way); err != nil || tried == 0 {
			h.Sleep(20 * time.Millisecond)
		}
	}
}

// EnterPhase measures the beginning of the initramfs phase into PCR 11, as
// systemd-pcrphase does.
func (h *Host) EnterPhase() error {
	if h.Chip.Err != nil {
		return nil // nothing is bound to it
	}
	err := h.Chip.TPM.ExtendText(pcr.KernelImage, pcr.EnterInitrd)
	if err != nil {
		err = fmt.Errorf("measure phase %q: %w", pcr.EnterInitrd, err)
	}
	if err != nil && h.Contract.TPM == contract.Optional {
		h.Chip.Err = err
		return nil
	}
	return err
}

// LeavePhase ends the initramfs phase, for the TPM: from here on it releases
// nothing that is bound to it, no matter who asks. It comes before anything but
// initagent runs, on every path. A TPM that was not there or did not answer
// when the boot began may be there now, and what runs afterwards could measure
// and unseal at leisure: so it is asked once more, and only one that is absent
// in failure mode is passed over. The verified system, and nothing else, is started
// beside one that cannot be told where its owner has allowed it. A TPM that was told is
// not told again: what it was told is part of what the console's commands account for.
func (h *Host) LeavePhase(word string) error {
	if h.Chip.Ended {
		return nil
	}
	if h.Chip.Err != nil {
		h.Chip.TPM, h.Chip.Err = h.TPM.Open()
	}
	switch {
	case errors.Is(h.Chip.Err, tpm.ErrAbsent):
		return nil
	case h.Chip.Err != nil:
		return h.notTold(word, h.Chip.Err)
	}
	err := h.Chip.TPM.ExtendText(pcr.KernelImage, word)
	if err == nil && !h.Chip.Capped {
		if err = h.Chip.TPM.ExtendText(pcr.SystemID, word); err == nil {
			h.Chip.Capped = true
		}
	}
	if errors.Is(err, tpm.ErrFailed) {
		h.Log.Say("the TPM is in failure mode: it releases nothing before the machine is switched off and on")
		return nil
	}
	if err != nil {
		return h.notTold(word, err)
	}
	h.Chip.Ended = true
	return nil
}

func (h *Host) notTold(word string, err error) error {
	err = fmt.Errorf("the TPM could not be told that the initramfs phase ends: %w", err)
	if word != pcr.LeaveInitrd || !h.Chip.Untold {
		return err
	}
	h.Log.Say("WARNING: %v", err)
	return nil
}
