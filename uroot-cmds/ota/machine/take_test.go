package machine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// brought is an update whose worker has brought everything.
func (w *world) brought(manager string) *update {
	w.t.Helper()
	r, err := w.m.Running()
	must(w.t, err)
	u, err := w.m.begin(r, Options{})
	must(w.t, err)
	must(w.t, u.directory(3, all))
	for name, content := range map[string][]byte{
		release.UKIFile: w.three.UKI, release.BootManagerFile: []byte(manager),
		release.FileName: []byte("not what was signed"), archive.SignatureFile: []byte("nor this"),
	} {
		must(w.t, os.WriteFile(filepath.Join(u.work(3), name), content, 0o600))
	}
	return u
}

// whole fetches version 3, and returns its verity tree and its boot manager.
func (w *world) whole() (tree *os.File, manager string) {
	w.t.Helper()
	_, err := w.fetch()
	must(w.t, err)
	f, err := os.Open(w.part(layout.VerityB))
	must(w.t, err)
	w.t.Cleanup(func() { _ = f.Close() })
	return f, w.read(filepath.Join(stateDirectory, fetchDirectory, "3", release.BootManagerFile))
}

// A worker that was taken over may still have its files open: what the boot reads are
// others, in a directory that only root enters. What says what they are does not come from
// it at all.
func TestCopies(t *testing.T) {
	w := newWorld(t)
	tree, manager := w.whole()
	u := w.brought(manager)
	kept, err := os.OpenFile(filepath.Join(u.work(3), release.UKIFile), os.O_RDWR, 0)
	must(t, err)
	defer kept.Close()
	must(t, u.take(3, w.three.Head, tree))
	_, err = kept.WriteAt([]byte("taken over"), 0)
	must(t, err)
	w.complete()
	for _, name := range []string{"", release.UKIFile, release.FileName} {
		var s unix.Stat_t
		must(t, unix.Lstat(filepath.Join(u.finished(3), name), &s))
		if int(s.Uid) != os.Getuid() || s.Mode&0o077 != 0 {
			t.Errorf("%q has the mode %o and is the user %d's", name, s.Mode, s.Uid)
		}
	}
}

// What a worker leaves in the place of a file is not followed, waited for or used.
func TestCopiesRefused(t *testing.T) {
	w := newWorld(t)
	tree, manager := w.whole()
	w.write("secret", w.three.UKI)
	for name, c := range map[string]struct {
		change func(uki string) error
		want   string
	}{
		"nothing":     {os.Remove, "no such file"},
		"a link":      {func(uki string) error { return errors.Join(os.Remove(uki), os.Symlink(w.path("secret"), uki)) }, "too many levels"},
		"a pipe":      {func(uki string) error { return errors.Join(os.Remove(uki), syscall.Mkfifo(uki, 0o600)) }, "is not a file"},
		"a directory": {func(uki string) error { return errors.Join(os.Remove(uki), os.Mkdir(uki, 0o700)) }, "is not a file"},
		"one byte": {func(uki string) error {
			return os.WriteFile(uki, append(bytes.Clone(w.three.UKI[:99]), w.three.UKI[100:]...), 0o600)
		}, "not the one that"},
		"another byte": {func(uki string) error { return os.WriteFile(uki, append([]byte("x"), w.three.UKI[1:]...), 0o600) }, "not the one that"},
	} {
		t.Run(name, func(t *testing.T) {
			u := w.brought(manager)
			must(t, c.change(filepath.Join(u.work(3), release.UKIFile)))
			if err := u.take(3, w.three.Head, tree); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			for _, left := range []string{release.UKIFile, release.UKIFile + ".new", release.FileName} {
				if _, err := os.Lstat(filepath.Join(u.finished(3), left)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s is there: %v", left, err)
				}
			}
		})
	}
}

// A worker that says that the slot is complete, and has written another tree.
func TestTopRefused(t *testing.T) {
	w := newWorld(t)
	tree, manager := w.whole()
	u := w.brought(manager)
	info, err := tree.Stat()
	must(t, err)
	must(t, u.take(3, w.three.Head, tree))
	zero := bytes.NewReader(make([]byte, info.Size()))
	if err := u.take(3, w.three.Head, zero); !errors.Is(err, errWorker) || !strings.Contains(err.Error(), "not the one of root hash") {
		t.Errorf("another tree: %v", err)
	}
}

