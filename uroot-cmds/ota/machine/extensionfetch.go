package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// bring puts an extension's file onto the root partition, if it is not there whole.
//
// The file is made under another name and by a worker that has it open and nothing else.
// When no worker has it open any more, all of it is compared with the root hash that the
// UKI names, and only then does it get its name. Cut before that, the part is there, and the
// next call fetches what it lacks; cut after it, the file is there. A file that was there
// before stays until the new one takes its name, and one that is open stays open.
func (u *update) bring(ctx context.Context, e *fetch.Extension, x *Extensions) (*FetchedExtension, error) {
	out := &FetchedExtension{Name: e.Name, Version: e.Of.Version}
	whole, err := u.extensionWhole(ctx, e)
	if err != nil || whole {
		out.There = whole
		return out, err
	}
	found, head, err := u.lookExtension(ctx, e)
	if err != nil {
		return out, err
	}
	if head == nil {
		out.Missing = true
		return out, nil
	}
	if err := u.roomFor(e, head); err != nil {
		return out, err
	}
	part, err := u.openPart(e)
	if err != nil {
		return out, err
	}
	defer part.Close()
	request, from, err := u.extensionRequest(worker.Fetch, e)
	if err != nil {
		return out, err
	}
	defer from.Close()
	request.Found = found
	old, have := u.otherRelease(e, x)
	if old != nil {
		defer old.Close()
		request.Have = have
	}
	if out.Result, err = u.fillPart(ctx, request, worker.Files{worker.System: part, worker.ActiveSystem: old, worker.Archive: from}); err != nil {
		return out, err
	}
	return out, u.settlePart(ctx, e, part)
}

// fillPart has a worker fill the file.
func (u *update) fillPart(ctx context.Context, request worker.Request, files worker.Files) (*fetch.Result, error) {
	var result *fetch.Result
	err := u.workOn(ctx, request, files, func(e worker.Event) {
		if e.Result != nil {
			result = e.Result
			return
		}
		u.Tell(e)
	})
	if err == nil && result == nil {
		err = errors.New("worker ended without a result and does not say why")
	}
	return result, err
}

