package cli

import (
	"context"
	"flag"
	"fmt"

	"halogenos.internal/uroot-cmds/ota/machine"
)

const extensionUsage = `usage: ota extension list [--json]
       ota extension enable [--from PLACE] [--json] NAME...
       ota extension disable [--json] NAME...

System extensions are parts of a release that only some machines need: drivers, a
VPN. Each belongs to one release, whose UKI names its content.

  list     say which the releases on this machine have, which are enabled, whose
           files are there, and what became of them at this start
  enable   fetch their files for the version that runs (and for the one in the
           other slot, where that has them), and open them from the next start on.
           Updates bring them from then on. Interrupted, it goes on where it was
  disable  leave them out from the next start on. Their files stay as long as a
           release on this machine lists them

  --from PLACE  as for ota fetch; an archive is the extension's own

Needs root. At the recovery console "unlock" comes first.

Exit codes: 0 done; 1 failed, and may work later; 2 wrong usage; 4 another ota is at
work.
`

// words parses flags wherever they stand, and returns the other words.
func words(f *flag.FlagSet) (all []string, err error) {
	for f.NArg() > 0 {
		all = append(all, f.Arg(0))
		if err := f.Parse(f.Args()[1:]); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func extensionOf(ctx context.Context, c *call) (any, error) {
	switch {
	case len(c.words) == 1 && c.words[0] == "list" && *c.from == "":
		return c.listExtensions()
	case len(c.words) > 1 && c.words[0] == "enable":
		out, err := c.machine.EnableExtensions(ctx, c.words[1:], machine.Options{From: *c.from, Tell: c.screen.event})
		c.screen.end()
		return c.changed(out, err, "enabled: they are part of the system after the next start")
	case len(c.words) > 1 && c.words[0] == "disable" && *c.from == "":
		out, err := c.machine.DisableExtensions(c.words[1:])
		return c.changed(out, err, "disabled: the next start leaves them out")
	}
	return nil, errUsage
}

// changed says what enabling or disabling has done. What was fetched is said even where it
// did not come to its end.
func (c *call) changed(out *machine.ExtensionChange, err error, done string) (any, error) {
	if out == nil {
		return nil, err
	}
	c.showFetched(out.Fetched)
	for _, text := range out.Warnings {
		c.screen.warn(text)
	}
	if out.Freed > 0 {
		fmt.Fprintf(c.out, "%s freed\n", size(out.Freed))
	}
	if err == nil {
		fmt.Fprintf(c.out, "%s %s\n", plain(machine.Names(c.words[1:])), done)
	}
	return out, err
}

// showFetched says what was brought.
func (c *call) showFetched(all []machine.FetchedExtension) {
	for _, e := range all {
		switch {
		case e.There:
			fmt.Fprintf(c.out, "extension %s of version %s is there already\n", e.Name, e.Version)
		case e.Result != nil:
			fmt.Fprintf(c.out, "extension %s of version %s: %s fetched, %s copied\n", e.Name, e.Version, size(e.Result.Fetched), size(e.Result.Copied))
		}
	}
}

func (c *call) listExtensions() (any, error) {
	x, err := c.machine.ListExtensions()
	if err != nil {
		return nil, err
	}
	for _, r := range x.Releases {
		fmt.Fprintf(c.out, "version %s, which %s:\n", r.Version, happens[r.Role])
		if len(r.Extensions) == 0 {
			fmt.Fprintln(c.out, "  no extensions")
		}
		for _, e := range r.Extensions {
			fmt.Fprintf(c.out, "  %s (%s): %s\n", e.Name, size(e.Size), plain(state(r.Role, e)))
		}
	}
	for _, name := range x.Unknown {
		c.screen.warn(fmt.Sprintf("extension %s is enabled, and no release here has one of that name", name))
	}
	if x.Unlisted != "" {
		c.screen.warn("not every release could be asked: " + x.Unlisted)
	}
	return x, nil
}

// happens says what becomes of a release.
var happens = map[machine.Role]string{
	machine.RoleRuns:  "runs",
	machine.RoleWaits: "waits in the other slot",
	machine.RoleOlder: "is in the other slot",
	machine.Gone:      "is not started any more",
}

// state is what there is to say of an extension.
func state(role machine.Role, e machine.Extension) string {
	text := "not enabled"
	if e.Enabled {
		text = "enabled"
	}
	if e.Essential {
		text += ", essential"
	}
	switch {
	case role == machine.RoleRuns && e.Opened:
		text += ", part of this system"
	case role == machine.RoleRuns && e.LeftOut != "":
		text += ", left out at this start: " + e.LeftOut
	case role == machine.RoleRuns && e.Enabled && e.There:
		text += ", part of the system after the next start"
	}
	switch {
	case e.There:
		return text + "; its file is there"
	case role == machine.Gone:
		return text + "; its file is not there"
	case e.Begun > 0:
		return fmt.Sprintf("%s; %s of its file are there, and `ota extension enable %s` fetches the rest", text, size(e.Begun), e.Name)
	}
	return fmt.Sprintf("%s; its file is not there, and `ota extension enable %s` fetches it", text, e.Name)
}
