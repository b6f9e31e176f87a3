// Command boot-once has the firmware start another of its boot options at the next restart,
// once.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
)

const help = `usage: boot-once [--json]
       boot-once NAME
       boot-once --cancel

Without NAME, lists what the firmware can start: the boot options of its own
menu, with their numbers. With NAME, has it start that one at the next restart,
as another system on this machine, and this system again after that. NAME is a
number, or a name or its beginning, in upper or lower case. --cancel takes that
back.

This system's boot manager has no part in such a start: no tries are counted,
and the other system finds the TPM as if it were alone. Whether the firmware
starts it under Secure Boot is for its keys to say.

Exit codes: 0 done, 1 failed, 2 wrong usage.
`

func main() { cmd(options{hw.EFIVars}).Main() }

var globalVariables = gpt.MustGUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")

const (
	nextVariable = "BootNext"
	// attributes: non-volatile, for boot services and at run time (UEFI 2.10, section 3.3).
	attributes = 7
)

// options are the firmware's, by the directory of its variables.
type options struct{ directory string }

// A bootEntry is one boot option.
type bootEntry struct {
	Number string `json:"number"`
	Name   string `json:"name"`
	Next   bool   `json:"next"` // the next restart starts it
}

func cmd(o options) command.Command {
	var cancel bool
	flags := func(f *flag.FlagSet) { f.BoolVar(&cancel, "cancel", false, "") }
	return command.Command{Name: "boot-once", Help: help, MaxArgs: 1, JSON: true, Flags: flags, Run: func(_ context.Context, c *command.Call) error {
		if len(c.Args) > 0 && (cancel || c.JSON) || cancel && c.JSON {
			return command.ErrUsage
		}
		if cancel {
			return o.cancel(c)
		}
		all, err := o.all()
		if err != nil {
			return err
		}
		if len(c.Args) == 0 {
			return list(c, all)
		}
		e, err := choose(all, c.Args[0])
		if err != nil {
			return err
		}
		next, err := o.asked()
		if err != nil {
			return err
		}
		if next != "" && next != e.Number {
			name := "the boot option " + next // which may have no name that can be read
			if i := slices.IndexFunc(all, func(other bootEntry) bool { return other.Number == next }); i >= 0 {
				name = strconv.Quote(all[i].Name)
			}
			return fmt.Errorf("the next restart starts %s already, as fwupd or somebody else has asked for: boot-once --cancel takes that back", name)
		}
		if err := o.next(e); err != nil {
			return err
		}
		fmt.Fprintf(c.Stdout, "The next restart starts %q, and the one after it is as usual.\n", e.Name)
		return nil
	}}
}

func list(c *command.Call, all []bootEntry) error {
	if c.JSON {
		return c.Encode(all)
	}
	for _, e := range all {
		mark := ""
		if e.Next {
			mark = "  (at the next restart)"
		}
		fmt.Fprintf(c.Stdout, "%s  %s%s\n", e.Number, e.Name, mark)
	}
	return nil
}

func (o options) path(name string) string {
	return filepath.Join(o.directory, name+"-"+globalVariables.String())
}

// asked is the number of the boot option that the next restart starts; empty for the usual one.
func (o options) asked() (string, error) {
	b, err := enroll.ReadVariable(o.path(nextVariable), 64)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("what the next restart starts: %w", err)
	case len(b) != 4+2:
		return "", nil // which the firmware ignores
	}
	return fmt.Sprintf("%04X", binary.LittleEndian.Uint16(b[4:])), nil
}

// all are the boot options that can be read, by their numbers.
func (o options) all() ([]bootEntry, error) {
	paths, err := filepath.Glob(o.path("Boot[0-9A-F][0-9A-F][0-9A-F][0-9A-F]"))
	if err != nil {
		return nil, err
	}
	next, err := o.asked()
	if err != nil {
		return nil, err
	}
	all := []bootEntry{}
	for _, path := range paths {
		b, err := enroll.ReadVariable(path, 4+bootoption.MaxSize)
		if err != nil || len(b) < 4 {
			continue
		}
		if name, err := bootoption.Describe(b[4:]); err == nil {
			number := filepath.Base(path)[len("Boot"):][:4]
			all = append(all, bootEntry{number, secureboot.Printable(name), number == next})
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("the firmware's boot options cannot be read: is efivarfs mounted (mount -t efivarfs efivarfs %s)?", o.directory)
	}
	return all, nil
}

// choose finds the option that somebody means: by its number, its name, or the beginning of
// its name where no other begins so.
func choose(all []bootEntry, name string) (bootEntry, error) {
	begins := func(e bootEntry) bool {
		return strings.HasPrefix(strings.ToLower(e.Name), strings.ToLower(name))
	}
	for _, is := range []func(bootEntry) bool{
		func(e bootEntry) bool { return strings.EqualFold(e.Number, name) },
		func(e bootEntry) bool { return strings.EqualFold(e.Name, name) },
		begins,
	} {
		found := slices.DeleteFunc(slices.Clone(all), func(e bootEntry) bool { return !is(e) })
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return bootEntry{}, fmt.Errorf("%d boot options are called so, %s and %s among them: give the number", len(found), found[0].Number, found[1].Number)
		}
	}
	return bootEntry{}, fmt.Errorf("the firmware has no boot option %q: `boot-once` lists them. The firmware makes one for a system that it has started before, or that was installed", name)
}

// next is one write of the firmware's variable; cut before it, the next start is as usual.
func (o options) next(e bootEntry) error {
	number, err := strconv.ParseUint(e.Number, 16, 16)
	if err != nil {
		return err
	}
	return enroll.EFIVarFS{Root: o.directory}.WriteAuthenticated(nextVariable, globalVariables, attributes, binary.LittleEndian.AppendUint16(nil, uint16(number)))
}

// cancel says what it takes back: it may be fwupd's.
func (o options) cancel(c *command.Call) error {
	next, _ := o.asked() // what cannot be read goes, too
	name := "the boot option " + next
	if all, err := o.all(); err == nil {
		if i := slices.IndexFunc(all, func(e bootEntry) bool { return e.Next }); i >= 0 {
			name = strconv.Quote(all[i].Name)
		}
	}
	if next != "" {
		fmt.Fprintf(c.Stdout, "The next restart was to start %s, and is as usual now.\n", name)
	}
	if err := os.Remove(o.path(nextVariable)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("have the next start be as usual: %w", err)
	}
	return nil
}
