package machine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/snapshot/snapshottest"
	"halogenos.internal/initagent/upper"
)

// newBtrfs is a world whose version 1 has taken a snapshot before version 2 was tried,
// which runs.
func newBtrfs(t *testing.T) (*world, snapshottest.Disk) {
	t.Helper()
	w := newWorld(t)
	w.one.Contract.RootFileSystem, w.two.Contract.RootFileSystem = "btrfs", "btrfs"
	w.boot(layout.SlotA, w.two)
	d := snapshottest.Disk{Space: snapshot.Room{Size: 100 << 30, Free: 50 << 30}, Files: map[string][]byte{"bind/var": []byte(snapshottest.Writable), "bind/var/x": []byte("one"), "bind/srv/x": nil}}
	_, _, err := snapshot.Take(d, snapshot.Record{
		Taken: w.m.Now(), For: 2, System: snapshot.System{Version: 1, Slot: layout.SlotB, Root: w.one.Contract.Root().String()},
	}, []stateconf.Entry{{Mode: stateconf.Bind, Path: "/var"}, {Mode: stateconf.Bind, Path: "/srv"}}, nil)
	must(t, err)
	w.m.Snapshots = d
	w.write(consoleRoot+"/bind/var/x", []byte(strings.Repeat("two", 5000)))
	w.write(consoleRoot+"/bind/var/new", []byte("two"))
	w.write(consoleRoot+"/snapshots/before/var/x", []byte("one"))
	return w, d
}

// asked is what the note asks for; "" where there is none.
func (w *world) asked() string {
	text, err := os.ReadFile(w.path(filepath.Join(stateDirectory, snapshot.NoteName)))
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	must(w.t, err)
	return string(text)
}

func TestRollbackState(t *testing.T) {
	w, d := newBtrfs(t)
	s, err := w.m.PlanState()
	must(t, err)
	if s.Undo || s.Version != 1 || s.Next != 1 || s.Rollback == nil || s.Rollback.Given != 2 || !s.Rollback.Restart || len(s.Plain) != 1 || !s.Of.Equal(w.m.Now()) {
		t.Errorf("%+v", s)
	}
	if len(s.Directories) != 1 || s.Directories[0].Path != "/var" || s.Directories[0].Now.Files != 2 || s.Directories[0].Then.Files != 1 || s.Directories[0].Now.Bytes <= s.Directories[0].Then.Bytes {
		t.Errorf("%+v", s.Directories)
	}
	if w.asked() != "" || w.ukis() != "test-os_1.efi test-os_2.efi" {
		t.Errorf("to look at it changes something: %s", w.ukis())
	}
	out, err := w.m.RollbackState(s, "slow")
	must(t, err)
	if out.Given != 2 || w.ukis() != "test-os_1.efi test-os_2+0.efi" || w.kinds() != "rollback 2" {
		t.Errorf("%+v, %s, %s", out, w.ukis(), w.kinds())
	}
	// The boot of version 1 does it.
	d.Files["shared"] = []byte(w.asked())
	r, err := snapshot.Restore(d, "shared", snapshot.System{Version: 1, Root: w.one.Contract.Root().String()}, w.m.Now())
	if must(t, err); r.Declined != "" || len(r.Directories) != 1 {
		t.Errorf("%+v", r)
	}
	// Which runs now, and takes it back.
	w.boot(layout.SlotB, w.one)
	if s, err = w.m.PlanState(); err != nil || !s.Undo || s.Rollback != nil || s.Version != 2 || s.Next != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	if out, err := w.m.RollbackState(s, ""); err != nil || out != nil || !strings.Contains(w.asked(), `"undo":true`) || w.kinds() != "rollback 2" {
		t.Errorf("%+v, %v, %s", out, err, w.asked())
	}
	if st, err := w.m.Status(t.Context()); err != nil || st.Aside == nil || st.Snapshot == nil {
		t.Errorf("status: %+v, %v", st, err)
	}
}

