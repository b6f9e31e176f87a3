package keys

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl calls the kernel about an open file, with memory that it reads and
// fills.
func ioctl(f *os.File, request uintptr, memory *[32]byte) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(memory)))
	runtime.KeepAlive(f)
	if errno != 0 {
		return errno
	}
	return nil
}
