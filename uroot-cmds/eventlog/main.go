// Command eventlog shows what the firmware measured in this boot, and what of it
// is not as in the last boot that the TPM opened.
package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/bootdisk"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/lastgood"
)

const help = `usage: eventlog [--json] [--all] [PCR...]

Shows what differs between this boot's measurements and those of the last boot
whose TPM opened the root partition, and after it the firmware's event log, in
words. Shown are the registers that the root partition is bound to (7, 11, 12,
13 and 15), those that are named, or all of them with --all. Reads only.

Anyone who could write to the machine's memory could write to the log: what it
says explains, and proves nothing by itself. The log of the earlier boot lies on
the ESP, where anyone who had the disk could write. Only the boot, with the
recovery key, and reseal can tell whether this machine has kept it.

Exit codes: 0 shown, 1 failed, 2 wrong usage.
`

func main() { cmd(hw.Linux(nil, "", "")).Main() }

// registers is how many a TPM has.
const registers = 24

// output is what --json gives.
type output struct {
	// Compared says that there is a log to compare with.
	Compared    bool         `json:"compared"`
	Differences []difference `json:"differences"`
	Events      []event      `json:"events"`
}

type difference struct {
	PCR     int      `json:"pcr"`
	Changes []string `json:"changes"`
}

type event struct {
	Number int    `json:"number"`
	PCR    int    `json:"pcr"`
	Type   uint32 `json:"type"`
	SHA256 string `json:"sha256,omitempty"`
	Text   string `json:"text"`
}

func cmd(m hw.Machine) command.Command {
	var all bool
	return command.Command{
		Name: "eventlog", Help: help, JSON: true, MaxArgs: registers, Flags: command.Bool("all", &all),
		Run: func(_ context.Context, c *command.Call) error {
			which, err := wanted(c.Args, all)
			if err != nil {
				return err
			}
			raw, err := m.TPM.EventLog()
			if err != nil {
				return err
			}
			now, err := pcr.ParseLog(raw)
			if err != nil {
				return err
			}
			last, err := lastGood(m)
			if err != nil {
				// A damaged ESP keeps nobody from reading this boot's log.
				fmt.Fprintf(c.Stderr, "eventlog: the log of the last good boot: %v\n", err)
			}
			o := collect(now, last, which)
			if c.JSON {
				return c.Encode(o)
			}
			show(c.Stdout, o)
			return nil
		},
	}
}

func wanted(args []string, all bool) (which []int, err error) {
	for _, a := range args {
		n, err := strconv.Atoi(a)
		if err != nil || n < 0 || n >= registers {
			return nil, fmt.Errorf("%w: %q is not a PCR, 0 to %d are", command.ErrUsage, a, registers-1)
		}
		which = append(which, n)
	}
	switch {
	case all && len(args) > 0:
		return nil, fmt.Errorf("%w: all registers or those that are named", command.ErrUsage)
	case all:
		for n := range registers {
			which = append(which, n)
		}
	case len(args) == 0:
		which = policy.Bound()
	}
	return which, nil
}

func lastGood(m hw.Machine) (*pcr.Log, error) {
	d, err := bootdisk.Disk(m.Disks, m.Firmware)
	if err != nil {
		return nil, err
	}
	var last *lastgood.Log
	err = m.ESP.Read(d, func(files fs.FS) (err error) {
		last, err = lastgood.Read(files, nil)
		return err
	})
	if err != nil || last == nil {
		return nil, err
	}
	return last.Log, nil
}

func collect(now, last *pcr.Log, which []int) output {
	o := output{Compared: last != nil, Differences: []difference{}, Events: []event{}}
	if last != nil {
		for _, d := range pcr.Diff(last, now) {
			if !slices.Contains(which, d.PCR) {
				continue
			}
			out := difference{PCR: d.PCR}
			for _, change := range d.Changes {
				out.Changes = append(out.Changes, change.String())
			}
			o.Differences = append(o.Differences, out)
		}
	}
	for _, e := range now.Events {
		if !slices.Contains(which, e.PCR) {
			continue
		}
		sum, _ := e.Digest(pcr.SHA256)
		o.Events = append(o.Events, event{e.Number, e.PCR, uint32(e.Type), hex.EncodeToString(sum), e.Describe()})
	}
	return o
}

func show(w io.Writer, o output) {
	switch {
	case !o.Compared:
		fmt.Fprintln(w, "There is no event log of an earlier boot to compare with.")
	case len(o.Differences) == 0:
		fmt.Fprintln(w, "Nothing differs from the last boot that the TPM opened.")
	}
	for _, d := range o.Differences {
		fmt.Fprintf(w, "PCR %d differs from the last boot that the TPM opened:\n", d.PCR)
		for _, change := range d.Changes {
			fmt.Fprintf(w, "  %s\n", strings.ReplaceAll(change, "\n", "\n  "))
		}
	}
	fmt.Fprintln(w)
	for _, e := range o.Events {
		fmt.Fprintf(w, "%4d  PCR %-2d  %-16.16s  %s\n", e.Number, e.PCR, e.SHA256, e.Text)
	}
}