// What else may be: each has its answer.
func TestRollbackStateCases(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world, d snapshottest.Disk)
		given  string // "" where only directories go back
		err    string
	}{
		"the trial has failed, and version 1 runs": {change: func(w *world, _ snapshottest.Disk) {
			w.boot(layout.SlotB, w.one)
			w.name("test-os_2.efi", "test-os_2+0-3.efi")
		}},
		"version 1 runs, and the trial has tries left": {change: func(w *world, _ snapshottest.Disk) {
			w.boot(layout.SlotB, w.one)
			w.name("test-os_2.efi", "test-os_2+1-2.efi")
		}, given: "2"},
		"version 1 was started by hand": {change: func(w *world, _ snapshottest.Disk) { w.boot(layout.SlotB, w.one) }, err: "the snapshot is of version 1, and version 2 would run on it"},
		"a release is fetched": {change: func(w *world, _ snapshottest.Disk) {
			w.write(filepath.Join(stateDirectory, stagedFile), []byte(`{"format":1,"version":"3","slot":"b"}`))
		}, err: "version 3 is fetched"},
		"the other slot is empty": {change: func(w *world, _ snapshottest.Disk) { must(w.t, os.Remove(w.path("esp/EFI/Linux/test-os_1.efi"))) }, err: "slot b is empty"},
		"no snapshot":             {change: func(w *world, d snapshottest.Disk) { delete(d.Files, "snapshots/record.json") }, err: "one is taken when a release is staged"},
		"another file system": {change: func(w *world, _ snapshottest.Disk) {
			w.two.Contract.RootFileSystem = "ext4"
			w.boot(layout.SlotA, w.two)
		}, err: "the root partition is ext4"},
		"a record that is none": {change: func(w *world, d snapshottest.Disk) { d.Files["snapshots/record.json"] = []byte("{}") }, err: "what is known of the snapshot: snapshots/record.json"},
	} {
		t.Run(name, func(t *testing.T) {
			w, d := newBtrfs(t)
			c.change(w, d)
			before := w.ukis()
			s, err := w.m.PlanState()
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || w.asked() != "" {
					t.Errorf("%+v, %v", s, err)
				}
				return
			}
			must(t, err)
			out, err := w.m.RollbackState(s, "")
			must(t, err)
			if (out == nil) != (c.given == "") || out != nil && out.Given.String() != c.given || (before == w.ukis()) != (out == nil) || !strings.Contains(w.asked(), w.one.Contract.Root().String()) {
				t.Errorf("%+v, %s, %q", out, w.ukis(), w.asked())
			}
		})
	}
}

// The note is there before a system is given up, and goes where that fails.
func TestRollbackStateCut(t *testing.T) {
	w, d := newBtrfs(t)
	s, err := w.m.PlanState()
	must(t, err)
	asked := ""
	w.atESP = func() { asked = w.asked() }
	w.cut = 0
	if _, err := w.m.RollbackState(s, ""); !errors.Is(err, errCut) || w.asked() != "" {
		t.Errorf("%v, and it is asked for %q", err, w.asked())
	}
	w.cut = -1
	if _, err := w.m.RollbackState(s, ""); err != nil || asked == "" {
		t.Errorf("%v; asked for was %q when the system was given up", err, asked)
	}
	d.Files["snapshots/record.json"] = nil
	if _, err := w.m.RollbackState(s, ""); err == nil {
		t.Error("the snapshot has changed, and nobody is told")
	}
}

