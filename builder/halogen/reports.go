package main

import (
	"context"
	"flag"

	"halogenos.internal/builder/reports"
)

const reportsSummary = `usage: halogen reports [OPTION]... DIR

Reads what machines have told of their updates, and says of each release how many
trials were kept, how many have failed, why, and on what hardware. DIR is where a web
server puts them; halogen-reports(1) has a configuration for nginx. A machine tells this only where its
owner has said so (ota report --on), and nothing that names it.

'halogen release rollout' goes by the same reports.
`

func (c command) reports(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("reports", flag.ContinueOnError)
	asJSON := f.Bool("json", false, "print it in JSON")
	asPage := f.Bool("html", false, "print a page for a browser, which needs nothing else")
	rest, err := c.parse(f, args, reportsSummary)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return c.misused(f, "want one directory, have %d", len(rest))
	}
	found, err := reports.Read(ctx, rest[0])
	if err != nil {
		return err
	}
	switch {
	case *asJSON && *asPage:
		return c.misused(f, "--json and --html are two forms of one thing: choose one")
	case *asJSON:
		return c.printJSON(found)
	case *asPage:
		return found.HTML(c.stdout)
	}
	return found.Text(c.stdout)
}
