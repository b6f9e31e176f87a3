package upper

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
)

// ClearBut removes what lies in some directories of the root partition, "." among them, but
// for these directories and what keep says yes to by its name there ("x", "bind/y"). It
// returns what a damaged file system does not let go.
//
// All of it is renamed first, which takes no time, and the new names are on the disk before
// anything is removed, which may take minutes. Cut before that, some of it has its old name
// still; cut after it, none has. The same call once more does the rest, each time.
func (s Store) ClearBut(in []string, keep func(name string) bool, step func(string) error) (stays []string, err error) {
	if step == nil {
		step = func(string) error { return nil }
	}
	var directories []*os.File
	defer func() {
		for _, d := range directories {
			d.Close()
		}
	}()
	for _, name := range in {
		d, err := s.directory(name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue // what lies in its place holds nothing
		}
		if err != nil {
			return nil, err
		}
		directories = append(directories, d)
		if err := asideBut(d, func(n string) bool { return slices.Contains(in, path.Join(name, n)) || keep(path.Join(name, n)) }, step); err != nil {
			return nil, err
		}
	}
	for _, d := range directories {
		err := sweep(d, step, func(name string, why error) {
			stays = append(stays, fmt.Sprintf("%s: %v", path.Join(d.Name(), name), why))
		})
		if err != nil {
			return stays, err
		}
	}
	return stays, nil
}

// asideBut renames all that a directory holds, but for some.
func asideBut(d *os.File, keep func(name string) bool, step func(string) error) error {
	f, err := reopen(d)
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if strings.HasSuffix(n, unfinished) || keep(n) {
			continue
		}
		if _, err := aside(d, n, step); err != nil {
			return fmt.Errorf("remove %s: %w", path.Join(d.Name(), n), err)
		}
	}
	if err := step("flush " + d.Name()); err != nil {
		return err
	}
	return d.Sync()
}

// Accounts are the account files that a system sees whose state this is, by their names:
// those of the upper directory of its /etc, over those of the image that is mounted at image.
func (s Store) Accounts(from Source, image string) (map[string][]byte, error) {
	lower, err := openIn(image, "the image's /etc", Name(etc))
	if err != nil {
		return nil, err
	}
	defer closeTrees(lower)
	var before *tree
	if name := from.Upper(Name(etc)); name != "" {
		root, err := unix.Open(s.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", s.Root, err)
		}
		defer unix.Close(root)
		if before, err = openTree(root, name, name, true); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if before != nil {
		before.lower = lower
		defer closeTrees(before)
	}
	files := map[string][]byte{}
	for _, file := range etcmerge.AccountFiles() {
		text, err := firstText(file, before, lower)
		if err != nil {
			return nil, err
		}
		if text != nil {
			files[file] = text
		}
	}
	return files, nil
}

// firstText is a file of the first tree that has something there; nil for what is not a file.
func firstText(file string, trees ...*tree) ([]byte, error) {
	for _, t := range trees {
		if t == nil {
			continue
		}
		e, err := t.Entry(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || e.Type != etcmerge.Regular {
			return nil, err
		}
		f, err := t.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		text, err := io.ReadAll(io.LimitReader(f, etcmerge.MaxAccounts+1))
		if err == nil && len(text) > etcmerge.MaxAccounts {
			err = fmt.Errorf("%s: %s is larger than %d MiB", t.name, file, etcmerge.MaxAccounts>>20)
		}
		return text, err
	}
	return nil, nil
}
