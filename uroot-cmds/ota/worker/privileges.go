package worker

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// noNewPrivileges sets the flag for all threads of the process, so that nothing
// it executes gains any (kernel documentation,
// userspace-api/no_new_privs.rst).
func noNewPrivileges() error {
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
