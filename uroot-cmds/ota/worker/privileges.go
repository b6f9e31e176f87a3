package worker

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// startWithout starts a program that can never gain privileges by what it
// executes (kernel documentation, userspace-api/no_new_privs.rst). The flag is
// a thread's and is inherited; the thread that has it here ends.
func startWithout(cmd *exec.Cmd) error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread is of no more use
		err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	return <-started
}

// checkPrivileges refuses a process that has privileges, or could gain some.
func checkPrivileges() error {
	if unix.Geteuid() == 0 || unix.Getegid() == 0 {
		return errors.New("the worker does not run as root: it is started by ota itself")
	}
	set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil {
		return fmt.Errorf("ask for no_new_privs: %w", err)
	}
	if set != 1 {
		return errors.New("the worker could gain privileges: it is started by ota itself")
	}
	return nil
}
