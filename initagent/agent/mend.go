package agent

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/systems"
)

// copiesDirectory is where the root partition has the copies of the ESP's files.
const copiesDirectory = rootpart.OwnDirectory + "/esp"

// keeper keeps the copies. Where the firmware enforces this machine's keys, its
// list and they tell a sound file from a damaged one.
func (a *Agent) keeper() *systems.Keeper {
	k := &systems.Keeper{
		Store: a.Store, Directory: copiesDirectory, ImageID: a.Contract.ImageID, Belongs: a.belongs, Now: a.Now(), Say: a.Log.Say,
	}
	if a.OwnEnforced() {
		k.Starts = a.Starts
	}
	if a.List != nil {
		k.Old = a.oldManager
	}
	return k
}

// oldManager reports whether a boot manager was replaced or revoked, and the TPM's record
// does not let it start this system. One that the owner has accepted all the same is in it.
func (a *Agent) oldManager(image []byte) bool {
	digest, err := authenticode.Digest(image)
	if err != nil || !a.List.Replaced(digest) && !a.Refused(a.List, digest) {
		return false
	}
	if a.Record == nil {
		return true
	}
	m, err := rootpart.NewManager(image)
	start, serr := a.ToldStart()
	return err == nil && serr == nil && !slices.Contains(a.KnownManagers(start), m)
}

// oldManagerThere reports whether the ESP has a boot manager that was replaced. Two
// versions may be alike in size, which is what an ordinary boot compares, so that it is
// asked where the TPM has not opened the machine.
func (a *Agent) oldManagerThere() bool {
	return a.List != nil && a.Record == nil && slices.ContainsFunc(layout.Managers(), func(name string) bool {
		_, have, _, err := a.FindManager(name)
		return err == nil && have != nil && a.oldManager(have)
	})
}

// belongs says why a system that is gone from the ESP stays so. A slot that the
// fetcher has emptied carries random UUIDs, and is nobody's.
func (a *Agent) belongs(c *contract.Contract) error {
	s, named := layout.FindSlot(a.Table, layout.SystemUUID(c.Root()), layout.VerityUUID(c.Root()))
	if !s.Valid() || !named {
		return fmt.Errorf("no slot holds the content of version %s", c.Version)
	}
	if c.Epoch < a.State.Floor {
		return fmt.Errorf("epoch %d of version %s is under the floor of %d", c.Epoch, c.Version, a.State.Floor)
	}
	failures, err := a.Journal.Failures()
	if err != nil {
		return err
	}
	if reason, failed := failures[c.Version]; failed {
		return fmt.Errorf("version %s failed: %s", c.Version, reason)
	}
	return nil
}

// espDiffers reports whether the ESP and the root partition's copies differ, and
// says how.
func (a *Agent) espDiffers() bool {
	var found []string
	err := a.Log.Step("esp", "the ESP is compared with its copies", func() error {
		return a.ReadESP(func(files fs.FS) (err error) {
			found, err = a.keeper().Look(files)
			return err
		})
	})
	if err != nil {
		a.Log.Say("`esp-rebuild` at the recovery console makes the ESP again")
		return false
	}
	if a.RecordsPolicy() && a.Record.Passing() && len(found) == 0 && !a.copiedManagers() {
		found = append(found, "the boot manager was replaced, and its copy is of the old one")
	}
	if a.oldManagerThere() {
		found = append(found, "a boot manager that was replaced is back")
	}
	if len(found) > 0 {
		a.Log.Say("the ESP: %s", strings.Join(found, "; "))
	}
	return len(found) > 0
}

// lookAgain is for a step that changes on the ESP what there are copies of.
func (a *Agent) lookAgain() { a.looked, a.facts.Mended = false, slot.NotTried }

// mend makes the ESP whole from the copies, and the copies from what is sound on
// the ESP.
func (a *Agent) mend() error {
	healed, err := a.keeper().Mend(a.ESP, a.Disk)
	for _, h := range healed {
		a.Log.Say("%s", h)
		a.NoteSelf(journal.Healed, h)
	}
	return err
}
