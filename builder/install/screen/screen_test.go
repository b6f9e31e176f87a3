package screen

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gdamore/tcell/v2"
	"github.com/gdamore/tcell/v2/terminfo"
	_ "github.com/gdamore/tcell/v2/terminfo/extended" // vt220

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/questions"
	"halogenos.internal/builder/install"
)

// fake is a machine with these disks.
type fake struct {
	plugging sync.Mutex
	disks    []install.Disk
	findings []install.Finding
	refuse   map[string]string // why a disk cannot be installed to
	fails    error
	// asksOthers: there are systems that would not go on starting.
	asksOthers bool
	choices    *questions.Choices // of who installs it
	answers    *answers.Answers   // that were taken last
	installed  chan string
	begun      chan bool // an installation that has no end, or nil
}

func (f *fake) Release() string { return "test 7" }
func (f *fake) Disks() ([]install.Disk, error) {
	f.plugging.Lock()
	defer f.plugging.Unlock()
	return f.disks, nil
}

func (f *fake) Plan(d install.Disk, c install.Choice) (*install.Plan, error) {
	p := &install.Plan{Disk: d, Findings: f.findings}
	if why := f.refuse[d.Path]; why != "" {
		p.Findings = append(p.Findings, install.Finding{Fatal: true, Text: why})
	}
	p.Choice = c
	p.AsksOthers = f.asksOthers && !c.LetOthersStart
	if c.KeepRoot {
		p.Kept = d.Root
	}
	return p, nil
}

func (f *fake) Install(ctx context.Context, p *install.Plan, progress install.Progress) error {
	if f.begun != nil {
		close(f.begun)
		<-ctx.Done()
		return ctx.Err()
	}
	progress("writing", 1<<20, 2<<20)
	progress("writing", 2<<20, 2<<20)
	installed := p.Disk.Path
	if p.Kept != nil {
		installed += ", kept"
	}
	if p.Choice.FreeSpace {
		installed += ", beside"
	}
	if p.Choice.LetOthersStart {
		installed += ", others start"
	}
	f.installed <- installed
	return f.fails
}

func (f *fake) Choices(c install.Choice) *questions.Choices {
	if c.KeepRoot {
		return nil
	}
	return f.choices
}

func (f *fake) SetUp(a *answers.Answers) error {
	f.plugging.Lock()
	defer f.plugging.Unlock()
	f.answers = a
	return nil
}

func (f *fake) Next(*install.Plan) []string { return []string{"restart the machine"} }

// terminal has 80 by 24 characters, or another size and fewer colours, and remembers
// what it showed last.
type terminal struct {
	tcell.SimulationScreen
	width, height, colors int
	mu                    sync.Mutex
	shown                 string
	styles                [][]tcell.Style
}

func (s *terminal) Init() error {
	err := s.SimulationScreen.Init()
	s.SetSize(s.width, s.height)
	return err
}

func (s *terminal) Colors() int { return s.colors }

