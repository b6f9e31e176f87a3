// Command setup asks for what a machine has to know at its first start, and sets it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/questions"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/command"
	"halogenos.internal/uroot-cmds/setup/ask"
	"halogenos.internal/uroot-cmds/setup/machine"
	"halogenos.internal/uroot-cmds/setup/steps"
	"halogenos.internal/uroot-cmds/setup/wifi"
)

const help = `usage: setup
       setup --from FILE
       setup --check FILE
       setup --first-start

Asks for this machine's language, keyboard, time zone and name, whether releases
are fetched by themselves, and an account with its password; and sets them. It
does not ask where the image has no choice. At the end it asks for a wireless
network, where there is NetworkManager, a wireless device and no connection.

  --from         take the answers from FILE; setup.json(5) has the format
  --check        say whether this system can take the answers in FILE, and
                 change nothing
  --first-start  for the start of the system: take the answers from
                 /etc/halogen/setup.json if the image has it, or else those that
                 the installer left, or else ask. Does nothing on a machine that
                 has started before and was not put off, where somebody has an
                 account with a password, while an update is on trial, without a
                 root partition, and where there is no terminal to ask at.

Typing "later" leaves all as it is.

Exit codes: 0 done, or nothing to do; 1 failed, 2 wrong usage.
`

// answersFile is where a first start finds answers.
const answersFile = "/etc/halogen/setup.json"

func main() {
	console := &ask.Console{In: os.Stdin, Out: os.Stdout}
	cmd(place{machine: machine.Linux, terminal: console, person: console.IsTerminal, report: bootinfo.Linux().Boot, answers: answersFile, handed: steps.HandedFile,
		radio: func(ctx context.Context) (*wifi.Radio, error) { return wifi.Connect(ctx, "", wifi.Usual()) }, exit: os.Exit}).Main()
}

// place is where the command runs.
type place struct {
	machine  func() *machine.Machine
	terminal questions.Terminal
	person   func() bool // somebody could be asked
	report   func() (*bootinfo.Report, error)
	answers  string // that the image has
	handed   string // that the installer left
	radio    func(context.Context) (*wifi.Radio, error)
	exit     func(code int) // ends the process
}

func cmd(p place) command.Command {
	var from, check string
	var first bool
	flags := func(f *flag.FlagSet) {
		f.StringVar(&from, "from", "", "")
		f.StringVar(&check, "check", "", "")
		f.BoolVar(&first, "first-start", false, "")
	}
	return command.Command{Name: "setup", Help: help, Flags: flags, Run: func(ctx context.Context, call *command.Call) error {
		if from != "" && check != "" || first && from+check != "" {
			return fmt.Errorf("%w: --from, --check and --first-start go alone", command.ErrUsage)
		}
		r := &run{place: p, call: call, m: p.machine()}
		var err error
		var report *bootinfo.Report
		if first {
			// Before anything of the machine is read: a trial is to fail by nothing of ours.
			if report, err = p.report(); err != nil {
				return err
			}
			if why := keepsFromAsking(report); why != "" {
				return r.leave(why)
			}
		}
		if r.facts, err = r.m.Facts(ctx); err != nil {
			return err
		}
		switch {
		case check != "":
			return r.check(check)
		case from != "":
			return r.from(ctx, from)
		case first:
			return r.first(ctx, report.Version)
		case !p.person():
			return errors.New("nobody can be asked here, as the standard input is not a terminal: --from FILE takes the answers from a file")
		}
		return r.ask(ctx, nil)
	}}
}

// run is one run of the command.
type run struct {
	place
	call  *command.Call
	m     *machine.Machine
	facts *steps.Facts
}

// read reads answers, and refuses those that this system cannot follow.
func (r *run) read(file string) (*answers.Answers, []steps.Step, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, nil, errors.Join(err, fmt.Errorf("%s is not a regular file", file))
	}
	text, err := bounded.Named(f, file, answers.MaxSize)
	if err != nil {
		return nil, nil, err
	}
	a, err := answers.Parse(text)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	all, err := steps.Plan(a, r.facts)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	return a, all, nil
}

