package hw

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/keyboard"
)

// Screen is the kernel's console on a screen, whichever is in front.
const Screen = "/dev/tty0"

// kdSetKey is KDSKBENT (linux/kd.h, ioctl_console(2)): what one key does in one table.
const kdSetKey = 0x4b47

// SetKeymap tells the kernel what the keys of its keyboards type, on all of its screens. A
// machine without one is no error: at the other end of a line the keys are another's matter.
// A kernel that does not take a character, since its console is not in UTF-8, is told all the
// others, so that no keyboard is half of one kind; the error says which key is as it was.
func SetKeymap(screen string, entries []keyboard.Entry) error {
	fd, err := unix.Open(screen, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", screen, err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	var refused error
	for i := range entries {
		e := &entries[i] // a struct kbentry: two bytes and a word
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), kdSetKey, uintptr(unsafe.Pointer(e))); errno == unix.EINVAL {
			refused = fmt.Errorf("the kernel does not take what key %d is to type, which types what it did: %w", e.Key, errno)
		} else if errno != 0 {
			return fmt.Errorf("set key %d of the keymap: %w", e.Key, errno)
		}
	}
	return refused
}
