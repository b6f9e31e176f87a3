package install

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/keyboard"
)

// consoleInFront is the kernel's console on a screen, whichever is in front.
const consoleInFront = "/dev/tty0"

// SetKeymap has the keyboards of this machine's screens type what a keymap says, as the recovery
// console's command keymap does (KDSKBENT of linux/kd.h, ioctl_console(2)). It is for a stick,
// on which nothing else uses them. An error leaves the keys half of one kind: the caller sets
// another keymap then.
func SetKeymap(k keyboard.Keymap) (err error) {
	const set = 0x4b47
	fd, err := unix.Open(consoleInFront, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", consoleInFront, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	entries := k.Entries()
	for i := range entries {
		e := &entries[i] // a struct kbentry: two bytes and a word
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), set, uintptr(unsafe.Pointer(e))); errno != 0 {
			return fmt.Errorf("key %d of the keymap %s: %w", e.Key, k.Name, errno)
		}
	}
	return nil
}
