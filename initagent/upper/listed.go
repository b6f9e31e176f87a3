package upper

import (
	"errors"
	"io/fs"
	"path"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
)

// writeList puts what is left out, of all directories, on the list of the first overlay:
// that of /etc, unless it is not an overlay. The console has shown it once, and is gone.
//
// It belongs to the directory that is being made, and is made again with it after a cut.
// A list that cannot be made here keeps no machine from its update.
func (m *maker) writeList(fresh int) error {
	if m.first == nil {
		return nil
	}
	changes, err := m.first.LeaveOut(m.found, len(m.left)-len(m.found))
	if err != nil || len(changes) == 0 {
		return err
	}
	fd, err := beneath(fresh, path.Join(Name(m.firstPath), "upper"), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	w := newWriter(fd, m.Step, m.leftOut(m.firstPath))
	err = w.replace(changes)
	if unfit(err) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		m.leftOut(m.firstPath)(etcmerge.ListPath, "left out: "+err.Error())
		return nil
	}
	return err
}

// replace makes entries in place of what is there.
func (w *writer) replace(changes []etcmerge.Change) error {
	for _, c := range changes {
		if err := w.remove(c.Path); err != nil {
			return err
		}
		if err := w.make(c, nil); err != nil {
			return err
		}
	}
	for _, c := range changes {
		if c.Entry.Type == etcmerge.Directory {
			if err := w.finish(c.Path, c.Entry); err != nil {
				return err
			}
		}
	}
	return nil
}
