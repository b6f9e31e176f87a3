package rootpart

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/hw"
)

// GuaranteesFile is where the root partition notes what the machine has had.
const GuaranteesFile = OwnDirectory + "/guarantees"

const (
	guaranteesFormat  = 1
	guaranteesPurpose = "guarantees"
	maxGuarantees     = 4 << 10
)

// Guarantees are what a machine has had, so that it does not get less without its
// owner being asked. They lie on the root partition, in a box that only this
// machine's initramfs can make: the TPM's index can be deleted by anyone who has the
// machine in hand, and the header's token can be written by anybody.
//
// Every machine has a box: it is written with the root partition, and where an earlier
// release made that, when the TPM opens it for the first time. That there is none says
// that somebody has deleted it.
//
// A box is not fresh. Anyone who is root in the running system can put an older one
// back, and has the TPM's record to reckon with, which is fresh and no less than the
// box. Where they have deleted the record as well, only its owner can say what the
// machine had: see Forgotten.
type Guarantees struct {
	Format     int    `json:"format"`
	Floor      uint64 `json:"floor"`       // the lowest epoch that may run
	Record     bool   `json:"record"`      // the TPM kept the list of systems
	Programs   bool   `json:"programs"`    // which was over PCR 4
	SecureBoot bool   `json:"secure_boot"` // the firmware enforced signatures
	// PIN: the TPM asked for a PIN. Without one the field is not there, as in the boxes
	// of releases that know of none.
	PIN bool `json:"pin,omitempty"`

	unknown error // why nobody can say which systems were replaced for good
}

var (
	errNoBox  = errors.New("this machine's own note of it was deleted")
	errNoList = errors.New("the TPM's list of systems is gone, and this machine's own note of it can be an old one")
)

// NewGuarantees are those of a root partition that is being made. They are written
// before anybody can be root: what is deleted can be found in free space.
func NewGuarantees(sealed *policy.Sealed, epoch uint64, enforces bool) Guarantees {
	g := Guarantees{Format: guaranteesFormat, SecureBoot: enforces}
	if sealed != nil && sealed.Kind == policy.KindNV {
		g.Record, g.Floor = true, epoch
	}
	return g
}

// ReadGuarantees reads them. A box that is not there, does not open, or lies on a bad
// sector, is no error: all that can be lost then counts as lost, and the owner is asked.
func ReadGuarantees(store hw.Store, secret *policy.Secret) Guarantees {
	box, err := store.Read(GuaranteesFile, maxGuarantees)
	if errors.Is(err, fs.ErrNotExist) {
		err = errNoBox
	}
	var text []byte
	if err == nil {
		text, err = secret.Unbox(guaranteesPurpose, box)
	}
	g := Guarantees{}
	if err == nil {
		err = json.Unmarshal(text, &g) // it is our own: a later release may have more
	}
	if err == nil && g.Format < guaranteesFormat {
		err = fmt.Errorf("format %d", g.Format)
	}
	if err != nil {
		return Guarantees{Format: guaranteesFormat, Record: true, Programs: true, SecureBoot: true, unknown: fmt.Errorf("%s: %w", GuaranteesFile, err)}
	}
	return g
}

// Forgotten are the guarantees of a machine whose TPM has no record, or not any more:
// the box alone does not say which systems were replaced for good. A box that knows of
// no record says nothing either: it can be from before there was one.
func (g Guarantees) Forgotten() Guarantees {
	if g.unknown == nil {
		g.unknown = errNoList
	}
	return g
}

// Keep writes them, in place of older ones.
func (g Guarantees) Keep(random io.Reader, store hw.Store, secret *policy.Secret) error {
	box, err := g.box(random, secret)
	if err != nil {
		return err
	}
	if err := store.MakeDirectory(OwnDirectory, 0o700); err != nil {
		return err
	}
	return store.Keep(GuaranteesFile, box)
}

func (g Guarantees) box(random io.Reader, secret *policy.Secret) ([]byte, error) {
	text, err := json.Marshal(g)
	if err != nil {
		return nil, err
	}
	return secret.Box(random, guaranteesPurpose, text)
}

// Raise returns the higher of both, each for itself.
func (g Guarantees) Raise(o Guarantees) Guarantees {
	if g.unknown != nil {
		g = Guarantees{Format: guaranteesFormat, PIN: g.PIN} // which Had says
	}
	return Guarantees{
		Format: max(g.Format, guaranteesFormat), Floor: max(g.Floor, o.Floor),
		Record: g.Record || o.Record, Programs: g.Programs || o.Programs, SecureBoot: g.SecureBoot || o.SecureBoot,
		PIN: g.PIN || o.PIN,
	}
}

