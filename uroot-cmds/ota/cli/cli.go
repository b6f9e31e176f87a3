// Package cli is what a person or a script sees of ota: its commands, what it
// prints, and its exit codes. It decides nothing.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/term"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/dispatch"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/uroot-cmds/ota/health"
	"halogenos.internal/uroot-cmds/ota/machine"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// Exit codes.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 3
	exitBusy    = 4
)

const usage = `usage: ota COMMAND [--json] [--help] ...
       ota --version

  check    ask the server whether there is a newer release
  fetch    bring it into the other slot; the next start tries it
  status   what runs, what is in the slots, what failed and why
  notes    what the version that runs has brought
  history  what became of this machine's systems, and why
  bless    keep the system that runs (or say that its check failed)
  health   say what has failed at this start, and what of it counts
  rollback give up what was installed last
  retry    try a version again that has failed or was given up
  restart  restart into what was fetched
  grow     make the slots larger, for a release that does not fit them
  extension list, enable or disable system extensions of the release
  channel  show the channel that is followed, or follow another
  report   show what the distributor is told of the last update, and allow it

Needs root. Settings: /etc/halogen/ota.conf, which goes over
/usr/lib/halogen/ota.conf. A command's --help says more. At the recovery console
"unlock" comes first, then "network" or a stick; "exit" tries what was fetched.

Exit codes: 0 done, or nothing to do; 1 failed, and may work later; 2 wrong
usage; 3 a release is offered and refused; 4 another ota is at work.
`

// Streams are the process's.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// A command is one of ota's.
type command struct {
	usage string
	run   func(ctx context.Context, c *call) (any, error)
}

// A call is one use of a command.
type call struct {
	*flag.FlagSet
	machine *machine.Machine
	json    *bool
	from    *string
	to      *string
	now     *bool
	auto    *bool
	failed  *bool
	state   *bool
	yes     *bool
	cancel  *bool
	forget  *bool
	in      io.Reader
	all     *bool
	summary *bool
	follow  *bool
	on      *bool
	off     *bool
	send    *bool
	words   []string // of an extension command, without flags
	screen  *screen
	out     io.Writer // for people
	raw     io.Writer // the standard output
}

func commands() map[string]command {
	return map[string]command{
		"check":     {checkUsage, check},
		"fetch":     {fetchUsage, fetchRelease},
		"status":    {statusUsage, status},
		"history":   {historyUsage, history},
		"notes":     {notesUsage, notesOf},
		"bless":     {blessUsage, bless},
		"health":    {healthUsage, healthOf},
		"rollback":  {rollbackUsage, rollback},
		"retry":     {retryUsage, retry},
		"restart":   {restartUsage, restart},
		"grow":      {growUsage, grow},
		"channel":   {channelUsage, channel},
		"extension": {extensionUsage, extensionOf},
		"report":    {reportUsage, reportOf},
	}
}

