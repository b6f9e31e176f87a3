package qemutests

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/words"
	"halogenos.internal/builder/vm"
)

// installer goes through the installer's pages on the screen, from the first to the last, by its
// keyboard.
func (s seat) installer(t *testing.T) {
	plugged := vm.Disk{Path: filepath.Join(t.TempDir(), "stick.img"), Bus: vm.USB, BootIndex: 1}
	must(t, vm.CopySparse(plugged.Path, stick(t, "testos-1")))
	g := Machine(t, s.options(emptyDisk, vm.Options{Memory: installerMemoryMiB, Disks: []vm.Disk{plugged}}))
	g.sees("Enter:") // the serial line's
	g.waitsForPage(s, words.InFirstKeys)
	g.compare(s, "installer-language", "")
	g.press("ret")
	g.waitsForPage(s, words.InChooseKeys)
	g.compare(s, "installer-keyboard", "")
	g.press("ret")
	g.waitsForPage(s, words.InDiskKeys)
	page := g.compare(s, "installer", "")
	// The chosen disk and the two bars stand out by their background.
	if bars := page.bars(); len(bars) != 3 || bars[0].Min.Y != 0 || bars[2].Max.Y < page.Bounds().Dy()-2*glyphHeight {
		t.Errorf("bars at %v of %v; want the title, the chosen disk, and the keys at the bottom", bars, page.Bounds())
	}
	g.press("ret")
	g.waitsForPage(s, words.InInstallKeys)
	g.compare(s, "installer-checks", "")
	g.press("v", "d", "a", "ret")
	g.waitsForPage(s, words.InLeaveKeys)
	g.compare(s, "installer-last", "")
	g.PowerCut()
}

// waitsForPage waits for a page of the installer, by the keys in its last line.
func (g *Guest) waitsForPage(s seat, keys string) {
	g.t.Helper()
	g.waitsForText(s, regexp.MustCompile(`(?m)^ *`+regexp.QuoteMeta(s.language.Text(keys))+`\s*$`))
}

// prompts shows what a machine says before it asks for a secret, the pad of letters, and how a PIN
// is set and asked for.
func (s seat) prompts(t *testing.T) {
	const pin = "correcthorsebattery"
	p := provisioned(t)
	g := Machine(t, Options{State: p.State, VM: s.display(vm.Options{}), Prepare: s.choose})
	g.Boot()
	if r := g.Run("/usr/sbin/halogenctl", "pin", "set"); r.Exit != 0 {
		t.Fatalf("halogenctl pin set: %d, %s%s", r.Exit, r.Stdout, r.Stderr)
	}
	g.Do(nil, "reboot")
	phrase, _, _ := strings.Cut(strings.TrimSpace(s.language.Text(words.PhraseIs)), " %s")
	phrase = strings.TrimSpace(phrase)
	g.Expect(s.begins(words.AskKeySecret))
	g.compare(s, "phrase", phrase)
	time.Sleep(time.Second) // as in pressLine
	g.press("volumedown")
	g.compare(s, "pad", phrase)
	g.pressLine(p.Notes[recoveryKeyNote])
	g.Expect(s.begins(words.AskNewPIN))
	g.compare(s, "pin-new", phrase)
	g.pressLine(pin)
	g.Expect(s.begins(words.OnceMore))
	g.pressLine(pin)
	g.Expect(s.begins(words.PINSet))
	g.Expect(s.begins(words.AskPIN))
	g.compare(s, "pin", phrase)
	g.pressLine("wrong")
	g.Expect(s.begins(words.WrongPIN))
	g.Expect(s.begins(words.AskPIN))
	g.compare(s, "pin-wrong", phrase)
	g.pressLine(pin)
	g.Boot()
	g.PowerOff()
}
