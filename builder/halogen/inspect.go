package main

import (
	"context"
	"flag"

	"halogenos.internal/builder/inspect"
)

const inspectSummary = `usage: halogen inspect [OPTION]... FILE

Shows what is in a file that halogen makes or a machine has, whatever its name: a
UKI or another EFI image (sections, predicted PCR 11, command line, boot
contract, signatures), a disk (partitions, files on the ESP), an ESP, a system
image, a LUKS2 volume (keyslots, tokens), a release.json, a release's archive, or
a key (OpenPGP, certificate, PKCS#8). Signatures are listed, not verified.
`

func (c command) inspect(_ context.Context, args []string) error {
	f := flag.NewFlagSet("inspect", flag.ContinueOnError)
	asJSON := f.Bool("json", false, "print it in JSON")
	files, err := c.parse(f, args, inspectSummary)
	if err != nil {
		return err
	}
	if len(files) != 1 {
		return c.misused(f, "want one file, have %d", len(files))
	}
	r, err := inspect.File(files[0])
	if err != nil {
		return err
	}
	if *asJSON {
		return c.printJSON(r)
	}
	return r.Text(c.stdout)
}
