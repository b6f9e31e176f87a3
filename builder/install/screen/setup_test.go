package screen

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gdamore/tcell/v2"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/questions"
	"halogenos.internal/builder/install"
)

func choices() *questions.Choices {
	yes := true
	c := &questions.Choices{
		Version: questions.Version, Languages: []string{"C.UTF-8", "de_DE.UTF-8", "en_US.UTF-8"}, Language: "C.UTF-8", HostName: "halogen",
		Keyboards: []questions.Layout{{Name: "de", Text: "German"}, {Name: "us", Text: "English [red](US)" + strings.Repeat(" long", 30)}},
		TimeZones: []questions.Zone{{Name: "Etc/UTC"}, {Name: "Europe/Berlin", Country: "DE"}}, Accounts: true, Users: []string{"root"}, AutomaticUpdates: &yes,
	}
	for _, city := range strings.Fields("Adak Bogota Caracas Denver Edmonton Fortaleza Godthab Halifax Inuvik Jamaica Knox Lima Managua Nassau Ojinaga Panama Regina Santiago Tijuana Winnipeg") {
		c.TimeZones = append(c.TimeZones, questions.Zone{Name: "America/" + city})
	}
	return c
}

// began is somebody who has chosen a disk, and sees the first question.
func began(t *testing.T, f *fake, width, height, colors int) *person {
	t.Helper()
	p := startOn(t, f, width, height, colors)
	p.sees("which disk?")
	p.presses(tcell.KeyEnter)
	p.sees("The new system: Language")
	return p
}

// All questions, some of them answered wrongly, taken back or left; the disk is written after that,
// and not before.
func TestAsks(t *testing.T) {
	f := twoDisks()
	f.choices = choices()
	p := began(t, f, 80, 24, 8)
	p.sees("> C.UTF-8")
	p.types("de_de")
	p.sees("> de_DE.UTF-8")
	p.presses(tcell.KeyEnter)
	p.sees("The new system: Keyboard")
	p.sees("> de                   German")
	p.sees("us                   English [red](US) long")
	p.presses(tcell.KeyDown)
	p.sees("> us")
	p.presses(tcell.KeyEscape)
	p.sees("> de_DE.UTF-8") // what was answered, and not what the image has
	p.types("zz")
	p.sees(`Nothing there has "zz" in it.`)
	p.presses(tcell.KeyEnter, tcell.KeyDown, tcell.KeyBackspace2, tcell.KeyBackspace2)
	p.types("de")
	p.sees("> de_DE.UTF-8")
	p.presses(tcell.KeyEnter)
	p.sees("The new system: Keyboard")
	p.presses(tcell.KeyTab)
	p.sees("> Europe/Berlin")
	p.presses(tcell.KeyEnter)
	p.sees("Name of this machine [halogen]: ")
	p.types("my computer")
	p.presses(tcell.KeyEnter)
	p.sees(`"my computer" is not a host name`)
	p.types("Kitchen")
	p.presses(tcell.KeyEnter)
	p.sees("fetched by themselves? [yes]: ")
	p.types("no")
	p.presses(tcell.KeyEnter)
	p.sees("Your name in full, which may be empty: ")
	p.types("Alice Example")
	p.presses(tcell.KeyEnter)
	p.sees("Name of your account, or - for none [alice]: ")
	p.presses(tcell.KeyEnter)
	p.sees("Password of alice (it is not shown): _")
	p.sees("take letters that are the same on both")
	p.types("one")
	p.sees(": ***_")
	p.presses(tcell.KeyEnter)
	p.sees("Once more: _")
	p.types("two")
	p.presses(tcell.KeyEnter)
	p.sees("These are not the same.")
	for _, prompt := range []string{"Password of alice", "Once more: _"} {
		p.sees(prompt)
		p.types("right horsf")
		p.presses(tcell.KeyBackspace2, tcell.KeyLeft)
		p.types("e")
		p.sees(": ***********_")
		p.presses(tcell.KeyEnter)
	}
	p.sees("is this right?")
	p.sees("account    alice  Alice Example, who may become root")
	p.sees("asked for  keyboard (at the first start)")
	if f.answers != nil || strings.Contains(p.seen(), "horse") {
		t.Errorf("taken before it was agreed to, or shown:%s", p.seen())
	}
	p.presses(tcell.KeyEnter)
	p.sees("Everything on /dev/sda will be lost")
	no := false
	want := &answers.Answers{
		Version: 1, Language: "de_DE.UTF-8", TimeZone: "Europe/Berlin", HostName: "kitchen", AutomaticUpdates: &no, Ask: []string{"keyboard"},
		Account: &answers.Account{Name: "alice", FullName: "Alice Example", Typed: []byte("right horse")},
	}
	f.plugging.Lock()
	if !reflect.DeepEqual(f.answers, want) {
		t.Errorf("%+v, account %+v", f.answers, f.answers.Account)
	}
	f.plugging.Unlock()
	p.presses(tcell.KeyEscape) // another disk is another machine's, or is asked about once more
	p.sees("which disk?")
	f.plugging.Lock()
	if f.answers != nil {
		t.Errorf("answers are left: %+v", f.answers)
	}
	f.plugging.Unlock()
	p.presses(tcell.KeyEscape)
	if err := p.ends(); !errors.Is(err, ErrLeft) {
		t.Errorf("error %v", err)
	}
}