func (s *terminal) Show() {
	s.SimulationScreen.Show()
	var out strings.Builder
	var styles [][]tcell.Style
	for y := range s.height {
		out.WriteByte('\n')
		styles = append(styles, nil)
		for x := range s.width {
			r, _, style, _ := s.GetContent(x, y)
			out.WriteRune(r)
			styles[y] = append(styles[y], style)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shown, s.styles = out.String(), styles
}

// person is somebody at a terminal.
type person struct {
	t      *testing.T
	screen *terminal
	result chan error
}

func start(t *testing.T, b Backend) *person {
	t.Helper()
	return startOn(t, b, 80, 24, 8)
}

func startOn(t *testing.T, b Backend, width, height, colors int) *person {
	t.Helper()
	p := &person{t, &terminal{SimulationScreen: tcell.NewSimulationScreen("UTF-8"), width: width, height: height, colors: colors}, make(chan error, 1)}
	go func() { p.result <- Run(t.Context(), b, p.screen) }()
	return p
}

func (p *person) seen() string {
	p.screen.mu.Lock()
	defer p.screen.mu.Unlock()
	return p.screen.shown
}

// sees waits until the terminal shows a text.
func (p *person) sees(want string) {
	p.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if strings.Contains(p.seen(), want) {
			return
		}
	}
	p.t.Fatalf("the terminal never shows %q:%s", want, p.seen())
}

func (p *person) types(text string) {
	for _, r := range text {
		p.screen.InjectKey(tcell.KeyRune, r, 0)
	}
}

func (p *person) presses(keys ...tcell.Key) {
	for _, k := range keys {
		p.screen.InjectKey(k, 0, 0)
	}
}

func (p *person) ends() error {
	p.t.Helper()
	select {
	case err := <-p.result:
		return err
	case <-time.After(10 * time.Second):
		p.t.Fatalf("the interface does not end:%s", p.seen())
		return nil
	}
}

func twoDisks() *fake {
	return &fake{installed: make(chan string, 1), disks: []install.Disk{
		{Path: "/dev/sda", Model: "Small", SectorSize: 512, Sectors: 1 << 22, Contents: []string{"an ext file system"}},
		{Path: "/dev/nvme0n1", Model: "Large", Serial: "X9", SectorSize: 4096, Sectors: 1 << 26},
	}}
}

func TestInstalls(t *testing.T) {
	f := twoDisks()
	f.findings = []install.Finding{{Text: "Secure Boot is not in Setup Mode"}}
	p := start(t, f)
	p.sees("holds an ext file system")
	p.sees("/dev/nvme0n1  274.9 GB  Large X9")
	p.presses(tcell.KeyDown, tcell.KeyEnter)
	p.sees("Everything on /dev/nvme0n1 will be lost")
	p.sees("Secure Boot is not in Setup Mode")
	p.types("sda")
	p.presses(tcell.KeyEnter)
	p.sees("That was not nvme0n1")
	if len(f.installed) > 0 {
		t.Fatal("installed on the name of another disk")
	}
	p.types("nvme0n1")
	p.presses(tcell.KeyEnter)
	p.sees("1. restart the machine")
	p.sees("- the recovery key that the second start shows")
	p.sees("- the medium that you installed from")
	if got := <-f.installed; got != "/dev/nvme0n1" {
		t.Errorf("installed on %s", got)
	}
	p.presses(tcell.KeyEnter)
	if err := p.ends(); err != nil {
		t.Error(err)
	}
}

// A root partition that is there can be kept, and is not kept unasked.
func TestKeeps(t *testing.T) {
	f := twoDisks()
	f.disks[1].Root = &install.Root{Size: 200 << 30}
	p := start(t, f)
	p.sees("which disk?")
	p.presses(tcell.KeyDown, tcell.KeyEnter)
	p.sees("/dev/nvme0n1 has a HalogenOS on it")
	p.sees("Keep the root partition (204800 MiB)")
	p.presses(tcell.KeyDown, tcell.KeyEnter)
	p.sees("Everything on /dev/nvme0n1 will be lost")
	p.presses(tcell.KeyEscape)
	p.sees("which disk?")
	p.presses(tcell.KeyDown, tcell.KeyEnter)
	p.sees("its recovery key is asked for at the next start")
	p.presses(tcell.KeyEnter)
	p.sees("Everything on /dev/nvme0n1 but its root partition will be lost")
	p.types("nvme0n1")
	p.presses(tcell.KeyEnter)
	p.sees("1. restart the machine")
	p.sees("- the recovery key that you have: it stays the same")
	if got := <-f.installed; got != "/dev/nvme0n1, kept" {
		t.Errorf("installed on %s", got)
	}
	p.presses(tcell.KeyEnter)
	if err := p.ends(); err != nil {
		t.Error(err)
	}
}

// Where other systems would no longer start, it is asked whether they shall, with what that
// costs; no is what the list starts on.
func TestLetsOthersStart(t *testing.T) {
	for name, c := range map[string]struct {
		keys []tcell.Key
		want string
	}{"no": {[]tcell.Key{tcell.KeyEnter}, "/dev/nvme0n1, beside"}, "yes": {[]tcell.Key{tcell.KeyDown, tcell.KeyEnter}, "/dev/nvme0n1, beside, others start"}} {
		t.Run(name, func(t *testing.T) {
			f := twoDisks()
			f.asksOthers = true
			f.disks[1].Systems = []install.System{{Name: "Windows", Disk: "/dev/nvme0n1", Windows: true}}
			f.disks[1].Free = 30 << 30
			p := start(t, f)
			p.sees("which disk?")
			p.presses(tcell.KeyDown, tcell.KeyEnter)
			p.sees("Use the free space (30720 MiB)")
			p.presses(tcell.KeyEnter)
			p.sees("Let other systems go on starting with Secure Boot on?")
			p.sees("Any program that Microsoft has signed")
			p.sees("(PCR 4 and 7)")
			p.presses(tcell.KeyEscape)
			p.sees("which disk?")
			p.presses(tcell.KeyDown, tcell.KeyEnter)
			p.sees("Use the free space (30720 MiB)")
			p.presses(tcell.KeyEnter)
			p.sees("> No")
			p.presses(c.keys...)
			p.sees("Nothing on /dev/nvme0n1 is erased")
			p.types("nvme0n1")
			p.presses(tcell.KeyEnter)
			p.sees("1. restart the machine")
			if got := <-f.installed; got != c.want {
				t.Errorf("installed on %s", got)
			}
			p.presses(tcell.KeyEnter)
			if err := p.ends(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Beside another system, the free space is offered, and the whole disk.
func TestUsesFreeSpace(t *testing.T) {
	f := twoDisks()
	f.disks[1].Systems = []install.System{{Name: "Windows", Disk: "/dev/nvme0n1", Windows: true}}
	f.disks[1].Free = 30 << 30
	p := start(t, f)
	p.sees("which disk?")
	p.presses(tcell.KeyDown, tcell.KeyEnter)
	p.sees("/dev/nvme0n1 has Windows on it")
	p.sees("Use the free space (30720 MiB)")
	p.presses(tcell.KeyDown, tcell.KeyEnter)
	p.sees("Everything on /dev/nvme0n1 will be lost")
	p.presses(tcell.KeyEscape)
	p.sees("which disk?")
	p.presses(tcell.KeyDown, tcell.KeyEnter)
	p.sees("its partitions stay as they are")
	p.presses(tcell.KeyEnter)
	p.sees("Nothing on /dev/nvme0n1 is erased")
	p.types("nvme0n1")
	p.presses(tcell.KeyEnter)
	p.sees("1. restart the machine")
	if got := <-f.installed; got != "/dev/nvme0n1, beside" {
		t.Errorf("installed on %s", got)
	}
	p.presses(tcell.KeyEnter)
	if err := p.ends(); err != nil {
		t.Error(err)
	}
}

// threeDisks are the stick that this runs from, a removable disk, and a built-in one.
func threeDisks() *fake {
	f := twoDisks()
	f.disks = append([]install.Disk{
		{Path: "/dev/sda", Model: "Stick", SectorSize: 512, Sectors: 1 << 24, Removable: true, Uses: []string{"sda2 is mounted at /run/installer"}},
		{Path: "/dev/sdb", Model: "Card", SectorSize: 512, Sectors: 1 << 24, Removable: true},
	}, f.disks[1])
	f.refuse = map[string]string{"/dev/sda": "/dev/sda is in use: sda2 is mounted at /run/installer"}
	return f
}

// FAULTS 112 (M15): the list starts on a disk that can be taken, and not on the stick.
func TestStartsOnADisk(t *testing.T) {
	p := start(t, threeDisks())
	p.sees("> /dev/nvme0n1")
	p.sees("  /dev/sda")
	p.sees("in use: sda2 is mounted")
	p.presses(tcell.KeyDown, tcell.KeyEnter) // it is the last
	p.sees("Everything on /dev/nvme0n1 will be lost")
	p.presses(tcell.KeyEscape, tcell.KeyUp, tcell.KeyUp, tcell.KeyUp)
	p.sees("> /dev/sda")
	p.sees("It cannot be installed to: /dev/sda is in use")
	p.presses(tcell.KeyEscape)
	if err := p.ends(); !errors.Is(err, ErrLeft) {
		t.Errorf("error %v", err)
	}
	for want, refused := range map[int][]string{0: {"no", "no", "no"}, 1: {"no", "", "no"}, 2: {"no", "", ""}} {
		if got := firstChoice(threeDisks().disks, refused); got != want {
			t.Errorf("%q: starts on disk %d, want %d", refused, got, want)
		}
	}
}

// FAULTS 112 (M15): the chosen line can be read and told from the others, by eight
// colours, by none and by the characters alone; and the page has the whole screen.
func TestLook(t *testing.T) {
	for name, c := range map[string]struct{ width, height int }{"linux": {160, 50}, "vt220": {80, 24}, "xterm-256color": {100, 30}} {
		t.Run(name, func(t *testing.T) {
			info, err := terminfo.LookupTerminfo(name)
			if err != nil {
				t.Fatal(err)
			}
			p := startOn(t, threeDisks(), c.width, c.height, info.Colors)
			p.sees("> /dev/nvme0n1")
			p.sees("+ This disk -")
			rows := strings.Split(p.seen(), "\n")[1:]
			p.screen.mu.Lock()
			styles := p.screen.styles
			p.screen.mu.Unlock()
			if !strings.Contains(rows[0], "which disk?") || !strings.Contains(rows[c.height-1], "Esc: leave") || !strings.HasPrefix(rows[c.height-3], "  +---") || len(strings.TrimRight(rows[c.height-3], " ")) != c.width-margin {
				t.Errorf("the page does not have the whole screen:%s", p.seen())
			}
			for y, row := range rows {
				bar, chosen := y == 0 || y == c.height-1, strings.HasPrefix(row, "  > ")
				for x := range c.width {
					text, background, attributes := styles[y][x].Decompose()
					stands := attributes&tcell.AttrReverse != 0 || background != tcell.ColorDefault
					if within := bar || chosen && x >= margin && x < c.width-margin; within != stands {
						t.Fatalf("line %d, column %d (%q): stands out: %v", y, x, row, stands)
					}
					if !stands {
						continue
					}
					if info.Colors < 8 && (text != tcell.ColorDefault || background != tcell.ColorDefault) {
						t.Fatalf("line %d: colours %v on %v of a terminal that has none", y, text, background)
					}
					if info.Colors >= 8 && (text == background || text == tcell.ColorDefault || text&0xff > 7 || background&0xff > 7) {
						t.Fatalf("line %d: %v on %v", y, text, background)
					}
				}
			}
			p.presses(tcell.KeyEscape)
			if err := p.ends(); !errors.Is(err, ErrLeft) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestRefuses(t *testing.T) {
	f := twoDisks()
	f.findings = []install.Finding{{Fatal: true, Text: "this machine has no TPM 2.0"}}
	p := start(t, f)
	p.sees("which disk?")
	p.presses(tcell.KeyEnter)
	p.sees("This disk cannot be installed to")
	p.sees("this machine has no TPM 2.0")
	p.presses(tcell.KeyEnter)
	p.sees("which disk?")
	p.presses(tcell.KeyEscape)
	if err := p.ends(); !errors.Is(err, ErrLeft) {
		t.Errorf("error %v", err)
	}
}

func TestFails(t *testing.T) {
	f := twoDisks()
	f.fails = errors.New("write system image: no space [red]left")
	p := start(t, f)
	p.sees("which disk?")
	p.presses(tcell.KeyEnter)
	p.sees("Type the disk's name")
	p.types("/dev/sda")
	p.presses(tcell.KeyEnter)
	p.sees("no space [red]left")
	p.presses(tcell.KeyEnter)
	if err := p.ends(); err == nil || !errors.Is(err, f.fails) {
		t.Errorf("error %v", err)
	}
}

// Who leaves while it is written learns what is left.
func TestInterrupted(t *testing.T) {
	f := twoDisks()
	f.begun = make(chan bool)
	p := start(t, f)
	p.sees("which disk?")
	p.presses(tcell.KeyEnter)
	p.sees("Type the disk's name")
	p.types("sda")
	p.presses(tcell.KeyEnter)
	<-f.begun
	p.presses(tcell.KeyCtrlC)
	if err := p.ends(); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestNoDisk(t *testing.T) {
	p := start(t, &fake{})
	p.sees("No disk was found")
	p.presses(tcell.KeyEnter)
	if err := p.ends(); !errors.Is(err, ErrLeft) {
		t.Errorf("error %v", err)
	}
}

// FAULTS 112: a disk that is plugged in while the list is shown, and one that is taken out.
func TestLooksAgain(t *testing.T) {
	f := twoDisks()
	all := f.disks
	f.disks = nil
	plug := func(disks ...install.Disk) {
		f.plugging.Lock()
		defer f.plugging.Unlock()
		f.disks = disks
	}
	p := start(t, f)
	p.sees("No disk was found")
	plug(all[1])
	p.types("r")
	p.sees("> /dev/nvme0n1")
	plug(all...)
	p.types("r")
	p.sees("/dev/sda")
	plug(all[0])
	p.types("r")
	p.sees("> /dev/sda")
	p.presses(tcell.KeyEnter)
	p.sees("Everything on /dev/sda will be lost")
	p.types("r") // here it is a letter of a name
	p.presses(tcell.KeyEnter)
	p.sees("That was not sda")
	p.presses(tcell.KeyEscape)
	p.sees("which disk?")
	p.presses(tcell.KeyEscape)
	if err := p.ends(); !errors.Is(err, ErrLeft) {
		t.Errorf("error %v", err)
	}
}

func TestMeter(t *testing.T) {
	m, now := newMeter(), time.Unix(1000, 0)
	m.at(now, "writing", 0, 100<<20)
	if _, changed := m.at(now.Add(time.Millisecond), "writing", 1<<20, 100<<20); changed {
		t.Error("drawn again after a millisecond")
	}
	lines, _ := m.at(now.Add(10*time.Second), "writing", 25<<20, 100<<20)
	if !strings.Contains(lines, " 25 %  25 of 100 MiB, 30s left") {
		t.Errorf("lines %q", lines)
	}
	lines, _ = m.at(now.Add(11*time.Second), "reading", 0, 0)
	if lines != "writing: done\nreading ..." {
		t.Errorf("lines %q", lines)
	}
}
