package console

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/hw"
)

// Person stands for the people at the terminals of this machine.
type Person struct {
	// ShellPath is the program that the recovery console runs.
	ShellPath string
	// Leave takes away what the commands have opened, once the console is left;
	// may be nil.
	Leave func() error
	// Shown has the terminals show what was said before, and is called before anybody
	// is asked or shown anything; may be nil.
	Shown func()
}

// Listen implements hw.Person.
func (Person) Listen() hw.Listener { return Listen() }

// Keymap implements hw.Person.
func (Person) Keymap(k keyboard.Keymap) error { return hw.SetKeymap(hw.Screen, k.Entries()) }

// Quiet implements hw.Person.
func (p Person) Quiet() (restore func()) {
	if p.Shown != nil {
		p.Shown()
	}
	return hw.HoldMessages(hw.Printk)
}

// Open implements hw.Person.
func (p Person) Open(l words.Language) (hw.Console, error) {
	c, err := Open()
	if err != nil {
		return nil, err
	}
	c.closed, c.language = p.Quiet(), l
	return c, nil
}

// Shell implements hw.Person.
func (p Person) Shell() error {
	path, err := exec.LookPath(p.ShellPath)
	if err != nil {
		return fmt.Errorf("the recovery console cannot be opened: %w", err)
	}
	err = everywhere(path, Terminals())
	if p.Leave != nil {
		err = errors.Join(err, p.Leave())
	}
	return err
}

// everywhere runs the shell on every terminal, until it is left on one of them.
func everywhere(path string, terminals []string) error {
	left := make(chan error, len(terminals))
	for _, tty := range terminals {
		go func() { left <- stay(path, tty) }()
	}
	// A terminal that cannot be opened ends nothing while another can.
	var last error
	for range terminals {
		if last = <-left; last == nil {
			return nil
		}
	}
	return fmt.Errorf("the recovery console ended on every terminal: %w", last)
}

// Program implements hw.Person. It ends on all terminals when it ends on one; a
// terminal on which it cannot be started ends nothing while another can.
func (p Person) Program(environment []string, path string, args ...string) error {
	defer p.Quiet()()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	terminals := Terminals()
	ended := make(chan error, len(terminals))
	for _, tty := range terminals {
		go func() {
			ended <- run(ctx, tty, append([]string{"TERM=" + drawing(tty)}, environment...), path, args...)
		}()
	}
	var last error
	for range terminals {
		last = <-ended
		if _, ran := errors.AsType[*exec.ExitError](last); ran || last == nil {
			break
		}
	}
	return last
}

// drawing is what programs that draw may expect of a terminal: one at the end of
// a line is most likely an emulator of a VT220.
func drawing(tty string) string {
	if k := kind(tty); k != "dumb" {
		return k
	}
	return "vt220"
}

const (
	// hasty is how long a shell runs that nobody can have typed at, and maxHasty
	// how many of them in a row are taken for a terminal that does not work.
	hasty    = time.Second
	maxHasty = 3
)

// stay runs the shell on a terminal until somebody leaves it. One that was killed
// restarts no machine.
func stay(path, tty string) error {
	for early := 0; ; {
		start := time.Now()
		err := shell(path, tty)
		exit, ran := errors.AsType[*exec.ExitError](err)
		if !ran {
			return err
		}
		if early++; time.Since(start) > hasty {
			early = 0
		}
		if early >= maxHasty {
			return fmt.Errorf("%s on %s: %w", filepath.Base(path), tty, exit)
		}
	}
}

func shell(path, tty string) error {
	return run(context.Background(), tty, []string{"TERM=" + kind(tty)}, path)
}

// run runs a program on a terminal of a kind.
func run(ctx context.Context, tty string, environment []string, path string, args ...string) error {
	f, err := os.OpenFile(tty, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, f
	cmd.Env = append([]string{"PATH=/bin", "HOME=/"}, environment...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	return cmd.Run()
}

// kind is what programs may expect of a terminal: of one at the end of a line,
// nothing.
func kind(tty string) string {
	if hw.IsScreen(tty) {
		return "linux"
	}
	return "dumb"
}
