package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/extension"
	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// foresee finds out, before a slot is emptied for a release, whether the server has its
// extensions that are enabled, whether they find room, and how many bytes of them would be
// fetched. It goes by what a worker says; what is fetched in the end, bringExtensions decides
// by the release's UKI. Where the server sends no parts of files, nothing is known before.
func (u *update) foresee(ctx context.Context, head *archive.Head) (bytes int64, err error) {
	if _, err := os.Lstat(u.state(u.running, extension.Directory, extension.ChoiceName)); errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	choice, unreadable := u.readChoice(u.running)
	if unreadable == nil && len(choice.Enabled()) == 0 {
		return 0, nil
	}
	listed, err := u.listAhead(ctx, head)
	if err != nil || listed == nil || len(listed.Extensions) == 0 {
		return 0, err
	}
	if unreadable != nil {
		return 0, unreadable
	}
	x, err := u.carriers(u.running)
	if err != nil {
		return 0, err
	}
	var missing []contract.Extension
	for _, e := range listed.Extensions {
		if !choice.Has(e.Name) || u.extensionThere(u.running, &e) {
			continue
		}
		n, err := u.foreseeOne(ctx, &fetch.Extension{Extension: e, Of: listed.Contract}, x)
		if err != nil {
			return 0, err
		}
		bytes, missing = bytes+n, append(missing, e)
	}
	if len(missing) == 0 {
		return bytes, nil
	}
	need, err := u.needAhead(missing)
	if err != nil {
		return bytes, err
	}
	free, err := u.free()
	if err != nil {
		return bytes, err
	}
	swept, err := u.sweptAhead(x, listed.Extensions)
	if err != nil {
		return bytes, err
	}
	return bytes, enough(fmt.Sprintf("the extensions of version %s that are enabled need", listed.Contract.Version), need, free+swept)
}

// needAhead is how many bytes the files of extensions still take on the root partition: what an
// interrupted fetch has left of them is there already.
func (u *update) needAhead(missing []contract.Extension) (need int64, err error) {
	for i := range missing {
		size, err := missing[i].FileSize()
		if err != nil {
			return 0, err
		}
		need += max(0, size-u.begun(u.running, &missing[i]))
	}
	return need, nil
}

// sweptAhead is how many bytes the sweep will free before the extensions of a release are
// brought: the slot is empty by then, and what nobody but the release in it had is removed.
func (u *update) sweptAhead(x *Extensions, list []contract.Extension) (swept int64, err error) {
	if x.Unlisted != "" {
		return 0, nil // nor will it remove anything
	}
	stay := map[string]string{}
	for _, c := range append([]Carrier{{Role: RoleRuns, list: list}}, x.Releases...) {
		for _, e := range c.list {
			if c.Role == RoleRuns {
				stay[e.Root().String()] = e.Name
			}
		}
	}
	entries, err := os.ReadDir(u.state(u.running, extension.Directory))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	for _, entry := range entries {
		info, failed := entry.Info()
		if failed == nil && info.Mode().IsRegular() && useless(entry.Name(), stay, nil) {
			swept += allocated(info)
		}
	}
	return swept, err
}

// foreseeOne is how many bytes of one would be fetched.
func (u *update) foreseeOne(ctx context.Context, e *fetch.Extension, x *Extensions) (int64, error) {
	found, head, err := u.lookExtension(ctx, e)
	if err != nil {
		return 0, fmt.Errorf("extension %s: %w", e.Name, err)
	}
	if head == nil && e.Essential {
		return 0, fmt.Errorf("version %s is not fetched: %w", e.Of.Version, u.needed(e.Name, e.Of.Version))
	}
	if head == nil {
		return 0, nil // bringExtensions says it
	}
	if err := u.makeExtensions(u.running); err != nil {
		return 0, err
	}
	request, from, err := u.extensionRequest(worker.Measure, e)
	if err != nil {
		return 0, err
	}
	defer from.Close()
	request.Found = found
	files := worker.Files{worker.Archive: from}
	part, err := os.OpenFile(u.extensionPath(u.running, &e.Extension)+partEnding, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err == nil {
		defer part.Close()
		files[worker.System] = part
	}
	if files[worker.ActiveSystem], request.Have = u.otherRelease(e, x); request.Have != nil {
		defer files[worker.ActiveSystem].Close()
	}
	var measured *fetch.Measured
	err = u.workOn(ctx, request, files, func(event worker.Event) {
		if event.Measured != nil {
			measured = event.Measured
		}
		if event.Note != "" {
			u.Tell(event)
		}
	})
	if err == nil && measured == nil {
		err = errors.New("worker ended without an answer and does not say why")
	}
	if err != nil {
		return 0, fmt.Errorf("extension %s: %w", e.Name, err)
	}
	return measured.Bytes, nil
}

// listAhead has a worker say which extensions the release has. It is nil where that cannot
// be known before its UKI is there.
func (u *update) listAhead(ctx context.Context, head *archive.Head) (*fetch.Listed, error) {
	v := head.Release.Version
	if err := u.directory(v, measured); err != nil {
		return nil, err
	}
	directory, err := os.OpenFile(u.work(v), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer directory.Close()
	var listed *fetch.Listed
	err = u.Worker.Run(ctx, u.workRequest(worker.List), worker.Files{worker.Archive: u.archive, worker.Lock: u.lock, worker.Directory: directory}, func(e worker.Event) {
		if e.Listed != nil {
			listed = e.Listed
		}
		if e.Note != "" {
			u.Tell(e)
		}
	})
	if err != nil || listed == nil {
		return nil, err
	}
	return listed, saidRightly(listed, head)
}

// saidRightly refuses a list that no UKI has, and one of another release. Paths are made of it.
func saidRightly(l *fetch.Listed, head *archive.Head) error {
	if l.Contract == nil || len(l.Extensions) > contract.MaxExtensions {
		return fmt.Errorf("%w: it brought no list of extensions", errWorker)
	}
	if err := errors.Join(l.Contract.Validate(), head.Release.Matches(l.Contract)); err != nil {
		return fmt.Errorf("%w: %w", errWorker, err)
	}
	for i := range l.Extensions {
		if err := l.Extensions[i].Validate(); err != nil {
			return fmt.Errorf("%w: %w", errWorker, err)
		}
	}
	return nil
}
