package qemutests

import (
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/words"
	"halogenos.internal/builder/vm"
	"halogenos.internal/qemu-tests/screentext"
)

var update = flag.Bool("update", false, "have the screens that the machines show be the golden ones of testdata/screens")

// A seat is a screen and the language of who sits in front of it. Golden files and pictures of all but
// the first are in a directory of their own.
type seat struct {
	directory     string
	width, height int // in pixels, which the firmware takes from what the display says of itself
	language      words.Language
}

// TestScreens looks at what a person sees on a VGA screen with Linux's console, which
// has eight colors: it can be read, the page has the whole screen, and says what the golden file
// does. The pictures stay in screens/ under HALOGEN_OUT, those of the README among them.
// FAULTS 112
func TestScreens(t *testing.T) {
	t.Parallel()
	for _, s := range []seat{{"", 1280, 800, words.English}, {"800x600-de", 800, 600, "de"}} {
		t.Run(fmt.Sprintf("%dx%d %s", s.width, s.height, s.language.Code()), func(t *testing.T) {
			t.Parallel()
			t.Run("installer", func(t *testing.T) { t.Parallel(); s.installer(t) })
			t.Run("prompts", func(t *testing.T) { t.Parallel(); s.prompts(t) })
			t.Run("recovery key and console", func(t *testing.T) { t.Parallel(); s.keyAndConsole(t) })
		})
	}
}

// options are those of a machine with the seat's screen.
func (s seat) options(prepare func(vm.State) error, o vm.Options) Options {
	return Options{Image: "testos-1", VM: s.display(o), Prepare: func(state vm.State) error {
		if prepare != nil {
			if err := prepare(state); err != nil {
				return err
			}
		}
		return s.choose(state)
	}}
}

// display are options with the seat's screen.
func (s seat) display(o vm.Options) vm.Options {
	o.Display = true
	o.Extra = append(o.Extra, "-global", fmt.Sprintf("VGA.xres=%d", s.width), "-global", fmt.Sprintf("VGA.yres=%d", s.height))
	return o
}

// choose has the firmware know the seat's language, as after an installation.
func (s seat) choose(state vm.State) error {
	f, err := readFirmwareVars(state.Vars())
	if err == nil && s.language != words.English {
		err = f.add(secureboot.Variable{Name: words.Variable, GUID: nextboot.Vendor}, nextboot.Attributes, s.language.Remember())
	}
	if err != nil {
		return err
	}
	return os.WriteFile(state.Vars(), f.raw, 0o600)
}

// begins is how a text begins in the seat's language, as a pattern.
func (s seat) begins(text string) string {
	said, _, _ := strings.Cut(s.language.Text(text), "%")
	said, _, _ = strings.Cut(strings.TrimSpace(said), "\n")
	return regexp.QuoteMeta(said)
}

func (s seat) keyAndConsole(t *testing.T) {
	g := Machine(t, s.options(nil, vm.Options{}))
	g.Expect(s.begins(words.KeyWritten))
	g.compare(s, "recovery-key", "")
	g.pressLine("")
	g.Expect(s.begins(words.KeyGroups))
	g.compare(s, "recovery-key-groups", "")
	g.pressLine("") // later: the key is on the screen alone
	g.Boot()
	g.Do(nil, "reboot")
	g.Expect(`halogen: press r for the recovery console`)
	g.Expect(`halogen: drivers \(`)
	ctx, cancel := g.wait()
	defer cancel()
	must(t, g.SendKeys(ctx, "r"))
	// The drivers of all devices load here, and say so in the kernel's log alone.
	between := g.Expect(`RECOVERY: the recovery console was asked for((?s:.*?))halogen: the boot has stopped, and nothing was lost`)[1]
	if regexp.MustCompile(`(?m)^\[ *\d+\.\d+\]`).MatchString(between) {
		t.Errorf("the kernel writes over the recovery console:%s", between)
	}
	g.expectDevices()
	g.compare(s, "console", "RECOVERY: ")
	g.pressLine("help")
	g.waitsForText(s, regexp.MustCompile(`(?s)\n  exit  .*\n\$\n$`))
	g.compare(s, "console-help", "$ help")
}

// waitsForText waits until a pattern matches what is on the screen.
func (g *Guest) waitsForText(s seat, pattern *regexp.Regexp) {
	g.t.Helper()
	text := ""
	for end := time.Now().Add(g.timeout); time.Now().Before(end); time.Sleep(time.Second) {
		var err error
		text, err = screentext.Read(g.picture(filepath.Join(s.directory, "now.png")))
		if err == nil && pattern.MatchString(text) {
			return
		}
	}
	g.t.Fatalf("the screen does not come to %v:\n%s", pattern, text)
}

