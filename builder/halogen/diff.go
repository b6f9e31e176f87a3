package main

import (
	"context"
	"flag"
	"fmt"

	"halogenos.internal/builder/diff"
	"halogenos.internal/builder/release"
)

const diffSummary = `usage: halogen diff [OPTION]... A B

Says in what two files that halogen makes differ, or two directories of them: disks
by their partitions, system images by their files, UKIs by their sections, an
initramfs and archives by what is in them, JSON by its values, and all others by
lines or bytes. It fails when there is a difference.

With --update A and B are directories of 'halogen build': it says how many bytes a
machine with A fetches to have B, by directory and by file. Files that lie in the image
as they are, such as modules with Modules=plain, are told one by one; the others are
compressed together. --patches counts what 'halogen release --patch-from' would offer,
and takes minutes.
`

func (c command) diff(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("diff", flag.ContinueOnError)
	asJSON := f.Bool("json", false, "print it in JSON")
	update := f.Bool("update", false, "say what an update from A to B will cost")
	patched := f.Bool("patches", false, "with --update, count patches")
	files, err := c.parse(f, args, diffSummary)
	if err != nil {
		return err
	}
	if len(files) != 2 {
		return c.misused(f, "want two files or directories, have %d", len(files))
	}
	if *update {
		return c.cost(ctx, files[0], files[1], *patched, *asJSON)
	}
	if *patched {
		return c.misused(f, "--patches belongs to --update")
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

// mostShown is how many files and directories the text has.
const mostShown = 20

// cost says what an update costs.
func (c command) cost(ctx context.Context, old, fresh string, patched, asJSON bool) error {
	cost, err := release.CostOf(ctx, old, fresh, patched)
	if err != nil {
		return err
	}
	if asJSON {
		return c.printJSON(cost)
	}
	fmt.Fprintf(c.stdout, "%.1f MB to fetch, %.1f %% of the archive of %.1f MB, in %d requests; %d of %d blocks changed\n",
		mega(cost.Bytes), 100*float64(cost.Bytes)/float64(cost.Archive), mega(cost.Archive), cost.Requests, cost.Changed, cost.Blocks)
	if patched {
		fmt.Fprintf(c.stdout, "%.1f MB of them are patches\n", mega(cost.Patches))
	}
	for _, list := range []struct {
		name string
		all  []release.Share
	}{{"directories", cost.Directories}, {"files", cost.Files}} {
		fmt.Fprintf(c.stdout, "\n%10s %8s  of %s\n", "MB", "blocks", list.name)
		for _, s := range list.all[:min(len(list.all), mostShown)] {
			fmt.Fprintf(c.stdout, "%10.2f %8d  %s\n", mega(s.Bytes), s.Blocks, s.Name)
		}
		if left := len(list.all) - mostShown; left > 0 {
			fmt.Fprintf(c.stdout, "%d more; --json has them\n", left)
		}
	}
	return nil
}

func mega(n int64) float64 { return float64(n) / 1e6 }
