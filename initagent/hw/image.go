package hw

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// An Image is a file of the root partition that becomes a block device. Nothing writes to it.
type Image interface {
	io.ReaderAt
	// Attach makes a read-only block device of it, and returns its node. The device goes
	// when nothing has it open any more: a device of the device mapper on top keeps it, and
	// the Image itself until it is closed.
	Attach() (device string, err error)
	io.Closer
}

// OpenImage implements Store.
func (l LinuxStore) OpenImage(name string, size int64) (Image, error) {
	fd, err := l.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	info, err := f.Stat()
	switch {
	case err == nil && !info.Mode().IsRegular():
		err = fmt.Errorf("open %s: %w: it is no file (%s)", name, ErrUnfit, info.Mode().Type())
	case err == nil && info.Size() != size:
		err = fmt.Errorf("open %s: %w: it has %d bytes, want %d", name, ErrUnfit, info.Size(), size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &linuxImage{File: f, dev: "/dev"}, nil
}

type linuxImage struct {
	*os.File
	dev  string
	loop *os.File // or nil
}

// attempts bounds how often another free loop device is asked for.
const attempts = 16

// Attach implements Image. The kernel keeps the file by its inode: one that takes its name
// later is not read, and what is written into this one dm-verity finds out. It is no
// partitioned disk, and no partition of it is looked for.
func (i *linuxImage) Attach() (string, error) {
	control, err := os.Open(filepath.Join(i.dev, "loop-control"))
	if err != nil {
		return "", fmt.Errorf("make a block device of %s: %w", i.Name(), err)
	}
	defer control.Close()
	for range attempts {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", fmt.Errorf("make a block device of %s: no loop device is free: %w", i.Name(), err)
		}
		node := filepath.Join(i.dev, fmt.Sprintf("loop%d", number))
		loop, err := os.Open(node)
		if err == nil {
			err = configure(loop, i.File)
		}
		if err == nil {
			i.loop = loop
			return node, nil
		}
		if loop != nil {
			loop.Close()
		}
		if !errors.Is(err, unix.EBUSY) { // else another one has taken it meanwhile
			return "", fmt.Errorf("make a block device of %s: %s: %w", i.Name(), node, err)
		}
	}
	return "", fmt.Errorf("make a block device of %s: each free loop device was taken by others", i.Name())
}

// configure ties a loop device to a file, in one call, so that it never is there half made
// (LOOP_CONFIGURE, Linux 5.8). Autoclear ends it with the last that has it open.
func configure(loop, file *os.File) error {
	return unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{
		Fd:   uint32(file.Fd()),
		Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR},
	})
}

// Close implements Image.
func (i *linuxImage) Close() error {
	var err error
	if i.loop != nil {
		err = i.loop.Close()
	}
	return errors.Join(err, i.File.Close())
}
