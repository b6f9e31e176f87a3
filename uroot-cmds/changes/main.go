// Command changes lists what differs from the image in the directories that state.conf
// lays over it, gives the image's files back, and decides where an update changed the
// same file.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"halogenos.internal/initagent/changes"
	"halogenos.internal/initagent/command"
)

const help = `usage: changes [--json] [FILE...]
       changes [--json] --reset FILE...
       changes [--json] --take-theirs|--keep FILE...|--all-conflicts
       changes --summary

Lists what differs from the image in the directories that are laid over it
(/etc; see state.conf(5)), when it was changed, and what an update changed as
well: there this machine's stays in effect until somebody decides. With FILE it
shows the difference, of a directory that of all that is in it.

  --reset          give the image's FILE back: content, owner, mode, attributes.
                   What the image does not have is removed if it is named
                   itself. In a directory it is left, and said. The files of
                   users and groups (passwd and the like) are refused.
  --take-theirs    decide a conflict for the image: its FILE is given back; of a
                   directory, its owner and mode alone
  --keep           decide a conflict for this machine: its FILE stays; or take
                   a FILE off the list that an update left out
  --all-conflicts  all that wait for a decision, in place of FILE
  --summary        one line where something waits for a decision, for a login

What --reset and --take-theirs replace is gone: save it first.

Exit codes: 0 done, 1 failed in part or as a whole, 2 wrong usage.
`

// notice is the file with the summary, for those who are not root.
const notice = "/run/halogen/conflicts"

func main() { cmd(changes.Linux, notice).Main() }

// options are the command's flags.
type options struct{ reset, take, keep, all, summary bool }

func (o *options) add(f *flag.FlagSet) {
	*o = options{}
	for name, to := range map[string]*bool{"reset": &o.reset, "take-theirs": &o.take, "keep": &o.keep, "all-conflicts": &o.all, "summary": &o.summary} {
		f.BoolVar(to, name, false, "")
	}
}

// check refuses what does not go together.
func (o *options) check(call *command.Call) error {
	signatures := 0
	for _, is := range []bool{o.reset, o.take, o.keep, o.summary} {
		if is {
			signatures++
		}
	}
	files := len(call.Args) > 0
	switch {
	case signatures > 1, o.all && !o.take && !o.keep, o.all && files, o.summary && (files || call.JSON), signatures == 1 && !o.summary && !o.all && !files:
		return command.ErrUsage
	case files && signatures == 0 && call.JSON:
		return fmt.Errorf("%w: --json lists; the difference of a file is a text", command.ErrUsage)
	}
	for _, arg := range call.Args {
		if strings.HasPrefix(arg, "-") {
			return fmt.Errorf("%w: %s: options come before the files (%s is a file)", command.ErrUsage, changes.Shown(arg), changes.Shown("./"+arg))
		}
	}
	return nil
}

func cmd(open func() (*changes.Machine, error), notice string) command.Command {
	var o options
	return command.Command{Name: "changes", Help: help, JSON: true, MaxArgs: command.Any, Flags: o.add, Run: func(ctx context.Context, call *command.Call) error {
		if err := o.check(call); err != nil {
			return err
		}
		m, err := open()
		if o.summary && errors.Is(err, changes.ErrNoOverlay) {
			return nil
		}
		if err != nil {
			return err
		}
		defer m.Close()
		err = o.run(ctx, call, m)
		return errors.Join(err, o.tell(ctx, call, m, notice))
	}}
}

// tell says what still waits for a decision: to those who log in, and here if asked.
func (o *options) tell(ctx context.Context, call *command.Call, m *changes.Machine, notice string) error {
	waiting, err := m.Waiting(ctx)
	if err != nil {
		return err
	}
	summary := waiting.Summary()
	if o.summary && summary != "" {
		fmt.Fprintln(call.Stdout, summary)
	}
	return leave(notice, summary)
}

func (o *options) run(ctx context.Context, call *command.Call, m *changes.Machine) error {
	files, err := absolute(call.Args)
	switch {
	case err != nil:
		return err
	case o.summary:
		return nil
	case o.reset:
		return each(call, files, func(name string) (*changes.Result, error) { return m.Reset(ctx, name) })
	case o.all:
		waiting, err := m.Waiting(ctx)
		if err != nil {
			return err
		}
		if files = waiting.Conflicts; o.keep {
			files = append(files, waiting.LeftOut...)
			slices.Sort(files)
			files = slices.Compact(files)
		}
	case len(files) == 0:
		return list(ctx, call, m)
	}
	switch {
	case o.keep:
		return each(call, files, func(name string) (*changes.Result, error) { return m.Keep(ctx, name) })
	case o.take:
		return each(call, files, func(name string) (*changes.Result, error) { return m.TakeTheirs(ctx, name) })
	}
	for _, name := range files {
		err = errors.Join(err, m.Diff(ctx, call.Stdout, name))
	}
	return err
}

