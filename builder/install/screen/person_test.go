package screen

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gdamore/tcell/v2"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/questions"
	"halogenos.internal/boot/words"
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
	begin      Begin
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
		p.Findings = append(p.Findings, install.Finding{Fatal: true, Text: words.Fixed(why)})
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

func (f *fake) Next(*install.Plan) words.List { return words.List{words.Fixed("restart the machine")} }

func (f *fake) Begin() Begin { return f.begin }

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
		{Path: "/dev/sda", Model: "Small", SectorSize: 512, Sectors: 1 << 22, Contents: words.List{words.Fixed(words.InMarkExt)}},
		{Path: "/dev/nvme0n1", Model: "Large", Serial: "X9", SectorSize: 4096, Sectors: 1 << 26},
	}}
}
