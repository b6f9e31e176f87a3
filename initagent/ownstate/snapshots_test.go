package ownstate_test

import (
	"maps"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/journal"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/snapshot"
	"halogenos.internal/initagent/snapshot/snapshottest"
)

// wantsState checks /var and /root, and what is in /home, which goes its own way.
func wantsState(m *machinetest.Machine, want, home string) {
	m.T.Helper()
	for name, want := range map[string]string{machinetest.DB: want, "bind/root/x": want, "bind/home/me": home, "bind/var": snapshottest.Writable} {
		if got := string(m.RootFiles()[name]); got != want {
			m.T.Errorf("%s is %q, want %q:\n%s", name, got, want, m.Said.String())
		}
	}
}

// A snapshot is taken before the trial, and put back when somebody asks for it, under the
// system that it is of. The next staging replaces it.
func TestStateGoesBack(t *testing.T) {
	m := machinetest.Migrated(t)
	wantsState(m, "two", "two")
	if !m.JournalHas(journal.Staged, "with a snapshot of /var, /root, /usr/local") {
		t.Errorf("the journal has %s", m.RootFiles()[bootjournal.File])
	}
	r, err := snapshot.ReadRecord(machinetest.Store{M: m})
	m.Must(err)
	if r.System.Version != 1 || r.System.Slot != 1 || r.System.Root != m.Releases[1].Contract.Root().String() || r.For != 2 {
		t.Errorf("record %+v", r)
	}
	m.Bless()
	m.Runs(2)
	wantsState(m, "two", "two")
	m.GivesUp("test_2.efi", "test_2+0.efi")
	m.AsksBack(1, false)
	m.Runs(1, "restore-state", "/var, /root, /usr/local are as they were before the update, at "+r.Taken.Format(time.RFC3339)+"; what was there is in /run/state/snapshots/aside-a")
	wantsState(m, "one", "two")
	if !m.JournalHas(journal.State, "are as they were before the update") {
		t.Errorf("the journal has %s", m.RootFiles()[bootjournal.File])
	}
	if got := string(m.RootFiles()["snapshots/aside-a/var/lib/db"]); got != "two" {
		t.Errorf("what was there is %q", got)
	}
	m.Ops = nil
	m.Runs(1)
	if written := m.Written("snapshots"); len(written) > 0 {
		t.Errorf("an ordinary boot does %q", written)
	}
	m.WritesState("three")
	m.AsksBack(1, true)
	m.Runs(1, "as they were before `ota rollback --state`")
	wantsState(m, "two", "three")
	m.Fetch(machinetest.NewRelease(t, 3, 5, machinetest.OnBtrfs))
	m.Runs(3)
	wantsState(m, "two", "three")
	if got := string(m.RootFiles()["snapshots/left/2026-04-04-var/lib/db"]); got != "three" {
		t.Errorf("what was set aside is %q in %q", got, slices.Sorted(maps.Keys(m.RootFiles())))
	}
	if got := string(m.RootFiles()["snapshots/before/var/lib/db"]); got != "two" || (machinetest.Store{M: m}).Has("snapshots/aside-a/") || (machinetest.Store{M: m}).Has("snapshots/aside-b/") {
		t.Errorf("the snapshot has %q, or something is set aside", got)
	}
}

// A note that another system finds is taken away, and does nothing; nor does it later.
func TestStateGoesBackUnderItsSystemOnly(t *testing.T) {
	m := machinetest.Migrated(t)
	m.AsksBack(1, false)
	m.Runs(2, "no directory goes back: it was asked for under system")
	wantsState(m, "two", "two")
	m.GivesUp("test_2+1-2.efi", "test_2+0-2.efi")
	m.Runs(1)
	wantsState(m, "two", "two")
	// It is not too late.
	m.AsksBack(1, false)
	m.Runs(1)
	wantsState(m, "one", "two")
}

