package qemutests

import (
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"halogenos.internal/builder/vm"
)

// TestDesktop takes a desktop of the recipe from its first start to a terminal in the
// session of the account that its first start has asked for: all by the keyboard and the
// screen, as a person does. What it shows is kept in screens/desktop/ under HALOGEN_OUT. Root
// at the serial line, which a development image has, tells how far the system is.
func TestDesktop(t *testing.T) {
	t.Parallel()
	desktop(t)
}

// desktopTimeout bounds one wait of a desktop that an emulated processor starts.
const desktopTimeout = 30 * time.Minute

// desktop is a machine on which TestDesktop has passed.
func desktop(t *testing.T) Provisioned {
	t.Helper()
	o := Options{Image: "desktop-update-1", Timeout: desktopTimeout, VM: vm.Options{Memory: 3072, Screen: vm.HiddenScreen}}
	return Provision(t, o, "desktop", func(g *Guest) map[string]string {
		g.answersFirstStart()
		g.login()
		g.says("getent passwd anna; id -nG anna", `(?s)^anna:x:1000:1000:Anna Example:/home/anna:/bin/bash\nanna .*\bsudo\b`)
		g.says("test ! -e /var/lib/halogen/first-start && readlink /etc/localtime && cat /etc/locale.conf", `Europe/Berlin\nLANG=en_US\.UTF-8`)
		session := g.entersSession(picture{}, "3-login.png", "4-session.png")
		before := g.opensTerminal(session, "5-terminal.png")
		g.pressText("findmnt / | tee /tmp/seen\n")
		g.waitsFor("test -s /tmp/seen")
		g.settles(before, "6-findmnt.png")
		g.says("stat -c %U /tmp/seen && cat /tmp/seen", `(?s)^anna\n.*/ +/dev/(mapper/system|dm-\d+) +erofs +ro,`)
		g.says("dmsetup table system", `^0 \d+ verity 1 `)
		g.says("systemctl list-units --failed --no-legend --plain --no-pager", `^$`)
		g.leave("systemctl poweroff")
		if reason := g.ExpectOff(); reason != "guest-shutdown" {
			t.Fatalf("the machine went off by %s", reason)
		}
		return nil
	})
}

// answersFirstStart writes nothing of the recovery key down, and answers the questions.
func (g *Guest) answersFirstStart() {
	g.t.Helper()
	g.Expect(`Press Enter when you have written it down`)
	g.keep("1-recovery-key.png")
	g.pressText("\n")
	g.Expect(`Type group \d and group \d of it`)
	g.pressText("\n") // later
	for i, q := range []struct{ question, answer string }{
		{"Language, such as ", "en_us"}, {"Keyboard, such as us or de", "us"}, {"Time zone, such as Europe/Berlin", "europe/berlin"}, {"Name of this machine", ""},
		{"Your name in full, which may be empty", "Anna Example"}, {"Name of your account, or - for none [anna]", ""}, {"Password of anna (it is not shown)", "secret"}, {"Once more: ", "secret"},
		{"Is this right? [yes]", ""},
	} {
		g.seesAtLeft(q.question, fmt.Sprintf("2-question-%d.png", i+1))
		g.pressText(q.answer + "\n")
	}
}

// entersSession logs anna in at the screen, which has shown something else before. It keeps
// how the login and the session look.
func (g *Guest) entersSession(before picture, login, session string) picture {
	g.t.Helper()
	g.waitsFor("pgrep -f lightdm-gtk-greeter")
	before = g.settles(before, login)
	g.pressText("secret\n") // the only account is chosen already
	g.waitsFor("pgrep -u anna xfce4-panel && pgrep -u anna xfdesktop")
	return g.settles(before, session)
}

