package worker

import (
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a worker may take to end.
const patience = 10 * time.Second

// confine says what a worker is started as. With the rights of a user of its own it
// is the first process of a PID namespace, and the kernel ends all others with that
// one (pid_namespaces(7)): somebody who has taken it over can leave nobody behind who
// writes to its files when they have been checked.
func (s Starter) confine() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Credential: s.User, Setpgid: true}
	if s.User != nil {
		a.Cloneflags = unix.CLONE_NEWPID
	}
	return a
}

// end waits for the worker, which has said all that it has to say. When it has
// returned, nothing of it is left.
func (s Starter) end(cmd *exec.Cmd) error {
	late := time.AfterFunc(patience, func() { kill(cmd) })
	defer late.Stop()
	return cmd.Wait()
}

// kill ends the worker, and what is left of it where it has no namespace.
func kill(cmd *exec.Cmd) {
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it may have ended
}
