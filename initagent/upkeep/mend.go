package upkeep

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/esp"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootpart"
)

// Keeper keeps the copies. Where the firmware enforces this machine's keys, its
// list and they tell a sound file from a damaged one.
func Keeper(h *host.Host) *esp.Keeper {
	k := &esp.Keeper{
		Store: h.Store, Directory: rootpart.Copies, ImageID: h.Contract.ImageID, Belongs: func(c *contract.Contract) error { return belongs(h, c) }, Now: h.Now(), Say: h.Log.Say,
	}
	if h.OwnEnforced() {
		k.Starts = h.Starts
	}
	if h.List != nil {
		k.Old = func(image []byte) bool { return oldManager(h, image) }
	}
	return k
}

// oldManager reports whether a boot manager was replaced or revoked, and the TPM's record
// does not let it start this system. One that the owner has accepted all the same is in it.
func oldManager(h *host.Host, image []byte) bool {
	digest, err := authenticode.Digest(image)
	if err != nil || !h.List.Replaced(digest) && !h.Refused(h.List, digest) {
		return false
	}
	if h.Record == nil {
		return true
	}
	m, err := rootpart.NewManager(image)
	start, serr := h.ToldStart()
	return err == nil && serr == nil && !slices.Contains(h.KnownManagers(start), m)
}

// oldManagerThere reports whether the ESP has a boot manager that was replaced. Two
// versions may be alike in size, which is what an ordinary boot compares, so that it is
// asked where the TPM has not opened the machine.
func oldManagerThere(h *host.Host) bool {
	return h.List != nil && h.Record == nil && slices.ContainsFunc(layout.Managers(), func(name string) bool {
		_, have, _, err := h.FindManager(name)
		return err == nil && have != nil && oldManager(h, have)
	})
}

// belongs says why a system that is gone from the ESP stays so. A slot that the
// fetcher has emptied carries random UUIDs, and is nobody's.
func belongs(h *host.Host, c *contract.Contract) error {
	s, named := layout.FindSlot(h.Table, layout.SystemUUID(c.Root()), layout.VerityUUID(c.Root()))
	if !s.Valid() || !named {
		return fmt.Errorf("no slot holds the content of version %s", c.Version)
	}
	if c.Epoch < h.State.Floor {
		return fmt.Errorf("epoch %d of version %s is under the floor of %d", c.Epoch, c.Version, h.State.Floor)
	}
	failures, err := h.Journal.Failures()
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
func espDiffers(h *host.Host) bool {
	var found []string
	err := h.Log.Step("esp", "the ESP is compared with its copies", func() error {
		return h.ReadESP(func(files fs.FS) (err error) {
			found, err = Keeper(h).Look(files)
			return err
		})
	})
	if err != nil {
		h.Log.Say("`esp-rebuild` at the recovery console makes the ESP again")
		return false
	}
	if h.RecordsPolicy() && h.Record.Passing() && len(found) == 0 && !copiedManagers(h) {
		found = append(found, "the boot manager was replaced, and its copy is of the old one")
	}
	if oldManagerThere(h) {
		found = append(found, "a boot manager that was replaced is back")
	}
	if len(found) > 0 {
		h.Log.Say("the ESP: %s", strings.Join(found, "; "))
	}
	return len(found) > 0
}

// Mend makes the ESP whole from the copies, and the copies from what is sound on
// the ESP.
func Mend(h *host.Host) error {
	healed, err := Keeper(h).Mend(h.ESP, h.Disk)
	for _, what := range healed {
		h.Log.Say("%s", what)
		h.NoteSelf(journal.Healed, what)
	}
	return err
}
