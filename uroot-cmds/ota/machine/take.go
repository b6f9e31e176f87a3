package machine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/statefiles"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// fill has the worker bring the release.
func (u *update) fill(ctx context.Context, out *Outcome, head *archive.Head) error {
	if err := u.directory(out.Version, all); err != nil {
		return err
	}
	files, closeFiles, err := u.files(u.work(out.Version), true)
	if err != nil {
		return err
	}
	request := u.workRequest(worker.Fetch)
	err = u.Worker.Run(ctx, request, files, func(e worker.Event) {
		if e.Result != nil {
			out.Result = e.Result
			return
		}
		u.Tell(e)
	})
	if err == nil && out.Result == nil {
		err = errors.New("worker ended without a result and does not say why")
	}
	if err == nil {
		err = u.take(out.Version, head, files[worker.Tree])
	}
	return errors.Join(err, closeFiles())
}

// workRequest is one about what was found.
func (u *update) workRequest(do string) worker.Request {
	request := u.request
	request.Do, request.Found = do, u.found
	if running := u.running.runningFiles(names(u.inv)); len(running) > 0 {
		request.UKI = path.Join(bls.Directory, running[0].String())
	}
	return request
}

// workEnding is that of a version's directory which is the worker's.
const workEnding = ".work"

// The version's directory, which is root's alone, and the worker's.
func (u *update) finished(v contract.Version) string {
	return u.state(u.running, fetchDirectory, v.String())
}

func (u *update) work(v contract.Version) string { return u.finished(v) + workEnding }

// all and measured say which directories of other versions directory takes away.
func all(string) bool { return true }

// measured reports whether a directory is one that a check has left: it has a block index,
// or what could be fetched of it, and nothing else.
func measured(directory string) bool {
	entries, err := os.ReadDir(directory)
	if err != nil || !strings.HasSuffix(directory, workEnding) {
		return false
	}
	return !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return !strings.HasPrefix(e.Name(), release.IndexFile) })
}

// directory makes the worker's directory for a version, and takes those of other
// versions away that are gone.
func (u *update) directory(v contract.Version, gone func(directory string) bool) error {
	all := u.state(u.running, fetchDirectory)
	if err := os.MkdirAll(all, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(all)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(all, e.Name())
		if e.IsDir() && name != u.finished(v) && name != u.work(v) && gone(name) {
			if err := os.RemoveAll(name); err != nil {
				return err
			}
		}
	}
	if err := os.Mkdir(u.work(v), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	uid, gid := os.Getuid(), os.Getgid()
	if u.Worker.User != nil {
		uid, gid = int(u.Worker.User.Uid), int(u.Worker.User.Gid)
	}
	return errors.Join(own(u.work(v), uid, gid), hw.SyncDirectory(all))
}

// own gives a directory and what is in it to a user. The directory goes first, so that
// anyone who had it cannot change it meanwhile. What is not a file, or has another
// name elsewhere, is removed: it would give away something that is not ours.
func own(directory string, uid, gid int) error {
	if err := os.Lchown(directory, os.Getuid(), os.Getgid()); err != nil {
		return err
	}
	// Its modes go with it: the one who had it may have let anybody in.
	if err := os.Chmod(directory, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(directory)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(directory, e.Name())
		var s unix.Stat_t
		if err := unix.Lstat(name, &s); err != nil {
			return err
		}
		if s.Mode&unix.S_IFMT != unix.S_IFREG || s.Nlink != 1 {
			err = os.RemoveAll(name)
		} else if err = os.Chmod(name, 0o600); err == nil {
			err = os.Lchown(name, uid, gid)
		}
		if err != nil {
			return err
		}
	}
	return os.Lchown(directory, uid, gid)
}

// files opens what the worker works on; write says whether it may write to the slot.
func (u *update) files(directory string, write bool) (files worker.Files, closeAll func() error, err error) {
	var open []io.Closer
	closeAll = func() error {
		var all []error
		for _, f := range open {
			all = append(all, f.Close())
		}
		return errors.Join(all...)
	}
	active, target := u.running.Slot, u.running.Slot.Other()
	for _, want := range []struct {
		file int
		role layout.Role
	}{
		{worker.System, target.System()}, {worker.Tree, target.Verity()},
		{worker.ActiveSystem, active.System()}, {worker.ActiveTree, active.Verity()}, {worker.ESP, layout.ESP},
	} {
		f, err := u.Hardware.Disks.OpenPartition(u.disk, want.role, write && (want.file == worker.System || want.file == worker.Tree))
		if err != nil {
			return files, nil, errors.Join(fmt.Errorf("open the partition %s: %w", want.role, err), closeAll())
		}
		open = append(open, f)
		plain, ok := f.(*os.File)
		if !ok {
			return files, nil, errors.Join(fmt.Errorf("the partition %s is not an open file", want.role), closeAll())
		}
		files[want.file] = plain
	}
	files[worker.Archive], files[worker.Lock] = u.archive, u.lock
	f, err := os.OpenFile(directory, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return files, nil, errors.Join(err, closeAll())
	}
	open = append(open, f)
	files[worker.Directory] = f
	return files, closeAll, nil
}

// take makes copies of what the worker has brought, which are root's alone: of
// the worker's own files somebody may still have one open. Each is compared while it
// is copied, and the two that say what the others are do not come from the worker
// at all.
//
// The order: the files, their directory, then staged.json (stage), then the worker's
// directory goes. Cut before staged.json, the next fetch finds the worker's files
// and the slot as they are, and makes the copies again.
func (u *update) take(v contract.Version, head *archive.Head, tree io.ReaderAt) error {
	directory := u.finished(v)
	if err := os.RemoveAll(directory); err != nil {
		return err
	}
	if err := os.Mkdir(directory, 0o700); err != nil {
		return err
	}
	for _, name := range []string{release.UKIFile, release.BootManagerFile} {
		want, ok := head.Release.File(name)
		if !ok {
			return fmt.Errorf("%s names no %s", release.FileName, name)
		}
		if err := copyFile(filepath.Join(directory, name), filepath.Join(u.work(v), name), want); err != nil {
			return err
		}
	}
	if len(head.Signature) > 0 {
		if err := hw.KeepFile(filepath.Join(directory, archive.SignatureFile), head.Signature, 0o600); err != nil {
			return err
		}
	}
	if len(u.self.Known) > 0 { // by which the boot checks the signature again
		if err := hw.KeepFile(filepath.Join(directory, release.KeyFile), u.self.Known, 0o600); err != nil {
			return err
		}
	}
	if err := hw.KeepFile(filepath.Join(directory, release.FileName), head.Description, 0o600); err != nil {
		return err
	}
	if err := checkTop(tree, head.Release); err != nil {
		return err
	}
	return hw.SyncDirectory(filepath.Dir(directory))
}

var errWorker = errors.New("the worker did not do what it was asked to")

// copyFile makes a new file of what is in another one, if that is as described.
func copyFile(to, from string, want release.File) error {
	f, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file: %w", want.Name, errWorker)
	}
	return hw.ReplaceFile(to, 0o600, func(w io.Writer) error {
		sum := sha256.New()
		n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(f, want.Size))
		if err == nil && (n != want.Size || !bytes.Equal(sum.Sum(nil), want.SHA256)) {
			err = fmt.Errorf("%s is not the one that %s describes: %w", want.Name, release.FileName, errWorker)
		}
		return err
	})
}

