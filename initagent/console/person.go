package console

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"halogenos.internal/initagent/hw"
)

// Person is whoever is at the terminals of this machine.
type Person struct {
	// ShellPath is the program that the recovery console runs.
	ShellPath string
}

// Open implements hw.Person.
func (Person) Open() (hw.Console, error) {
	c, err := Open()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Shell implements hw.Person.
func (p Person) Shell() error {
	path, err := exec.LookPath(p.ShellPath)
	if err != nil {
		return fmt.Errorf("the recovery console cannot be opened: %w", err)
	}
	terminals := Terminals()
	left := make(chan error, len(terminals))
	for _, tty := range terminals {
		go func() { left <- shell(path, tty) }()
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

func shell(path, tty string) error {
	f, err := os.OpenFile(tty, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.Command(path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, f
	cmd.Env = []string{"PATH=/bin", "HOME=/", "TERM=linux"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Run()
	if _, ran := errors.AsType[*exec.ExitError](err); ran {
		return nil // whatever it ended with, somebody was there and left it
	}
	return err
}