// Run is the program; args are without its name. It returns the exit code.
func Run(args []string, s Streams, open func() *machine.Machine) int {
	if len(args) > 0 && args[0] == worker.Argument {
		return worker.Main(s.In, s.Out)
	}
	all := commands()
	p := dispatch.Program{Name: "ota", Help: usage, Commands: slices.Collect(maps.Keys(all))}
	if code, found := p.Find(args, s.Out, s.Err); !found {
		return code
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return all[args[0]].call(ctx, args, s, open)
}

func (c command) call(ctx context.Context, args []string, s Streams, open func() *machine.Machine) int {
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	f.SetOutput(io.Discard)
	on := &call{FlagSet: f, out: s.Out, raw: s.Out, in: s.In, json: f.Bool("json", false, "")}
	switch args[0] {
	case "check":
		on.from = f.String("from", "", "")
	case "extension":
		on.from = f.String("from", "", "")
	case "fetch":
		on.from, on.now, on.auto = f.String("from", "", ""), f.Bool("now", false, ""), f.Bool("auto", false, "")
	case "status":
		on.follow = f.Bool("follow", false, "")
	case "restart":
		on.auto = f.Bool("auto", false, "")
	case "grow":
		on.from, on.to = f.String("from", "", ""), f.String("to", "", "")
		on.yes, on.cancel = f.Bool("yes", false, ""), f.Bool("cancel", false, "")
	case "notes":
		on.summary = f.Bool("summary", false, "")
	case "history":
		on.all = f.Bool("all", false, "")
	case "report":
		on.on, on.off, on.send = f.Bool("on", false, ""), f.Bool("off", false, ""), f.Bool("send", false, "")
	case "bless":
		on.failed = f.Bool("failed", false, "")
	case "rollback":
		on.state, on.yes = f.Bool("state", false, ""), f.Bool("yes", false, "")
		on.cancel, on.forget = f.Bool("cancel", false, ""), f.Bool("forget", false, "")
	}
	err := f.Parse(args[1:])
	if args[0] == "extension" && err == nil {
		on.words, err = words(f)
	}
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(s.Out, c.usage)
		return exitDone
	}
	if err != nil {
		fmt.Fprintf(s.Err, "ota %s: %v\n%s", args[0], err, c.usage)
		return exitUsage
	}
	on.screen = newScreen(s.Err, isTerminal(s.Err), on.auto != nil && *on.auto)
	if *on.json {
		on.out = io.Discard
	}
	on.machine = open()
	result, err := c.run(ctx, on)
	on.screen.end()
	return on.report(s, args[0], result, wayOut(ctx, args[0], err))
}

// wayOut says what to do about an error that nobody else explains: one of the person who ended
// the command, or is not root.
func wayOut(ctx context.Context, name string, err error) error {
	switch {
	case err == nil || exitCode(err) != exitFailed:
		return err
	case ctx.Err() != nil && (name == "fetch" || name == "extension"):
		return errors.New("interrupted: run it again, and it goes on where it was. The system that runs is as before")
	case ctx.Err() != nil:
		return errors.New("interrupted: run it again")
	case errors.Is(err, fs.ErrPermission) && strings.HasSuffix(err.Error(), fs.ErrPermission.Error()):
		return fmt.Errorf("%w: run this as root", err)
	}
	return err
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// errUsage is returned for arguments that are malformed.
var errUsage = errors.New("wrong arguments")

// report prints the result for programs, and what went wrong for people.
func (c *call) report(s Streams, name string, result any, err error) int {
	code := exitCode(err)
	lines := c.follow != nil && *c.follow && err == nil // which were written
	if *c.json && code != exitUsage && !lines {
		text, encodeErr := encode(result, err, code)
		if encodeErr != nil {
			err = errors.Join(err, encodeErr)
			code = max(code, exitFailed)
		}
		fmt.Fprintf(s.Out, "%s\n", text)
	}
	if err != nil {
		fmt.Fprintf(s.Err, "ota %s: %s\n", name, plain(err.Error()))
	}
	if code == exitUsage {
		fmt.Fprint(s.Err, commands()[name].usage)
	}
	return code
}

// encode returns one JSON object: the result, with the error in it if there was
// one.
func encode(result any, err error, code int) ([]byte, error) {
	if err == nil {
		return json.MarshalIndent(result, "", "  ")
	}
	failure := struct {
		Error  string `json:"error"`
		Code   int    `json:"code"`
		Result any    `json:"result,omitempty"`
	}{plain(err.Error()), code, nil}
	switch out := result.(type) {
	case *machine.Outcome:
		if out != nil {
			failure.Result = out
		}
	case *machine.Health:
		failure.Result = out
	case *machine.ExtensionChange:
		if out != nil {
			failure.Result = out
		}
	}
	return json.MarshalIndent(failure, "", "  ")
}

func exitCode(err error) int {
	var refused *offer.Refused
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errUsage):
		return exitUsage
	case errors.Is(err, machine.ErrBusy):
		return exitBusy
	case errors.As(err, &refused):
		return exitRefused
	}
	return exitFailed
}

// plain is text that cannot steer a terminal.
func plain(s string) string { return machine.Plain(s) }

