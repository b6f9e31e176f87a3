// Package screen is the installer's text interface: it shows the disks, what
// was checked, and how far the installation has come. It fills the screen, fits 80
// columns and 24 lines, and needs no colours: a serial line will do.
//
// It refuses to begin before the chosen disk's name was typed, and it decides
// nothing: what may be installed where, the plan says.
package screen

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/gdamore/tcell/v2"
	"github.com/rivo/tview"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/questions"
	"halogenos.internal/boot/words"
	"halogenos.internal/builder/install"
)

// A Backend is what the interface shows and starts.
type Backend interface {
	// Release names what is installed.
	Release() string
	Disks() ([]install.Disk, error)
	// Plan looks at one disk, before anything is written. What of it stays, the choice
	// says, beside what was chosen before.
	Plan(d install.Disk, c install.Choice) (*install.Plan, error)
	// Choices are what the one who installs is asked about the new system; nil for nothing.
	Choices(c install.Choice) *questions.Choices
	// SetUp takes the answers, and nil for none. It erases a password among them.
	SetUp(a *answers.Answers) error
	// Install writes. It returns when all of it was read back.
	Install(ctx context.Context, p *install.Plan, progress install.Progress) error
	// Next says what the person does next.
	Next(p *install.Plan) words.List
	// Begin says what the interface begins with.
	Begin() Begin
}

// Begin is what the interface begins with.
type Begin struct {
	// Language is what the person reads, as far as that is known.
	Language words.Language
	// Ask: the person is asked for a language first.
	Ask bool
	// Keymap is what the keys type, where this program can change that: then it is asked, too.
	// "" stands for a keyboard that is another's matter.
	Keymap string
	// SetKeymap has the keys type what a keymap says.
	SetKeymap func(keyboard.Keymap) error
}

// ErrLeft is returned when the person left without an installation.
var ErrLeft = errors.New("nothing was installed")

// A ui is the interface while it runs.
type ui struct {
	app     *tview.Application
	pages   *tview.Pages
	backend Backend
	ctx     context.Context
	cancel  context.CancelFunc
	work    sync.WaitGroup
	disks   []install.Disk
	done    bool
	failed  error
	look    look
	words.Language
	begin Begin // with the keymap that is in force
}

// Run shows the interface until the installation is done or the person leaves.
// screen is nil for the terminal.
func Run(ctx context.Context, b Backend, screen tcell.Screen) error {
	plainBorders()
	ctx, cancel := context.WithCancel(ctx)
	u := &ui{app: tview.NewApplication(), pages: tview.NewPages(), backend: b, ctx: ctx, cancel: cancel, look: lookFor(colors(screen)), begin: b.Begin()}
	u.Language = u.begin.Language
	if screen != nil {
		u.app.SetScreen(screen)
	}
	stop := context.AfterFunc(ctx, u.app.Stop)
	defer stop()
	if err := u.first(); err != nil {
		cancel()
		return err
	}
	err := u.app.SetRoot(u.pages, true).Run()
	cancel()
	u.work.Wait() // an installation under way ends at its next step
	switch {
	case err != nil:
		return fmt.Errorf("text interface: %w", err)
	case u.failed != nil:
		return u.failed
	case !u.done:
		return ErrLeft
	}
	return nil
}

func (u *ui) show(name string, page tview.Primitive, focus tview.Primitive) {
	u.pages.AddAndSwitchToPage(name, page, true)
	u.app.SetFocus(focus)
}

// chooseDisk lists the disks, and starts on one that can be taken.
func (u *ui) chooseDisk() error {
	if err := u.backend.SetUp(nil); err != nil { // what was answered for another disk
		return err
	}
	disks, err := u.backend.Disks()
	if err != nil {
		return err
	}
	u.disks = disks
	var lines []line
	refused := make([]string, len(disks))
	for i, d := range disks {
		refused[i] = u.refused(d)
		lines = append(lines, line{title(d), contents(u.Language, d)})
		if refused[i] != "" && len(d.Uses) == 0 {
			lines[i].below = u.Say(words.InCannotTake, refused[i])
		}
	}
	heading := u.Say(words.InWhichDisk, u.backend.Release())
	if len(disks) == 0 {
		page := text("%s", u.Text(words.InNoDisk)).
			SetDoneFunc(func(tcell.Key) { u.app.Stop() })
		page.SetInputCapture(u.looksAgain)
		u.show("disks", u.frame(heading, u.Text(words.InNoDiskKeys), page), page)
		return nil
	}
	first := firstChoice(disks, refused)
	details := text("%s", about(u.Language, disks[first], refused[first]))
	details.SetBorder(true).SetTitle(u.Text(words.InThisDisk)).SetTitleAlign(tview.AlignLeft).SetBorderPadding(0, 0, 1, 1)
	list := u.list(lines, first, func(i int) { u.choose(u.disks[i]) }, u.app.Stop, func(i int) {
		details.SetText(about(u.Language, disks[i], refused[i])).ScrollToBeginning()
	})
	list.SetInputCapture(u.looksAgain)
	fixed, share := 2*len(disks)+1, 0
	if fixed > fewLines {
		fixed, share = 0, 2
	}
	page := tview.NewFlex().SetDirection(tview.FlexRow).AddItem(list, fixed, share, true).AddItem(details, 0, 1, false)
	u.show("disks", u.frame(heading, u.Text(words.InDiskKeys), page), list)
	return nil
}

