package qemutests

import (
	"image"
	"image/color"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"halogenos.internal/builder/vm"
)

// TestScreens looks at what a person sees on a VGA screen with Linux's console, which
// has eight colors: it can be read, and the page has the whole screen. The pictures stay
// in screens/ under HALOGEN_OUT, those of the README among them.
// FAULTS 112
func TestScreens(t *testing.T) {
	t.Parallel()
	t.Run("installer", func(t *testing.T) {
		t.Parallel()
		plugged := vm.Disk{Path: filepath.Join(t.TempDir(), "stick.img"), Bus: vm.USB, BootIndex: 1}
		must(t, vm.CopySparse(plugged.Path, stick(t, "testos-1")))
		g := Machine(t, Options{Image: "testos-1", Prepare: emptyDisk, VM: vm.Options{Memory: installerMemoryMiB, Display: true, Disks: []vm.Disk{plugged}}})
		g.sees("which disk?")
		g.sees("vda")
		page := g.screen("installer.png")
		// The chosen disk and the two bars stand out by their background.
		if bars := page.bars(); len(bars) != 3 || bars[0].Min.Y != 0 || bars[2].Max.Y < page.Bounds().Dy()-glyphHeight {
			t.Errorf("bars at %v of %v; want the title, the chosen disk, and the keys at the bottom", bars, page.Bounds())
		}
		g.PowerCut()
	})
	t.Run("recovery key and console", func(t *testing.T) {
		t.Parallel()
		g := Machine(t, Options{Image: "testos-1", VM: vm.Options{Display: true}})
		g.Expect(`Press Enter when you have written it down`)
		g.screen("recovery-key.png")
		g.pressLine("")
		g.Expect(`Type group \d and group \d of it`)
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
		g.screen("console.png")
	})
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
	must(g.t, os.MkdirAll(dir, 0o755))
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
