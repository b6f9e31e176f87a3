package ownstate_test

import (
	mrand "math/rand/v2"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/upper"
)

// has reports whether a version has state of its own.
func has(m *machinetest.Machine, v contract.Version) bool {
	_, work := upper.Overlay(m.Releases[v].Contract.Root().String(), "etc")
	_, there := m.RootFiles()[work+"/made"]
	return there
}

// The trial gets an /etc of its own. It is given up, and the system before it has its own
// as it was. What is changed there is in the next release's, whose version is another,
// and after the bless that one counts. FAULTS 105
func TestStateOfTrials(t *testing.T) {
	m := machinetest.Inhabited(t)
	m.Runs(2, "carry-state", "takes over the state of system")
	m.WantsUpper(2, machinetest.Mine)
	m.Edits(2, "motd", "mine, in the trial")
	m.Runs(2) // again: what it has stays
	m.WantsUpper(2, map[string]string{"issue": "mine", "removed": machinetest.Gone, "motd": "mine, in the trial"})
	m.WantsUpper(1, machinetest.Mine)
	m.ByHand = 1 // while the trial still has tries
	m.Runs(1, "settle-state")
	m.ByHand = 0
	m.WantsUpper(1, machinetest.Mine)
	if has(m, 2) {
		t.Error("the trial keeps its /etc, although the system before it runs")
	}
	m.Edits(1, "issue", "mine, later")
	later := map[string]string{"issue": "mine, later", "removed": machinetest.Gone}
	m.Runs(2, "carry-state")
	m.WantsUpper(2, later)
	for m.Agent.Contract.Version == 2 {
		m.Ends("system")
	}
	m.Runs(1)
	m.WantsUpper(1, later)
	m.Fetch(machinetest.EtcRelease(t, 3, map[string]string{"motd": "three", "issue": "one", "removed": "one"}))
	m.Runs(3)
	m.WantsUpper(3, later)
	if has(m, 2) {
		t.Error("a version that is skipped keeps its /etc")
	}
	m.Bless()
	m.Runs(3, "settle-state")
	if got := string(m.RootFiles()[upper.Blessed]); got != m.Releases[1].Contract.Root().String()+"\n"+m.Releases[3].Contract.Root().String()+"\n" {
		t.Errorf("the state of %q counts", got)
	}
	m.WantsUpper(1, later) // for a rollback
	m.Edits(3, "motd", "three, mine")
	m.Rename("test_3.efi", "test_3+0.efi") // as `ota rollback` does
	m.Runs(1)
	m.WantsUpper(1, later)
	m.WantsUpper(3, map[string]string{"issue": "mine, later", "removed": machinetest.Gone, "motd": "three, mine"})
}

// Wherever it is cut, a trial that still has its state still has the list of the links
// that it has set: without it they are the other system's, and it would run with them.
func TestCutBetweenLinksAndState(t *testing.T) {
	m := machinetest.Inhabited(t)
	m.Runs(2)
	links := upper.Directory + "/" + m.Releases[2].Contract.Root().String() + ".links"
	m.RootFiles()[links] = []byte("[]")
	m.ByHand = 1
	states, end := m.RecordOnce(mrand.New(mrand.NewPCG(18, 13)))
	if _, there := m.RootFiles()[links]; end != "system" || there || has(m, 2) {
		t.Fatalf("ends in %s, state %v, links %v", end, has(m, 2), there)
	}
	between := false
	for _, s := range states {
		m.PowerOn(s.World)
		_, there := m.RootFiles()[links]
		if has(m, 2) && !there {
			t.Errorf("%s: the state is there, and its links are not", s.How)
		}
		if between = between || there && !has(m, 2); there && !has(m, 2) {
			m.Runs(1, "settle-state")
			if _, there := m.RootFiles()[links]; there {
				t.Errorf("%s: the links stay", s.How)
			}
		}
	}
	if !between {
		t.Error("no cut came between the two")
	}
}

