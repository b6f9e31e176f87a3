package agent

import (
	"errors"
	"fmt"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// A chip is the machine's TPM, or the reason why there is none: absence is a
// fact, and everything that needs a TPM asks err first.
type chip struct {
	tpm    *tpm.TPM
	err    error
	capped bool // PCR 15 was extended in this boot
	ended  bool // PCR 11 says that the initramfs phase is over
	// untold: the system is started although the TPM may not know that. Either the
	// owner has agreed to it, or the TPM was never given anything.
	untold bool
}

// errNotOpened is why there is no TPM before the boot has come to it.
var errNotOpened = errors.New("the TPM was not opened yet")

// tpmTimeout is how long a TPM that the firmware knows may take to show itself.
const tpmTimeout = 5 * time.Second

// openTPM opens the TPM; that one is missing is a fact and not an error. A driver that
// is a module may have to wait for the bus that its TPM is at.
func (a *Agent) openTPM() error {
	for start := a.Now(); ; {
		a.chip.tpm, a.chip.err = a.TPM.Open()
		if !errors.Is(a.chip.err, hw.ErrNoDevice) || a.Now().Sub(start) > tpmTimeout {
			break
		}
		if tried, err := a.Kernel.Coldplug(a.way); err != nil || tried == 0 {
			a.Sleep(20 * time.Millisecond)
		}
	}
	a.facts.TPMPresent = a.chip.err == nil
	if a.chip.err != nil && !errors.Is(a.chip.err, tpm.ErrAbsent) {
		a.faulty(a.chip.err)
	}
	return nil
}

// faulty goes on without a TPM that is there and does not work.
func (a *Agent) faulty(err error) {
	a.chip.err = err
	a.facts.TPMPresent, a.facts.TPMFault = false, err.Error()
	a.Log.Say("the TPM cannot be used: %v", err)
}

// enterPhase measures the beginning of the initramfs phase into PCR 11, as
// systemd-pcrphase does.
func (a *Agent) enterPhase() error {
	if a.chip.err != nil {
		return nil // nothing is bound to it
	}
	err := a.chip.tpm.ExtendText(pcr.KernelImage, pcr.EnterInitrd)
	if err != nil {
		err = fmt.Errorf("measure phase %q: %w", pcr.EnterInitrd, err)
	}
	if err != nil && a.contract.TPM == contract.Optional {
		a.faulty(err)
		return nil
	}
	return err
}

// leavePhase ends the initramfs phase, for the TPM: from here on it releases
// nothing that is bound to it, whoever asks. It comes before anything but
// initagent runs, on every path. A TPM that was not there or did not answer
// when the boot began may be there now, and what runs afterwards could measure
// and unseal at leisure: so it is asked once more, and only one that is absent
// in failure mode is passed over. The verified system, and nothing else, is started
// beside one that cannot be told where goOnUntold has allowed it. A TPM that was told is
// not told again: what it was told is part of what the console's commands account for.
func (a *Agent) leavePhase(word string) error {
	if a.chip.ended {
		return nil
	}
	if a.chip.err != nil {
		a.chip.tpm, a.chip.err = a.TPM.Open()
	}
	switch {
	case errors.Is(a.chip.err, tpm.ErrAbsent):
		return nil
	case a.chip.err != nil:
		return a.notTold(word, a.chip.err)
	}
	err := a.chip.tpm.ExtendText(pcr.KernelImage, word)
	if err == nil && !a.chip.capped {
		if err = a.chip.tpm.ExtendText(pcr.SystemID, word); err == nil {
			a.chip.capped = true
		}
	}
	if errors.Is(err, tpm.ErrFailed) {
		a.Log.Say("the TPM is in failure mode: it releases nothing before the machine is switched off and on")
		return nil
	}
	if err != nil {
		return a.notTold(word, err)
	}
	a.chip.ended = true
	return nil
}

func (a *Agent) notTold(word string, err error) error {
	err = fmt.Errorf("the TPM could not be told that the initramfs phase ends: %w", err)
	if word != pcr.LeaveInitrd || !a.chip.untold {
		return err
	}
	a.Log.Say("WARNING: %v", err)
	return nil
}

// goOnUntold decides, with the root partition open, whether the system may be started
// beside a TPM that is there and has not worked in this boot. The TPM is told now where
// that works, and then there is nothing to ask. Otherwise the owner is, in every such
// boot: what the TPM released to root of the running system they could keep. Nothing on
// the disk says that it was never given the machine secret: that can be an old note.
//
// A machine whose image requires a TPM never comes here.
func (a *Agent) goOnUntold(c hw.Console) error {
	if a.chip.err == nil {
		return nil
	}
	fault := a.chip.err
	err := a.leavePhase(pcr.LeaveInitrd)
	a.chip.err = fault // this boot does without it
	if err == nil {
		return nil
	}
	err = rootpart.AskWithoutTPM(c, fault, keyTimeout)
	a.facts.Answered = !errors.Is(err, hw.ErrNobody)
	if err != nil {
		return err
	}
	a.chip.untold = true
	return nil
}

// readLog reads the firmware's event log.
func (a *Agent) readLog() (*pcr.Log, []byte, error) {
	raw, err := a.TPM.EventLog()
	if err != nil {
		return nil, nil, err
	}
	log, err := pcr.ParseLog(raw)
	if err == nil && a.contract != nil && a.contract.TPM == contract.Optional {
		err = a.accounts(log)
	}
	return log, raw, err
}

// accounts reports a log with holes, as some firmware writes it. Where the TPM is
// optional, such a log is as good as none. Where it is required, what depends on the log
// compares it with the TPM and stops.
func (a *Agent) accounts(log *pcr.Log) error {
	if a.chip.err != nil {
		return nil
	}
	told, err := rootpart.Logged(log)
	if err != nil {
		return err
	}
	now, err := a.chip.tpm.Now()
	if err == nil && now.PCR7 != told.PCR7 {
		err = errors.New(meaning(pcr.SecureBoot))
	}
	return err
}

// meaning says what an unexpected value of a PCR comes from.
func meaning(n int) string {
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