func (r *run) check(file string) error {
	a, _, err := r.read(file)
	if err != nil {
		return err
	}
	fmt.Fprintf(r.call.Stdout, "%s can be taken:\n%s", file, a.Summary())
	return nil
}

func (r *run) from(ctx context.Context, file string) error {
	_, all, err := r.read(file)
	if err != nil {
		return err
	}
	return r.m.Apply(ctx, all, r.call.Stdout)
}

// first is the first start of a machine. Whatever keeps it from asking leaves the machine
// as it was, and the start goes on.
func (r *run) first(ctx context.Context, version string) error {
	switch {
	case r.facts.First == "":
		return r.leave("this is not the machine's first start")
	case !r.facts.FirstStart(version):
		// The machine was installed with a release that asked nothing, and is in use.
		return r.m.Apply(ctx, steps.Done(), r.call.Stdout)
	}
	if err := r.m.Apply(ctx, steps.Unlock(r.facts), io.Discard); err != nil {
		return err
	}
	if r.facts.LivedIn() {
		return r.m.Apply(ctx, steps.Settle(r.facts), r.call.Stdout)
	}
	if err := r.m.Apply(ctx, []steps.Step{steps.Claim()}, io.Discard); err != nil {
		return err
	}
	if _, err := os.Lstat(r.answers); err == nil {
		// Who becomes root here is for the one who built the image to say, and not for the one who
		// stands in front of the machine.
		if err := r.given(ctx, r.answers); err != nil {
			return fmt.Errorf("the answers that came with the image were not taken, and nobody is asked: %w", err)
		}
		return nil
	}
	if _, err := os.Lstat(r.handed); err == nil {
		err = r.given(ctx, r.handed)
		if _, asked := errors.AsType[unanswered](err); err == nil || asked || !r.person() {
			return err
		}
		fmt.Fprintf(r.call.Stdout, "the answers of the installation were not taken: %v\n", err)
	}
	if !r.person() {
		return r.leave("there is no terminal to ask at")
	}
	return r.ask(ctx, nil)
}

// unanswered is why a person who was asked has given no answers. All that the installer left stays
// for the next start then: somebody who ends the terminal's input is not to be asked for what it
// has answered, such as who may become root.
type unanswered struct{ error }

// Unwrap has errors.Is find what it was.
func (u unanswered) Unwrap() error { return u.error }

// given takes the answers of a file at the first start, and asks for what the file leaves to
// that. Nothing is done before somebody has answered: cut until then, the next start finds
// the file again.
func (r *run) given(ctx context.Context, file string) error {
	a, all, err := r.read(file)
	if err != nil {
		return err
	}
	if len(a.Ask) == 0 || !r.person() {
		return r.m.Apply(ctx, all, r.call.Stdout)
	}
	if a.Keyboard != "" { // what is asked for is typed on it
		if err := r.m.Apply(ctx, steps.Keyboard(a.Keyboard, r.facts), io.Discard); err != nil {
			return err
		}
	}
	return r.ask(ctx, a)
}

// keepsFromAsking is what a report says that does; "" for nothing.
func keepsFromAsking(report *bootinfo.Report) string {
	switch {
	case report == nil:
		return "this is not the start of a machine"
	case report.Trial:
		return "an update is on trial"
	case report.Root == noRoot:
		return "there is no root partition to keep it"
	}
	return ""
}

// noRoot is what a report says of a machine without a root partition.
const noRoot = "none"

func (r *run) leave(why string) error {
	fmt.Fprintf(r.call.Stdout, "nothing is asked: %s\n", why)
	return nil
}

