package upper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"halogenos.internal/boot/etcmerge"
)

// along carries the upper directories along that this system mounts nowhere: its
// state.conf has another line for the directory, or none, or its image does not have it. A
// later system that has the line again finds them.
func (m *maker) along(ctx context.Context, fresh *os.File) error {
	source := m.From.directory()
	if source == "" {
		return nil
	}
	names, err := namesOf(m.root, source)
	if err != nil {
		return err
	}
	made, err := namesOf(int(fresh.Fd()), ".")
	if err != nil {
		return err
	}
	for _, name := range names {
		if slices.Contains(made, name) || strings.HasPrefix(name, ".") {
			continue
		}
		if err := m.keep(ctx, path.Join(source, name, "upper"), name, fresh); err != nil {
			return fmt.Errorf("%s, which is not mounted: %w", name, err)
		}
	}
	return nil
}

// directory is where a source has its entries; "" for none.
func (s Source) directory() string {
	if d := s.Upper("x"); d != "" {
		return path.Dir(path.Dir(d))
	}
	return ""
}

func namesOf(root int, directory string) ([]string, error) {
	t, err := openTree(root, directory, directory, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return t.Names(".")
}

// keep copies an upper directory as it is, whiteouts and all.
func (m *maker) keep(ctx context.Context, from, name string, fresh *os.File) error {
	before, err := openTree(m.root, from, from, true)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer before.Close()
	before.leftOut = m.leftOut("/" + from)
	top, err := before.Entry(".")
	if err != nil {
		return err
	}
	plan := new(etcmerge.Result)
	if err := everything(ctx, before, ".", plan); err != nil {
		return err
	}
	err = m.pair(int(fresh.Fd()), name, func(directory int) error {
		sources := map[etcmerge.Source]*tree{etcmerge.FromUpper: before}
		return newWriter(directory, m.Step, m.leftOut("/"+from)).write(plan, top, sources, func() {})
	})
	if err != nil {
		return err
	}
	m.lasts("/"+own(m.System, name, "upper"), "what was changed in that directory is kept there, on the root partition, and does not show, since this release has no overlay for it (state.conf)")
	return nil
}

// everything adds all that lies below a directory to a plan.
func everything(ctx context.Context, t *tree, directory string, plan *etcmerge.Result) error {
	names, err := t.Names(directory)
	if err != nil {
		return err
	}
	for _, n := range names {
		name := path.Join(directory, n)
		e, err := t.Entry(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return err
		case len(plan.Changes) >= etcmerge.MaxEntries:
			return fmt.Errorf("more than %d entries", etcmerge.MaxEntries)
		}
		plan.Changes = append(plan.Changes, etcmerge.Change{Path: name, Action: etcmerge.Keep, Entry: e, From: etcmerge.FromUpper})
		if e.Type == etcmerge.Directory {
			if err := errors.Join(ctx.Err(), everything(ctx, t, name, plan)); err != nil {
				return err
			}
		}
	}
	return nil
}