// looksAgain lists the disks again at a key, for those that were plugged in or taken
// out. Other keys are the page's.
func (u *ui) looksAgain(key *tcell.EventKey) *tcell.EventKey {
	if key.Key() != tcell.KeyRune || key.Rune() != 'r' {
		return key
	}
	u.back()
	return nil
}

// fewLines is how many lines a list may have that is shown whole.
const fewLines = 11

// refused says why nothing can be installed to a disk, whatever it holds; empty where
// it can.
func (u *ui) refused(d install.Disk) string {
	p, err := u.backend.Plan(d, install.Choice{})
	if err == nil {
		err = p.Err(true)
	}
	if err != nil {
		return u.Error(err)
	}
	return ""
}

// hasRoom reports whether the free space of a disk can be taken.
func (u *ui) hasRoom(d install.Disk) bool {
	if len(d.Systems) == 0 || d.Free == 0 {
		return false
	}
	p, err := u.backend.Plan(d, install.Choice{FreeSpace: true})
	return err == nil && p.Err(true) == nil
}

// firstChoice is the disk that the list starts on: one that can be taken, and rather
// a built-in one.
func firstChoice(disks []install.Disk, refused []string) (best int) {
	rank := func(i int) int {
		switch {
		case refused[i] != "":
			return 0
		case disks[i].Removable:
			return 1
		}
		return 2
	}
	for i := range disks {
		if rank(i) > rank(best) {
			best = i
		}
	}
	return best
}

// choose asks what becomes of the systems that are on the disk.
func (u *ui) choose(d install.Disk) {
	var lines []line
	var choices []install.Choice
	if d.Root != nil {
		lines = append(lines, line{u.Say(words.InKeepRoot, d.Root.Size>>20), u.Text(words.InKeepRootKey)})
		choices = append(choices, install.Choice{KeepRoot: true})
	}
	if u.hasRoom(d) {
		lines = append(lines, line{u.Say(words.InUseFree, d.Free>>20), u.Text(words.InPartitionsStay)})
		choices = append(choices, install.Choice{FreeSpace: true})
	}
	if len(lines) == 0 {
		u.others(d, install.Choice{})
		return
	}
	lines = append(lines, line{u.Text(words.InEraseAll), u.Text(words.InEraseAllMeans)})
	choices = append(choices, install.Choice{})
	heading := u.Say(words.InHasHalogen, d.Path)
	if d.Root == nil {
		heading = u.Say(words.InHasSystems, d.Path, install.Names(d.Systems))
	}
	list := u.list(lines, 0, func(i int) { u.others(d, choices[i]) }, u.back, func(int) {})
	u.show("root", u.frame(heading, u.Text(words.InListKeys), list), list)
}

// others asks whether other systems go on starting, where there are some that would not.
func (u *ui) others(d install.Disk, choice install.Choice) {
	p, err := u.backend.Plan(d, choice)
	switch {
	case err != nil || p.Err(true) != nil:
		u.check(d, choice)
		return
	case !p.AsksOthers:
		u.setUp(d, choice)
		return
	}
	yes := choice
	yes.LetOthersStart = true
	choices := []install.Choice{choice, yes}
	lines := []line{{u.Text(words.InNo), u.Text(words.InNoMeans)}, {u.Text(words.InYes), u.Text(words.InYesMeans)}}
	list := u.list(lines, 0, func(i int) { u.setUp(d, choices[i]) }, u.back, func(int) {})
	about := text("%s\n\n%s", u.Line(install.OthersCost()), u.Text(words.InOthersLater))
	page := tview.NewFlex().SetDirection(tview.FlexRow).AddItem(list, 2*len(lines)+1, 0, true).AddItem(about, 0, 1, false)
	u.show("others", u.frame(u.Text(words.InLetOthers), u.Text(words.InListKeys), page), list)
}

// back shows the disks again.
func (u *ui) back() {
	if err := u.chooseDisk(); err != nil {
		u.end(err, nil)
	}
}

