package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"halogenos.internal/boot/words"
	"halogenos.internal/builder/install"
)

// answer asks a question on the standard error, since the standard output may be
// read by a program.
func (c command) answer(format string, args ...any) (string, error) {
	fmt.Fprint(c.stderr, c.speaks.Say(format, args...))
	line, err := readLine(os.Stdin)
	return strings.TrimSpace(line), err
}

// readLine reads a line and nothing behind it, which may be the next answer.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); len(line) < 4096; {
		if _, err := io.ReadFull(r, b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[0])
	}
	return "", errors.New("the line has no end")
}

// whatStays asks what becomes of the systems that are on the disk.
func (c command) whatStays(d install.Disk, o *installFlags) (err error) {
	if d.Root != nil {
		o.keep, err = c.keepOrErase(d)
		return err
	}
	for len(d.Systems) > 0 && d.Free > 0 {
		a, err := c.answer(words.InFreeOrErase, d.Path, install.Names(d.Systems), d.Free>>20)
		switch {
		case err != nil:
			return err
		case a == "free", a == "erase":
			o.free = a == "free"
			return nil
		}
	}
	return nil
}

// othersStart asks whether other systems go on starting.
func (c command) othersStart(systems []install.System) (yes bool, err error) {
	for {
		a, err := c.answer(words.InAskOthers, install.Names(systems), words.Fixed(words.OthersWeaken), words.Fixed(words.OthersSpare))
		a = words.YesOrNoTyped(a)
		switch {
		case err != nil:
			return false, err
		case a == "yes", a == "no":
			return a == "yes", nil
		}
	}
}

// keepOrErase asks what becomes of the root partition that is on the disk.
func (c command) keepOrErase(d install.Disk) (keep bool, err error) {
	for {
		a, err := c.answer(words.InKeepOrErase, d.Path, d.Root.Size>>20)
		switch {
		case err != nil:
			return false, err
		case a == "keep", a == "erase":
			return a == "keep", nil
		}
	}
}

// consent has the disk's name typed, or takes its serial number for it.
func (c command) consent(p *install.Plan, serial string) error {
	d := p.Disk
	if serial != "" {
		if serial != d.Serial {
			return fmt.Errorf("--yes names the serial number %q, and that of %s is %q: give that of the disk that you mean; nothing was written", serial, d.Path, d.Serial)
		}
		return nil
	}
	switch {
	case isTerminal(os.Stdin):
	case d.Serial == "":
		return fmt.Errorf("nobody is there to ask, and %s has no serial number for --yes: nothing was written; call halogen on a terminal", d.Path)
	default:
		return fmt.Errorf("nobody is there to ask: give --yes with the serial number of %s (%q); nothing was written", d.Path, d.Serial)
	}
	typed, err := c.answer(words.InTypeName, p.Loss())
	if err != nil {
		return err
	}
	if typed != d.Path && typed != path.Base(d.Path) {
		return words.Errorf(words.InWrongName, typed, d.Path)
	}
	return nil
}
