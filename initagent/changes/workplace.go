package changes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// workplace is a directory at the top of a pair's where root alone can go: what is made
	// gets its content and its attributes there, and is renamed. In its place, a user who may
	// write there could have put a link to another file before it got its mode.
	workplace = ".halogenctl-changes.new"
	// unfinished is the name in it of what is not complete yet. A cut leaves one, which
	// goes with the next command.
	unfinished = "new"
)

// How long a command waits for another one, and how often it looks.
const (
	lockWait = 10 * time.Second
	lockPoll = 20 * time.Millisecond
)

// A work is one command's writing in a directory. It has the workplace locked.
type work struct {
	*Machine
	pair   Pair
	place  *node
	owners owners // of what is given back
}

// writing has something written, by one command at a time. The lock is on the workplace,
// which nobody but root can open: on what others can open, any of them could hold it.
func (m *Machine) writing(ctx context.Context, p Pair, do func(w *work) error) error {
	w := &work{Machine: m, pair: p, owners: m.owners()}
	top, err := open(p.Merged, "")
	if err != nil {
		return err
	}
	defer top.close()
	lock, err := w.lock(ctx, top)
	if err != nil {
		return fmt.Errorf("%s: %w", Shown(p.join(workplace)), err)
	}
	defer lock.Close()
	defer w.place.close()
	if err := w.discard(); err != nil {
		return err
	}
	return errors.Join(do(w), w.leave(top))
}

// lock makes and locks the workplace. One that was removed meanwhile, by the command that
// had it, is not the one that the next command finds, so that it is looked up again.
func (w *work) lock(ctx context.Context, top *node) (*os.File, error) {
	ctx, stop := context.WithTimeoutCause(ctx, w.wait, errors.New("another `halogenctl changes` writes here: try again when it has ended, or end it"))
	defer stop()
	for {
		lock, err := w.tryLock(top)
		if lock != nil || err != nil {
			return lock, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(lockPoll):
		}
	}
}

// tryLock is nil where another command has it.
func (w *work) tryLock(top *node) (*os.File, error) {
	if err := w.before("make the workplace"); err != nil {
		return nil, err
	}
	if err := unix.Mkdirat(top.fd, workplace, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	place, err := top.child(workplace)
	if place == nil {
		return nil, err // gone meanwhile
	}
	lock, err := place.mine()
	if err == nil {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil && place.is(top, workplace) {
			w.place = place
			return lock, nil
		}
		err = errors.Join(err, lock.Close())
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = nil
		}
	}
	place.close()
	return nil, err
}

// mine opens a directory that nobody else can write to, and refuses any other.
func (n *node) mine() (*os.File, error) {
	if !n.isDirectory() || int(n.stat.Uid) != os.Geteuid() || n.stat.Mode&0o077 != 0 {
		return nil, errors.New("this name is taken by something that others can write to: remove it, and see who may write to its directory")
	}
	return n.file()
}

// is reports whether a directory still has this entry under this name.
func (n *node) is(directory *node, name string) bool {
	have, err := directory.child(name)
	if have == nil || err != nil {
		return false
	}
	defer have.close()
	return have.stat.Dev == n.stat.Dev && have.stat.Ino == n.stat.Ino
}

// leave removes the workplace. Cut before that, it is left, empty or with what was not
// finished, and the next command goes on with it.
func (w *work) leave(top *node) error {
	if err := w.discard(); err != nil {
		return err
	}
	if err := w.before("remove the workplace"); err != nil {
		return err
	}
	if err := unix.Unlinkat(top.fd, workplace, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", Shown(w.pair.join(workplace)), err)
	}
	return nil
}

// discard removes what was left unfinished.
func (w *work) discard() error {
	for _, flags := range []int{0, unix.AT_REMOVEDIR} {
		err := w.before("discard")
		if err == nil {
			err = unix.Unlinkat(w.place.fd, unfinished, flags)
		}
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EISDIR):
			return fmt.Errorf("remove what was left unfinished, %s: %w", Shown(w.pair.join(path.Join(workplace, unfinished))), err)
		}
	}
	return nil
}

// fresh opens what was just made in the workplace.
func (w *work) fresh() (*node, error) {
	n, err := w.place.child(unfinished)
	if err == nil && n == nil {
		err = unix.ENOENT
	}
	return n, err
}

// create makes a file in the workplace.
func (w *work) create() (*os.File, error) {
	fd, err := unix.Openat(w.place.fd, unfinished, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), unfinished), nil
}

// rename gives what is complete its name in a directory, and has that on the disk.
func (w *work) rename(n *node, name string) error {
	if err := w.before("rename"); err != nil {
		return err
	}
	if err := unix.Renameat(w.place.fd, unfinished, n.fd, name); err != nil {
		return err
	}
	return w.sync(n)
}
