package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"

	"halogenos.internal/initagent/changes"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/uroot-cmds/ota/health"
	"halogenos.internal/uroot-cmds/ota/machine"
	"halogenos.internal/uroot-cmds/ota/worker"
)

const statusUsage = `usage: ota status [--json]
       ota status --follow [--json]

Says what runs and whether it is on trial, what is in both slots and starts next,
what was fetched, which versions failed and why, whether files wait for a
decision (halogenctl changes), and the boot journal's end.

  --follow  shows how far a fetch is that is under way, no matter who has begun it, as a
            timer or a desktop, until it has ended; with --json a line each time
`

func status(ctx context.Context, c *call) (any, error) {
	if c.NArg() > 0 {
		return nil, errUsage
	}
	if *c.follow {
		return nil, c.followFetch(ctx)
	}
	s, err := c.machine.Status(ctx)
	if err == nil {
		show(c.out, s)
	}
	return s, err
}

// followFetch shows how far a fetch is.
func (c *call) followFetch(ctx context.Context) error {
	note := ""
	return c.machine.Follow(ctx, func(p machine.Progress) {
		if *c.json {
			text, err := json.Marshal(p)
			if err == nil {
				fmt.Fprintf(c.raw, "%s\n", text)
			}
			return
		}
		if p.Note != note {
			note = p.Note
			c.screen.event(worker.Event{Note: note})
		}
		if p.Phase != "" {
			c.screen.event(worker.Event{Progress: &p.Progress})
		}
	})
}

func show(w io.Writer, s *machine.Status) {
	state := "blessed"
	switch {
	case s.Console:
		state = "recovery console"
	case s.Trial:
		state = "on trial"
	}
	fmt.Fprintf(w, "%s %s for %s, epoch %d, slot %s, %s\n", s.ImageID, s.Version, s.Arch, s.Epoch, s.Slot, state)
	from := s.Server
	if from == "" {
		from = "no server (set Server= in /etc/halogen/ota.conf)"
	}
	fmt.Fprintf(w, "follows channel %s of %s\n", s.Channel, plain(from))
	if s.Waits != "" {
		fmt.Fprintf(w, "nothing is fetched at present: %s (ota fetch --now does not wait)\n", plain(s.Waits))
	}
	for _, text := range s.Warnings {
		fmt.Fprintf(w, "WARNING: %s\n", plain(text))
	}
	if s.Health != nil {
		showHealth(w, s.Health)
	}
	if text := (changes.Waiting{Conflicts: s.Conflicts, LeftOut: s.LeftOut}).Summary(); text != "" {
		fmt.Fprintln(w, text)
	}
	showSnapshot(w, s)
	if s.Staged != nil {
		fmt.Fprintf(w, "version %s is fetched into slot %s: the next start tries it\n", s.Staged.Version, s.Staged.Slot)
	}
	showGrown(w, s.Grown)
	if s.Fetching != 0 {
		fmt.Fprintf(w, "version %s is partly fetched: `ota fetch` goes on\n", s.Fetching)
	}
	if len(s.Systems) > 0 {
		fmt.Fprintln(w, "systems, the one that starts next first:")
	}
	for _, have := range s.Systems {
		fmt.Fprintf(w, "  slot %-4s version %-12s %s\n", have.Slot, have.Version, have.State)
		if have.Problem != "" {
			fmt.Fprintf(w, "       %s\n", plain(have.Problem))
		}
	}
	if len(s.Failed) > 0 {
		fmt.Fprintln(w, "versions that are not tried again (ota retry VERSION takes one off):")
	}
	for _, v := range slices.Sorted(maps.Keys(s.Failed)) {
		fmt.Fprintf(w, "  %s: %s\n", v, plain(s.Failed[v]))
	}
	if len(s.Journal) > 0 {
		fmt.Fprintln(w, "journal:")
	}
	for _, e := range s.Journal {
		fmt.Fprintf(w, "  %s\n", plain(e.String()))
	}
}

// showSnapshot says what `ota rollback --state` would go back to.
func showSnapshot(w io.Writer, s *machine.Status) {
	switch {
	case s.GoesBack:
		fmt.Fprintln(w, "the next start puts directories back, as `ota rollback --state` has asked for (ota rollback --state --cancel takes that back)")
	case s.Aside != nil:
		fmt.Fprintf(w, "%s went back at %s; what was there before is in /run/state/%s (ota rollback --state takes it back, until the next update)\n",
			plain(snapshot.Names(s.Aside.Directories)), at(s.Aside.Time), s.Aside.Where)
	case s.Snapshot != nil && s.Snapshot.Missing == "":
		fmt.Fprintf(w, "%s can go back to %s, before version %s was tried (ota rollback --state)\n", plain(snapshot.Names(s.Snapshot.Directories)), at(s.Snapshot.Taken), s.Snapshot.For)
		if s.Staged != nil {
			fmt.Fprintf(w, "  until version %s is tried, when one of then takes its place\n", s.Staged.Version)
		}
	case s.Snapshot != nil:
		fmt.Fprintf(w, "no directory can go back to before version %s was tried: %s\n", s.Snapshot.For, plain(s.Snapshot.Missing))
	}
	if len(s.Left) > 0 {
		fmt.Fprintf(w, "/run/state/%s has %s, set aside, from before an update that failed, or full of subvolumes of others (ota rollback --state --forget deletes it)\n", snapshot.Left, plain(snapshot.Names(s.Left)))
	}
}

// showHealth says what failed at this start.
func showHealth(w io.Writer, h *machine.Health) {
	if len(h.Counted) > 0 {
		fmt.Fprintf(w, "WARNING: this system is not healthy: %s\n", plain((&machine.UnhealthyError{Health: h}).Error()))
	}
	for _, text := range h.Warnings {
		fmt.Fprintf(w, "WARNING: %s\n", plain(text))
	}
	rest := slices.DeleteFunc(slices.Clone(h.Failed), func(name string) bool { return slices.Contains(h.Counted, name) })
	if len(rest) > 0 {
		fmt.Fprintf(w, "failed at this start: %s\n", plain(health.Names(rest)))
	}
}
