package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/uroot-cmds/ota/machine"
)

const rollbackUsage = `usage: ota rollback [--json] [REASON...]
       ota rollback --state [--yes] [--json] [REASON...]
       ota rollback --state --cancel [--json]
       ota rollback --state --forget [--yes] [--json]

Gives up what was installed last: a release that was fetched and not tried yet,
a trial that has not begun, or the system that runs, if the one in the other slot
can start. It is not fetched again, unless ota retry says so. Nothing is restarted.

The other system comes back with its own /etc, and so with the users and passwords
of then. No later release gets what was changed in /etc since; ota(8) says more.

  --state  and has the next start put /var, /root and the other directories that
           all systems share back as they were before the update was tried, but
           for /home. What was written to them since is set aside, and stays in
           /run/state/snapshots: until the next update --state again takes it
           back. Where the system of before runs already, nothing is given up.
           Shows first what would be lost, and asks. Needs a root partition of
           btrfs
  --cancel has the directories stay that were to go back at the next start
  --forget deletes the snapshot, what was set aside, and what else is in
           /run/state/snapshots
  --yes    does not ask
`

func rollback(_ context.Context, c *call) (any, error) {
	reason := strings.Join(c.Args(), " ")
	switch {
	case *c.cancel && *c.forget || (*c.cancel || *c.forget) && (!*c.state || reason != ""):
		return nil, fmt.Errorf("%w: --cancel and --forget belong to --state, each alone", errUsage)
	case *c.cancel:
		return c.cancelState()
	case *c.forget:
		return c.forgetState()
	case *c.state:
		return c.rollbackState(reason)
	}
	r, err := c.machine.GiveUp(reason)
	if err != nil {
		return nil, err
	}
	c.showRollback(r)
	return r, nil
}

func (c *call) showRollback(r *machine.Rollback) {
	fmt.Fprintf(c.out, "version %s is given up\n", r.Given)
	if r.Restart {
		fmt.Fprintf(c.out, "restart to go back to version %s, with /etc as it was there: users and passwords are those of then; a user who was added since has no account, and their files in /home stay\n", r.Next)
		until := "at that start"
		if !r.Trial {
			until = "when a release is installed in its place"
		}
		fmt.Fprintf(c.out, "what was changed in /etc under version %s is removed %s: copy what you need of it before\n", r.Given, until)
	}
	if r.Stay {
		fmt.Fprintln(c.out, "the directories that were to go back at the next start stay as they are")
	}
	c.screen.warn(r.Warning)
}

func (c *call) cancelState() (any, error) {
	if err := c.machine.CancelState(); err != nil {
		return nil, err
	}
	fmt.Fprintln(c.out, "the directories stay as they are; a version that was given up with it stays given up (ota retry)")
	return struct{}{}, nil
}

func (c *call) forgetState() (any, error) {
	if *c.json && !*c.yes {
		return nil, fmt.Errorf("%w: --forget asks, and with --json nobody could see what: give --yes", errUsage)
	}
	fmt.Fprintln(c.out, "This deletes what /run/state/snapshots has: what directories held before the last update, and what going back has set aside. Nothing brings it back.")
	if !*c.yes && !c.confirmed("Delete it?") {
		return nil, errDeclined
	}
	if err := c.machine.ForgetState(); err != nil {
		return nil, err
	}
	fmt.Fprintln(c.out, "it is deleted; its room is free in a minute or so")
	return struct{}{}, nil
}

// errDeclined is what a person gets who asks for it and does not want it then.
var errDeclined = errors.New("nothing was changed")

func (c *call) rollbackState(reason string) (any, error) {
	if *c.json && !*c.yes {
		return nil, fmt.Errorf("%w: --state asks, and with --json nobody could see what: give --yes", errUsage)
	}
	s, err := c.machine.PlanState()
	if err != nil {
		return nil, err
	}
	c.showState(s)
	if !*c.yes && !c.confirmed("Go back?") {
		return nil, errDeclined
	}
	if s.Rollback, err = c.machine.RollbackState(s, reason); err != nil {
		return nil, err
	}
	if s.Rollback != nil {
		c.showRollback(s.Rollback)
	}
	fmt.Fprintf(c.out, "the next start puts %s back: restart\n", plain(snapshot.Names(s.Paths())))
	return s, nil
}

// showState says what would be lost.
func (c *call) showState(s *machine.StateRollback) {
	age := c.machine.Now().Sub(s.Of)
	if s.Undo {
		fmt.Fprintf(c.out, "These directories went back at %s, %s ago. They would hold again what they held before that, under version %s:\n", at(s.Of), ago(age), s.Version)
	} else {
		fmt.Fprintf(c.out, "These directories would hold again what they held at %s, %s ago, under version %s:\n", at(s.Of), ago(age), s.Version)
	}
	for _, d := range s.Directories {
		fmt.Fprintf(c.out, "  %-12s then %s, now %s\n", plain(d.Path), holds(d.Then), holds(d.Now))
	}
	fmt.Fprintf(c.out, "All that was written there or deleted since then, logs and databases too, is taken out of its place. It stays in /run/state/snapshots until `ota rollback --state --forget` deletes it. Subvolumes of others in there, such as docker's, are empty in what comes back.\n")
	for _, d := range s.Plain {
		fmt.Fprintf(c.out, "%s stays as it is: it is not a subvolume\n", plain(d))
	}
	if s.Rollback != nil {
		fmt.Fprintf(c.out, "Version %s is given up. ", s.Rollback.Given)
	}
	fmt.Fprintf(c.out, "The next start is of version %s.\n", s.Next)
}

// confirmed asks. Nobody there means no.
func (c *call) confirmed(question string) bool {
	fmt.Fprint(c.out, question+" [y/N] ")
	line, _ := bufio.NewReader(io.LimitReader(c.in, 80)).ReadString('\n')
	return strings.EqualFold(strings.TrimSpace(line), "y")
}

// at is a time for people. The clock that it was taken by may have been off.
func at(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// ago is a duration for people.
func ago(d time.Duration) string {
	for _, u := range []struct {
		length time.Duration
		name   string
	}{{24 * time.Hour, "days"}, {time.Hour, "hours"}, {time.Minute, "minutes"}} {
		if d >= 2*u.length {
			return fmt.Sprintf("%d %s", d/u.length, u.name)
		}
	}
	return "a short time"
}

func holds(u *machine.Usage) string {
	if u == nil {
		return "not measured"
	}
	if u.Files == 1 {
		return size(u.Bytes) + " in 1 file"
	}
	return fmt.Sprintf("%s in %d files", size(u.Bytes), u.Files)
}
