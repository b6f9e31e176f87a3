package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"

	"halogenos.internal/initagent/subvolume"
)

// Forget deletes all that is kept of what directories held before: the snapshot, what was
// set aside, what lies in [Left], and a request to go back. note is where that has its
// name.
//
// What a boot goes by goes first: once that is gone, no boot puts anything back, wherever
// this is cut, and the same again deletes the rest.
func Forget(s Store, note string) error {
	_, _ = s.Release(Directory) // or else what follows fails, and says why
	for _, name := range []string{note, planFile, recordFile, asideFile} {
		if err := s.Remove(name); err != nil {
			return err
		}
	}
	var failed []error
	for _, d := range []string{Before, next, asides[0], asides[1], Left} {
		failed = append(failed, deleteAll(s, d))
	}
	return errors.Join(failed...)
}

// deleteAll deletes what lies in a directory, with the subvolumes of others in it. One
// that holds any is gone through file by file, which takes longer.
func deleteAll(s Store, directory string) error {
	names, err := s.Names(directory)
	if err != nil {
		return err
	}
	slices.Sort(names)
	var failed []error
	for _, n := range names {
		name := path.Join(directory, n)
		kind, err := s.Look(name)
		nested := false
		if err == nil && kind == subvolume.Subvolume {
			err = removeSubvolume(s, name)
			nested = errors.Is(err, subvolume.ErrNested)
		}
		if nested || err == nil && kind == subvolume.Directory {
			err = s.Discard(name)
		}
		failed = append(failed, err)
	}
	// Discard does not say what it could not remove.
	if names, err = s.Names(directory); err == nil && len(names) > 0 {
		err = fmt.Errorf("%s: something is left of it: %s", directory, strings.Join(names, ", "))
	}
	return errors.Join(append(failed, err)...)
}

// sweep removes what lies in a directory. A subvolume that holds others is moved: whose
// they are, and whether they are wanted, nobody here knows. What does not go ends nothing:
// the rest goes, and it is returned.
func sweep(s Store, directory string) (said []string, err error) {
	return each(s, directory, func(name string, kind subvolume.Kind) ([]string, error) {
		if kind == subvolume.Directory {
			return nil, s.Discard(name)
		}
		err := removeSubvolume(s, name)
		if !errors.Is(err, subvolume.ErrNested) {
			return nil, err
		}
		to, err := moveAway(s, name, "")
		return []string{fmt.Sprintf("/run/state/%s holds subvolumes of others, and so is not removed: it is in /run/state/%s", name, to)}, err
	})
}

// moveAll moves what lies in a directory to [Left].
func moveAll(s Store, directory, prefix string) (said []string, err error) {
	return each(s, directory, func(name string, _ subvolume.Kind) ([]string, error) {
		to, err := moveAway(s, name, prefix)
		return []string{fmt.Sprintf("what was set aside in /run/state/%s is in /run/state/%s, until `ota rollback --state --forget` deletes it", name, to)}, err
	})
}

// each does something with all that lies in a directory, and returns what is to be said
// and what has failed.
func each(s Store, directory string, do func(name string, kind subvolume.Kind) ([]string, error)) (said []string, err error) {
	names, err := s.Names(directory)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var failed []error
	for _, n := range names {
		name := path.Join(directory, n)
		kind, err := s.Look(name)
		if err == nil && kind != subvolume.Absent {
			var more []string
			if more, err = do(name, kind); err == nil {
				said = append(said, more...)
			}
		}
		failed = append(failed, err)
	}
	return said, errors.Join(failed...)
}

// moveAway gives something a name in Left that nothing has, and returns it.
func moveAway(s Store, name, prefix string) (string, error) {
	if err := makeDirectory(s, Left); err != nil {
		return "", err
	}
	taken, err := s.Names(Left)
	if err != nil {
		return "", err
	}
	base := prefix + path.Base(name)
	to := base
	for i := 2; slices.Contains(taken, to); i++ {
		to = fmt.Sprintf("%s-%d", base, i)
	}
	to = path.Join(Left, to)
	return to, rename(s, name, to)
}

// held reports whether something may not be renamed or removed for its flags (chattr), or
// because it is a read-only subvolume, whose name cannot leave its directory.
func held(err error) bool { return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) }

// rename gives a directory another name, whatever holds it where it is. It is held the
// same way there: but for a power cut in between, which costs no more than that.
func rename(s Store, from, to string) error {
	err := s.Rename(from, to)
	if !held(err) {
		return err
	}
	hold, rerr := s.Release(from)
	if rerr != nil {
		return errors.Join(err, rerr)
	}
	for _, parent := range []string{path.Dir(from), path.Dir(to)} {
		if _, rerr := s.Release(parent); rerr != nil {
			return errors.Join(err, rerr)
		}
	}
	if err := s.Rename(from, to); err != nil {
		return errors.Join(err, s.Hold(from, hold))
	}
	_ = s.Hold(to, hold) // what matters is where it is
	return nil
}

// removeSubvolume removes one, whatever holds it.
func removeSubvolume(s Store, name string) error {
	err := s.RemoveSubvolume(name)
	if !held(err) {
		return err
	}
	for _, n := range []string{path.Dir(name), name} {
		if _, rerr := s.Release(n); rerr != nil {
			return errors.Join(err, rerr)
		}
	}
	return s.RemoveSubvolume(name)
}
