package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"halogenos.internal/boot/microcode"
	"halogenos.internal/builder/splash"
)

// UKI is what goes into it: the section [UKI]. Paths of Linux and Stub lie in the root file
// system; empty means: find it.
type UKI struct {
	Linux     string
	Stub      string
	OSRelease string // text to use in place of the root file system's; may be empty
	Cmdline   string // complete, with the fixed arguments
	Uname     string // empty: the kernel's own
	Splash    []byte // BMP; may be empty
	// Microcode is what the UKI gets in the place of the root file system's, which nil
	// stands for; an empty set for none.
	Microcode *microcode.Set
	// MicrocodeFile is the name of the file that it is from; empty for none.
	MicrocodeFile string
}

// path takes a path within the root file system.
func (r *reader) path(to *string) func(string) error {
	return func(value string) error {
		clean := filepath.Clean("/" + value)
		if value == "" || strings.ContainsAny(value, "\n\x00") || slices.Contains(strings.Split(value, "/"), "..") {
			return fmt.Errorf("%q is not a path in the root file system", value)
		}
		*to = clean
		return nil
	}
}

// textOrFile takes a text, or with a leading '@' the name of a file with it.
func (r *reader) textOrFile(to *string) func(string) error {
	return func(value string) error {
		if name, ok := strings.CutPrefix(value, "@"); ok {
			text, err := readBounded(r.local(name), maxFile)
			if err != nil {
				return err
			}
			value = string(text)
		}
		if strings.ContainsRune(value, 0) {
			return fmt.Errorf("has a NUL byte")
		}
		*to = value
		return nil
	}
}

func (r *reader) uname(value string) error {
	if !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}$`).MatchString(value) {
		return fmt.Errorf("%q is not a kernel version", value)
	}
	r.config.Uname = value
	return nil
}

// plainSplash is the value for the picture that halogen draws.
const plainSplash = "plain"

func (r *reader) splash(value string) error {
	if value == plainSplash {
		r.config.Splash = splash.Plain()
		return nil
	}
	picture, err := readBounded(r.local(value), splash.MaxSize)
	if err != nil {
		return err
	}
	if err := splash.Check(picture); err != nil {
		return fmt.Errorf("%s: %w", value, err)
	}
	r.config.Splash = picture
	return nil
}

// microcode takes auto, none or the name of a file.
func (r *reader) microcode(value string) error {
	switch value {
	case "":
		return errors.New("has no value: want auto, none or the name of a file")
	case "auto":
		return nil
	case "none":
		r.config.Microcode = new(microcode.Set)
		return nil
	}
	data, err := readBounded(r.local(value), microcode.MaxSize)
	if err != nil {
		return err
	}
	r.config.Microcode, r.config.MicrocodeFile = new(microcode.Set), filepath.Base(value)
	if err := r.config.Microcode.Add(data); err != nil {
		return fmt.Errorf("%s %w; want an early archive as of `iucode_tool --write-earlyfw`, or a file of Intel's or AMD's", value, err)
	}
	return nil
}
