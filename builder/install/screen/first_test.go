package screen

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gdamore/tcell/v2"

	"halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/words"
	"halogenos.internal/builder/install"
)

// stick is a fake that a stick has started: it asks for the language and the keyboard.
func stick(refused string) (f *fake, set chan string) {
	f, set = twoDisks(), make(chan string, 8)
	f.begin = Begin{Ask: true, Keymap: "us", SetKeymap: func(k keyboard.Keymap) error {
		set <- k.Name
		if k.Name == refused {
			return errors.New("key 7: invalid argument")
		}
		return nil
	}}
	return f, set
}

// Somebody chooses German and its keyboard by two keys, and is asked and told in German from then on;
// both are what the questions about the new system start with.
func TestFirst(t *testing.T) {
	f, set := stick("at")
	f.choices = choices()
	p := start(t, f)
	p.sees("Language of the installer / Sprache der Installation")
	p.sees("> English")
	p.presses(tcell.KeyUp)
	p.sees("> Deutsch")
	p.presses(tcell.KeyEnter)
	p.sees("Tastatur, wie sie auf den Tasten steht")
	p.sees("> de           Deutsch")
	p.presses(tcell.KeyEscape)
	p.sees("Sprache der Installation")
	p.sees("> Deutsch")
	p.presses(tcell.KeyEnter)
	p.sees("> de  ")
	for range 80 {
		p.presses(tcell.KeyUp)
	}
	p.sees("> at ")
	p.presses(tcell.KeyEnter)
	p.sees("Der Kernel nimmt diese Tastatur nicht: key 7: invalid argument")
	if a, b := <-set, <-set; a != "at" || b != "us" {
		t.Errorf("the keys were set to %s and %s; the ones before are to be in force again", a, b)
	}
	for range slices.Index(keyboard.Keymaps(), "de") {
		p.presses(tcell.KeyDown)
	}
	p.sees("> de ")
	p.presses(tcell.KeyEnter)
	p.sees("test 7 installieren: auf welche Platte?")
	if k := <-set; k != "de" {
		t.Errorf("the keys type %s", k)
	}
	p.sees("enthält ein ext-Dateisystem")
	p.sees("Esc: beenden")
	p.presses(tcell.KeyEnter)
	p.sees("Das neue System: Sprache")
	p.sees("> de_DE.UTF-8")
	p.presses(tcell.KeyEnter)
	p.sees("Das neue System: Tastatur")
	p.sees("> de ")
	p.presses(tcell.KeyEnter)
	p.sees("Das neue System: Zeitzone")
	p.presses(tcell.KeyTab, tcell.KeyTab)
	p.sees("Sollen neue Versionen von selbst geholt werden? [ja]: ")
	p.types("nein")
	p.presses(tcell.KeyEnter, tcell.KeyEnter)
	p.sees("Name Ihres Kontos, oder - für keines: ")
	p.types("alice")
	p.presses(tcell.KeyEnter)
	p.sees("Passwort von alice (unsichtbar): _")
	if strings.Contains(p.seen(), "auf beiden") {
		t.Errorf("warns of other keys, which are the same:%s", p.seen())
	}
	p.presses(tcell.KeyEnter)
	p.sees("das Passwort ist leer")
	p.presses(tcell.KeyTab)
	p.sees("später     Zeitzone, Name, Konto (fragt der erste Start)")
	p.presses(tcell.KeyEnter)
	p.sees("Alles auf /dev/sda geht verloren.")
	p.types("sda")
	p.presses(tcell.KeyEnter)
	p.sees("- das Passwort der Firmware")
	p.presses(tcell.KeyEnter)
	if err := p.ends(); err != nil {
		t.Error(err)
	}
}

// On a live system both are that system's, and nobody is asked.
func TestFirstOnLiveSystem(t *testing.T) {
	f := twoDisks()
	f.begin = Begin{Language: "de"}
	p := start(t, f)
	p.sees("auf welche Platte?")
	p.presses(tcell.KeyEscape)
	if err := p.ends(); !errors.Is(err, ErrLeft) {
		t.Errorf("error %v", err)
	}
}

func TestLocaleOf(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		l    words.Language
		all  string
		want string
	}{
		{"de", "C.UTF-8 de_AT.UTF-8 de_DE.UTF-8", "de_DE.UTF-8"}, {"de", "C.UTF-8 de_AT.UTF-8 de_CH.UTF-8", "de_AT.UTF-8"}, {"de", "C.UTF-8 en_US.UTF-8", ""},
		{words.English, "C.UTF-8 en_GB.UTF-8 en_US.UTF-8", "en_US.UTF-8"}, {words.English, "C.UTF-8 en_GB.UTF-8", "en_GB.UTF-8"},
	} {
		if got := localeOf(c.l, strings.Fields(c.all)); got != c.want {
			t.Errorf("%s of %s: %q, want %q", c.l.Code(), c.all, got, c.want)
		}
	}
}

// What stands on one line is not cut on a terminal of 80 columns, in any language, with the longest
// of what is put in.
func TestOneLine(t *testing.T) {
	t.Parallel()
	const disk, release = "/dev/nvme0n1", "desktop 2026120101"
	for _, code := range words.Codes() {
		l, err := words.Find(code)
		if err != nil {
			t.Fatal(err)
		}
		lines := []string{
			l.Say(words.InWhichDisk, release), l.Say(words.InInstalling, release, disk), l.Say(words.InTypeAgain, "nvme0n1") + "nvme0n1",
			l.Say(words.InHasSystems, disk, `Windows, "ubuntu", "fedora"`), l.Line(install.Facts{Arch: "aarch64", UEFI: true, SetupMode: true}.Line()),
			"[" + strings.Repeat("#", barWidth) + "] " + l.Say(words.InProgress, 100, 10000, 10000, l.Say(words.InRateLeft, "59m59s")),
		}
		for _, text := range []string{
			words.InFirstKeys, words.InChooseKeys, words.InDiskKeys, words.InListKeys, words.InInstallKeys, words.InDoNotSwitch, words.InLetOthers,
			words.InKeyboardTitle, words.AskKeys, words.AskChooseKeys, words.AskIsThisRight, words.InEraseAllMeans, words.InYesMeans,
		} {
			lines = append(lines, l.Text(text))
		}
		for _, line := range lines {
			if n := utf8.RuneCountInString(line); n > 80-2*margin {
				t.Errorf("%s: %d columns: %s", code, n, line)
			}
		}
	}
}
