// Package screentext reads the text off a picture of Linux's console, so that a test can compare
// what a person sees with a file.
//
// It refuses to guess: a place that shows no character of the console's font is an error.
package screentext

import (
	_ "embed"
	"encoding/hex"
	"fmt"
	"image"
	"image/color"
	"strings"
	"unicode/utf8"
)

// The size of a character of the font that Linux takes on a screen of fewer than 22,000 characters
// (lib/fonts/font_8x16.c), in pixels.
const (
	Width  = 8
	Height = 16
)

// A shape is which pixels of a character's place are drawn, a byte a row.
type shape [Height]byte

// The cursor is drawn in the two lowest rows of its place, where no character but those of frames
// has anything, and blinks.
const cursorRows = 2

//go:embed vga8x16.txt
var drawn string

// characters are the font's, by their shapes.
var characters = read(drawn)

// read reads the font's file: a character, a space and its rows in hexadecimal digits. A line that
// begins with # and a space, and more than the digits of a shape, is a comment.
func read(text string) map[shape]rune {
	font := make(map[shape]rune)
	for line := range strings.Lines(text) {
		r, size := utf8.DecodeRuneInString(line)
		rows, err := hex.DecodeString(strings.TrimSpace(line[size:]))
		if err == nil && len(rows) == Height {
			font[shape(rows)] = r
		}
	}
	font[shape{}] = ' '
	return font
}

// Read returns the lines of a picture without the space at their ends, and without the empty ones at
// the end. Colors are left out, but that a place that is all of the color of the console's text is the
// block that the console has for that, █.
func Read(picture image.Image) (string, error) {
	b := picture.Bounds()
	if b.Dx() < Width || b.Dy() < Height {
		return "", fmt.Errorf("a picture of %d by %d pixels has no room for a character of %d by %d", b.Dx(), b.Dy(), Width, Height)
	}
	var text strings.Builder
	for row := range b.Dy() / Height {
		var line strings.Builder
		for column := range b.Dx() / Width {
			r, err := character(picture, b.Min.Add(image.Pt(column*Width, row*Height)))
			if err != nil {
				return "", fmt.Errorf("row %d, column %d of the screen: %w", row+1, column+1, err)
			}
			line.WriteRune(r)
		}
		text.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return strings.TrimRight(text.String(), "\n") + "\n", nil
}

// gray is what the console draws text in where nothing else is said (drivers/tty/vt/vt.c,
// default_red and the others, color 7).
var gray = color.RGBA{0xaa, 0xaa, 0xaa, 0xff}

// character returns what stands in one place, whose corner on the top left is given.
func character(picture image.Image, at image.Point) (rune, error) {
	var colors []color.RGBA
	var second shape // the pixels that have not the first one's color
	for y := range Height {
		for x := range Width {
			c := color.RGBAModel.Convert(picture.At(at.X+x, at.Y+y)).(color.RGBA)
			if len(colors) == 0 || len(colors) == 1 && c != colors[0] {
				colors = append(colors, c)
			}
			switch {
			case len(colors) == 2 && c == colors[1]:
				second[y] |= 0x80 >> x
			case c != colors[0]:
				return 0, fmt.Errorf("three colors in a character: %v, %v, %v", colors[0], colors[1], c)
			}
		}
	}
	if len(colors) == 1 {
		if colors[0] == gray {
			return '█', nil
		}
		return ' ', nil
	}
	// Of a shape that is another character the other way round, such as the upper half and the
	// lower half, the lighter color is the character's.
	light := second
	if lightness(colors[0]) > lightness(colors[1]) {
		light = second.inverse()
	}
	for _, s := range []shape{light, light.inverse()} {
		if r, known := characters[s]; known {
			return r, nil
		}
		if r, known := characters[s.withoutCursor()]; known {
			return r, nil
		}
	}
	return 0, fmt.Errorf("no character looks like this:\n%s", light)
}

func lightness(c color.RGBA) int { return int(c.R) + int(c.G) + int(c.B) }

func (s shape) inverse() shape {
	for y := range s {
		s[y] = ^s[y]
	}
	return s
}

// withoutCursor is a shape without the cursor, where that is drawn.
func (s shape) withoutCursor() shape {
	for y := Height - cursorRows; y < Height; y++ {
		if s[y] != 0xff {
			return s
		}
	}
	for y := Height - cursorRows; y < Height; y++ {
		s[y] = 0
	}
	return s
}

// String draws the shape.
func (s shape) String() string {
	var b strings.Builder
	for _, row := range s {
		b.WriteString(strings.NewReplacer("0", ".", "1", "#").Replace(fmt.Sprintf("%08b\n", row)))
	}
	return b.String()
}
