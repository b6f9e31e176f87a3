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
	"halogenos.internal/boot/words"
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
// sector, is not an error: all that can be lost then counts as lost, and the owner is asked.
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
func (g Guarantees) Lost(now Guarantees) (lost []words.Line) {
	if g.unknown != nil {
		lost = append(lost, words.Linef(words.LostSystems, g.unknown))
	}
	if g.Record && !now.Record {
		lost = append(lost, words.Fixed(words.LostRecord))
	}
	if g.Programs && !now.Programs {
		lost = append(lost, words.Fixed(words.LostPrograms))
	}
	if g.PIN && !now.PIN {
		lost = append(lost, words.Fixed(words.LostPIN))
	}
	// An older box may be from before it was on. A machine that is being made has read none.
	if (g.SecureBoot || g.Format > 0) && !now.SecureBoot {
		lost = append(lost, words.Fixed(words.LostSecureBoot))
	}
	return lost
}

// weakerWord is what an owner types to have less, in every language. It is no "y", which they type for
// what is asked every time.
const weakerWord = "weaker"

// AskWeaker tells the owner what the machine would lose, and asks for the word.
func AskWeaker(c hw.Console, lost []words.Line, timeout time.Duration) error {
	l := c.Language()
	c.Print(l.Text(words.WeakerWarning))
	for _, one := range lost {
		c.Print("- " + l.Line(one) + "\n")
	}
	typed, err := askWord(c, l.Say(words.WeakerAsk, weakerWord), timeout)
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
	c.Print(c.Language().Say(words.BeforeKey, fault))
}

// AskWithoutTPM asks the owner whether the system shall be started beside a TPM that
// does not work, which could therefore not be told that the initramfs phase is over.
func AskWithoutTPM(c hw.Console, fault error, timeout time.Duration) error {
	c.Print(c.Language().Say(words.WithoutTPM, fault))
	typed, err := askWord(c, c.Language().Say(words.WithoutTPMAsk, weakerWord), timeout)
	if err == nil && !typed {
		err = fmt.Errorf("the TPM cannot be used, and the system was not to be started without it: %w", fault)
	}
	return err
}