// opensTerminal opens one in the session.
func (g *Guest) opensTerminal(before picture, name string) picture {
	g.t.Helper()
	g.press("ctrl-alt-t")
	g.waitsFor("pgrep -u anna xfce4-terminal && pgrep -u anna bash")
	opened := g.settles(before, name)
	for end := time.Now().Add(g.timeout); !opened.showsTerminal(); opened = g.settles(opened, name) {
		if time.Now().After(end) {
			g.t.Fatalf("%s: there is no terminal", name)
		}
	}
	// A window that takes long to come gets no focus: xfwm4 holds it back from somebody who
	// may be typing elsewhere by then.
	g.press("alt-tab")
	for range 10 { // what it lists the windows in takes keys for some seconds
		time.Sleep(5 * time.Second)
		g.pressText("echo typed | tee /tmp/typed\n")
		if g.says("sleep 5; cat /tmp/typed 2>/dev/null; rm -f /tmp/typed", "") == "typed" {
			return g.settles(opened, name)
		}
	}
	g.t.Fatalf("%s: the terminal takes no keys", name)
	return opened
}

// showsTerminal reports whether a fifth of a picture is black.
func (p picture) showsTerminal() bool {
	black := 0
	for y := p.Bounds().Min.Y; y < p.Bounds().Max.Y; y++ {
		for x := p.Bounds().Min.X; x < p.Bounds().Max.X; x++ {
			if r, g, b, _ := p.At(x, y).RGBA(); r|g|b == 0 {
				black++
			}
		}
	}
	return black > p.Bounds().Dx()*p.Bounds().Dy()/5
}

// A line is read in whatever font.
func TestBeginsLine(t *testing.T) {
	for _, seed := range []uint64{1, 2} { // two fonts
		screen := image.NewRGBA(image.Rect(0, 0, 80*glyphWidth, 5*glyphHeight))
		for i, r := range "Once more: [yes]" {
			font := rand.New(rand.NewPCG(seed, uint64(r)))
			for y := range glyphHeight {
				for x := range glyphWidth {
					shade := color.RGBA{A: 255}
					if r != ' ' && font.IntN(2) == 1 {
						shade.R = 255
					}
					screen.Set(i*glyphWidth+x, 2*glyphHeight+y, shade)
				}
			}
		}
		for text, want := range map[string]bool{"Once more: ": true, "Once more: [yes]": true, "Ones more: ": false, "Once moree ": false, "Oncex more: ": false, "nce more: ": false} {
			if (picture{screen}).beginsLine(text) != want {
				t.Errorf("font %d: %q begins a line: want %v", seed, text, want)
			}
		}
	}
}

func TestBlank(t *testing.T) {
	screen := image.NewRGBA(image.Rect(0, 0, 160, 64))
	if !(picture{screen}).blank() {
		t.Error("an empty screen shows something")
	}
	for x := range 8 {
		screen.Set(x, 40, color.White) // a cursor
	}
	if !(picture{screen}).blank() {
		t.Error("a cursor is something")
	}
	for x := range 160 {
		screen.Set(x, 20, color.White)
	}
	if (picture{screen}).blank() {
		t.Error("a line is nothing")
	}
}

// keys are those that type a character on a keyboard of the United States.
func keys(r rune) string {
	switch named, found := map[rune]string{'\n': "ret", ' ': "spc", '-': "minus", '_': "shift-minus", '/': "slash", '.': "dot", '|': "shift-backslash"}[r]; {
	case found:
		return named
	case unicode.IsUpper(r):
		return "shift-" + string(unicode.ToLower(r))
	}
	return string(r)
}

// pressText types a text on the machine's keyboard.
func (g *Guest) pressText(text string) {
	g.t.Helper()
	var all []string
	for _, r := range text {
		all = append(all, keys(r))
	}
	g.press(all...)
}

// press presses keys, slowly enough for an emulated keyboard that a busy machine polls.
func (g *Guest) press(all ...string) {
	g.t.Helper()
	ctx, cancel := g.wait()
	defer cancel()
	for _, k := range all {
		must(g.t, g.SendKeys(ctx, k))
		time.Sleep(300 * time.Millisecond)
	}
}

// waitsFor has root at the serial line wait until a command succeeds.
func (g *Guest) waitsFor(command string) {
	g.t.Helper()
	g.says("until { "+command+"; } >/dev/null 2>&1; do sleep 2; done", `^$`)
}

// keep keeps a picture of the screen, below screens/desktop.
func (g *Guest) keep(name string) string {
	g.t.Helper()
	at := filepath.Join(OutDir(g.t), "screens", "desktop", name)
	must(g.t, os.MkdirAll(filepath.Dir(at), 0o755))
	ctx, cancel := g.wait()
	defer cancel()
	must(g.t, g.Screendump(ctx, at))
	return at
}

