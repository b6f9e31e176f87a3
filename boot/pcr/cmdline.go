package pcr

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"halogenos.internal/boot/uki"
)

// quietManager is the first systemd-boot known to leave a UKI's own command line to
// the stub. Those of 252 and 254 pass it as load options and measure it into PCR 12
// (systemd 252.39: boot.c, image_start; stub.c, use_load_options); that of 257 does
// not. The ones between were not tried, and no image is built with them.
const quietManager = 257

// Tried are the major versions of systemd-boot and systemd-stub whose measurements
// into PCR 4, 11, 12 and 13 were compared with what is predicted here, under OVMF with
// and without Secure Boot.
func Tried() []int { return []int{252, 254, 257, 262} }

// CheckTried refuses a boot manager or a stub of a version that was not tried: a
// machine would not open its root partition where it measures something else. program
// is what it must be, "systemd-stub"; "" for any program of systemd's.
func CheckTried(img *uki.Image, program string) error {
	mark, err := img.Stub()
	if err != nil {
		return fmt.Errorf("its version is not known: %w", err)
	}
	if program != "" && mark.Program != program {
		return fmt.Errorf("it is %s %s, want %s", mark.Program, mark.Version, program)
	}
	if slices.Contains(Tried(), mark.Major) {
		return nil
	}
	return fmt.Errorf("what %s %s measures into the TPM was not tried; tried are the versions %s", mark.Program, mark.Version, strings.Trim(strings.ReplaceAll(fmt.Sprint(Tried()), " ", ", "), "[]"))
}

// maxOwn is how often at most a UKI's own command line is in PCR 12: once by the
// boot manager, and once by the stub where Secure Boot is off, which takes it for
// one that came from outside.
const maxOwn = 2

// OwnCommandLine returns what PCR 12 holds when a UKI's own command line was
// measured into it so many times, and nothing else.
func OwnCommandLine(img *uki.Image, times int) Digest {
	var d Digest
	for range times {
		d = d.Extend(sha256.Sum256(loadOptions(img)))
	}
	return d
}

// CommandLineTimes reports how often the UKI's own command line was measured into
// PCR 12, when that is all that the register holds. Anything else came from
// outside the UKI: an edited command line, credentials, addons, SMBIOS.
func CommandLineTimes(img *uki.Image, value Digest) (times int, own bool) {
	for n := range maxOwn + 1 {
		if OwnCommandLine(img, n) == value {
			return n, true
		}
	}
	return 0, false
}

// ManagerTimes returns how often a UKI's own command line will be in PCR 12 when a
// systemd-boot of that major version starts it.
func ManagerTimes(major int, secureBoot bool) int {
	switch {
	case major >= quietManager:
		return 0
	case secureBoot:
		return 1
	}
	return 2
}

// loadOptions is the command line as systemd-boot passes it on: UTF-16 with a NUL
// at its end, characters that do not fit left out, control characters replaced by
// spaces, and without the spaces at its end (252.39: efi-string.c, xstrn8_to_16;
// util.c, mangle_stub_cmdline).
func loadOptions(img *uki.Image) []byte {
	text, _ := img.Section(".cmdline")
	var units []uint16
	for len(text) > 0 && text[0] != 0 {
		r, size := utf8.DecodeRune(text)
		text = text[size:]
		if r == utf8.RuneError && size == 1 || r > 0xffff {
			continue
		}
		if r < 0x20 {
			r = ' '
		}
		units = append(units, uint16(r))
	}
	for len(units) > 0 && units[len(units)-1] == ' ' {
		units = units[:len(units)-1]
	}
	var out []byte
	for _, u := range append(units, 0) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}
