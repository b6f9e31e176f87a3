package main

import (
	"context"
	"errors"
	"flag"
	"time"

	"halogenos.internal/builder/image"
	"halogenos.internal/builder/inspect"
	"halogenos.internal/builder/release"
)

const inspectSummary = `usage: halogen inspect [OPTION]... FILE

Shows what is in a file that halogen makes or a machine has, whatever its name: a
UKI or another EFI image (sections, predicted PCR 11, command line, boot
contract, signatures), a disk (partitions, files on the ESP), an ESP, a system
image, a LUKS2 volume (keyslots, tokens), a release.json, a release's archive, or
a key (OpenPGP, certificate, PKCS#8). Signatures are listed, not verified.

Of a UKI and a release.json it shows how much of a machine's partitions the release
takes; with --server also how many more fit, by the growth of those before it.
`

func (c command) inspect(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("inspect", flag.ContinueOnError)
	asJSON := f.Bool("json", false, "print it in JSON")
	server := f.String("server", "", "`ROOT` of the web server's directories, or an image's directory in it, with the releases before")
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
	if *server != "" {
		if err := c.plan(ctx, r, *server); err != nil {
			return err
		}
	}
	if *asJSON {
		return c.printJSON(r)
	}
	return r.Text(c.stdout)
}

// plan adds how many more releases fit, after those on a server.
func (c command) plan(ctx context.Context, r *inspect.Report, root string) error {
	place := r.Image()
	if place == "" {
		return errors.New("--server goes with a UKI that has a boot contract, or a release.json")
	}
	if err := onThisMachine(root); err != nil {
		return err
	}
	directory, err := oneImage(root, place)
	if err != nil {
		return err
	}
	past, err := release.Past(ctx, directory, r.Pinned(), 0, time.Now(), image.NewProgress(c.stderr).Note)
	if err != nil {
		return err
	}
	r.Plan(past)
	return nil
}
