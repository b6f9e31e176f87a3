package main

import (
	"context"
	"flag"
	"fmt"

	"halogenos.internal/builder/diff"
)

const diffSummary = `usage: halogen diff [OPTION]... A B

Says in what two files that halogen makes differ, or two directories of them: disks
by their partitions, system images by their files, UKIs by their sections, an
initramfs and archives by what is in them, JSON by its values, and all others by
lines or bytes. It fails when there is a difference.
`

func (c command) diff(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("diff", flag.ContinueOnError)
	asJSON := f.Bool("json", false, "print it in JSON")
	files, err := c.parse(f, args, diffSummary)
	if err != nil {
		return err
	}
	if len(files) != 2 {
		return c.misused(f, "want two files or directories, have %d", len(files))
	}
	found, err := diff.Compare(ctx, files[0], files[1])
	if err != nil {
		return err
	}
	if *asJSON {
		if found == nil {
			found = []diff.Difference{}
		}
		if err := c.printJSON(found); err != nil {
			return err
		}
	} else {
		for _, d := range found {
			fmt.Fprintln(c.stdout, d)
		}
	}
	if len(found) > 0 {
		return fmt.Errorf("%s and %s differ in %d places", files[0], files[1], len(found))
	}
	return nil
}
