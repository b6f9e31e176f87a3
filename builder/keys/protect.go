package keys

import (
	"fmt"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/secretmem"
)

// Protect makes this process one that leaves nothing of a key behind and shows
// nobody its memory: no core dump is made of it, also if the kernel's
// core_pattern asks for one, and other processes of its user can neither attach to it nor
// read its memory (prctl(2), PR_SET_DUMPABLE). Call it before the first key or
// password is read. Root still can.
//
// The programs that it starts make no core dumps either.
func Protect() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("protect the memory that keys are read into: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switch core dumps off: %w", err)
	}
	return nil
}

// using runs f, which uses a key or a password, and erases what it leaves in
// memory.
func using[T any](f func() (T, error)) (T, error) {
	defer secretmem.Collect()
	return secretmem.Get(f)
}
