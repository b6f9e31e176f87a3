package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"
	"time"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

// An installer may leave the owner's wish that other systems go on starting on the ESP, where
// anybody can write: somebody who had the disk before the first boot could want it as well. So
// the file decides nothing. It has a person at the console asked, who is shown what the
// firmware gets, and no is what counts where nobody answers. It is read while this machine has
// no keys, and where its owner, by the recovery key, gives the firmware its keys again.
//
// It stays on the ESP, so that a factory reset asks again, and is never written here. What was
// agreed to lies in the list that is kept with the keys before anything is enrolled
// (enrollList): cut before that, the next start asks again; cut after it, it goes on with that
// list and does not ask.

// othersTimeout is how long the question waits for an answer.
const othersTimeout = 10 * time.Minute

func isOthers(name string) bool { return strings.EqualFold(name, path.Base(secureboot.OthersOnESP)) }

// readOthers reads the file. Damaged, it is a wish all the same, without certificates.
func readOthers(h *host.Host, files fs.FS, name string) {
	h.Left.Wished = true
	text, err := bounded.File(files, path.Join(firstboot.Directory, name), secureboot.MaxOthers)
	if err == nil {
		h.Left.Others, err = secureboot.ParseOthers(text)
	}
	if err != nil {
		h.Log.Say("%s on the ESP: %v: the certificates that the installer has left there are not known", secureboot.OthersOnESP, err)
	}
}

// OthersWished reports whether AskOthers has something to ask: a machine that has keys keeps
// the list that lies with them.
func OthersWished(h *host.Host) bool {
	return h.Left.Wished && h.Left.Pending == nil && (h.State.Root != bootflow.RootOpen || !rootpart.HasKeys(h.Store))
}

// AskOthers asks, before this machine's keys are made, whether other systems go on starting. That
// comes before the answers of the installer are taken, and is in their language all the same: a
// yes is worth what was understood.
func AskOthers(h *host.Host) error {
	if taken, err := answers.Parse(h.Left.Answers); err == nil && h.State.Root != bootflow.RootOpen {
		takeLanguage(h, taken)
	}
	vendor, err := secureboot.VendorCertificates(h.Contract.VendorKeys, gpt.GUID{}, h.Drivers(), h.FirmwareKeys.Factory)
	if err != nil {
		return err
	}
	offered, err := offerOthers(h, secureboot.Wanted{DB: vendor.DB, DBX: vendor.DBX})
	if err != nil || len(offered.DB) == 0 {
		return err
	}
	c, err := h.Person.Open(h.Language)
	if err != nil {
		return fmt.Errorf("nobody can be asked whether other systems start with Secure Boot on: %w", err)
	}
	defer c.Close()
	return askOthers(h, c, offered)
}

// AskOthersAgain asks the owner, who gives the firmware this machine's keys again, where the
// list does not let other systems start yet. A list that is made now has its question, too.
func AskOthersAgain(h *host.Host, c hw.Console, list *secureboot.List) error {
	if !h.Left.Wished {
		return nil
	}
	offered, err := offerOthers(h, list.Wanted)
	if err != nil || len(offered.DB) == 0 {
		return err
	}
	return askOthers(h, c, offered)
}

// offerOthers is what the firmware would get; nothing where it would get nothing more.
func offerOthers(h *host.Host, wanted secureboot.Wanted) (secureboot.OtherSystems, error) {
	offered, err := secureboot.LetOthers(wanted, h.FirmwareKeys.Factory, h.FirmwareKeys.DB.Content, h.Left.Others)
	if errors.Is(err, secureboot.ErrNoOthers) {
		h.Log.Say("WARNING: other systems will not start with Secure Boot on: %v", err)
		err = nil
	}
	if err != nil || len(offered.DB) == 0 {
		return offered, err
	}
	needs, err := offered.Room(wanted, h.FirmwareKeys.DBX.Content)
	if err != nil {
		return secureboot.OtherSystems{}, err
	}
	has, known := h.Variables.Room()
	switch {
	case !known:
	case has < needs:
		h.Log.Say("WARNING: other systems will not start with Secure Boot on: their certificates and what was revoked of them take %d bytes of the firmware's variables, and %d are free: "+
			"delete boot entries and dump variables that are not needed in the firmware's setup, or update the firmware, and start again before you go on", needs, has)
		return secureboot.OtherSystems{}, nil
	default:
		h.Log.Say("letting other systems start takes %d bytes of the firmware's variables, of which %d are free", needs, has)
	}
	return offered, nil
}

// takeBack takes the owner's yes back where the firmware had no room for what it asks for: it
// cannot be told beforehand on every machine. An ESP without room is another thing: there PK may
// have been written, and the keys that go with it are on that ESP. Where the firmware has refused a
// variable PK was not written, since it comes last, so that the machine is in Setup Mode still,
// and the next start asks again. Where the keys lie on the
// ESP nothing depends on them: the next start makes new ones. On the root partition they stay,
// with the list that the yes is not in. Cut before either, the next start comes here again.
func takeBack(h *host.Host, secret *policy.Secret, keys *secureboot.KeySet, list *secureboot.List, cause error) error {
	p := new(enroll.Problem)
	if !errors.As(cause, &p) || p.Kind != enroll.Refused || !errors.Is(p.Err, syscall.ENOSPC) {
		return cause
	}
	what := takeBackAll(list)
	if what == "" {
		return cause
	}
	if s, err := enroll.Observe(h.Variables); err != nil || s.SetupMode != enroll.On {
		return errors.Join(cause, err)
	}
	var err error
	if h.State.Root == bootflow.RootOpen {
		err = keepKeys(h, secret, keys, list)
	} else if err = h.WriteESP(func(dir hw.ESPDir) error { return removeFiles(dir, isPending) }); err == nil {
		h.Left.Pending = nil
	}
	if err != nil {
		return errors.Join(cause, fmt.Errorf("the yes to what db gets stays: %w", err))
	}
	return &enroll.Problem{Kind: enroll.Refused, What: "the firmware has no room for " + what + ", so your yes to them is taken back", Err: fmt.Errorf("%s: %w", p.What, p.Err),
		Cure: []string{"start again, and say no when you are asked again", "delete boot entries and dump variables that are not needed in the firmware's setup before you do"}}
}

func askOthers(h *host.Host, c hw.Console, offered secureboot.OtherSystems) error {
	yes, err := hw.AskYes(c, offered.Question(h.Language, h.Chip.Err == nil), othersTimeout)
	switch {
	case err != nil && !errors.Is(err, hw.ErrNobody):
		return err
	case yes:
		h.Left.LetStart = offered
		return nil
	}
	h.Log.Say("other systems will not start with Secure Boot on, as was answered, or since nobody has answered")
	return nil
}
