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

// kdGetKey and kdSetKey are KDGKBENT and KDSKBENT (linux/kd.h, ioctl_console(2)): what one key does
// in one table.
const (
	kdGetKey = 0x4b46
	kdSetKey = 0x4b47
)

// What the kernel says of a table that it does not have, which it takes back for none of its keys,
// and of a key that does nothing (linux/keyboard.h, K_NOSUCHMAP and K_HOLE).
const (
	noSuchTable = 2<<8 | 127
	// NoKey is the value of a key that types nothing.
	NoKey = 2 << 8
)

// SetKeymap tells the kernel what the keys of its keyboards type, on all of its screens. A
// machine without one is not an error: at the other end of a line the keys are another's matter.
// A kernel that does not take a character, since its console is not in UTF-8, is told all the
// others, so that no keyboard is half of one kind; the error says which key is as it was.
func SetKeymap(screen string, entries []keyboard.Entry) error {
	fd, err := openScreen(screen)
	if fd < 0 || err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	var refused error
	for i := range entries {
		e := &entries[i]
		if errno := keyEntry(fd, kdSetKey, e); errno == unix.EINVAL {
			refused = fmt.Errorf("the kernel does not take what key %d is to type, which types what it did: %w", e.Key, errno)
		} else if errno != 0 {
			return fmt.Errorf("set key %d of the keymap: %w", e.Key, errno)
		}
	}
	return refused
}

// SwapKeymap does the same, and returns what has each of these keys type what it did before.
func SwapKeymap(screen string, entries []keyboard.Entry) (restore func() error, err error) {
	fd, err := openScreen(screen)
	if fd < 0 || err != nil {
		return func() error { return nil }, err
	}
	before := append([]keyboard.Entry(nil), entries...)
	for i := range before {
		if errno := keyEntry(fd, kdGetKey, &before[i]); errno != 0 {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("read key %d of the keymap: %w", before[i].Key, errno)
		}
		if before[i].Value == noSuchTable {
			before[i].Value = NoKey
		}
	}
	if err := unix.Close(fd); err != nil {
		return nil, err
	}
	return func() error { return SetKeymap(screen, before) }, SetKeymap(screen, entries)
}

// openScreen opens a screen; a negative descriptor is for none.
func openScreen(screen string) (fd int, err error) {
	fd, err = unix.Open(screen, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", screen, err)
	}
	return fd, nil
}

// keyEntry is an ioctl with a struct kbentry: two bytes and a word.
func keyEntry(fd int, request uintptr, e *keyboard.Entry) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(e)))
	return errno
}
