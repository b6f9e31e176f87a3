// Command firmware shows what a machine's firmware is and holds, and what is advised.
package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/tpm"
)

const help = `usage: firmware [--json]

Shows what this machine's firmware is and holds: its version, the state of
Secure Boot and whose keys it has, how long its list of revoked programs (dbx)
is, the processor's microcode, the TPM's maker and firmware, whether fwupd can
update the firmware, and what came of the last updates of firmware. Below it
says what is advised. Reads only.

Keys are named as their certificates name themselves, which proves nothing:
whether the machine is as it was is what the TPM decides at each start.

Exit codes: 0 shown, 1 failed, 2 wrong usage.
`

func main() {
	cmd(source{Variables: enroll.EFIVarFS{Root: hw.EFIVars}, TPM: capabilities, Root: os.DirFS("/"), Boot: bootinfo.Linux().Boot}).Main()
}

// source is where the facts come from.
type source struct {
	Variables enroll.Variables
	TPM       func() (*tpm.Capabilities, error)
	Root      fs.FS                            // the root directory
	Boot      func() (*bootinfo.Report, error) // of this boot; nil for none
}

func capabilities() (*tpm.Capabilities, error) {
	t, err := hw.OwnTPM().Open()
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return t.Capabilities()
}

func cmd(s source) command.Command {
	return command.Command{Name: "firmware", Help: help, JSON: true, Run: func(_ context.Context, c *command.Call) error {
		f := s.collect()
		f.Advice = f.advise()
		if c.JSON {
			return c.Encode(f)
		}
		f.show(c.Stdout)
		return nil
	}}
}

func (f *facts) show(w io.Writer) {
	line := func(name string, values ...string) {
		for i, v := range values {
			if i > 0 {
				name = ""
			}
			fmt.Fprintf(w, "%-12s  %s\n", name, v)
		}
	}
	if f.Machine != "" {
		line("machine", f.Machine)
	}
	if f.Firmware != "" {
		line("firmware", f.Firmware)
	}
	line("Secure Boot", f.SecureBoot)
	line("owner (PK)", f.PK...)
	line("KEK", f.KEK...)
	line("db", f.DB...)
	line("dbx", fmt.Sprintf("%d entries", f.DBX))
	for _, p := range f.Problems {
		line("not read", p)
	}
	if f.Processor != nil {
		text := f.Processor.String()
		if f.Available != "" {
			text += "; the UKI has " + f.Available
		}
		line("processor", text)
	}
	line("TPM", f.tpmText())
	switch f.Updater {
	case "":
	case updaterStarts:
		line("fwupd", "the firmware starts its program")
	default:
		line("fwupd", "the firmware does not start its program: "+f.Updater)
	}
	for _, u := range f.Updates {
		line("update", u.String())
	}
	fmt.Fprintln(w)
	if len(f.Advice) == 0 {
		fmt.Fprintln(w, "Nothing is advised.")
	}
	for _, a := range f.Advice {
		fmt.Fprintf(w, "- %s\n", strings.ReplaceAll(a, "\n", "\n  "))
	}
}
