package hw

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/subvolume"
)

// parent opens the directory that a name lies in.
func (l LinuxStore) parent(name string) (*os.File, error) {
	fd, err := l.open(filepath.Dir(name), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), filepath.Dir(name)), nil
}

// Look implements snapshot.Subvolumes.
func (l LinuxStore) Look(name string) (subvolume.Kind, error) {
	f, err := l.parent(name)
	if errors.Is(err, fs.ErrNotExist) {
		return subvolume.Absent, nil
	}
	if err != nil {
		return subvolume.Absent, err
	}
	defer f.Close()
	return subvolume.Look(int(f.Fd()), filepath.Base(name))
}

// Snapshot implements snapshot.Subvolumes.
func (l LinuxStore) Snapshot(from, to string, readOnly bool) error {
	source, err := l.open(from, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(source)
	f, err := l.parent(to)
	if err != nil {
		return err
	}
	defer f.Close()
	return Full(l.unfrozen(func() error {
		return subvolume.Snapshot(source, int(f.Fd()), filepath.Base(to), readOnly)
	}, filepath.Dir(to)))
}

// RemoveSubvolume implements snapshot.Subvolumes.
func (l LinuxStore) RemoveSubvolume(name string) error {
	f, err := l.parent(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := l.unfrozen(func() error { return subvolume.Remove(int(f.Fd()), filepath.Base(name)) }, name); err != nil {
		return err
	}
	return unix.Syncfs(int(f.Fd())) // its name may come back otherwise
}

// Rename implements snapshot.Subvolumes. What has the name keeps what protects it: package
// snapshot takes that away, and puts it back.
func (l LinuxStore) Rename(from, to string) error {
	old, err := l.parent(from)
	if err != nil {
		return err
	}
	defer old.Close()
	fresh, err := l.parent(to)
	if err != nil {
		return err
	}
	defer fresh.Close()
	err = l.unfrozen(func() error {
		return unix.Renameat2(int(old.Fd()), filepath.Base(from), int(fresh.Fd()), filepath.Base(to), unix.RENAME_NOREPLACE)
	}, filepath.Dir(from), filepath.Dir(to))
	if err != nil {
		return fmt.Errorf("rename %s to %s: %w", from, to, Full(err))
	}
	return unix.Syncfs(int(fresh.Fd()))
}

// Release implements snapshot.Subvolumes.
func (l LinuxStore) Release(name string) (held subvolume.Hold, err error) {
	err = l.directory(name, func(fd int) error {
		held = subvolume.Held(fd)
		return l.unfrozen(func() error { return held.Release(fd) }) // a limit refuses it, too
	})
	return held, err
}

// Hold implements snapshot.Subvolumes.
func (l LinuxStore) Hold(name string, held subvolume.Hold) error {
	return l.directory(name, func(fd int) error {
		return l.unfrozen(func() error { return held.Restore(fd) })
	})
}

// directory does something with an open directory.
func (l LinuxStore) directory(name string, do func(fd int) error) error {
	fd, err := l.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := do(fd); err != nil {
		return &fs.PathError{Op: "release", Path: name, Err: err}
	}
	return nil
}

// The kernel frees what removed subvolumes take in its own time. It is waited for as long
// as it frees anything, and no longer than maxFreeing.
const (
	freeingStep = time.Second
	freeingIdle = 15 * time.Second
	maxFreeing  = time.Minute
)

// AwaitRoom implements snapshot.Subvolumes.
func (l LinuxStore) AwaitRoom(enough func(snapshot.Room) bool) (snapshot.Room, error) {
	room, err := l.Room()
	if err != nil || enough(room) {
		return room, err
	}
	if err := l.directory(".", subvolume.Clean); err != nil {
		return room, err
	}
	end := time.Now().Add(maxFreeing)
	for idle := time.Now().Add(freeingIdle); time.Now().Before(end) && time.Now().Before(idle) && err == nil && !enough(room); {
		time.Sleep(freeingStep)
		was := room.Free
		if room, err = l.Room(); room.Free > was {
			idle = time.Now().Add(freeingIdle)
		}
	}
	return room, err
}

// Room implements snapshot.Subvolumes.
func (l LinuxStore) Room() (snapshot.Room, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(l.Root, &st); err != nil {
		return snapshot.Room{}, fmt.Errorf("how much room %s has: %w", l.Root, err)
	}
	return snapshot.Room{Size: int64(st.Blocks) * st.Bsize, Free: int64(st.Bavail) * st.Bsize}, nil
}