// compare keeps a picture of the screen, and compares what it says, from the last line on that has a mark in
// it, with a golden file; with -update it writes that.
func (g *Guest) compare(s seat, name, mark string) picture {
	g.t.Helper()
	page := g.screen(filepath.Join(s.directory, name+".png"))
	if size := page.Bounds().Size(); size != image.Pt(s.width, s.height) {
		g.t.Errorf("%s: a screen of %v, want %d by %d", name, size, s.width, s.height)
	}
	text, err := screentext.Read(page)
	must(g.t, err)
	got, golden := screentext.From(screentext.Mask(text), mark), filepath.Join("testdata", "screens", s.directory, name+".txt")
	if *update {
		must(g.t, os.MkdirAll(filepath.Dir(golden), 0o755))
		must(g.t, os.WriteFile(golden, []byte(got), 0o644))
		return page
	}
	want, err := os.ReadFile(golden)
	must(g.t, err)
	if got != string(want) {
		g.t.Errorf("%s shows:\n%s\nand the golden file has (go test -update writes it):\n%s", name, got, want)
	}
	return page
}

// glyphHeight is that of a line on Linux's console on a screen of 1280 by 800 pixels.
const glyphHeight = 16

// A picture is what a screen shows.
type picture struct{ image.Image }

// screen keeps a picture of the screen, and judges that it has something to read: each
// line of text stands out from what is behind it.
func (g *Guest) screen(name string) picture {
	g.t.Helper()
	time.Sleep(2 * time.Second) // the last characters are still drawn
	dir := filepath.Join(OutDir(g.t), "screens")
	must(g.t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
	ctx, cancel := g.wait()
	defer cancel()
	must(g.t, g.Screendump(ctx, filepath.Join(dir, name)))
	f, err := os.Open(filepath.Join(dir, name))
	must(g.t, err)
	defer f.Close()
	decoded, err := png.Decode(f)
	must(g.t, err)
	p := picture{decoded}
	lines := 0
	for y := p.Bounds().Min.Y; y+glyphHeight <= p.Bounds().Max.Y; y += glyphHeight {
		background, texts := p.colors(y)
		for _, text := range texts {
			if c := contrast(background, text); c < 3 {
				g.t.Errorf("%s: the line at %d has %v on %v, a contrast of %.1f; want 3", name, y, text, background, c)
			}
		}
		if len(texts) > 0 {
			lines++
		}
	}
	if lines < 5 {
		g.t.Errorf("%s has %d lines of text", name, lines)
	}
	return p
}

// colors returns the commonest color of a line of text, and the others.
func (p picture) colors(y int) (background color.RGBA, others []color.RGBA) {
	count := make(map[color.RGBA]int)
	for at := y; at < y+glyphHeight; at++ {
		for x := p.Bounds().Min.X; x < p.Bounds().Max.X; x++ {
			count[color.RGBAModel.Convert(p.At(x, at)).(color.RGBA)]++
		}
	}
	all := slices.SortedFunc(maps.Keys(count), func(a, b color.RGBA) int { return count[b] - count[a] })
	return all[0], all[1:]
}

// bars are the runs of lines of text whose background is not black.
func (p picture) bars() (bars []image.Rectangle) {
	for y := p.Bounds().Min.Y; y+glyphHeight <= p.Bounds().Max.Y; y += glyphHeight {
		if background, _ := p.colors(y); luminance(background) == 0 {
			continue
		}
		if n := len(bars); n > 0 && bars[n-1].Max.Y == y {
			bars[n-1].Max.Y += glyphHeight
			continue
		}
		bars = append(bars, image.Rect(p.Bounds().Min.X, y, p.Bounds().Max.X, y+glyphHeight))
	}
	return bars
}

// contrast of two colors, from 1 to 21 (WCAG 2.2, "contrast ratio"; 3 is asked of large text).
func contrast(a, b color.RGBA) float64 {
	light, dark := max(luminance(a), luminance(b)), min(luminance(a), luminance(b))
	return (light + 0.05) / (dark + 0.05)
}

// luminance is relative, with a plain square in the place of sRGB's curve.
func luminance(c color.RGBA) float64 {
	part := func(v uint8, weight float64) float64 { return weight * float64(v) / 255 * float64(v) / 255 }
	return part(c.R, 0.2126) + part(c.G, 0.7152) + part(c.B, 0.0722)
}
