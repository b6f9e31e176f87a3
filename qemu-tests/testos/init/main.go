// Command init is the whole user space of the test operating system: PID 1, a
// report on the console and a prompt that obeys. It refuses to be safe: anyone who
// has the console may do anything, and no image meant for use has it.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/qemu-tests/testos/protocol"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: this is the test operating system's PID 1, and nothing else")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
	}
	// Returning from PID 1 panics the kernel, which restarts the machine.
}

// run sets the system up, reports, and obeys until a command ends the system.
func run() error {
	s := &system{started: time.Now()}
	s.mountMissing()
	console, err := openConsole()
	if err != nil {
		return err
	}
	s.quiet()
	s.feedWatchdogs()
	report, err := encode(protocol.Greeting, s.report())
	if err != nil {
		return err
	}
	fmt.Fprintf(console, "\n%s\n", report)
	for {
		err := s.obey(console)
		fmt.Fprintf(console, "\ninit: console: %v\n", err)
		time.Sleep(100 * time.Millisecond) // a terminal that hangs up comes back
	}
}

// openConsole makes /dev/console standard input, output and error, since the
// program that started us may have left us without.
func openConsole() (*os.File, error) {
	fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open console: %w", err)
	}
	for i := range 3 {
		if err := unix.Dup2(fd, i); err != nil {
			return nil, fmt.Errorf("console as descriptor %d: %w", i, err)
		}
	}
	return os.Stdin, nil
}

// obey reads commands and answers each with one line.
func (s *system) obey(console io.ReadWriter) error {
	lines := bufio.NewScanner(console)
	lines.Buffer(make([]byte, 4096), 2*protocol.MaxLine)
	for {
		fmt.Fprint(console, protocol.Prompt)
		if !lines.Scan() {
			return errors.Join(lines.Err(), errors.New("end of input"))
		}
		words, err := protocol.Fields(lines.Text())
		if err == nil && len(words) == 0 {
			continue
		}
		answer := ""
		var then func()
		if err == nil {
			answer, then, err = s.execute(words)
		}
		if err != nil {
			answer = fmt.Sprintf("%s %s", protocol.Failed, oneLine(err.Error()))
		}
		fmt.Fprintln(console, answer)
		if then != nil {
			time.Sleep(100 * time.Millisecond) // for the answer to leave the serial port
			then()
		}
		reap()
	}
}

// reap collects the orphans that PID 1 inherits; no command of ours runs now.
func reap() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if pid <= 0 || err != nil {
			return
		}
	}
}
