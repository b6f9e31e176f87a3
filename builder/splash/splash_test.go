package splash

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

// shown is a picture of 3 by 2 pixels with so many bits a pixel, as other programs write it.
func shown(depth uint16, header, compression, colors uint32) []byte {
	line := (uint32(depth)*3 + 31) / 32 * 4
	palette := colors
	if palette == 0 && depth <= 8 {
		palette = 1 << depth
	}
	offset := fileHeader + header + 4*palette
	b := make([]byte, offset+2*line)
	copy(b, "BM")
	for at, n := range map[int]uint32{2: uint32(len(b)), 10: offset, 14: header, 18: 3, 22: 2, 30: compression, 46: colors} {
		binary.LittleEndian.PutUint32(b[at:], n)
	}
	binary.LittleEndian.PutUint16(b[26:], 1)
	binary.LittleEndian.PutUint16(b[28:], depth)
	switch {
	case header >= 52 && depth == 16:
		masks(b, 0xf800, 0x07e0, 0x001f)
	case header >= 52 && depth == 32:
		masks(b, 0xff0000, 0x00ff00, 0x0000ff)
	}
	return b
}

// masks gives a picture those of red, green, blue and alpha.
func masks(b []byte, all ...uint32) []byte {
	for i, mask := range all {
		binary.LittleEndian.PutUint32(b[54+4*i:], mask)
	}
	return b
}

func TestCheck(t *testing.T) {
	for _, good := range [][]byte{Plain(), shown(1, 40, 0, 0), shown(4, 40, 0, 16), shown(8, 108, 0, 0), shown(16, 56, 3, 0), shown(24, 124, 0, 0), shown(32, 40, 0, 0), shown(32, 124, 3, 0), shown(32, 124, 0, 0), masks(shown(32, 124, 3, 0), 0xff000000, 0xff0000, 0xff00, 0xff)} {
		if err := Check(good); err != nil {
			t.Errorf("%x: %v", good[:54], err)
		}
	}
	change := func(at int, n uint32) []byte {
		b := slices.Clone(Plain())
		binary.LittleEndian.PutUint32(b[at:], n)
		return b
	}
	other := shown(8, 40, 0, 257) // colors than there are
	binary.LittleEndian.PutUint32(other[46:], 256)
	none := shown(8, 40, 0, 256)
	binary.LittleEndian.PutUint32(none[10:], 54) // pixels where the colors are
	for want, bad := range map[string][]byte{
		"not a BMP picture":           []byte("\x89PNG\r\n\x1a\n"),
		"it has 4 bytes":              []byte("BM\x00\x00"),
		"says 196662 bytes, and it":   append(slices.Clone(Plain()), 0),
		"before Windows 3":            change(14, 12),
		"from top to bottom":          change(22, 1<<32-256),
		"0 by 256 pixels":             change(18, 0),
		"256 by 4096 pixels":          change(22, 4096),
		"it is compressed":            shown(8, 40, 1, 0),
		"is compressed: systemd-stub": shown(32, 40, 4, 0),
		"it has 2 bits a pixel":       shown(2, 40, 0, 0),
		"it is cut off":               change(10, 2000),
		"within its headers":          change(14, 124),
		"its 256 colors have 1024":    other,
		"it has 5 colors, and":        shown(4, 40, 0, 5),
		"it has 0 colors, and":        none,
		// The stub would divide by nothing, or show black.
		"mask of red is 0x000000":     masks(shown(32, 124, 0, 0), 0),
		"mask of blue is 0x000000":    masks(shown(16, 52, 3, 0), 0xf800, 0x07e0, 0),
		"mask of green is 0x000ffc00": masks(shown(32, 56, 3, 0), 0xff00000, 0x0ffc00, 0x3ff),
		"mask of green is 0x0000f0f0": masks(shown(32, 56, 3, 0), 0xff0000, 0x00f0f0, 0xf),
		"mask of red is 0x00ff0000":   masks(shown(16, 56, 3, 0), 0xff0000),
		"mask of alpha is 0xffffffff": masks(shown(32, 124, 3, 0), 0xff0000, 0xff00, 0xff, 1<<32-1),
	} {
		if err := Check(bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

// It is a ring: black in the middle and at the edge, white between, the same from each side.
func TestPlain(t *testing.T) {
	b := Plain()
	at := func(x, y int) byte { return b[54+3*(y*side+x)+2] }
	middle := side / 2
	if at(middle, middle) != 0 || at(0, 0) != 0 || at(middle+72, middle) != 255 {
		t.Errorf("middle %d, corner %d, ring %d", at(middle, middle), at(0, 0), at(middle+72, middle))
	}
	for y := range side {
		for x := range side {
			if at(x, y) != at(side-1-x, y) || at(x, y) != at(y, x) {
				t.Fatalf("not the same from each side at %d, %d", x, y)
			}
		}
	}
}

// What is in a picture comes from a file of somebody's.
func FuzzCheck(f *testing.F) {
	f.Add(Plain()[:200])
	f.Add(shown(8, 40, 0, 0))
	f.Add(shown(32, 124, 3, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if Check(b) != nil {
			return
		}
		depth, width, height := uint64(binary.LittleEndian.Uint16(b[28:])), uint64(binary.LittleEndian.Uint32(b[18:])), uint64(binary.LittleEndian.Uint32(b[22:]))
		if offset := uint64(binary.LittleEndian.Uint32(b[10:])); offset+(depth*width+31)/32*4*height > uint64(len(b)) {
			t.Errorf("%d by %d pixels do not fit %d bytes", width, height, len(b))
		}
	})
}
