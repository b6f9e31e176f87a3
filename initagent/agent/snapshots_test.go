package agent

import (
	"maps"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/snapshot/snapshottest"
	"halogenos.internal/initagent/subvolume"
)

// disk is the simulated root partition with its subvolumes.
func (s store) disk() snapshottest.Disk {
	room := s.m.room
	if room == (snapshot.Room{}) {
		room = snapshot.Room{Size: 100 << 30, Free: 50 << 30}
	}
	return snapshottest.Disk{Files: s.files(), Space: room, Step: func(what string) { s.m.op("root " + what); s.m.durable++ }, Fails: func(what string) error {
		if s.m.fullFile != "" && strings.HasPrefix(what, s.m.fullFile) {
			return syscall.ENOSPC
		}
		return nil
	}}
}

func (s store) Look(name string) (subvolume.Kind, error) { return s.disk().Look(name) }
func (s store) Snapshot(from, to string, readOnly bool) error {
	return s.disk().Snapshot(from, to, readOnly)
}
func (s store) RemoveSubvolume(name string) error { return s.disk().RemoveSubvolume(name) }
func (s store) Rename(from, to string) error      { return s.disk().Rename(from, to) }
func (s store) Room() (snapshot.Room, error)      { return s.disk().Room() }
func (s store) AwaitRoom(enough func(snapshot.Room) bool) (snapshot.Room, error) {
	return s.disk().AwaitRoom(enough)
}
func (s store) Release(name string) (subvolume.Hold, error) { return s.disk().Release(name) }
func (s store) Hold(name string, h subvolume.Hold) error    { return s.disk().Hold(name, h) }

// onBtrfs is a release whose root partition is a btrfs.
func onBtrfs(c *contract.Contract) {
	pinned(c)
	c.RootFileSystem = "btrfs"
}

const db = "bind/var/lib/db"

// migrated is a machine on btrfs whose version 2 has changed what is in /var and /root.
func migrated(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t, onBtrfs)
	for _, name := range []string{"root", "usr/local"} {
		m.must(os.MkdirAll(filepath.Join(m.root, "sysroot", name), 0o755))
	}
	m.ends("system")
	m.ends("system")
	m.writesState("one")
	m.fetch(newRelease(t, 2, 5, onBtrfs))
	m.runs(2)
	m.writesState("two")
	return m
}

func (m *machine) writesState(text string) {
	for _, name := range []string{db, "bind/root/x", "bind/home/me"} {
		m.rootFiles()[name] = []byte(text)
	}
}

// wantsState checks /var and /root, and what is in /home, which goes its own way.
func (m *machine) wantsState(want, home string) {
	m.t.Helper()
	for name, want := range map[string]string{db: want, "bind/root/x": want, "bind/home/me": home, "bind/var": snapshottest.Writable} {
		if got := string(m.rootFiles()[name]); got != want {
			m.t.Errorf("%s is %q, want %q:\n%s", name, got, want, m.said.String())
		}
	}
}

// givesUp is what `ota rollback` does to version 2, which has this name.
func (m *machine) givesUp(name, spent string) {
	m.rename(name, spent)
	m.write(journal.Entry{Kind: journal.Rollback, Version: 2})
}

// asksBack leaves the note that `ota rollback --state` leaves.
func (m *machine) asksBack(system contract.Version, undo bool) {
	m.t.Helper()
	n := snapshot.Note{System: m.releases[system].contract.Root().String(), Version: system, Undo: undo, From: 2}
	if undo {
		a, err := snapshot.ReadAside(store{m})
		m.must(err)
		n.Of = a.Time
	} else {
		r, err := snapshot.ReadRecord(store{m})
		m.must(err)
		n.Of = r.Taken
	}
	text, err := n.Encode()
	m.must(err)
	m.rootFiles()[ownstate.RestoreNote] = text
}

// journalHas looks for an entry.
func (m *machine) journalHas(kind journal.Kind, reason string) bool {
	for _, e := range journal.Parse(m.rootFiles()[bootjournal.File]) {
		if e.Kind == kind && strings.Contains(e.Reason, reason) {
			return true
		}
	}
	return false
}

