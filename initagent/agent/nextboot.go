package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/initagent/console"
)

// readRequest reads what the boot before this one asks for, and takes it away.
// What asks for the console is taken away first: cut after that, this is an
// ordinary boot, which asks again if it fails again. Left in place, it would keep
// the machine from starting its system. One with other attributes is not this
// machine's: root of the running system can store one that only their own signature
// deletes, and it outlives the disk.
func (a *Agent) readRequest() error {
	attributes, text, err := a.Variables.Read(nextboot.Variable, nextboot.Vendor)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && attributes != nextboot.Attributes {
		a.Log.Say("the firmware's variable %s has the attributes %#x, and is ignored", nextboot.Variable, attributes)
		return nil
	}
	if err != nil {
		a.Log.Say("what the boot before this one asks for cannot be read: %v", err)
		return nil
	}
	stays := a.writeRequest(nil)
	if stays != nil {
		a.Log.Say("the request of the boot before this one stays in the firmware's variable %s, and if it is for the console, opens it each time: %v", nextboot.Variable, stays)
	}
	request, err := nextboot.Parse(text)
	if err != nil {
		a.Log.Say("%v: it is ignored", err)
		return nil
	}
	a.request = request.Console
	if stays == nil { // or it would be asked about at each start
		a.wish, a.facts.ResetAsked = request.Secret, request.Reset != nil
	}
	a.facts.SecretAsked = a.wish != nil
	return nil
}

// writeRequest hands the variable to the firmware; nothing deletes it (UEFI 2.10,
// section 8.2, SetVariable with no data).
func (a *Agent) writeRequest(text []byte) error {
	return a.Variables.WriteAuthenticated(nextboot.Variable, nextboot.Vendor, nextboot.Attributes, text)
}

// observeRequest lets the request count where it concerns this system: what
// another one could not do says nothing of this one.
func (a *Agent) observeRequest() {
	if a.request == nil || a.Contract != nil && !a.request.Concerns(a.Contract.Version) {
		return
	}
	a.facts.Noted = "the boot before this one asked for it: " + a.request.Reason
}

// recoverNext ends a boot that had a secret in memory: the next one opens the
// console.
//
// Cut before the variable is written, the next boot is an ordinary one and comes
// here again. Cut after it, the console opens without a key.
func (a *Agent) recoverNext(reason string) error {
	a.stopListening()
	a.Log.Say("STOPPED: %s", reason)
	a.NoteSelf(journal.Recovery, reason)
	request := nextboot.Request{Console: &nextboot.Console{Person: a.facts.ConsoleAsked, Failed: a.failed(), Reason: reason}}
	if a.Contract != nil {
		request.Console.Version = a.Contract.Version
	}
	text, err := request.Encode()
	if err == nil {
		err = a.writeRequest(text)
	}
	if err != nil {
		a.Log.Say("%sThe firmware does not keep the request for the recovery console (%v): press %c for it as soon as the machine has started again", a.lossless(), err, console.Key)
		a.Sleep(time.Minute) // nobody wants a machine that restarts faster than it can be read
	} else {
		a.Log.Say("%sThe machine restarts into the recovery console: no shell opens beside a key", a.lossless())
	}
	return a.restart()
}

// lossless says that nothing is lost by the end of this boot, but where the owner has asked
// for something to be deleted and it was begun.
func (a *Agent) lossless() string {
	if a.lost() {
		return ""
	}
	return "nothing was lost. "
}

// lost reports whether the owner has had something deleted, in this boot or the one before.
func (a *Agent) lost() bool {
	return a.facts.Came(bootflow.Reset) == bootflow.Done || a.facts.ResetBegun || a.facts.KeepHomeBegun || a.stopped().KeepHomeBegun
}

// failed names the step that ended this boot, for the advice that the next one
// gives; "" when it was none of these.
func (a *Agent) failed() string {
	for _, k := range endings() {
		if k == bootflow.KeepHome && !a.facts.KeepHomeBegun {
			continue // nobody has confirmed it
		}
		if a.facts.Came(k) == bootflow.Failed {
			return k.String()
		}
	}
	if a.facts.KeepHomeBegun && a.facts.Came(bootflow.KeepHome) != bootflow.Done {
		return bootflow.KeepHome.String() // it has not come so far in this boot
	}
	return ""
}

// stopped are the facts to give advice about: this boot's, and the failure that
// ended the one before.
func (a *Agent) stopped() bootflow.Facts {
	facts := a.facts
	if facts.Noted == "" {
		return facts
	}
	facts.ConsoleAsked = facts.ConsoleAsked || a.request.Person
	facts.KeepHomeBegun = a.request.Failed == bootflow.KeepHome.String()
	for _, k := range endings() {
		if k.String() == a.request.Failed {
			facts.Note(k, bootflow.Failed)
			facts.Cause = fmt.Sprintf("as the boot before this one says: %s", a.request.Reason)
		}
	}
	return facts
}
