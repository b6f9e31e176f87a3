// Package machine looks at a machine and does on it what its first start shall do.
//
// It decides nothing: [halogenos.internal/uroot-cmds/setup/steps] does. It bounds what it
// reads of the image and of /etc.
package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bounded"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/uroot-cmds/setup/steps"
)

// Machine is where it acts.
type Machine struct {
	// Root is where the system's files begin: "/", or a directory for tests.
	Root string
	// Command runs a program of the image and returns what it said.
	Command func(ctx context.Context, args []string, input []byte) (string, error)
	// SetName gives the running kernel the machine's name.
	SetName func(string) error
	// Has reports whether the image has a program.
	Has func(name string) bool
}

// Linux is the machine that this runs on. What it writes anybody may read, unless it says
// otherwise.
func Linux() *Machine {
	unix.Umask(0o022)
	return &Machine{Root: "/", Command: command, SetName: func(name string) error { return unix.Sethostname([]byte(name)) }, Has: func(name string) bool { return find(name) != "" }}
}

// path is where programs of the image lie, whatever started this.
const path = "/usr/sbin:/usr/bin:/sbin:/bin"

// find is where the image has a program; "" for nowhere.
func find(name string) string {
	for directory := range strings.SplitSeq(path, ":") {
		at := filepath.Join(directory, name)
		if info, err := os.Stat(at); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return at
		}
	}
	return ""
}

// patience is how long a program of the image may take.
const patience = 2 * time.Minute

// maxSaid bounds what a program says, in bytes.
const maxSaid = 1 << 20

func command(ctx context.Context, args []string, input []byte) (string, error) {
	program := find(args[0])
	if program == "" {
		return "", errors.New("the image does not have it")
	}
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	c := exec.CommandContext(ctx, program, args[1:]...)
	c.Env = []string{"PATH=" + path, "LC_ALL=C.UTF-8", "HOME=/root", "TERM=linux"}
	c.Stdin = bytes.NewReader(input)
	c.WaitDelay = time.Second
	// Ctrl-C is for anyone who is asked, and ends nothing in the middle of a write.
	c.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	words := new(said)
	c.Stdout, c.Stderr = words, words
	err := c.Run()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("did not end within %s", patience)
	}
	return strings.TrimSpace(words.text.String()), err
}

// said keeps the beginning of what a program says.
type said struct{ text bytes.Buffer }

func (s *said) Write(text []byte) (int, error) {
	if room := maxSaid - s.text.Len(); room > 0 {
		s.text.Write(text[:min(room, len(text))])
	}
	return len(text), nil
}

func (m *Machine) path(name string) string { return filepath.Join(m.Root, name) }

// Apply does the steps, and tells what people have to know.
func (m *Machine) Apply(ctx context.Context, all []steps.Step, tell io.Writer) error {
	for _, s := range all {
		err := m.apply(ctx, s)
		switch {
		case err == nil && s.Does != "":
			fmt.Fprintln(tell, s.Does)
		case err != nil && !s.Try: // what is tried is worth no failure
			return err
		}
	}
	return nil
}

func (m *Machine) apply(ctx context.Context, s steps.Step) error {
	switch s.Kind {
	case steps.Write:
		return m.write(s.Path, []byte(s.Text))
	case steps.Symlink:
		return m.symlink(s.Path, s.Text)
	case steps.Remove:
		return hw.RemoveFile(m.path(s.Path))
	case steps.Name:
		return m.SetName(s.Text)
	case steps.Run:
		said, err := m.Command(ctx, s.Args, s.Input)
		ended := new(exec.ExitError)
		if errors.As(err, &ended) && ended.ExitCode() == s.Fine {
			return nil
		}
		if err != nil {
			return &CommandError{Program: s.Args[0], Said: said, Err: err}
		}
		return nil
	}
	return fmt.Errorf("unknown step %d", s.Kind)
}

// A CommandError is what came of a program of the image that failed.
type CommandError struct {
	Program string
	Said    string
	Err     error
}

// Error implements error.
func (e *CommandError) Error() string {
	if e.Said == "" {
		return fmt.Sprintf("%s: %v", e.Program, e.Err)
	}
	return fmt.Sprintf("%s: %v: %s", e.Program, e.Err, strings.ReplaceAll(e.Said, "\n", "; "))
}

// Unwrap returns why it failed.
func (e *CommandError) Unwrap() error { return e.Err }

// write puts a file into place in one step, and leaves one alone that is as it should be.
func (m *Machine) write(name string, text []byte) error {
	at := m.path(name)
	if info, err := os.Lstat(at); err == nil && info.Mode().IsRegular() {
		if now, err := m.read(name); err == nil && bytes.Equal(now, text) {
			return nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	return hw.KeepFile(at, text, 0o644)
}

// symlink puts a link into place in one step: cut before the rename, the old one is there.
func (m *Machine) symlink(name, target string) error {
	at := m.path(name)
	if now, err := os.Readlink(at); err == nil && now == target {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	fresh := at + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, fresh); err != nil {
		return err
	}
	if err := os.Rename(fresh, at); err != nil {
		return err
	}
	return hw.SyncDirectory(filepath.Dir(at))
}

// maxFile bounds each file that is read, in bytes.
const maxFile = 4 << 20

// read reads a file, but no device and no pipe, which could keep it for ever.
func (m *Machine) read(name string) ([]byte, error) {
	f, err := os.OpenFile(m.path(name), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s is not a regular file", name))
	}
	return bounded.Named(f, name, maxFile)
}