// Anyone who has left the worker's process group, and its output open, has ended with it
// before anything is checked.
func TestLeftBehind(t *testing.T) {
	testkit.Root(t, "start something with other rights")
	w := newWorld(t)
	script := filepath.Join(w.dir, "worker")
	const mark = "4242.4242"
	text := "#!/bin/sh\nsetsid sh -c 'sleep " + mark + " & sleep " + mark + "' 2>&1 &\nsleep " + mark + " </dev/null >/dev/null 2>&1 &\necho '{\"note\":\"up\"}'\n"
	must(t, os.WriteFile(script, []byte(text), 0o755))
	var said string
	s := worker.Starter{Program: script, User: w.m.Worker.User}
	must(t, s.Run(t.Context(), worker.Request{}, worker.Files{}, func(e worker.Event) { said = e.Note }))
	if said != "up" {
		t.Errorf("the worker said %q", said)
	}
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, name := range all {
		if text, err := os.ReadFile(name); err == nil && bytes.Contains(text, []byte("sleep\x00"+mark)) {
			t.Errorf("there is still %s: %q", name, text)
		}
	}
}

// No more is begun than the root partition has room for. FAULTS 82
func TestNoRoom(t *testing.T) {
	testkit.Root(t, "mount a small file system")
	w := newWorld(t)
	state := w.path(stateDirectory)
	mount := func(size string) {
		if err := unix.Mount("tmpfs", state, "tmpfs", 0, "mode=0755,size="+size); err != nil {
			t.Skipf("a small file system cannot be mounted here: %v", err)
		}
	}
	mount("15m")
	mounted := true
	t.Cleanup(func() {
		if mounted {
			must(t, unix.Unmount(state, unix.MNT_DETACH))
		}
	})
	before, table := w.ukis(), fmt.Sprint(w.table().Partitions)
	_, err := w.fetch()
	if err == nil || !strings.Contains(err.Error(), "MiB on the root partition, and 14 are free: make room there") {
		t.Errorf("on a full root partition: %v", err)
	}
	if len(w.log) > 0 || w.ukis() != before || fmt.Sprint(w.table().Partitions) != table {
		t.Errorf("the machine changed: %v, %s", w.log, w.ukis())
	}
	// Filled up in the middle, by somebody else, it fails; with room, it goes on.
	must(t, unix.Mount("", state, "", unix.MS_REMOUNT, "size=40m"))
	filled := false
	w.m.Hardware.Disks = filling{w.m.Hardware.Disks, func() {
		if !filled {
			filled = true
			must(t, unix.Mount("", state, "", unix.MS_REMOUNT, "size=100k"))
		}
	}}
	if _, err := w.fetch(); err == nil || !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), "the root partition is full") {
		t.Errorf("without room in the middle: %v", err)
	}
	if _, err := os.Stat(filepath.Join(state, stagedFile)); err == nil {
		t.Error("it is staged")
	}
	must(t, unix.Mount("", state, "", unix.MS_REMOUNT, "size=40m"))
	_, err = w.fetch()
	must(t, err)
	w.complete()
	must(t, unix.Unmount(state, unix.MNT_DETACH))
	mounted = false
}

// filling are disks at which something happens when a slot is opened to be written.
type filling struct {
	hw.Disks
	before func()
}

func (f filling) OpenPartition(d hw.Disk, r layout.Role, write bool) (hw.File, error) {
	if write {
		f.before()
	}
	return f.Disks.OpenPartition(d, r, write)
}

// Cut when all is there and nothing says so yet, the next fetch asks the server for its
// offer and no more.
func TestCutBeforeStaged(t *testing.T) {
	w := newWorld(t)
	inTheWay := filepath.Join(w.dir, stateDirectory, stagedFile+".new")
	must(t, os.MkdirAll(filepath.Join(inTheWay, "x"), 0o755))
	if _, err := w.fetch(); err == nil || !strings.Contains(err.Error(), stagedFile) {
		t.Fatalf("without staged.json: %v", err)
	}
	must(t, os.RemoveAll(inTheWay))
	before := len(w.archiveRequested)
	out, err := w.fetch()
	if err != nil || !out.Staged || out.Result.Fetched != 0 {
		t.Errorf("%+v, %v; want nothing fetched", out, err)
	}
	if asked := w.archiveRequested[before:]; len(asked) != 1 {
		t.Errorf("asked for %q; want the head alone", asked)
	}
	w.complete()
	if _, err := os.Stat(w.path(filepath.Join(stateDirectory, fetchDirectory, "3"+workEnding))); err == nil {
		t.Error("the worker's directory is still there")
	}
}
