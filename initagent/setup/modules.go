package setup

import (
	"slices"
	"strings"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/moduletrust"
	"halogenos.internal/initagent/rootpart"
)

// ModulesToAsk reports whether AskModules has something to ask: as for other systems, a machine
// that has keys keeps the list that lies with them.
func ModulesToAsk(h *host.Host) bool {
	return h.ModuleKey != nil && h.Left.Pending == nil && (h.State.Root != bootflow.RootOpen || !rootpart.HasKeys(h.Store))
}

// AskModules asks, before this machine's keys are made, whether db gets the certificate of the
// release's kernel modules. The answer is kept in the list that lies with the keys, before
// anything is enrolled (enrollList): cut before that, the next start asks again.
func AskModules(h *host.Host) error {
	add := secureboot.OtherSystems{DB: slices.Concat(h.Left.LetStart.DB, secureboot.Database{secureboot.ModuleKey(h.ModuleKey)}), DBX: h.Left.LetStart.DBX}
	needs, err := add.Room(secureboot.Wanted{}, h.FirmwareKeys.DBX.Content)
	if err != nil {
		return err
	}
	if has, known := h.Variables.Room(); known && has < needs {
		h.Log.Say("WARNING: the release's kernel modules are not trusted: db with their certificate takes %d bytes of the firmware's variables, and %d are free: "+
			"delete boot entries and dump variables that are not needed in the firmware's setup; a later start asks about it", needs, has)
		return nil
	}
	c, err := h.Person.Open(h.Language)
	if err != nil {
		h.Log.Say("nobody can be asked whose kernel modules are to be trusted, which a later start does: %v", err)
		return nil
	}
	defer c.Close()
	h.Left.Modules, err = moduletrust.Ask(h, c)
	return err
}

// tellModules has a list that is made now want what was answered.
func tellModules(h *host.Host, list *secureboot.List, yes bool) {
	key := secureboot.ModuleKey(h.ModuleKey)
	list.TrustModules(key, yes)
	if yes {
		list.TakeDB(list.DBFor(secureboot.Database{key}))
		h.Log.Say("db also gets the %s of kernel modules, by a word of the owner's", key)
	}
}

// takeBackAll takes back what the owner has agreed to that db gets, and says what that was;
// nothing where it was nothing.
func takeBackAll(list *secureboot.List) string {
	var what []string
	if list.LetNoneStart() {
		what = append(what, "what other systems start by")
	}
	if db := list.DBFor(nil); !db.Same(list.Wanted.DB) {
		list.TakeDB(db)
		what = append(what, "the certificates of kernel modules")
	}
	return strings.Join(what, " and ")
}