// absolute are the files that the arguments name.
func absolute(args []string) ([]string, error) {
	var files []string
	for _, arg := range args {
		name, err := filepath.Abs(arg)
		if err != nil {
			return nil, err
		}
		files = append(files, name)
	}
	return files, nil
}

func list(ctx context.Context, call *command.Call, m *changes.Machine) error {
	r, err := m.List(ctx)
	if err != nil {
		return err
	}
	if call.JSON {
		return call.Encode(r)
	}
	show(call.Stdout, r)
	return nil
}

func show(w io.Writer, r *changes.Report) {
	if len(r.Changes) == 0 && len(r.Skipped) == 0 {
		fmt.Fprintln(w, "nothing differs from the image")
	}
	for _, s := range r.Skipped {
		fmt.Fprintln(w, s)
	}
	for _, c := range r.Changes {
		at := "-" // nothing keeps the time of a removal
		if c.Time != nil {
			at = c.Time.Local().Format("2006-01-02 15:04")
		}
		fmt.Fprintf(w, "%-8s %-16s  %s\n", c.Kind, at, c.Text())
	}
	if len(r.Notes) > 0 {
		fmt.Fprintln(w, "\nthe last update did by itself:")
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "  %s\n", n)
	}
	if r.More > 0 {
		fmt.Fprintf(w, "  and %d more entries, which had no room in the list\n", r.More)
	}
	showLeftOut(w, r.LeftOut)
	if len(r.Conflicts) == 0 {
		return
	}
	fmt.Fprintln(w, "\nan update changed these as well; this machine's are in effect:")
	for _, c := range r.Conflicts {
		fmt.Fprintf(w, "  %s\n", c)
	}
	fmt.Fprintln(w, "--keep FILE leaves it so, --take-theirs FILE gives the image's, and FILE alone shows the difference")
}

func showLeftOut(w io.Writer, all []changes.LeftOut) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintln(w, "\nan update left these out, or they are not as they should be:")
	for _, l := range all {
		fmt.Fprintf(w, "  %s\n", l)
	}
	fmt.Fprintln(w, "--keep FILE takes one off the list, once you have seen to it")
}

// done is what --json says of what was done.
type done struct {
	changes.Result
	Failed []failure `json:"failed"` // of those that were named
}

// failure is a file that was named, of which not all was done.
type failure struct {
	Path  string `json:"path"`
	Error string `json:"error"`
}

// each does something to each file, and says what was done.
func each(call *command.Call, files []string, do func(name string) (*changes.Result, error)) error {
	all := done{Result: changes.Result{Given: []string{}, Removed: []string{}, Left: []string{}, Decided: []string{}}, Failed: []failure{}}
	var failed error
	for _, name := range files {
		r, err := do(name)
		if err != nil {
			failed = errors.Join(failed, err)
			all.Failed = append(all.Failed, failure{name, err.Error()})
		}
		if r == nil {
			continue
		}
		all.Add(r)
		if !call.JSON {
			say(call.Stdout, name, r, err)
		}
	}
	if call.JSON {
		failed = errors.Join(failed, call.Encode(all))
	}
	return failed
}

func say(w io.Writer, name string, r *changes.Result, err error) {
	for _, part := range []struct {
		names []string
		text  string
	}{
		{r.Given, "the image's again"}, {r.Removed, "removed; the image does not have it"},
		{r.Left, "left, since the image does not have it and it was not named"}, {r.Decided, "this machine's stays"},
	} {
		for _, n := range part.names {
			fmt.Fprintf(w, "%s: %s\n", changes.Shown(n), part.text)
		}
	}
	if err == nil && len(r.Given)+len(r.Removed)+len(r.Left)+len(r.Decided) == 0 {
		fmt.Fprintf(w, "%s: is the image's already\n", changes.Shown(name))
	}
}

// leave leaves the summary for those who are not root; no file where there is nothing to
// say, nor where this system was not started by initagent. It is in memory.
func leave(file, summary string) error {
	if _, err := os.Stat(filepath.Dir(file)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if summary == "" {
		err := os.Remove(file)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	}
	fresh := fmt.Sprintf("%s.%d", file, time.Now().UnixNano())
	if err := os.WriteFile(fresh, []byte(summary+"\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(fresh, file)
}
