package enroll

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/secureboot"
)

const (
	// immutableFlag is FS_IMMUTABLE_FL: efivarfs sets it on variables that a
	// careless rm should not take away, the Secure Boot keys among them.
	immutableFlag  = 0x10
	attributesSize = 4
	// maxInterrupted bounds how often a call is repeated after EINTR. Firmware
	// that aborts a call looks the same as a signal; os.File would try for ever.
	maxInterrupted = 16
)

// EFIVarFS is the variable store through Linux's efivarfs, mounted at Root.
type EFIVarFS struct{ Root string }

func (e EFIVarFS) path(name string, guid gpt.GUID) string {
	return filepath.Join(e.Root, name+"-"+guid.String())
}

// Read implements Variables. An empty file is what a refused write leaves
// behind until the next mount: no variable. One that is too large is an error, with
// its attributes.
func (e EFIVarFS) Read(name string, guid gpt.GUID) (attributes uint32, data []byte, err error) {
	path := e.path(name, guid)
	fd, err := open(path, unix.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) && secureboot.Obeyed(name, guid) {
		return unlisted(path, name, open)
	}
	if err != nil {
		return 0, nil, err
	}
	defer unix.Close(fd)
	return readFile(fd, name)
}

// unlisted reads a variable that efivarfs does not list. It lists what the firmware names in
// turn, and stops at the first name of more than 512 bytes (fs/efivarfs/vars.c,
// efivar_init): whatever the firmware has behind such a one is obeyed, and looks absent.
// Asked for by name it is there: a file that is made there reads as the variable, and as
// nothing where there is none. Then it is taken away again.
//
// An error counts as absence: anyone who would obey the variable asks the same firmware by the
// same name. A boot must not end because firmware answers oddly where it has nothing.
func unlisted(path, name string, open func(string, int) (int, error)) (attributes uint32, data []byte, err error) {
	fd, err := open(path, unix.O_RDWR|unix.O_CREAT)
	if err != nil {
		return 0, nil, fs.ErrNotExist
	}
	attributes, data, err = readFile(fd, name)
	unix.Close(fd)
	if err != nil && attributes == 0 {
		err = fs.ErrNotExist // Linux from 6.14 on has removed it by now
		if _, merr := makeMutable(path); merr == nil {
			_ = os.Remove(path)
		}
	}
	return attributes, data, err
}

func readFile(fd int, name string) (attributes uint32, data []byte, err error) {
	b := make([]byte, attributesSize+secureboot.MaxDatabase+1)
	n, err := readVariable(fd, b)
	switch {
	case err != nil:
		return 0, nil, fmt.Errorf("read %s: %w", name, err)
	case n == 0:
		return 0, nil, fs.ErrNotExist
	case n < attributesSize:
		return 0, nil, fmt.Errorf("read %s: %d bytes, want %d for the attributes alone", name, n, attributesSize)
	case n == len(b):
		return binary.LittleEndian.Uint32(b), nil, fmt.Errorf("read %s: more than %d bytes", name, secureboot.MaxDatabase)
	}
	return binary.LittleEndian.Uint32(b), append([]byte(nil), b[attributesSize:n]...), nil
}

// ReadVariable reads a file of efivarfs, with the four bytes of attributes before the value.
// Of one that has more than limit bytes it returns limit+1.
func ReadVariable(path string, limit int) ([]byte, error) {
	fd, err := open(path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := make([]byte, limit+1)
	n, err := readVariable(fd, b)
	return b[:n], err
}

// readVariable reads a variable by one call, which gives all of it (fs/efivarfs/file.c,
// efivarfs_file_read). Each further one, which would say that this is the end, has the
// firmware asked twice again, and there that takes 7 ms where nothing is accelerated.
func readVariable(fd int, b []byte) (int, error) {
	return uninterrupted(func() (int, error) {
		n, err := unix.Read(fd, b)
		return max(n, 0), err
	})
}

// WriteAuthenticated implements Variables. efivarfs makes one SetVariable call
// of one write call.
func (e EFIVarFS) WriteAuthenticated(name string, guid gpt.GUID, attributes uint32, payload []byte) error {
	path := e.path(name, guid)
	restore, err := makeMutable(path)
	if err != nil {
		return fmt.Errorf("make %s writable: %w", name, err)
	}
	defer restore()
	fd, err := open(path, unix.O_WRONLY|unix.O_CREAT)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	b := append(binary.LittleEndian.AppendUint32(nil, attributes), payload...)
	n, err := uninterrupted(func() (int, error) { return unix.Write(fd, b) })
	if err == nil && n != len(b) {
		err = fmt.Errorf("%d of %d bytes were taken: %w", n, len(b), unix.EIO)
	}
	if closing := unix.Close(fd); err == nil {
		err = closing
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// Room implements Variables. Linux tells from 6.6 on what the firmware says of its variable
// store (QueryVariableInfo; UEFI 2.10, section 8.2), less what the kernel lets nobody have
// (fs/efivarfs/super.c, efivarfs_statfs). A firmware without that call has a store of no size.
func (e EFIVarFS) Room() (bytes int64, known bool) {
	var s unix.Statfs_t
	if err := unix.Statfs(e.Root, &s); err != nil || s.Type != unix.EFIVARFS_MAGIC || s.Blocks == 0 || s.Bsize != 1 {
		return 0, false
	}
	return int64(min(s.Bavail, math.MaxInt64)), true
}

func open(path string, flags int) (int, error) {
	fd, err := uninterrupted(func() (int, error) { return unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600) })
	if errors.Is(err, unix.ENOENT) {
		return -1, fs.ErrNotExist
	}
	return fd, err
}

func uninterrupted(call func() (int, error)) (n int, err error) {
	for range maxInterrupted {
		if n, err = call(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
	return n, err
}

// makeMutable takes the immutable flag away from a variable that is there, and
// returns what puts it back. A kernel that cannot say has no such flag.
func makeMutable(path string) (restore func(), err error) {
	nothing := func() {}
	fd, err := open(path, unix.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nothing, nil
	}
	if err != nil {
		return nothing, err
	}
	defer unix.Close(fd)
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) || err == nil && flags&immutableFlag == 0 {
		return nothing, nil
	}
	if err != nil {
		return nothing, fmt.Errorf("read its flags: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags&^immutableFlag); err != nil {
		return nothing, fmt.Errorf("take its immutable flag away: %w", err)
	}
	return func() {
		// A flag that stays away protects from nothing but rm, and the next mount
		// sets it again.
		if fd, err := open(path, unix.O_RDONLY); err == nil {
			_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags)
			unix.Close(fd)
		}
	}, nil
}
