package config

import (
	"fmt"
	"strconv"
	"strings"

	"halogenos.internal/boot/layout"
)

func (r *reader) espSize(value string) error {
	size, err := ParseSize(value)
	if err != nil {
		return err
	}
	if !layout.ValidESP(size) {
		return fmt.Errorf("%s has %d bytes: want a multiple of %dM from %dM to %dG", value, size, int64(layout.Align)>>20, int64(layout.ESPSize)>>20, int64(layout.MaxESP)>>30)
	}
	r.config.ESPSize = size
	return nil
}

func (r *reader) slotSize(value string) error {
	size, err := ParseSize(value)
	if err != nil {
		return err
	}
	if size <= 0 || size%layout.Align != 0 || size > layout.MaxSlot {
		return fmt.Errorf("%s has %d bytes: want a multiple of %dM up to %dG", value, size, int64(layout.Align)>>20, int64(layout.MaxSlot)>>30)
	}
	r.config.SlotSize = size
	return nil
}

// growSlots takes whether machines may have to make their slots larger.
func (r *reader) growSlots(value string) error {
	if r.config.GrowSlots = value == "yes"; !r.config.GrowSlots && value != "no" {
		return fmt.Errorf("%.80q is neither yes nor no", value)
	}
	return nil
}

// leastSwap and mostSwap bound Swap, in bytes.
const (
	leastSwap = 16 << 20
	mostSwap  = 1 << 40
)

func (r *reader) swap(value string) error {
	if value == "off" {
		r.config.Swap = 0
		return nil
	}
	size, err := ParseSize(value)
	if err != nil {
		return fmt.Errorf("%w, or off", err)
	}
	if size < leastSwap || size%layout.Align != 0 || size > mostSwap {
		return fmt.Errorf("%s has %d bytes: want off, or a multiple of %dM from %dM to %dG", value, size, int64(layout.Align)>>20, leastSwap>>20, int64(mostSwap)>>30)
	}
	r.config.Swap = size
	return nil
}

// ParseSize reads a size in bytes, with K, M, G or T for powers of 1024.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "KMGT")
	shift := 0
	switch s[len(digits):] {
	case "":
	case "K":
		shift = 10
	case "M":
		shift = 20
	case "G":
		shift = 30
	case "T":
		shift = 40
	default:
		return 0, fmt.Errorf("size %q: want a number with K, M, G or T, such as 4G", s)
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || n > (1<<62)>>shift {
		return 0, fmt.Errorf("size %q: want a number with K, M, G or T, such as 4G", s)
	}
	return int64(n) << shift, nil
}
