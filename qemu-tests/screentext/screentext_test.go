package screentext

import (
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The pictures of the README show what the golden files have, which TestScreens compares a machine's
// screen with.
func TestKeptPictures(t *testing.T) {
	t.Parallel()
	for name, mark := range map[string]string{"installer": "", "recovery-key": "", "console": "RECOVERY: "} {
		f, err := os.Open(filepath.Join("..", "screenshots", name+".png"))
		if err != nil {
			t.Fatal(err)
		}
		picture, err := png.Decode(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		text, err := Read(picture)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want, err := os.ReadFile(filepath.Join("..", "testdata", "screens", name+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		if got := From(Mask(text), mark); got != string(want) {
			t.Errorf("%s shows:\n%s\nand the golden file has:\n%s", name, got, want)
		}
	}
}

// paint draws text with the font, the cursor behind it.
func paint(t *testing.T, lines []string, size image.Point, ink, paper color.Color) *image.RGBA {
	t.Helper()
	shapes := make(map[rune]shape)
	for s, r := range characters {
		shapes[r] = s
	}
	p := image.NewRGBA(image.Rectangle{Max: size}.Add(image.Pt(3, 5)))
	draw.Draw(p, p.Bounds(), image.NewUniform(paper), image.Point{}, draw.Src)
	dot := func(column, row, x, y int) {
		p.Set(p.Bounds().Min.X+column*Width+x, p.Bounds().Min.Y+row*Height+y, ink)
	}
	for row, line := range lines {
		column := 0
		for _, r := range line {
			s, known := shapes[r]
			if !known {
				t.Fatalf("the font has no %q", r)
			}
			for y, bits := range s {
				for x := range Width {
					if bits&(0x80>>x) != 0 {
						dot(column, row, x, y)
					}
				}
			}
			column++
		}
		for x := range Width {
			dot(column, row, x, Height-1)
			dot(column, row, x, Height-2)
		}
	}
	return p
}

// What is painted is read again: every character, on each size of a screen, in each color, the
// lighter one being the text's or the other one, and with the cursor below the last one.
func TestRead(t *testing.T) {
	t.Parallel()
	lines := []string{"Zurück: größer, schöner, Übung, Äpfel, Öl, µ", "", "  ┌──────┐ ░▒▓ ≤ 1 \\ ~ |", " !\"#$%&'()*+,-./0123456789:;<=>?@[]^_`{}", "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"}
	want := strings.Join(lines, "\n") + "\n"
	white, blue, black, cyan := color.RGBA{0xff, 0xff, 0xff, 0xff}, color.RGBA{0, 0, 0xaa, 0xff}, color.RGBA{0, 0, 0, 0xff}, color.RGBA{0, 0xaa, 0xaa, 0xff}
	for _, size := range []image.Point{{1280, 800}, {800, 600}, {640, 400}} {
		for _, c := range []struct{ ink, paper color.Color }{{gray, black}, {white, blue}, {black, cyan}} {
			got, err := Read(paint(t, lines, size, c.ink, c.paper))
			if err != nil || got != want {
				t.Errorf("%v, %v on %v: %v, %q, want %q", size, c.ink, c.paper, err, got, want)
			}
		}
	}
	half := []string{"▄▀█", "▀█▄"}
	if got, err := Read(paint(t, half, image.Pt(640, 400), gray, black)); err != nil || got != strings.Join(half, "\n")+"\n" {
		t.Errorf("half blocks: %v, %q", err, got)
	}
}

// What shows no text is an error that says where.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	if _, err := Read(image.NewRGBA(image.Rect(0, 0, 7, 100))); err == nil {
		t.Error("a picture without room for a character is read")
	}
	for name, spoil := range map[string]func(p *image.RGBA){
		"a stray pixel": func(p *image.RGBA) { p.Set(3+8*2+1, 5+16+2, gray) },
		"three colors": func(p *image.RGBA) {
			p.Set(3+8*2, 5+16, color.RGBA{1, 2, 3, 255})
			p.Set(3+8*2+1, 5+16+5, color.RGBA{9, 9, 9, 255})
		},
	} {
		p := paint(t, []string{"a", "abcd"}, image.Pt(640, 400), gray, color.RGBA{A: 255})
		spoil(p)
		if _, err := Read(p); err == nil || !strings.Contains(err.Error(), "row 2, column 3") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFont(t *testing.T) {
	t.Parallel()
	back := make(map[rune]bool)
	for _, r := range characters {
		if back[r] {
			t.Errorf("%q has two shapes", r)
		}
		back[r] = true
	}
	for r := rune(' '); r < 0x7f; r++ {
		if !back[r] {
			t.Errorf("the font has no %q", r)
		}
	}
	for _, r := range "äöüÄÖÜß█▀▄" {
		if !back[r] {
			t.Errorf("the font has no %q", r)
		}
	}
}

func TestMask(t *testing.T) {
	t.Parallel()
	qr := strings.Repeat("██"+strings.Repeat(" ▀▄█", 8)+"██\n", 3)
	for _, c := range []struct{ text, want string }{
		{qr + "below\n", "QR CODE of 3 lines\nbelow\n"},
		{"above\n" + qr, "above\nQR CODE of 3 lines\n"},
		{"██ a bar ██\n", "██ a bar ██\n"},
		{"    hfbkbfvv-grhurtek-lunttbke-rlncltcn\n", "    RECOVERY-KEY\n"},
		{"This machine's phrase:  one two three four\n", "This machine's phrase:  FOUR WORDS\n"},
		{"Die Erkennungswörter dieses Rechners:  eins zwei drei vier\n", "Die Erkennungswörter dieses Rechners:  FOUR WORDS\n"},
		{"Type group 3 and group 8 of it\n", "Type group N and group N of it\n"},
		{"Gruppe 3 und Gruppe 8 davon\n", "Gruppe N und Gruppe N davon\n"},
		{"in groups 3 and 8.\n", "in groups N and N.\n"},
		{"[    3.571718] evm: security.SMACK64\nhalogen: drivers (1.13 s): devices\n", "halogen: drivers (TIME): devices\n"},
		{"halogen: initagent 0+20261130190545.5b1a430d3b9c\n", "halogen: initagent VERSION\n"},
		{"/dev/sda  0.2 GB  QEMU\n/dev/vda  17.2 GB\n", "/dev/sda  N.N GB  QEMU\n/dev/vda  17.2 GB\n"},
		{"id 0123456789abcdef0123456789abcdef at 12:13:14 on 2026-11-30\n", "id ID at TIME on DATE\n"},
		{"33554432 sectors of 512 bytes\n", "33554432 sectors of 512 bytes\n"},
	} {
		if got := Mask(c.text); got != c.want {
			t.Errorf("%q is masked as %q, want %q", c.text, got, c.want)
		}
	}
	for _, c := range []struct{ mark, want string }{{"RECOVERY", "halogen: RECOVERY: b\n$\n"}, {"", "x\nhalogen: RECOVERY: a\nhalogen: RECOVERY: b\n$\n"}, {"none", "x\nhalogen: RECOVERY: a\nhalogen: RECOVERY: b\n$\n"}} {
		if got := From("x\nhalogen: RECOVERY: a\nhalogen: RECOVERY: b\n$\n", c.mark); got != c.want {
			t.Errorf("from %q: %q, want %q", c.mark, got, c.want)
		}
	}
}