// Staging waits for the start after the one that went back.
func TestStateGoesBackBeforeStaging(t *testing.T) {
	m := machinetest.Migrated(t)
	m.GivesUp("test_2+2-1.efi", "test_2+0-1.efi")
	m.Runs(1)
	m.AsksBack(1, false)
	m.Fetch(machinetest.NewRelease(t, 3, 5, machinetest.OnBtrfs))
	m.Runs(1)
	wantsState(m, "one", "two")
	if got := string(m.RootFiles()["snapshots/aside-a/var/lib/db"]); got != "two" {
		t.Errorf("what was there is %q", got)
	}
	m.Runs(3)
	wantsState(m, "one", "two")
}

// The power is cut before every write of the boot that exchanges the directories, and of
// the one that takes the snapshot: the next boot ends as one that was not cut. FAULTS 105
func TestCutStateGoesBack(t *testing.T) {
	m := machinetest.Migrated(t)
	m.GivesUp("test_2+2-1.efi", "test_2+0-1.efi")
	m.Runs(1)
	m.AsksBack(1, false)
	states, end := m.RecordOnce(mrand.New(mrand.NewPCG(105, 1)))
	if end != "system" || len(states) < 15 {
		t.Fatalf("%d states, ends in %s:\n%s", len(states), end, m.Said.String())
	}
	for _, s := range states {
		m.PowerOn(s.World)
		m.Said.Reset()
		if end := m.Run(); end != "system" {
			t.Fatalf("%s: ends in %s:\n%s", s.How, end, m.Said.String())
		}
		wantsState(m, "one", "two")
		if got := string(m.RootFiles()["snapshots/aside-a/var/lib/db"]); got != "two" || snapshot.Asked(machinetest.Store{M: m}, ownstate.RestoreNote) || (machinetest.Store{M: m}).Has("snapshots/next/") {
			t.Fatalf("%s: what was there is %q:\n%s", s.How, got, m.Said.String())
		}
	}
}

func TestCutSnapshot(t *testing.T) {
	m := machinetest.Migrated(t)
	m.Bless()
	m.Runs(2)
	m.Fetch(machinetest.NewRelease(t, 3, 5, machinetest.OnBtrfs))
	states, end := m.RecordOnce(mrand.New(mrand.NewPCG(105, 2)))
	if end != "reboot" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	for _, s := range states {
		m.PowerOn(s.World)
		m.Runs(3)
		wantsState(m, "two", "two")
		if r, err := snapshot.ReadRecord(machinetest.Store{M: m}); err != nil || r == nil || r.For != 3 || string(m.RootFiles()["snapshots/before/var/lib/db"]) != "two" {
			t.Fatalf("%s: record %+v, %v:\n%s", s.How, r, err, m.Said.String())
		}
		if (machinetest.Store{M: m}).Has(snapshot.Left + "/") {
			t.Fatalf("%s: the snapshot of a staging that was cut is kept:\n%s", s.How, m.Said.String())
		}
	}
}

// A release is staged where there can be no snapshot, and the boot says why.
func TestStagesWithoutSnapshot(t *testing.T) {
	for name, c := range map[string]struct {
		change func(m *machinetest.Machine)
		why    string
	}{
		"little room": {func(m *machinetest.Machine) { m.Room = snapshot.Room{Size: 100 << 30, Free: 9 << 30} }, "9216 MiB of the root partition's 102400 MiB are free"},
		"no room":     {func(m *machinetest.Machine) { m.FullFile = "snapshot bind/root" }, "no space left on device"},
		"plain directories": {func(m *machinetest.Machine) {
			m.RootFiles()["bind/var"], m.RootFiles()["bind/root"], m.RootFiles()["bind/usr-local"] = nil, nil, nil
		}, "are not subvolumes"},
	} {
		t.Run(name, func(t *testing.T) {
			m := machinetest.Migrated(t)
			m.Bless()
			m.Runs(2)
			c.change(m)
			m.Fetch(machinetest.NewRelease(t, 3, 5, machinetest.OnBtrfs))
			m.Runs(3, "WARNING: version 3 is tried without a snapshot of the state", c.why)
			if !m.JournalHas(journal.Staged, "without a snapshot of the state: ") || (machinetest.Store{M: m}).Has("snapshots/before/") {
				t.Errorf("the journal has %s", m.RootFiles()[bootjournal.File])
			}
		})
	}
}

