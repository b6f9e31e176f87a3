package agent

import (
	"errors"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/cures"
	"halogenos.internal/initagent/handover"
)

// recover opens the recovery console: a shell on every terminal, with nothing in
// reach that was not typed in. Leaving it restarts the machine.
//
// No secret was in memory in this boot (see bootflow.Stop). The order: the root
// partition is closed; the TPM learns that the boot has ended, before a device that
// somebody has plugged in gets its driver; all drivers are loaded, since a TPM whose
// driver is a module would be there for the shell; the kernel's memory is hidden, where
// a machine that was only restarted still has what the boot before this one knew, and no
// further module is loaded where the kernel trusts keys that are not this system's; a TPM
// that was absent is told then, and looked for once more right before the shell, for a
// driver that took its time. What is plugged in beside the shell gets its driver, but no
// TPM does. If one of these fails there is no console, but for a kernel
// that cannot hide its memory, which the builder refuses.
func (a *Agent) recover(reason string) error {
	a.stopListening()
	a.Person.Quiet() // drivers would write over what is said from here on; a restart ends it
	a.Log.Say("RECOVERY: %s", reason)
	a.Forget()
	a.NoteSelf(journal.Recovery, reason)
	err := a.CloseRoot()
	if a.Chip.Err == nil {
		err = errors.Join(err, a.LeavePhase(pcr.Recovery))
	}
	a.LoadAllDrivers() // for sticks and disks, too, that a person may want to use
	if err := a.HideMemory(); err != nil {
		a.Log.Say("a shell can read what the boot before this one left in memory: %v", err)
	}
	if a.facts.Planted != "" {
		err = errors.Join(err, a.noModules())
	}
	if err := errors.Join(err, a.LeavePhase(pcr.Recovery)); err != nil {
		return a.noConsole(err)
	}
	a.ReleaseWatchdog(0) // a person takes the time that it takes
	if a.Contract != nil {
		if err := handover.WriteReport(&a.Host, a.facts, reason, true); err != nil {
			a.Log.Say("the report of this boot was not written: %v", err)
		}
	}
	a.sayCures(reason)
	if err := a.LeavePhase(pcr.Recovery); err != nil {
		return a.noConsole(err)
	}
	if err := a.Attended(a.Person.Shell); err != nil {
		a.Log.Say("%v", err)
	}
	return a.restart()
}

// sayCures says that the boot has stopped, and what to do about it: in the log, and to somebody
// who reads another language in that one, below the reason once more: with all this twice, a screen
// of 25 lines has it no longer, and the cures name it.
func (a *Agent) sayCures(reason string) {
	lines := []words.Line{words.Fixed(words.Stopped)}
	if a.lost() {
		lines = []words.Line{words.Fixed(words.StoppedLost)}
	}
	for _, line := range cures.For(a.State, a.stopped()) {
		lines = append(lines, words.Fixed(line))
	}
	if menu, known := a.SetupMenu(); known && cures.ClearsKeys(a.State, a.stopped()) {
		lines = append(lines, words.Linef(words.OnThisMachine, menu))
	}
	for _, line := range lines {
		a.Log.Say("%s", line)
	}
	if a.Language == words.English {
		return
	}
	c, err := a.Person.Open(a.Language)
	if err != nil {
		a.Log.Say("%v", err)
		return
	}
	defer c.Close()
	c.Print("\nRECOVERY: " + reason + "\n")
	for _, line := range lines {
		c.Print(a.Language.Line(line) + "\n")
	}
}

// noModules keeps the kernel from loading further modules, once it has those of the
// initramfs that `unlock` needs.
func (a *Agent) noModules() error {
	needed := []string{"dm_crypt", "xts"}
	if a.Contract != nil {
		needed = append(needed, a.Contract.RootFileSystem)
	}
	if err := a.Kernel.Load(needed...); err != nil {
		a.Log.Say("`unlock` will not work: %v", err)
	}
	return a.NoModules()
}

// noConsole restarts a machine on which a shell could ask the TPM. Somebody has to
// read why, and nobody wants a machine that restarts faster than that.
func (a *Agent) noConsole(err error) error {
	a.Log.Say("no console: %v", err)
	a.Log.Say("%sSwitch the machine off and on. If that does not help, switch the TPM off in the firmware's setup (it may be called PTT, fTPM or Security Device): "+
		"without a TPM the console opens, and the recovery key opens the data", a.lossless())
	if a.Contract != nil && a.Contract.TPM == contract.Optional {
		a.Log.Say("or let the machine start again, type the recovery key when it asks for it, and read what it says: this system starts without a TPM, too")
	} else {
		a.Log.Say("or read the data on another machine: `cryptsetup open` of any Linux opens the partition %q of this disk with the recovery key. This system itself requires a TPM that works", layout.Root)
		a.Log.Say("%s", words.CureTPMDead)
	}
	a.Sleep(time.Minute)
	return errors.Join(err, a.restart())
}

// restart waits long enough for what is on the screen to be read.
func (a *Agent) restart() error {
	a.Log.Say("restarting in 10 seconds")
	a.Sleep(10 * time.Second)
	return a.reboot()
}

// reboot ends the boot.
func (a *Agent) reboot() error {
	a.Forget()
	if err := a.CloseRoot(); err != nil {
		a.Log.Say("%v", err) // what was written is flushed by the restart all the same
	}
	return a.Power.Reboot()
}
