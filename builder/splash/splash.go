// Package splash has the picture that a UKI shows while a machine starts.
//
// It draws a plain one, and checks others by what systemd-stub can show: a picture that
// the stub refuses is an empty screen on every machine, and nobody says why. It converts
// nothing.
package splash

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
)

// MaxSize bounds a picture in bytes.
const MaxSize = 16 << 20

// maxWidth and maxHeight are those of the smallest screen that PCs have: the stub draws
// nothing of a picture that is larger than the screen.
const (
	maxWidth  = 1024
	maxHeight = 768
)

// Where a BMP has what is checked here: BITMAPFILEHEADER and BITMAPINFOHEADER.
const (
	fileHeader = 14
	infoHeader = 40
)

// Check says why systemd-stub would not show a picture (src/boot/splash.c of systemd 252
// to 258; BITMAPINFOHEADER and later), or would stop the machine at it.
func Check(bmp []byte) error {
	if len(bmp) < 2 || string(bmp[:2]) != "BM" {
		return errors.New("it is not a BMP picture")
	}
	if len(bmp) < fileHeader+infoHeader {
		return fmt.Errorf("it has %d bytes, and the headers of a BMP picture have %d", len(bmp), fileHeader+infoHeader)
	}
	at32 := func(n int) uint64 { return uint64(binary.LittleEndian.Uint32(bmp[n:])) }
	size, offset := at32(2), at32(10)
	header, width, height := at32(14), at32(18), at32(22)
	depth, compression := uint64(binary.LittleEndian.Uint16(bmp[28:])), at32(30)
	switch {
	case size != uint64(len(bmp)):
		return fmt.Errorf("its header says %d bytes, and it has %d", size, len(bmp))
	case header < infoHeader:
		return fmt.Errorf("its header has %d bytes, as before Windows 3: save it as a newer BMP", header)
	case int32(height) < 0: //nolint:gosec // the sign is what is asked for
		return errors.New("its lines go from top to bottom, which systemd-stub does not show: save it bottom up")
	case width == 0 || height == 0 || width > maxWidth || height > maxHeight:
		return fmt.Errorf("it has %d by %d pixels: a screen may have %d by %d, and nothing is shown of what is larger", width, height, maxWidth, maxHeight)
	}
	switch depth {
	case 1, 4, 8, 16, 24, 32:
	default:
		return fmt.Errorf("it has %d bits a pixel: systemd-stub shows 1, 4, 8, 16, 24 and 32", depth)
	}
	masked := depth == 16 || depth == 32
	if compression != 0 && (compression != 3 || !masked) {
		return errors.New("it is compressed: systemd-stub shows only what is not")
	}
	if err := (pixels{offset, header, at32(46), depth, width, height, size}).check(); err != nil || !masked {
		return err
	}
	return checkMasks(bmp[fileHeader:offset], header, depth)
}

// pixels is where the headers say that colors and pixels are, in bytes; the depth is in bits.
type pixels struct{ offset, header, colors, depth, width, height, size uint64 }

// check wants colors and pixels there.
func (p pixels) check() error {
	line := (p.depth*p.width + 31) / 32 * 4
	if p.offset > p.size || p.size-p.offset < line*p.height {
		return fmt.Errorf("it is cut off: its pixels have %d bytes, from %d on, and it ends at %d", line*p.height, p.offset, p.size)
	}
	if p.offset < fileHeader+p.header {
		return fmt.Errorf("its pixels begin at %d, within its headers", p.offset)
	}
	between := p.offset - fileHeader - p.header
	// A stub before 258 takes what comes after too short a table for colors.
	if p.depth <= 8 && between < 4<<p.depth {
		return fmt.Errorf("it has %d colors, and pixels of %d bits want all %d: save it with 24 bits a pixel", between/4, p.depth, 1<<p.depth)
	}
	if p.colors == 0 && p.depth <= 8 {
		p.colors = 1 << p.depth
	}
	if between != 0 && between != 4*p.colors {
		return fmt.Errorf("between its headers and its pixels are %d bytes, and its %d colors have %d", between, p.colors, 4*p.colors)
	}
	return nil
}

// Sizes of headers in bytes that have masks: BITMAPV2INFOHEADER has those of red, green and
// blue, BITMAPV3INFOHEADER that of how opaque a pixel is.
const (
	rgbHeader  = infoHeader + 12
	rgbaHeader = infoHeader + 16
)

// checkMasks wants masks of colors that are one to eight bits side by side. The stub takes
// them from every header that has room for them, even where the picture has none, and
// divides by what their bits can count up to: a mask without a bit stops the machine.
func checkMasks(dib []byte, header, depth uint64) error {
	if header < rgbHeader {
		return nil
	}
	colors := []string{"red", "green", "blue"}
	if header >= rgbaHeader && binary.LittleEndian.Uint32(dib[rgbHeader:]) != 0 {
		colors = append(colors, "alpha")
	}
	for i, color := range colors {
		mask := binary.LittleEndian.Uint32(dib[infoHeader+4*i:])
		n := bits.OnesCount32(mask)
		if n == 0 || n > 8 || mask>>bits.TrailingZeros32(mask) != 1<<n-1 || uint64(bits.Len32(mask)) > depth {
			return fmt.Errorf("its mask of %s is %#08x, which is not one to eight bits of a pixel side by side: save it with 24 bits a pixel", color, mask)
		}
	}
	return nil
}

// The plain picture: a ring of light on black, as of a lamp in the dark.
const (
	side   = 256  // pixels
	radius = 72.0 // of the ring's middle
	width  = 5.0  // of the ring, to where it begins to fade
	glow   = 34.0 // how far it shines
)

// Plain draws it: 24 bits a pixel, so that every stub shows it.
func Plain() []byte {
	const offset = fileHeader + infoHeader
	bmp := make([]byte, offset+3*side*side)
	copy(bmp, "BM")
	put := binary.LittleEndian.PutUint32
	put(bmp[2:], uint32(len(bmp)))
	put(bmp[10:], offset)
	put(bmp[14:], infoHeader)
	put(bmp[18:], side)
	put(bmp[22:], side)
	binary.LittleEndian.PutUint16(bmp[26:], 1)
	binary.LittleEndian.PutUint16(bmp[28:], 24)
	put(bmp[34:], 3*side*side)
	for y := range side {
		for x := range side {
			light := lightAt(float64(x)+0.5-side/2, float64(y)+0.5-side/2)
			// Warm white, blue first.
			pixel := bmp[offset+3*(y*side+x):]
			pixel[0], pixel[1], pixel[2] = tone(light, 0.72), tone(light, 0.88), tone(light, 1)
		}
	}
	return bmp
}

// lightAt is how bright it is so far from the middle, from 0 to 1.
func lightAt(x, y float64) float64 {
	away := math.Abs(math.Hypot(x, y) - radius)
	ring := min(1, max(0, (width-away)+0.5))
	shine := max(0, 1-away/glow)
	return max(ring, 0.45*shine*shine)
}

func tone(light, share float64) byte { return byte(math.Round(255 * light * share)) }