// On ext4 nothing is looked for, and nothing said. So it is in what is staged.
func TestNoSnapshotOnExt4(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	m.RootFiles()[ownstate.RestoreNote] = []byte("{}")
	m.Runs(2)
	if strings.Contains(m.Said.String(), "snapshot") || (machinetest.Store{M: m}).Has("snapshots") || m.RootFiles()[ownstate.RestoreNote] == nil {
		t.Errorf("it says\n%s", m.Said.String())
	}
}

// The snapshot goes where room gets short, and the boot says so once: but not in a trial,
// nor under the system that it is of, since going back may be what is wanted.
func TestSnapshotGoesForRoom(t *testing.T) {
	m := machinetest.Migrated(t)
	m.Room = snapshot.Room{Size: 100 << 30, Free: 4 << 30}
	m.Runs(2, "WARNING: 4096 MiB", "`ota rollback --state` goes back to it")
	m.Bless()
	m.ByHand = 1
	m.Runs(1, "WARNING: 4096 MiB")
	m.ByHand = 0
	if !(machinetest.Store{M: m}).Has("snapshots/before/") || m.JournalHas(journal.State, "4096 MiB") {
		t.Errorf("the journal has %s", m.RootFiles()[bootjournal.File])
	}
	m.Runs(2, "WARNING: the snapshot from before version 2 was tried goes: 4096 MiB")
	if (machinetest.Store{M: m}).Has("snapshots/before/") || !m.JournalHas(journal.State, "the snapshot from before version 2") {
		t.Errorf("the journal has %s", m.RootFiles()[bootjournal.File])
	}
	m.Runs(2)
	if strings.Contains(m.Said.String(), "WARNING: the snapshot") {
		t.Errorf("it says so again:\n%s", m.Said.String())
	}
}

// A full disk lets no system start on what it was to be spared: the next start tries again.
func TestStateGoesBackWithoutRoom(t *testing.T) {
	m := machinetest.Migrated(t)
	m.GivesUp("test_2+2-1.efi", "test_2+0-1.efi")
	m.Runs(1)
	m.AsksBack(1, false)
	m.FullFile = "snapshots/plan.json"
	m.Ends("recovery", "restore-state FAILED", "nothing has changed yet")
	wantsState(m, "two", "two")
	m.FullFile = ""
	m.Owner = true
	if end := m.Run(); end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	wantsState(m, "one", "two")
}

// An exchange that does not come to its end lets no system run without its directories.
func TestStateNotExchanged(t *testing.T) {
	m := machinetest.Migrated(t)
	m.GivesUp("test_2+2-1.efi", "test_2+0-1.efi")
	m.Runs(1)
	m.AsksBack(1, false)
	m.FullFile = "rename snapshots/next/root"
	m.Ends("recovery", "restore-state FAILED", "the exchange that snapshots/plan.json describes is not complete", "`unlock`")
	m.FullFile = ""
	m.Owner = true
	if end := m.Run(); end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	wantsState(m, "one", "two")
}

// The snapshot from before a trial that has failed is not replaced by one of what it has left.
func TestSnapshotOfFailedTrialStays(t *testing.T) {
	m := machinetest.Migrated(t)
	m.GivesUp("test_2+2-1.efi", "test_2+0-1.efi")
	m.Runs(1)
	m.Fetch(machinetest.NewRelease(t, 3, 5, machinetest.OnBtrfs))
	m.Runs(3)
	left := ""
	for name, text := range m.RootFiles() {
		if strings.HasPrefix(name, snapshot.Left+"/20") && strings.HasSuffix(name, "-before-2-var/lib/db") {
			left = string(text)
		}
	}
	if left != "one" || string(m.RootFiles()["snapshots/before/var/lib/db"]) != "two" {
		t.Errorf("left is %q:\n%s", left, m.Said.String())
	}
	if !m.JournalHas(journal.State, "is the snapshot from before version 2 was tried, which has not lasted") {
		t.Errorf("the journal has %s", m.RootFiles()[bootjournal.File])
	}
}