// Of are what a record that has just released the secret stands for; nil where
// there is none.
func Of(r *policy.Record, enforces bool) Guarantees {
	g := Guarantees{Format: guaranteesFormat, SecureBoot: enforces}
	if r != nil && !r.Provisional() {
		g.Floor, g.Record, g.Programs = r.Floor, true, r.Programs
	}
	return g
}

// Lost says what a machine had and would have no more, in words for its owner. A
// floor is never among it: that one is not given up.
func (g Guarantees) Lost(now Guarantees) (lost []string) {
	if g.unknown != nil {
		lost = append(lost, fmt.Sprintf("Which old systems were replaced for good is not known any more (%v).\n  Old systems with known holes may open your data again. If you have had a newer system than this one, do not go on.", g.unknown))
	}
	if g.Record && !now.Record {
		lost = append(lost, "The TPM kept the list of systems that may open your data, and cannot hold it now.\n  Every system that it opens your data for once can do so for ever, also after an update has closed its holes.")
	}
	if g.Programs && !now.Programs {
		lost = append(lost, "The TPM checked which boot manager starts this machine (PCR 4), and would not any more.\n  An old boot manager with known holes could be put back.")
	}
	if g.PIN && !now.PIN {
		lost = append(lost, "The TPM asked for a PIN, and would not any more: what the header keeps of it was removed or altered.\n  Anyone who has this machine in hand could have it open your data.")
	}
	// An older box may be from before it was on. A machine that is being made has read none.
	if (g.SecureBoot || g.Format > 0) && !now.SecureBoot {
		lost = append(lost, "Secure Boot is off.\n  Whatever the firmware starts could open your data.")
	}
	return lost
}

// weakerWord is what an owner types to have less. It is no "y", which they type for
// what is asked every time.
const weakerWord = "weaker"

// AskWeaker tells the owner what the machine would lose, and asks for the word.
func AskWeaker(c hw.Console, lost []string, timeout time.Duration) error {
	c.Print("\nWARNING: from now on this machine would be protected less than it was.\n\n")
	for _, l := range lost {
		c.Print("- " + l + "\n")
	}
	typed, err := askWord(c, "\nSomebody who had this machine in hand may want exactly that. If you do not know why,\n"+
		"press Enter: the recovery key keeps opening your data, and nothing is given up.\n"+
		"Type the word \""+weakerWord+"\" to give it up: ", timeout)
	if err == nil && !typed {
		err = ErrWeaker
	}
	return err
}

func askWord(c hw.Console, question string, timeout time.Duration) (bool, error) {
	answer, err := c.Ask(question, false, timeout)
	return strings.EqualFold(strings.TrimSpace(string(answer)), weakerWord), err
}

// BeforeKey tells the owner of a machine whose TPM does not work what to do before they
// type the recovery key, which they cannot take back.
func BeforeKey(c hw.Console, fault error) {
	c.Print(fmt.Sprintf("\nThis machine's TPM cannot be used: %v.\n", fault) +
		"If it has worked so far, switch the machine off and on before you type the recovery key. Where the firmware's setup\n" +
		"can switch the TPM off (it may be called PTT, fTPM or Security Device), do that instead: nobody can have it release\n" +
		"anything then, and the recovery key opens your data without a further question.\n")
}

// AskWithoutTPM asks the owner whether the system shall be started beside a TPM that
// does not work, which could therefore not be told that the initramfs phase is over.
func AskWithoutTPM(c hw.Console, fault error, timeout time.Duration) error {
	c.Print(fmt.Sprintf("\nWARNING: this machine's TPM cannot be used: %v.\n\n", fault) +
		"- It cannot be told that the start is over. If it works after all, root of the running system\n" +
		"  can have it release this machine's secret, and keep that for ever.\n" +
		"- It does not check which system has asked you for the recovery key, and with which settings.\n\n")
	typed, err := askWord(c, "Somebody who had this machine in hand may want exactly that. If the TPM has worked so far and you do not\n"+
		"know why it does not now, press Enter, and switch the machine off and on.\n"+
		"Type the word \""+weakerWord+"\" to start all the same: ", timeout)
	if err == nil && !typed {
		err = fmt.Errorf("the TPM cannot be used, and the system was not to be started without it: %w", fault)
	}
	return err
}