// A snapshot is taken before the trial, and put back when somebody asks for it, under the
// system that it is of. The next staging replaces it.
func TestStateGoesBack(t *testing.T) {
	m := migrated(t)
	m.wantsState("two", "two")
	if !m.journalHas(journal.Staged, "with a snapshot of /var, /root, /usr/local") {
		t.Errorf("the journal has %s", m.rootFiles()[bootjournal.File])
	}
	r, err := snapshot.ReadRecord(store{m})
	m.must(err)
	if r.System.Version != 1 || r.System.Slot != 1 || r.System.Root != m.releases[1].contract.Root().String() || r.For != 2 {
		t.Errorf("record %+v", r)
	}
	m.bless()
	m.runs(2)
	m.wantsState("two", "two")
	m.givesUp("test_2.efi", "test_2+0.efi")
	m.asksBack(1, false)
	m.runs(1, "restore-state", "/var, /root, /usr/local are as they were before the update, at "+r.Taken.Format(time.RFC3339)+"; what was there is in /run/state/snapshots/aside-a")
	m.wantsState("one", "two")
	if !m.journalHas(journal.State, "are as they were before the update") {
		t.Errorf("the journal has %s", m.rootFiles()[bootjournal.File])
	}
	if got := string(m.rootFiles()["snapshots/aside-a/var/lib/db"]); got != "two" {
		t.Errorf("what was there is %q", got)
	}
	m.ops = nil
	m.runs(1)
	if written := m.written("snapshots"); len(written) > 0 {
		t.Errorf("an ordinary boot does %q", written)
	}
	m.writesState("three")
	m.asksBack(1, true)
	m.runs(1, "as they were before `ota rollback --state`")
	m.wantsState("two", "three")
	m.fetch(newRelease(t, 3, 5, onBtrfs))
	m.runs(3)
	m.wantsState("two", "three")
	if got := string(m.rootFiles()["snapshots/left/2026-04-04-var/lib/db"]); got != "three" {
		t.Errorf("what was set aside is %q in %q", got, slices.Sorted(maps.Keys(m.rootFiles())))
	}
	if got := string(m.rootFiles()["snapshots/before/var/lib/db"]); got != "two" || (store{m}).has("snapshots/aside-a/") || (store{m}).has("snapshots/aside-b/") {
		t.Errorf("the snapshot has %q, or something is set aside", got)
	}
}