// ask asks the person at the terminal, beside the answers of a file, and does what follows. A
// password that the image's rules refuse is asked for again.
func (r *run) ask(ctx context.Context, given *answers.Answers) error {
	p := &questions.Person{Terminal: r.terminal, Choices: r.facts.Choices(), Keyboard: func(layout string) error {
		return r.m.Apply(ctx, steps.Keyboard(layout, r.facts), io.Discard)
	}}
	stop := r.untilInterrupted(ctx, command.Failed, "interrupted")
	a, err := p.Ask(given)
	if errors.Is(err, questions.ErrLater) {
		stop()
		fmt.Fprintln(r.call.Stdout, "Later, then: all but the keyboard is as it was. `halogenctl setup` asks, too.")
		return nil
	}
	if err != nil {
		stop()
		return unanswered{err}
	}
	defer questions.Clear(a)
	for {
		stop()
		err := r.do(ctx, a)
		failed := new(machine.CommandError)
		if err == nil {
			if given == nil || slices.Contains(given.Ask, answers.KeyWireless) {
				r.wireless(ctx, p)
			}
			return nil
		}
		// A hash of a file cannot be typed again.
		if a.Account == nil || a.Account.PasswordHash != "" || !errors.As(err, &failed) || failed.Program != "chpasswd" {
			return err
		}
		r.terminal.Say(fmt.Sprintf("the password was not taken: %s\n", failed.Said))
		clear(a.Account.Typed)
		stop = r.untilInterrupted(ctx, command.Failed, "interrupted")
		if a.Account.Typed, err = p.Password(a.Account.Name); err != nil {
			stop()
			return unanswered{err}
		}
	}
}

// wireless asks for a wireless network, where the machine has nothing else. All other answers
// are in place by then, and what becomes of this fails nothing: the desktop can ask for it, too.
func (r *run) wireless(ctx context.Context, p *questions.Person) {
	// By what the machine is now: a driver that has to load firmware can be behind the first question.
	if now, err := r.m.Facts(ctx); err != nil || !now.AsksWireless() {
		return
	}
	p.Terminal.Say("\nLooking whether there is a network ...\n")
	radio, err := r.radio(ctx)
	if err == nil {
		defer radio.Close()
		p.Terminal = &guarded{p.Terminal, func() func() {
			return r.untilInterrupted(ctx, command.OK, "no wireless network was set up, and all else is in place")
		}}
		err = ask.Wireless(ctx, p, radio)
	}
	switch {
	case errors.Is(err, questions.ErrLater):
		p.Terminal.Say("Later, then: the desktop's network settings, or nmtui(1), have it.\n")
	case err != nil && !errors.Is(err, wifi.ErrNotAsked):
		p.Terminal.Say(fmt.Sprintf("no wireless network was set up: %v\n", err))
	}
}

// guarded is a terminal at which Ctrl-C ends the program while somebody is asked, and not
// while something is done.
type guarded struct {
	questions.Terminal
	begin func() (stop func())
}

// Line implements questions.Terminal.
func (g *guarded) Line(prompt string) (string, error) {
	defer g.begin()()
	return g.Terminal.Line(prompt)
}

// Secret implements questions.Terminal.
func (g *guarded) Secret(prompt string) ([]byte, error) {
	defer g.begin()()
	return g.Terminal.Secret(prompt)
}

// do does what follows from the answers, by what the machine is now.
func (r *run) do(ctx context.Context, a *answers.Answers) error {
	now, err := r.m.Facts(ctx)
	if err != nil {
		return err
	}
	all, err := steps.Plan(a, now)
	if err != nil {
		return err
	}
	// The process ends with the command, and the kernel clears its memory
	// (init_on_free=1); this is sooner.
	defer func() {
		for _, s := range all {
			clear(s.Input)
		}
	}()
	// What is written is written to its end.
	return r.m.Apply(context.WithoutCancel(ctx), all, r.call.Stdout)
}

// untilInterrupted has Ctrl-C end the program with an exit code while somebody is asked, with
// the terminal as it was; until the function that it returns is called.
func (r *run) untilInterrupted(ctx context.Context, code int, said string) (stop func()) {
	state, err := term.GetState(int(os.Stdin.Fd()))
	undo := context.AfterFunc(ctx, func() {
		if err == nil {
			_ = term.Restore(int(os.Stdin.Fd()), state) // the program ends
		}
		fmt.Fprintf(r.call.Stderr, "\nsetup: %s\n", said)
		r.exit(code)
	})
	return func() { undo() }
}