// workOn has a worker do something with an extension, in a directory of its own.
func (u *update) workOn(ctx context.Context, request worker.Request, files worker.Files, tell func(worker.Event)) error {
	work := u.extensionPath(u.running, &request.Extension.Extension) + workEnding
	if err := os.Mkdir(work, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	uid, gid := os.Getuid(), os.Getgid()
	if u.Worker.User != nil {
		uid, gid = int(u.Worker.User.Uid), int(u.Worker.User.Gid)
	}
	if err := own(work, uid, gid); err != nil {
		return err
	}
	directory, err := os.OpenFile(work, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer directory.Close()
	files[worker.Directory], files[worker.Lock] = directory, u.lock
	return u.Worker.Run(ctx, request, files, tell)
}

// settlePart gives the file its name, if it is whole: as the medium has it.
func (u *update) settlePart(ctx context.Context, e *fetch.Extension, part *os.File) error {
	name := u.extensionPath(u.running, &e.Extension)
	size, err := e.FileSize()
	if err == nil {
		err = errors.Join(part.Truncate(size), part.Sync()) // a worker may have made it longer
	}
	if err != nil {
		return fmt.Errorf("flush %s: %w", part.Name(), err)
	}
	err = u.verifyExtension(ctx, e, part)
	if corrupt := new(verity.CorruptError); errors.As(err, &corrupt) {
		return fmt.Errorf("what was fetched of extension %s is not what the UKI of version %s names: %w. It is not used; run this again, and if it stays so, the disk does not keep what is written to it, or the server has another release's file: tell its distributor", e.Name, e.Of.Version, err)
	}
	if err != nil {
		return err
	}
	if err := os.Rename(name+partEnding, u.extensionFile(u.running, &e.Extension)); err != nil {
		return err
	}
	if err := hw.SyncDirectory(filepath.Dir(name)); err != nil {
		return err
	}
	return os.RemoveAll(name + workEnding) // else the next sweep does
}

// extensionWhole reports whether an extension's file is there, every block of it.
func (u *update) extensionWhole(ctx context.Context, e *fetch.Extension) (bool, error) {
	if !u.extensionThere(u.running, &e.Extension) {
		return false, nil
	}
	f, err := os.OpenFile(u.extensionFile(u.running, &e.Extension), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = u.verifyExtension(ctx, e, f)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if err != nil {
		u.Tell(worker.Event{Note: fmt.Sprintf("the file of extension %s for version %s is damaged, and is fetched again: %v", e.Name, e.Of.Version, err)})
	}
	return err == nil, nil
}

// toldBytes is how many bytes are looked at between two words about it.
const toldBytes = 8 << 20

// verifyExtension compares every block of a file with the root hash.
func (u *update) verifyExtension(ctx context.Context, e *fetch.Extension, f *os.File) error {
	size, err := e.FileSize()
	if err != nil {
		return err
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // what counts is the medium; it may not be taken
	p := fetch.Progress{Phase: fetch.Verifying, File: release.ExtensionFile(e.Name), Total: e.ImageSize}
	tell := func(done int64) {
		if done-p.Done >= toldBytes || done == p.Total {
			p.Done = done
			u.Tell(worker.Event{Progress: &p})
		}
	}
	return verity.Verify(ctx, io.NewSectionReader(f, 0, e.ImageSize), io.NewSectionReader(f, e.ImageSize, size-e.ImageSize), e.VerityParams(), e.Root(), tell)
}

// lookExtension has a worker ask the server for an extension, and judges what it brings.
// The head is nil where the server has none.
func (u *update) lookExtension(ctx context.Context, e *fetch.Extension) (*fetch.Found, *archive.Head, error) {
	x := *u // what was found of the release stays
	x.found = nil
	request, from, err := u.extensionRequest(worker.Look, e)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer from.Close()
	if u.running.Console && strings.HasPrefix(request.Address, "http") && !u.Online() {
		return nil, nil, errors.New("this console has no network: type `network` first, or name a stick's device with --from")
	}
	err = u.Worker.Run(ctx, request, worker.Files{worker.Archive: from}, func(event worker.Event) {
		if event.Found != nil {
			x.found = event.Found
			return
		}
		u.Tell(event)
	})
	if err == nil && x.found == nil {
		err = errors.New("worker found nothing and does not say why")
	}
	if err == nil && request.Archive == "" && len(x.found.Manifest) == 0 {
		err = fmt.Errorf("%w: it brought no manifest", errWorker)
	}
	if err != nil {
		return nil, nil, errors.Join(err, x.learnAnyway())
	}
	head, seen, err := x.found.JudgeExtension(u.self, e)
	if err != nil {
		return nil, nil, errors.Join(err, x.learnAnyway())
	}
	if err := errors.Join(x.learn(), x.remember(seen)); err != nil {
		return nil, nil, err
	}
	u.self, u.request.Self = x.self, x.request.Self
	return x.found, head, nil
}

// extensionRequest is a request about an extension, and the archive that it is fetched from
// where that is a file; else nil, which can be closed. Where --from names a release's archive,
// the extension's lies beside it, as a server has them.
func (u *update) extensionRequest(do string, e *fetch.Extension) (request worker.Request, from *os.File, err error) {
	request = u.request
	request.Do, request.Extension = do, e
	if u.request.Archive == "" {
		return request, nil, nil
	}
	if !u.alone {
		request.Archive = path.Base(manifest.ExtensionArchiveName(e.Of.Version, e.Name))
	}
	if u.archive != nil {
		// Opened here, since the worker's rights may not lead there.
		from, err = os.OpenFile(filepath.Join(filepath.Dir(u.archive.Name()), request.Archive), os.O_RDONLY|unix.O_NONBLOCK, 0)
	}
	return request, from, err
}

// otherRelease opens the same extension's file of another release, to copy from; nil where
// there is none.
func (u *update) otherRelease(e *fetch.Extension, x *Extensions) (*os.File, *contract.Extension) {
	candidates := []*contract.Extension{&e.Extension} // a damaged one has most of itself
	for _, c := range x.Releases {
		for i := range c.list {
			if c.list[i].Name == e.Name {
				candidates = append(candidates, &c.list[i])
			}
		}
	}
	for _, have := range candidates {
		if !u.extensionThere(u.running, have) {
			continue
		}
		f, err := os.OpenFile(u.extensionFile(u.running, have), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err == nil {
			return f, have
		}
	}
	return nil, nil
}

// openPart opens the file as it is so far, with its whole size. What is no file, or has
// another name elsewhere, is replaced.
func (u *update) openPart(e *fetch.Extension) (*os.File, error) {
	if err := u.makeExtensions(u.running); err != nil {
		return nil, err
	}
	size, err := e.FileSize()
	if err != nil {
		return nil, err
	}
	name := u.extensionPath(u.running, &e.Extension) + partEnding
	var s unix.Stat_t
	if err := unix.Lstat(name, &s); err == nil && (s.Mode&unix.S_IFMT != unix.S_IFREG || s.Nlink != 1) {
		if err := os.RemoveAll(name); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// roomFor refuses an extension that does not fit onto the root partition.
func (u *update) roomFor(e *fetch.Extension, head *archive.Head) error {
	size, err := e.FileSize()
	if err != nil {
		return err
	}
	if f, ok := head.Release.File(release.IndexFile); ok {
		size += f.Size + f.Packed // the worker's
	}
	size -= u.begun(u.running, &e.Extension)
	free, err := u.free()
	if err != nil {
		return err
	}
	return enough(fmt.Sprintf("extension %s of version %s needs", e.Name, e.Of.Version), max(size, 0), free)
}

// enough refuses what does not fit, with a reserve. what ends with a verb.
func enough(what string, need, free int64) error {
	if need += spare; free < need {
		return fmt.Errorf("%s %d MiB on the root partition, and %d MiB are free: make room there", what, mebibytes(need), free>>20)
	}
	return nil
}

// mebibytes rounds up.
func mebibytes(n int64) int64 { return (n + 1<<20 - 1) >> 20 }

// free is how many bytes the root partition has left.
func (u *update) free() (int64, error) { return u.Machine.free(u.running) }

// allocated is what a file takes on the disk, in bytes: not what it says.
func allocated(info fs.FileInfo) int64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Blocks * 512
	}
	return 0
}