// checkTop compares the top of the verity tree with the signed root hash. All
// below it the kernel compares, block by block, whenever it reads one.
func checkTop(tree io.ReaderAt, r *release.Release) error {
	levels, err := verity.Levels(uint64(r.ImageSize) / verity.BlockSize)
	if err != nil || len(levels) == 0 {
		return err
	}
	block := make([]byte, verity.BlockSize)
	if _, err := tree.ReadAt(block, levels[len(levels)-1].Offset); err != nil {
		return fmt.Errorf("read the top of the verity tree: %w", err)
	}
	sum := sha256.New()
	sum.Write(r.Salt)
	sum.Write(block)
	if !bytes.Equal(sum.Sum(nil), r.RootHash) {
		return fmt.Errorf("verity tree is not the one of root hash %x: %w", r.RootHash, errWorker)
	}
	return nil
}

// stage says that the slot is ready. It comes last: where staged.json is, all it
// stands for is on the disk.
func (u *update) stage(out *Outcome) error {
	if err := u.keepNews(out); err != nil {
		u.Tell(worker.Event{Note: fmt.Sprintf("its notes are not kept: %v", err)})
	}
	s := statefiles.Staged{Format: statefiles.StagedFormat, Version: out.Version, Slot: u.running.Slot.Other()}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := hw.KeepFile(u.state(u.running, stagedFile), append(text, '\n'), 0o644); err != nil {
		return err
	}
	out.Staged = true
	if err := os.RemoveAll(u.work(s.Version)); err != nil {
		u.Tell(worker.Event{Note: fmt.Sprintf("what the fetch has left could not be removed: %v", err)}) // the next one does
	}
	out.Reason = fmt.Sprintf("version %s is in slot %s: restart to try it", out.Version, s.Slot)
	why := fmt.Sprintf("%d MiB fetched, %d MiB copied from slot %s", out.Result.Fetched>>20, out.Result.Copied>>20, u.running.Slot)
	if err := u.note(u.running, journal.Entry{Kind: journal.Fetched, Version: s.Version, Slot: s.Slot, Reason: why}); err != nil {
		u.Tell(worker.Event{Note: fmt.Sprintf("the journal does not tell of it: %v", err)})
	}
	return nil
}