// What cannot be removed of a system that is given up keeps no release from being staged,
// unless it is what that release would start on.
func TestStateThatCannotBeRemoved(t *testing.T) {
	stage := func(stuck func(m *machinetest.Machine) string, version uint64) (*machinetest.Machine, string) {
		m := machinetest.Inhabited(t)
		m.Runs(2)
		m.Bless()
		m.Runs(2)
		m.Rename("test_2.efi", "test_2+0.efi") // as `ota rollback` does
		m.Runs(1)
		m.Edits(2, "left", "from the first life")
		m.RootFiles()[ownstate.BlessedNote] = []byte("x")
		m.StuckFile = stuck(m)
		if version == 2 {
			m.Deliver(m.Parcel(m.Releases[2]))
		} else {
			m.Fetch(machinetest.EtcRelease(t, version, map[string]string{"motd": "three", "issue": "one", "removed": "one"}))
		}
		return m, m.Boot()
	}
	of2 := func(m *machinetest.Machine) string {
		return upper.Directory + "/" + m.Releases[2].Contract.Root().String()
	}
	note := func(*machinetest.Machine) string { return ownstate.BlessedNote }
	for what, c := range map[string]struct {
		stuck   func(m *machinetest.Machine) string
		version uint64
		end     string
	}{
		"the note":                          {note, 3, "reboot"},
		"another system's state":            {of2, 3, "reboot"},
		"the state of the one that is next": {of2, 2, "system"},
	} {
		t.Run(what, func(t *testing.T) {
			m, end := stage(c.stuck, c.version)
			if end != c.end {
				t.Fatalf("ends in %s, want %s:\n%s", end, c.end, m.Said.String())
			}
			if end == "reboot" {
				m.Runs(contract.Version(c.version), "carry-state")
				m.WantsUpper(contract.Version(c.version), machinetest.Mine)
				return
			}
			m.StuckFile = ""
			m.Runs(2, "carry-state")
			m.WantsUpper(2, machinetest.Mine)
		})
	}
}

// A system that was blessed runs for weeks without a restart, and then another one starts:
// what it has changed stays, and counts where it was the last to run. FAULTS 105
func TestStateBlessedWithoutARestart(t *testing.T) {
	m := machinetest.Inhabited(t)
	m.Runs(2)
	m.Bless()
	m.Edits(2, "motd", "two, mine")
	want := map[string]string{"issue": "mine", "removed": machinetest.Gone, "motd": "two, mine"}
	m.Rename("test_2.efi", "test_2+0.efi") // as `ota rollback` does
	m.Write(journal.Entry{Kind: journal.Rollback, Version: 2})
	m.Runs(1, "settle-state")
	m.WantsUpper(2, want)
	one, two := m.Releases[1].Contract.Root().String(), m.Releases[2].Contract.Root().String()
	if got := string(m.RootFiles()[upper.Blessed]); got != two+"\n"+one+"\n" {
		t.Errorf("the state of %q counts", got)
	}
	m.Runs(1)
	m.WantsUpper(2, want)
	// Fetched again it is a trial like any other.
	m.RootFiles()[bootjournal.File] = nil
	m.Deliver(m.Parcel(m.Releases[2]))
	m.Runs(2, "carry-state")
	m.WantsUpper(2, machinetest.Mine)
	m.ByHand = 1
	m.Runs(1)
	if has(m, 2) {
		t.Error("the trial keeps its /etc, since it was blessed in an earlier life")
	}
}

// A blessing is cut after its note. The trial that falls back then has no state that
// counts: what changes after it is merged when it starts again.
func TestStateOfACutBlessing(t *testing.T) {
	m := machinetest.Inhabited(t)
	m.Runs(2)
	m.RootFiles()[ownstate.BlessedNote] = []byte(m.Releases[2].Contract.Root().String() + "\n")
	m.Edits(2, "motd", "mine, in the trial")
	m.Runs(2) // it goes on
	m.WantsUpper(2, map[string]string{"issue": "mine", "removed": machinetest.Gone, "motd": "mine, in the trial"})
	m.ByHand = 1
	m.Runs(1, "settle-state")
	if has(m, 2) {
		t.Error("the trial keeps its /etc")
	}
	m.Edits(1, "issue", "mine, later")
	m.ByHand = 0
	m.Runs(2, "carry-state")
	m.WantsUpper(2, map[string]string{"issue": "mine, later", "removed": machinetest.Gone})
}

// A system that was blessed and never started again is the one that a system goes on from
// which is installed beside its root partition.
func TestStateAfterInstallingOverABlessedSystem(t *testing.T) {
	m := machinetest.Inhabited(t)
	m.Runs(2)
	m.Bless()
	m.Edits(2, "motd", "mine")
	m.Releases[3] = machinetest.EtcRelease(t, 3, map[string]string{"motd": "three", "issue": "one", "removed": "one"})
	m.Owner = true
	m.PowerOn(m.Reinstalled(3))
	for range 3 {
		m.Run()
	}
	if got := m.UpperOf(3); got["motd"] != "mine" {
		t.Errorf("/etc holds %q:\n%s", got, m.Said.String())
	}
}

// What is not a note, and a note about a system without state, say nothing.
func TestForgedBlessing(t *testing.T) {
	m := machinetest.Inhabited(t)
	for _, text := range []string{"../../etc", strings.Repeat("a", 64), strings.Repeat("\x00", ownstate.MaxBlessed+1)} {
		m.RootFiles()[ownstate.BlessedNote] = []byte(text)
		m.Ends("system")
		found, err := ownstate.Known(&m.Agent.Host)
		if m.Must(err); found.Noted != "" {
			t.Errorf("%.20q: %q was blessed", text, found.Noted)
		}
	}
}