func (s store) has(prefix string) bool {
	for name := range s.files() {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// A note that another system finds is taken away, and does nothing; nor does it later.
func TestStateGoesBackUnderItsSystemOnly(t *testing.T) {
	m := migrated(t)
	m.asksBack(1, false)
	m.runs(2, "no directory goes back: it was asked for under system")
	m.wantsState("two", "two")
	m.givesUp("test_2+1-2.efi", "test_2+0-2.efi")
	m.runs(1)
	m.wantsState("two", "two")
	// It is not too late.
	m.asksBack(1, false)
	m.runs(1)
	m.wantsState("one", "two")
}

// Staging waits for the start after the one that went back.
func TestStateGoesBackBeforeStaging(t *testing.T) {
	m := migrated(t)
	m.givesUp("test_2+2-1.efi", "test_2+0-1.efi")
	m.runs(1)
	m.asksBack(1, false)
	m.fetch(newRelease(t, 3, 5, onBtrfs))
	m.runs(1)
	m.wantsState("one", "two")
	if got := string(m.rootFiles()["snapshots/aside-a/var/lib/db"]); got != "two" {
		t.Errorf("what was there is %q", got)
	}
	m.runs(3)
	m.wantsState("one", "two")
}

// The power is cut before every write of the boot that exchanges the directories, and of
// the one that takes the snapshot: the next boot ends as one that was not cut. FAULTS 105
func TestCutStateGoesBack(t *testing.T) {
	m := migrated(t)
	m.givesUp("test_2+2-1.efi", "test_2+0-1.efi")
	m.runs(1)
	m.asksBack(1, false)
	states, end := m.recordOnce(mrand.New(mrand.NewPCG(105, 1)))
	if end != "system" || len(states) < 15 {
		t.Fatalf("%d states, ends in %s:\n%s", len(states), end, m.said.String())
	}
	for _, s := range states {
		m.powerOn(s.world)
		m.said.Reset()
		if end := m.run(); end != "system" {
			t.Fatalf("%s: ends in %s:\n%s", s.how, end, m.said.String())
		}
		m.wantsState("one", "two")
		if got := string(m.rootFiles()["snapshots/aside-a/var/lib/db"]); got != "two" || snapshot.Asked(store{m}, ownstate.RestoreNote) || (store{m}).has("snapshots/next/") {
			t.Fatalf("%s: what was there is %q:\n%s", s.how, got, m.said.String())
		}
	}
}

func TestCutSnapshot(t *testing.T) {
	m := migrated(t)
	m.bless()
	m.runs(2)
	m.fetch(newRelease(t, 3, 5, onBtrfs))
	states, end := m.recordOnce(mrand.New(mrand.NewPCG(105, 2)))
	if end != "reboot" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	for _, s := range states {
		m.powerOn(s.world)
		m.runs(3)
		m.wantsState("two", "two")
		if r, err := snapshot.ReadRecord(store{m}); err != nil || r == nil || r.For != 3 || string(m.rootFiles()["snapshots/before/var/lib/db"]) != "two" {
			t.Fatalf("%s: record %+v, %v:\n%s", s.how, r, err, m.said.String())
		}
		if (store{m}).has(snapshot.Left + "/") {
			t.Fatalf("%s: the snapshot of a staging that was cut is kept:\n%s", s.how, m.said.String())
		}
	}
}

// A release is staged where there can be no snapshot, and the boot says why.
func TestStagesWithoutSnapshot(t *testing.T) {
	for name, c := range map[string]struct {
		change func(m *machine)
		why    string
	}{
		"little room": {func(m *machine) { m.room = snapshot.Room{Size: 100 << 30, Free: 9 << 30} }, "9216 MiB of the root partition's 102400 MiB are free"},
		"no room":     {func(m *machine) { m.fullFile = "snapshot bind/root" }, "no space left on device"},
		"plain directories": {func(m *machine) {
			m.rootFiles()["bind/var"], m.rootFiles()["bind/root"], m.rootFiles()["bind/usr-local"] = nil, nil, nil
		}, "are no subvolumes"},
	} {
		t.Run(name, func(t *testing.T) {
			m := migrated(t)
			m.bless()
			m.runs(2)
			c.change(m)
			m.fetch(newRelease(t, 3, 5, onBtrfs))
			m.runs(3, "WARNING: version 3 is tried without a snapshot of the state", c.why)
			if !m.journalHas(journal.Staged, "without a snapshot of the state: ") || (store{m}).has("snapshots/before/") {
				t.Errorf("the journal has %s", m.rootFiles()[bootjournal.File])
			}
		})
	}
}

// On ext4 nothing is looked for, and nothing said. So it is in what is staged.
func TestNoSnapshotOnExt4(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.fetch(newRelease(t, 2, 5, pinned))
	m.rootFiles()[ownstate.RestoreNote] = []byte("{}")
	m.runs(2)
	if strings.Contains(m.said.String(), "snapshot") || (store{m}).has("snapshots") || m.rootFiles()[ownstate.RestoreNote] == nil {
		t.Errorf("it says\n%s", m.said.String())
	}
}

// The snapshot goes where room gets short, and the boot says so once: but not in a trial,
// nor under the system that it is of, since going back may be what is wanted.
func TestSnapshotGoesForRoom(t *testing.T) {
	m := migrated(t)
	m.room = snapshot.Room{Size: 100 << 30, Free: 4 << 30}
	m.runs(2, "WARNING: 4096 MiB", "`ota rollback --state` goes back to it")
	m.bless()
	m.byHand = 1
	m.runs(1, "WARNING: 4096 MiB")
	m.byHand = 0
	if !(store{m}).has("snapshots/before/") || m.journalHas(journal.State, "4096 MiB") {
		t.Errorf("the journal has %s", m.rootFiles()[bootjournal.File])
	}
	m.runs(2, "WARNING: the snapshot from before version 2 was tried goes: 4096 MiB")
	if (store{m}).has("snapshots/before/") || !m.journalHas(journal.State, "the snapshot from before version 2") {
		t.Errorf("the journal has %s", m.rootFiles()[bootjournal.File])
	}
	m.runs(2)
	if strings.Contains(m.said.String(), "WARNING: the snapshot") {
		t.Errorf("it says so again:\n%s", m.said.String())
	}
}

// A full disk lets no system start on what it was to be spared: the next start tries again.
func TestStateGoesBackWithoutRoom(t *testing.T) {
	m := migrated(t)
	m.givesUp("test_2+2-1.efi", "test_2+0-1.efi")
	m.runs(1)
	m.asksBack(1, false)
	m.fullFile = "snapshots/plan.json"
	m.ends("recovery", "restore-state FAILED", "nothing has changed yet")
	m.wantsState("two", "two")
	m.fullFile = ""
	m.owner = true
	if end := m.run(); end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	m.wantsState("one", "two")
}

// An exchange that does not come to its end lets no system run without its directories.
func TestStateNotExchanged(t *testing.T) {
	m := migrated(t)
	m.givesUp("test_2+2-1.efi", "test_2+0-1.efi")
	m.runs(1)
	m.asksBack(1, false)
	m.fullFile = "rename snapshots/next/root"
	m.ends("recovery", "restore-state FAILED", "the exchange that snapshots/plan.json describes is not complete", "`unlock`")
	m.fullFile = ""
	m.owner = true
	if end := m.run(); end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	m.wantsState("one", "two")
}

// The snapshot from before a trial that has failed is not replaced by one of what it has left.
func TestSnapshotOfFailedTrialStays(t *testing.T) {
	m := migrated(t)
	m.givesUp("test_2+2-1.efi", "test_2+0-1.efi")
	m.runs(1)
	m.fetch(newRelease(t, 3, 5, onBtrfs))
	m.runs(3)
	left := ""
	for name, text := range m.rootFiles() {
		if strings.HasPrefix(name, snapshot.Left+"/20") && strings.HasSuffix(name, "-before-2-var/lib/db") {
			left = string(text)
		}
	}
	if left != "one" || string(m.rootFiles()["snapshots/before/var/lib/db"]) != "two" {
		t.Errorf("left is %q:\n%s", left, m.said.String())
	}
	if !m.journalHas(journal.State, "is the snapshot from before version 2 was tried, which has not lasted") {
		t.Errorf("the journal has %s", m.rootFiles()[bootjournal.File])
	}
}