const checkUsage = `usage: ota check [--from PLACE] [--json]

Asks the server what it offers, checks its signatures, and says whether this
machine would take it, and how many bytes of it ota fetch would fetch now: for that
it fetches the release's block index, which the fetch needs, too; not on a metered
network. Changes nothing on the machine but this and its memory of the newest signed
manifest. --from: see ota fetch --help.
`

func check(ctx context.Context, c *call) (any, error) {
	if c.NArg() > 0 {
		return nil, errUsage
	}
	out, err := c.machine.Check(ctx, machine.Options{From: *c.from, Tell: c.screen.event})
	if err == nil {
		fmt.Fprintln(c.out, plain(out.Reason))
		c.showSize(out)
		showNotes(c.out, out.Notes)
	}
	return out, err
}

// showSize says how much a fetch would take.
func (c *call) showSize(out *machine.Outcome) {
	switch {
	case out.Verdict != offer.Take:
	case out.Fetch != nil:
		fmt.Fprintf(c.out, "`ota fetch` fetches %s (%d bytes) of its archive, which has %s\n", size(*out.Fetch), *out.Fetch, size(out.Size))
	default:
		fmt.Fprintf(c.out, "its archive has %s; `ota fetch` fetches what this machine lacks of it\n", size(out.Size))
	}
}

const fetchUsage = `usage: ota fetch [--from PLACE] [--now] [--auto] [--json]

Brings the release that the channel offers into the other slot, where the next
start tries it. What the running system has of it is copied, the rest fetched.
Interrupted at any point, it goes on where it was. The system that runs must be
blessed; the one in the other slot is given up.

  --from PLACE  instead of the server that ota.conf names: another one's URL, a
                directory (a mirror, a mounted stick), a stick's device (/dev/sdb1:
                it is mounted meanwhile), or a release's archive (.tar.gz).
                Its releases must be signed like any other
  --now         before it is this machine's turn, where a release goes to a
                share of the machines first; and whatever ota.conf says of
                metered connections, battery, quiet hours and load
  --auto        for timers: says nothing unless something was fetched or failed,
                and waits up to 12 hours where these say so; then tells the distributor
                of the last update, where that is allowed (ota report)

Exit codes: 0 fetched, or nothing to do; 1 failed, and may work later; 2 wrong
usage; 3 a release is offered and refused; 4 another ota is at work.
`

func fetchRelease(ctx context.Context, c *call) (any, error) {
	if c.NArg() > 0 {
		return nil, errUsage
	}
	if *c.auto {
		defer tellOnce(ctx, c) // last: a slow collection must not hold up an update
	}
	out, err := c.machine.FetchWhenFit(ctx, machine.Options{From: *c.from, Impatient: *c.now, Patient: *c.auto, Tell: c.screen.event})
	c.screen.end()
	// A version that has failed before is no news, and no failure, every night.
	var refused *offer.Refused
	if *c.auto && errors.As(err, &refused) && refused.Verdict == offer.Spent {
		return out, nil
	}
	if err == nil && (!*c.auto || out.Result != nil) {
		fmt.Fprintln(c.out, plain(out.Reason))
	}
	if err == nil && out.Result != nil {
		fmt.Fprintf(c.out, "%s fetched of an archive of %s, %s copied from the running system", size(out.Result.Fetched), size(out.Size), size(out.Result.Copied))
		if out.Result.Patched > 0 {
			fmt.Fprintf(c.out, ", %s made of it by patches", size(out.Result.Patched))
		}
		fmt.Fprintln(c.out)
		c.showFetched(out.Extensions)
	}
	return out, err
}

const blessUsage = `usage: ota bless [--json]
       ota bless --failed [--json] [REASON...]

Keeps the system that runs: its trial is over. Does nothing where it is none.
With --failed, notes that its health check has failed: the trial is not given a
second round of tries, and the version is not fetched again. Nothing is
restarted.
`