// The same version, fetched again after its trial failed, merges what is there then.
func TestStateOfTheSameVersionAgain(t *testing.T) {
	m := machinetest.Inhabited(t)
	m.Runs(2)
	for m.Agent.Contract.Version == 2 {
		m.Ends("system")
	}
	m.Edits(1, "issue", "mine, later")
	m.Edits(2, "left", "from the first trial") // as a cut leaves it
	m.RootFiles()[bootjournal.File] = nil      // somebody wants it again
	m.Deliver(m.Parcel(m.Releases[2]))
	m.Runs(2, "carry-state")
	m.WantsUpper(2, map[string]string{"issue": "mine, later", "removed": machinetest.Gone})
}

// What a release before kept for all systems cannot be read. A blessed system that has its
// own state does not need it.
func TestStateBesideAnUnreadableOne(t *testing.T) {
	m := machinetest.Inhabited(t)
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	m.UnreadableFile = upper.Unnamed
	m.Runs(2, "what was kept for all systems cannot be read")
	m.Fetch(machinetest.EtcRelease(t, 3, map[string]string{"motd": "three"}))
	m.UnreadableFile = ""
	m.Runs(3)
}

// The image that the state lies on cannot be had: all that was changed stays, and the
// boot says so. FAULTS 105
func TestStateWithoutTheOtherSlot(t *testing.T) {
	m := machinetest.Inhabited(t)
	if end := m.Boot(); end != "reboot" {
		t.Fatal(end)
	}
	old, err := m.Partition(layout.SlotA.System())
	m.Must(err)
	_, err = old.WriteAt([]byte{0xff}, 3*verity.BlockSize+7)
	m.Must(err)
	m.Must(m.Disk.Sync())
	m.Runs(2, "the image of the system before cannot be had")
	if got := m.UpperOf(2); got["issue"] != "mine" || got["removed"] != machinetest.Gone {
		t.Errorf("/etc holds %q", got)
	}
	m.WantsUpper(1, machinetest.Mine)
}

// There is no room for it: the trial is given up, and the system before it has what it
// had. That says nothing of the version, which runs once there is room. FAULTS 105
func TestNoRoomForState(t *testing.T) {
	m := machinetest.Inhabited(t)
	if end := m.Boot(); end != "reboot" {
		t.Fatal(end)
	}
	m.FullFile = upper.Directory
	m.Runs(1, "carry-state FAILED", "no space left on device")
	m.WantsUpper(1, machinetest.Mine)
	if has(m, 2) {
		t.Error("the trial has state")
	}
	m.Runs(1)
	if _, failed := m.Failed()[2]; failed {
		t.Errorf("failed are %v", m.Failed())
	}
	m.FullFile = ""
	m.Deliver(m.Parcel(m.Releases[2]))
	m.Runs(2, "carry-state")
	m.WantsUpper(2, machinetest.Mine)
}

// A system installed beside a root partition that was kept goes on with the state of
// the one that ran last.
func TestStateAfterInstallingAgain(t *testing.T) {
	m := machinetest.Inhabited(t)
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	m.Edits(2, "motd", "mine")
	m.Releases[3] = machinetest.EtcRelease(t, 3, map[string]string{"motd": "three", "issue": "one", "removed": "one"})
	m.Owner = true
	m.PowerOn(m.Reinstalled(3))
	for range 3 {
		m.Run()
	}
	if m.Agent.Contract.Version != 3 || m.OpenVolume == nil {
		t.Fatalf("version %s runs:\n%s", m.Agent.Contract.Version, m.Said.String())
	}
	got := m.UpperOf(3)
	if got["motd"] != "mine" || got["issue"] != "mine" || got["removed"] != machinetest.Gone {
		t.Errorf("/etc holds %q:\n%s", got, m.Said.String())
	}
	if c := m.Carried[len(m.Carried)-1]; c.Base != "" {
		t.Errorf("with %s as the image before", c.Base)
	}
}

// An attacker who puts another image into the other slot, with a UKI of their own beside it, does
// not choose what is held to be unchanged.
func TestStrangersImageBefore(t *testing.T) {
	m := machinetest.Inhabited(t)
	if end := m.Boot(); end != "reboot" {
		t.Fatal(end)
	}
	m.Unnamed()
	stranger := machinetest.EtcRelease(t, 1, map[string]string{"issue": "mine"}) // so that it counts as unchanged
	m.ESP.Files["EFI/Linux/test_1.efi"].Now.Data = stranger.UKI
	m.Runs(2, "the image of the system before cannot be had")
	if got := m.UpperOf(2); got["issue"] != "mine" {
		t.Errorf("/etc holds %q", got)
	}
}