// Each question can be left by one key, on a terminal without colours, too; and from the first one the
// way leads back to the disks.
func TestAsksAllLeft(t *testing.T) {
	f := twoDisks()
	f.choices = choices()
	p := began(t, f, 80, 24, 0)
	for _, title := range []string{"Keyboard", "Time zone", "Name of this machine", "Shall new releases", "Your name in full", "is this right?"} {
		p.presses(tcell.KeyTab)
		p.sees("The new system: " + title)
	}
	p.sees("asked for  language, keyboard, time zone, name, updates, account (at the")
	for _, title := range []string{"Your name in full", "Shall new releases", "Name of this machine", "Time zone", "Keyboard", "Language"} {
		p.presses(tcell.KeyEscape)
		p.sees("The new system: " + title)
	}
	p.presses(tcell.KeyEscape)
	p.sees("which disk?")
	p.presses(tcell.KeyEscape)
	if err := p.ends(); !errors.Is(err, ErrLeft) {
		t.Errorf("error %v", err)
	}
}

// Leaving the password leaves the account, and a password that no machine takes is refused.
func TestAsksPassword(t *testing.T) {
	f := twoDisks()
	f.choices = &questions.Choices{Accounts: true}
	p := start(t, f)
	p.sees("which disk?")
	p.presses(tcell.KeyEnter)
	p.sees("Name of this machine [computer]: ")
	p.presses(tcell.KeyEnter)
	p.sees("Your name in full")
	p.presses(tcell.KeyEnter)
	p.sees("Name of your account, or - for none: ")
	p.types("root2")
	p.presses(tcell.KeyEnter)
	p.sees("Password of root2")
	p.presses(tcell.KeyEnter)
	p.sees("the password is empty")
	p.types("secret")
	p.presses(tcell.KeyEnter)
	p.sees("Once more: _")
	p.presses(tcell.KeyTab)
	p.sees("is this right?")
	p.presses(tcell.KeyEnter)
	p.sees("Type the disk's name")
	f.plugging.Lock()
	if a := f.answers; a == nil || a.Account != nil || !slices.Equal(a.Ask, []string{"account"}) {
		t.Errorf("%+v", f.answers)
	}
	f.plugging.Unlock()
	p.presses(tcell.KeyEscape)
	p.sees("which disk?")
	p.presses(tcell.KeyEscape)
	if err := p.ends(); !errors.Is(err, ErrLeft) {
		t.Errorf("error %v", err)
	}
}

// A long list scrolls to what is chosen, on a small terminal, too; and nobody is asked for a root
// partition that is kept.
func TestAsksLongList(t *testing.T) {
	f := twoDisks()
	f.choices = choices()
	f.choices.Languages, f.choices.Keyboards, f.choices.TimeZone = nil, nil, "America/Winnipeg"
	f.disks[0].Root = &install.Root{Size: 1 << 30}
	p := startOn(t, f, 60, 12, 8)
	p.sees("which disk?")
	p.presses(tcell.KeyEnter)
	p.sees("Keep the root partition")
	p.presses(tcell.KeyEnter)
	p.sees("Type the disk's name")
	p.presses(tcell.KeyEscape)
	p.sees("which disk?")
	p.presses(tcell.KeyEnter)
	p.sees("Keep the root partition")
	p.presses(tcell.KeyDown, tcell.KeyEnter)
	p.sees("> America/Winnipeg")
	p.presses(tcell.KeyUp)
	p.sees("> America/Tijuana")
	p.presses(tcell.KeyEscape)
	p.sees("which disk?")
	p.presses(tcell.KeyEscape)
	if err := p.ends(); !errors.Is(err, ErrLeft) {
		t.Errorf("error %v", err)
	}
}