func bless(_ context.Context, c *call) (any, error) {
	if *c.failed {
		reason := strings.Join(c.Args(), " ")
		if reason == "" {
			reason = "the health check has failed"
		}
		r, err := c.machine.Unhealthy(reason)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(c.out, "noted that version %s is not healthy: %s\n", r.Contract.Version, plain(reason))
		return map[string]any{"version": r.Contract.Version, "slot": r.Slot, "unhealthy": reason}, nil
	}
	if c.NArg() > 0 {
		return nil, errUsage
	}
	b, err := c.machine.Bless()
	if err != nil {
		return nil, err
	}
	if b.Already {
		fmt.Fprintf(c.out, "version %s is blessed\n", b.Version)
	} else {
		fmt.Fprintf(c.out, "version %s has proven itself and stays\n", b.Version)
	}
	c.screen.warn(b.Warning)
	return b, nil
}

const healthUsage = `usage: ota health [--json]

Waits until the start of this system has settled, at most 3 minutes, and says what
has failed: units of systemd, services of OpenRC. On a desktop with systemd it also
looks whether the display server answers (or else names display-manager.service)
and the network service runs. It is a part of the health check
(/usr/lib/halogen/health). A trial in which something failed that did not fail
before the update is not healthy, unless /usr/lib/halogen/health-ignore or
/etc/halogen/health-ignore names it: a name a line, "*" and "?" stand for other
characters. Nor does what only needs a network count: mounts of network file
systems, and what /usr/lib/halogen/health-ignore.default names.

Exit codes: 0 healthy; 1 not; 2 wrong usage.
`

func healthOf(ctx context.Context, c *call) (any, error) {
	if c.NArg() > 0 {
		return nil, errUsage
	}
	h, err := c.machine.Health(ctx)
	if h == nil {
		return nil, err
	}
	for _, text := range h.Warnings {
		c.screen.warn(text)
	}
	for _, part := range []struct {
		what  string
		names []string
	}{
		{"failed before the update, too", h.Before}, {"failed, and may", h.Excused},
		{"failed, and does not count, since nothing says what failed before the update", h.Unknown},
		{"is still starting", h.Starting},
	} {
		if len(part.names) > 0 {
			fmt.Fprintf(c.out, "%s: %s\n", part.what, plain(health.Names(part.names)))
		}
	}
	if !h.Trial && len(h.Failed) > 0 {
		fmt.Fprintf(c.out, "failed at this start: %s\n", plain(health.Names(h.Failed)))
	}
	return h, err
}

const retryUsage = `usage: ota retry [--json] VERSION [REASON...]

Takes a version off the list of those that are not tried again, which ota status
shows: it is fetched again if the server still offers it. Nothing else changes.
`

func retry(_ context.Context, c *call) (any, error) {
	if c.NArg() == 0 {
		return nil, errUsage
	}
	v, err := contract.ParseVersion(c.Arg(0))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	if err := c.machine.Retry(v, strings.Join(c.Args()[1:], " ")); err != nil {
		return nil, err
	}
	fmt.Fprintf(c.out, "version %s is tried again: ota fetch fetches it\n", v)
	return map[string]any{"version": v}, nil
}

const channelUsage = `usage: ota channel [--json] [stable|beta|alpha]

Shows the channel that this machine follows, or makes it follow another one from
the next check on (in /etc/halogen/ota.conf; all else there stays as it is).
`

func channel(_ context.Context, c *call) (any, error) {
	if c.NArg() > 1 {
		return nil, errUsage
	}
	if c.NArg() == 1 {
		wanted := manifest.Channel(c.Arg(0))
		if !slices.Contains(manifest.Channels(), wanted) {
			return nil, fmt.Errorf("%w: channel %q is none of stable, beta and alpha", errUsage, wanted)
		}
		if err := c.machine.SetChannel(wanted); err != nil {
			return nil, err
		}
	}
	s, err := c.machine.Settings()
	if err != nil {
		return nil, err
	}
	fmt.Fprintln(c.out, s.Channel)
	return map[string]any{"channel": s.Channel}, nil
}