// check shows the plan for a disk, and asks.
func (u *ui) check(d install.Disk, choice install.Choice) {
	p, err := u.backend.Plan(d, choice)
	if err != nil {
		u.end(words.Errorf(words.InLookAt, d.Path, err), nil)
		return
	}
	var lines strings.Builder
	fmt.Fprintf(&lines, "%s\n%s\n\n", title(d), u.Line(p.Machine.Line()))
	for _, f := range p.Findings {
		fmt.Fprintf(&lines, "%-8s %s\n\n", u.Text(f.Word()), u.Line(f.Text))
	}
	if p.Err(true) != nil {
		view := text("%s", lines.String()).SetDoneFunc(func(tcell.Key) { u.back() })
		u.show("checks", u.frame(u.Text(words.InRefusedTitle), u.Text(words.InBackKeys), view), view)
		return
	}
	fmt.Fprintf(&lines, "%s\n", u.Line(p.Loss()))
	input := tview.NewInputField().SetLabel(tview.Escape(u.Say(words.InTypeDisk, path.Base(d.Path)))).SetFieldWidth(30).
		SetFieldTextColor(tcell.ColorDefault).SetFieldBackgroundColor(tcell.ColorDefault)
	input.SetDoneFunc(func(key tcell.Key) {
		switch typed := strings.TrimSpace(input.GetText()); {
		case key == tcell.KeyEscape:
			u.back()
		case key != tcell.KeyEnter:
		case typed == d.Path || typed == path.Base(d.Path):
			u.install(p)
		default:
			input.SetText("").SetLabel(tview.Escape(u.Say(words.InTypeAgain, path.Base(d.Path))))
		}
	})
	column := tview.NewFlex().SetDirection(tview.FlexRow).AddItem(text("%s", lines.String()), 0, 1, false).AddItem(input, 1, 0, true)
	u.show("checks", u.frame(u.Say(words.InInstallTitle, u.backend.Release()), u.Text(words.InInstallKeys), column), input)
}

// install shows how far it has come.
func (u *ui) install(p *install.Plan) {
	view := text("%s", u.Text(words.InBeginning))
	u.show("work", u.frame(u.Say(words.InInstalling, u.backend.Release(), p.Disk.Path), u.Text(words.InDoNotSwitch), view), view)
	meter := newMeter(u.Language)
	u.work.Go(func() {
		err := u.backend.Install(u.ctx, p, func(what string, done, total int64) {
			if line, changed := meter.at(time.Now(), what, done, total); changed {
				u.app.QueueUpdateDraw(func() { view.SetText(line) })
			}
		})
		if u.ctx.Err() == nil {
			u.app.QueueUpdateDraw(func() { u.end(err, p) })
			return
		}
		u.done, u.failed = err == nil, err // nobody is there to see the last page
	})
}

// end is the last page.
func (u *ui) end(err error, p *install.Plan) {
	var lines strings.Builder
	heading := u.Text(words.InDone)
	if err != nil {
		heading, u.failed = u.Text(words.InFailed), err
		fmt.Fprintf(&lines, "%s\n", u.Error(err))
	} else {
		u.done = true
		fmt.Fprintf(&lines, "%s\n\n", u.Say(words.InWhatNext, u.backend.Release(), p.Disk.Path))
		for i, step := range u.backend.Next(p) {
			fmt.Fprintf(&lines, "%d. %s\n", i+1, u.Line(step))
		}
		lines.WriteString("\n" + u.Text(words.InKeepThese) + "\n")
		for _, thing := range p.Keep() {
			fmt.Fprintf(&lines, "- %s\n", u.Line(thing))
		}
	}
	view := text("%s", lines.String()).SetDoneFunc(func(tcell.Key) { u.app.Stop() })
	u.show("end", u.frame(heading, u.Text(words.InLeaveKeys), view), view)
}

// A meter turns progress into lines, at most four a second.
type meter struct {
	words.Language
	what        string
	began, last time.Time
	before      []string // what is finished
}

func newMeter(l words.Language) *meter { return &meter{Language: l} }

// barWidth leaves the numbers behind the bar room in 80 columns.
const barWidth = 30

func (m *meter) at(now time.Time, what string, done, total int64) (lines string, changed bool) {
	if what != m.what {
		if m.what != "" {
			m.before = append(m.before, m.Say(words.InStepDone, m.Text(m.what)))
		}
		m.what, m.began, m.last = what, now, time.Time{}
	}
	if done < total && now.Sub(m.last) < 250*time.Millisecond {
		return "", false
	}
	m.last = now
	current := m.Text(what) + " ..."
	if total > 0 {
		filled := int(done * barWidth / total)
		current = fmt.Sprintf("%s\n\n[%s%s] ", m.Text(what), strings.Repeat("#", filled), strings.Repeat(".", barWidth-filled)) +
			m.Say(words.InProgress, done*100/total, done>>20, total>>20, m.left(now, done, total))
	}
	return strings.Join(append(m.before, current), "\n"), true
}

func (m *meter) left(now time.Time, done, total int64) string {
	spent := now.Sub(m.began)
	if done == 0 || done == total || spent < time.Second {
		return ""
	}
	left := time.Duration(float64(spent) * float64(total-done) / float64(done))
	return m.Say(words.InRateLeft, left.Round(time.Second))
}