func (g *Guest) picture(name string) picture {
	g.t.Helper()
	f, err := os.Open(g.keep(name))
	must(g.t, err)
	defer f.Close()
	decoded, err := png.Decode(f)
	must(g.t, err)
	return picture{decoded}
}

// seesAtLeft waits until a line on Linux's console begins with a text, and keeps the screen.
func (g *Guest) seesAtLeft(text, name string) {
	g.t.Helper()
	for end := time.Now().Add(g.timeout); time.Now().Before(end); time.Sleep(time.Second) {
		if g.picture(name).beginsLine(text) {
			return
		}
	}
	g.t.Fatalf("%s: no line begins with %q after %v", name, text, g.timeout)
}

// The width of a character on Linux's console, in pixels.
const glyphWidth = 8

// beginsLine reports whether a line begins with a text, in whatever font: the same
// characters look the same, others do not, and a space is empty.
func (p picture) beginsLine(text string) bool {
	b := p.Bounds()
	for y := b.Min.Y; y+glyphHeight <= b.Max.Y; y += glyphHeight {
		glyphs, chars, fits := make(map[rune]string), make(map[string]rune), b.Dx() >= len(text)*glyphWidth
		for i, r := range text {
			if !fits {
				break
			}
			cell, empty := p.cell(b.Min.X+i*glyphWidth, y)
			if _, known := glyphs[r]; !known {
				glyphs[r] = cell
			}
			if _, known := chars[cell]; !known {
				chars[cell] = r
			}
			fits = glyphs[r] == cell && chars[cell] == r && empty == (r == ' ')
		}
		if fits {
			return true
		}
	}
	return false
}

// cell is what stands in the place of a character, and whether that is nothing.
func (p picture) cell(left, top int) (key string, empty bool) {
	var b strings.Builder
	empty = true
	first := p.At(left, top)
	for y := top; y < top+glyphHeight; y++ {
		for x := left; x < left+glyphWidth; x++ {
			now := p.At(x, y)
			empty = empty && now == first
			fmt.Fprint(&b, now, ";")
		}
	}
	return b.String(), empty
}

// settles waits until the screen shows something, and something else than before, and then the
// same for five seconds, but for a cursor that blinks. It keeps what it shows then.
func (g *Guest) settles(before picture, name string) picture {
	g.t.Helper()
	now, since := before, time.Time{}
	for end := time.Now().Add(g.timeout); time.Now().Before(end); time.Sleep(time.Second) {
		seen := g.picture(name)
		switch {
		case seen.like(before), seen.blank():
			since = time.Time{}
		case since.IsZero() || !seen.like(now):
			since = time.Now()
		case time.Since(since) > 5*time.Second:
			return seen
		}
		now = seen
	}
	g.t.Fatalf("%s: the screen has shown nothing new, or has not come to rest, for %v", strings.TrimSuffix(name, ".png"), g.timeout)
	return now
}

// blank reports whether a picture shows nothing, or no more than a cursor: what a display has
// between two programs.
func (p picture) blank() bool {
	even := image.NewPaletted(p.Bounds(), color.Palette{p.At(p.Bounds().Min.X, p.Bounds().Min.Y)})
	return p.like(picture{even})
}

// like reports whether two pictures differ in no more than a cursor: two cells of a console.
func (p picture) like(o picture) bool {
	if o.Image == nil || p.Bounds() != o.Bounds() {
		return false
	}
	cells := 0
	const w, h = 16, glyphHeight
	for y := p.Bounds().Min.Y; y < p.Bounds().Max.Y; y += h {
		for x := p.Bounds().Min.X; x < p.Bounds().Max.X; x += w {
			if p.differs(o, x, y, w, h) {
				cells++
			}
		}
	}
	return cells <= 2
}

func (p picture) differs(o picture, left, top, w, h int) bool {
	for y := top; y < min(top+h, p.Bounds().Max.Y); y++ {
		for x := left; x < min(left+w, p.Bounds().Max.X); x++ {
			if p.At(x, y) != o.At(x, y) {
				return true
			}
		}
	}
	return false
}
