package console

import (
	"fmt"
	"strings"

	"rsc.io/qr"
)

// quiet is the white border that a QR code needs, in modules (ISO/IEC 18004,
// 6.3.8).
const quiet = 2

// QR draws text as a QR code of half blocks, white on the terminal's black, two
// rows of modules to a line. It fits a screen of 80 by 25.
func QR(text string) (string, error) {
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		return "", fmt.Errorf("draw a QR code of %d characters: %w", len(text), err)
	}
	// A module outside the code is white, like the border.
	white := func(x, y int) bool {
		return x < 0 || y < 0 || x >= code.Size || y >= code.Size || !code.Black(x, y)
	}
	var out strings.Builder
	for y := -quiet; y < code.Size+quiet; y += 2 {
		for x := -quiet; x < code.Size+quiet; x++ {
			switch upper, lower := white(x, y), white(x, y+1); {
			case upper && lower:
				out.WriteRune('█')
			case upper:
				out.WriteRune('▀')
			case lower:
				out.WriteRune('▄')
			default:
				out.WriteByte(' ')
			}
		}
		out.WriteByte('\n')
	}
	return out.String(), nil
}
