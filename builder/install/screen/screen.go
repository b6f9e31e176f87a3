// Package screen is the installer's text interface: it shows the disks, what
// was checked, and how far the installation has come. It fits 80 columns and 24
// lines, on a serial line too.
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

	"halogenos.internal/builder/install"
)

// A Backend is what the interface shows and starts.
type Backend interface {
	// Release names what is installed.
	Release() string
	Disks() ([]install.Disk, error)
	// Plan looks at one disk, before anything is written. keep says that its root
	// partition shall stay as it is.
	Plan(d install.Disk, keep bool) (*install.Plan, error)
	// Install writes. It returns when all of it was read back.
	Install(ctx context.Context, p *install.Plan, progress install.Progress) error
	// Next says what the person does next.
	Next(p *install.Plan) []string
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
}

// Run shows the interface until the installation is done or the person leaves.
// screen is nil for the terminal.
func Run(ctx context.Context, b Backend, screen tcell.Screen) error {
	plainBorders()
	ctx, cancel := context.WithCancel(ctx)
	u := &ui{app: tview.NewApplication(), pages: tview.NewPages(), backend: b, ctx: ctx, cancel: cancel}
	if screen != nil {
		u.app.SetScreen(screen)
	}
	stop := context.AfterFunc(ctx, u.app.Stop)
	defer stop()
	if err := u.chooseDisk(); err != nil {
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

// plainBorders draws frames with characters that every terminal has.
func plainBorders() {
	b := &tview.Borders
	b.Horizontal, b.Vertical = '-', '|'
	b.TopLeft, b.TopRight, b.BottomLeft, b.BottomRight = '+', '+', '+', '+'
	b.HorizontalFocus, b.VerticalFocus = '-', '|'
	b.TopLeftFocus, b.TopRightFocus, b.BottomLeftFocus, b.BottomRightFocus = '+', '+', '+', '+'
	tview.Styles.PrimitiveBackgroundColor = tcell.ColorDefault
}

func (u *ui) show(name string, page tview.Primitive, focus tview.Primitive) {
	u.pages.AddAndSwitchToPage(name, page, true)
	u.app.SetFocus(focus)
}

// frame puts a title above a page and the keys below it.
func (u *ui) frame(title, keys string, content tview.Primitive) tview.Primitive {
	return tview.NewFrame(content).SetBorders(0, 0, 1, 0, 1, 1).
		AddText(tview.Escape(title), true, tview.AlignLeft, tcell.ColorDefault).
		AddText(keys, false, tview.AlignLeft, tcell.ColorDefault)
}

func text(format string, args ...any) *tview.TextView {
	return tview.NewTextView().SetWordWrap(true).SetText(fmt.Sprintf(format, args...))
}

// chooseDisk lists the disks.
func (u *ui) chooseDisk() error {
	disks, err := u.backend.Disks()
	if err != nil {
		return err
	}
	u.disks = disks
	list := tview.NewList().SetSelectedFunc(func(i int, _, _ string, _ rune) { u.choose(u.disks[i]) }).SetDoneFunc(u.app.Stop)
	for _, d := range disks {
		list.AddItem(tview.Escape(title(d)), tview.Escape("  "+contents(d)), 0, nil)
	}
	var page tview.Primitive = list
	if len(disks) == 0 {
		page = text("No disk was found that could be installed to.").SetDoneFunc(func(tcell.Key) { u.app.Stop() })
	}
	u.show("disks", u.frame("Install "+u.backend.Release()+": which disk?", "Up, Down: choose   Enter: look at it   Esc: leave", page), page)
	return nil
}

func title(d install.Disk) string {
	return strings.TrimSpace(fmt.Sprintf("%s  %.1f GB  %s %s", d.Path, float64(d.Size())/1e9, d.Model, d.Serial))
}

func contents(d install.Disk) string {
	switch {
	case len(d.Uses) > 0:
		return "in use: " + strings.Join(d.Uses, "; ")
	case len(d.Contents) > 0:
		return "holds " + strings.Join(d.Contents, ", ")
	}
	return "empty"
}

// choose asks what becomes of a root partition that is on the disk.
func (u *ui) choose(d install.Disk) {
	if d.Root == nil {
		u.check(d, false)
		return
	}
	list := tview.NewList().SetSelectedFunc(func(i int, _, _ string, _ rune) { u.check(d, i == 0) }).SetDoneFunc(u.back).
		AddItem(fmt.Sprintf("Keep the root partition (%d MiB)", d.Root.Size>>20), "  its recovery key is asked for at the next start", 0, nil).
		AddItem("Erase everything", "  nothing that was ever stored on it can be had again", 0, nil)
	u.show("root", u.frame(d.Path+" has a HalogenOS on it", "Up, Down: choose   Enter: look at it   Esc: back to the disks", list), list)
}

// back shows the disks again.
func (u *ui) back() {
	if err := u.chooseDisk(); err != nil {
		u.end(err, nil)
	}
}

// check shows the plan for a disk, and asks.
func (u *ui) check(d install.Disk, keep bool) {
	p, err := u.backend.Plan(d, keep)
	if err != nil {
		u.end(fmt.Errorf("look at %s: %w", d.Path, err), nil)
		return
	}
	var lines strings.Builder
	fmt.Fprintf(&lines, "%s\n%s\n\n", title(d), p.Machine)
	for _, f := range p.Findings {
		fmt.Fprintf(&lines, "%s %s\n\n", f.Word(), f.Text)
	}
	if p.Err(true) != nil {
		view := text("%s", lines.String()).SetDoneFunc(func(tcell.Key) { u.back() })
		u.show("checks", u.frame("This disk cannot be installed to", "Enter: back to the disks", view), view)
		return
	}
	fmt.Fprintf(&lines, "%s\n", p.Loss())
	input := tview.NewInputField().SetLabel("Type the disk's name to install: ").SetFieldWidth(30).
		SetFieldTextColor(tcell.ColorDefault).SetFieldBackgroundColor(tcell.ColorDefault)
	input.SetDoneFunc(func(key tcell.Key) {
		switch typed := strings.TrimSpace(input.GetText()); {
		case key == tcell.KeyEscape:
			u.back()
		case key != tcell.KeyEnter:
		case typed == d.Path || typed == path.Base(d.Path):
			u.install(p)
		default:
			input.SetText("").SetLabel(tview.Escape(fmt.Sprintf("That was not %s. Type its name: ", path.Base(d.Path))))
		}
	})
	column := tview.NewFlex().SetDirection(tview.FlexRow).AddItem(text("%s", lines.String()), 0, 1, false).AddItem(input, 1, 0, true)
	u.show("checks", u.frame("Install "+u.backend.Release(), "Enter: install   Esc: back to the disks", column), input)
}

// install shows how far it has come.
func (u *ui) install(p *install.Plan) {
	view := text("Beginning ...")
	u.show("work", u.frame("Installing "+u.backend.Release()+" on "+p.Disk.Path, "Do not switch the machine off. If it happens, install again.", view), view)
	meter := newMeter()
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
	heading := "Done"
	if err != nil {
		heading, u.failed = "This failed", err
		fmt.Fprintf(&lines, "%s\n", err)
	} else {
		u.done = true
		fmt.Fprintf(&lines, "%s is installed on %s. What next:\n\n", u.backend.Release(), p.Disk.Path)
		for i, step := range u.backend.Next(p) {
			fmt.Fprintf(&lines, "%d. %s\n", i+1, step)
		}
	}
	view := text("%s", lines.String()).SetDoneFunc(func(tcell.Key) { u.app.Stop() })
	u.show("end", u.frame(heading, "Enter: leave", view), view)
}

// A meter turns progress into lines, at most four a second.
type meter struct {
	what        string
	began, last time.Time
	before      []string // what is finished
}

func newMeter() *meter { return new(meter) }

const barWidth = 50

func (m *meter) at(now time.Time, what string, done, total int64) (lines string, changed bool) {
	if what != m.what {
		if m.what != "" {
			m.before = append(m.before, m.what+": done")
		}
		m.what, m.began, m.last = what, now, time.Time{}
	}
	if done < total && now.Sub(m.last) < 250*time.Millisecond {
		return "", false
	}
	m.last = now
	current := what + " ..."
	if total > 0 {
		filled := int(done * barWidth / total)
		current = fmt.Sprintf("%s\n\n[%s%s] %3d %%  %d of %d MiB%s", what, strings.Repeat("#", filled), strings.Repeat(".", barWidth-filled),
			done*100/total, done>>20, total>>20, m.left(now, done, total))
	}
	return strings.Join(append(m.before, current), "\n"), true
}

func (m *meter) left(now time.Time, done, total int64) string {
	spent := now.Sub(m.began)
	if done == 0 || done == total || spent < time.Second {
		return ""
	}
	left := time.Duration(float64(spent) * float64(total-done) / float64(done))
	return fmt.Sprintf(", %s left", left.Round(time.Second))
}
