package main

import (
	"context"
	"flag"
	"os"

	"halogenos.internal/boot/hwreport"
)

const hardwareSummary = `usage: halogen hardware-report [>FILE]

Writes down what Linux says of this machine's disks and devices, so that somebody
else can try which drivers a start takes here, and which disks it sees. It is text:
read it before you send it. Serial numbers, addresses and UUIDs are not in it; the
names of the machine's maker and model, of its disks' models and of all devices are.
`

func (c command) hardwareReport(_ context.Context, args []string) error {
	f := flag.NewFlagSet("hardware-report", flag.ContinueOnError)
	rest, err := c.parse(f, args, hardwareSummary)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return c.misused(f, "want no arguments, have %q", rest)
	}
	r, err := hwreport.Collect(os.DirFS("/sys"))
	if err != nil {
		return err
	}
	_, err = c.stdout.Write(r.Bytes())
	return err
}