// What was asked for does not outlive its occasion: a plain rollback, and --cancel, take it
// back, nothing is fetched while it waits, and the status shows it.
func TestRollbackStateWithdrawn(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world)
		take   func(w *world) error
	}{
		"rollback": {func(*world) {}, func(w *world) error {
			out, err := w.m.GiveUp("")
			if err == nil && !out.Stay {
				t.Error("it does not say so")
			}
			return err
		}},
		"cancel": {func(*world) {}, func(w *world) error { return w.m.CancelState() }},
		"cancel where only directories go back": {func(w *world) {
			w.boot(layout.SlotB, w.one)
			w.name("test-os_2.efi", "test-os_2+0-3.efi")
		}, func(w *world) error { return w.m.CancelState() }},
		"forget": {func(*world) {}, func(w *world) error { return w.m.ForgetState() }},
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := newBtrfs(t)
			c.change(w)
			if name != "cancel where only directories go back" {
				// The session ended between the note and what was to be given up.
				s, err := w.m.PlanState()
				must(t, err)
				text, err := s.note.Encode()
				must(t, err)
				w.write(filepath.Join(stateDirectory, snapshot.NoteName), text)
			} else {
				s, err := w.m.PlanState()
				must(t, err)
				_, err = w.m.RollbackState(s, "")
				must(t, err)
			}
			if st, err := w.m.Status(t.Context()); err != nil || !st.GoesBack {
				t.Errorf("status: %+v, %v", st, err)
			}
			r, err := w.m.Running()
			must(t, err)
			if err := (&update{Machine: w.m, running: r}).mayFetch(); err == nil || !strings.Contains(err.Error(), "--cancel") {
				t.Errorf("fetch: %v", err)
			}
			must(t, c.take(w))
			if w.asked() != "" {
				t.Errorf("asked for is %q", w.asked())
			}
			if st, err := w.m.Status(t.Context()); err != nil || st.GoesBack || (st.Snapshot == nil) != (name == "forget") {
				t.Errorf("status: %+v, %v", st, err)
			}
			if err := w.m.CancelState(); err == nil || !strings.Contains(err.Error(), "nothing was asked for") {
				t.Errorf("once more: %v", err)
			}
		})
	}
}

// Without room for what is to come back nothing is given up.
func TestRollbackStateWithoutRoom(t *testing.T) {
	w, d := newBtrfs(t)
	d.Fails = func(what string) error {
		if strings.HasPrefix(what, "snapshot ") {
			return syscall.ENOSPC
		}
		return nil
	}
	w.m.Snapshots = d
	s, err := w.m.PlanState()
	must(t, err)
	if _, err := w.m.RollbackState(s, ""); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "nothing was changed") || w.asked() != "" || w.ukis() != "test-os_1.efi test-os_2.efi" {
		t.Errorf("%v, %q, %s", err, w.asked(), w.ukis())
	}
}

// At the console it is the same, once the root partition is open.
func TestRollbackStateAtTheConsole(t *testing.T) {
	w, _ := newBtrfs(t)
	text, err := w.two.Contract.Encode()
	must(t, err)
	w.write(contractFile, text)
	if _, err := w.m.PlanState(); !errors.Is(err, errLocked) {
		t.Errorf("without the root partition: %v", err)
	}
	w.unlock()
	s, err := w.m.PlanState()
	must(t, err)
	if _, err := w.m.RollbackState(s, ""); err != nil || !strings.Contains(w.read(filepath.Join(consoleState, snapshot.NoteName)), w.one.Contract.Root().String()) || w.ukis() != "test-os_1.efi test-os_2+0.efi" {
		t.Errorf("%v, %s", err, w.ukis())
	}
}

// A request that was taken back for a system that then was not given up is gone, and that is
// said.
func TestGiveUpFailsAfterWithdrawal(t *testing.T) {
	w, _ := newBtrfs(t)
	s, err := w.m.PlanState()
	must(t, err)
	text, err := s.note.Encode()
	must(t, err)
	w.write(filepath.Join(stateDirectory, snapshot.NoteName), text)
	w.write(filepath.Join(stateDirectory, upper.Note, "in", "the", "way"), nil)
	if _, err := w.m.GiveUp(""); err == nil || !strings.Contains(err.Error(), "not given up") || !strings.Contains(err.Error(), "ask for that again") || w.asked() != "" {
		t.Errorf("%v; asked for is %q", err, w.asked())
	}
}
