package agent

import (
	"maps"
	mrand "math/rand/v2"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/upper"
)

// upperOf is what a version's upper directory of /etc holds, without the list of conflicts.
func (m *machine) upperOf(v contract.Version) map[string]string {
	top, _ := upper.Overlay(m.releases[v].contract.Root().String(), "etc")
	out := map[string]string{}
	for name, text := range m.rootFiles() {
		if own, ok := strings.CutPrefix(name, top+"/"); ok && own != etcmerge.ListPath {
			out[own] = string(text)
		}
	}
	return out
}

// has reports whether a version has state of its own.
func (m *machine) has(v contract.Version) bool {
	_, work := upper.Overlay(m.releases[v].contract.Root().String(), "etc")
	_, there := m.rootFiles()[work+"/made"]
	return there
}

// edits writes a file of /etc in a version's system.
func (m *machine) edits(v contract.Version, name, text string) {
	top, _ := upper.Overlay(m.releases[v].contract.Root().String(), "etc")
	m.rootFiles()[top+"/"+name] = []byte(text)
}

// etcRelease is a release with an /etc.
func etcRelease(t testing.TB, v uint64, etc map[string]string) *edition {
	r := newRelease(t, v, 5, pinned)
	r.etc = etc
	return r
}

// inhabited is a machine whose owner has changed /etc of version 1, and whose fetcher
// has brought version 2.
func inhabited(t *testing.T) *machine {
	t.Helper()
	m := provisionedMachine(t, pinned)
	m.releases[1].etc = map[string]string{"motd": "one", "issue": "one", "removed": "one"}
	m.edits(1, "issue", "mine")
	m.edits(1, "removed", gone)
	m.fetch(etcRelease(t, 2, map[string]string{"motd": "two", "issue": "one", "removed": "one", "fresh": "two"}))
	return m
}

var mine = map[string]string{"issue": "mine", "removed": gone}

func (m *machine) wantsUpper(v contract.Version, want map[string]string) {
	m.t.Helper()
	if got := m.upperOf(v); !maps.Equal(got, want) {
		m.t.Errorf("/etc of version %s holds %q, want %q", v, got, want)
	}
}

// The trial gets an /etc of its own. It is given up, and the system before it has its own
// as it was. What is changed there is in the next release's, whose version is another,
// and after the bless that one counts. FAULTS 105
func TestStateOfTrials(t *testing.T) {
	m := inhabited(t)
	m.runs(2, "carry-state", "takes over the state of system")
	m.wantsUpper(2, mine)
	m.edits(2, "motd", "mine, in the trial")
	m.runs(2) // again: what it has stays
	m.wantsUpper(2, map[string]string{"issue": "mine", "removed": gone, "motd": "mine, in the trial"})
	m.wantsUpper(1, mine)
	m.byHand = 1 // while the trial still has tries
	m.runs(1, "settle-state")
	m.byHand = 0
	m.wantsUpper(1, mine)
	if m.has(2) {
		t.Error("the trial keeps its /etc, although the system before it runs")
	}
	m.edits(1, "issue", "mine, later")
	later := map[string]string{"issue": "mine, later", "removed": gone}
	m.runs(2, "carry-state")
	m.wantsUpper(2, later)
	for m.agent.Contract.Version == 2 {
		m.ends("system")
	}
	m.runs(1)
	m.wantsUpper(1, later)
	m.fetch(etcRelease(t, 3, map[string]string{"motd": "three", "issue": "one", "removed": "one"}))
	m.runs(3)
	m.wantsUpper(3, later)
	if m.has(2) {
		t.Error("a version that is skipped keeps its /etc")
	}
	m.bless()
	m.runs(3, "settle-state")
	if got := string(m.rootFiles()[upper.Blessed]); got != m.releases[1].contract.Root().String()+"\n"+m.releases[3].contract.Root().String()+"\n" {
		t.Errorf("the state of %q counts", got)
	}
	m.wantsUpper(1, later) // for a rollback
	m.edits(3, "motd", "three, mine")
	m.rename("test_3.efi", "test_3+0.efi") // as `ota rollback` does
	m.runs(1)
	m.wantsUpper(1, later)
	m.wantsUpper(3, map[string]string{"issue": "mine, later", "removed": gone, "motd": "three, mine"})
}

// Wherever it is cut, a trial that still has its state still has the list of the links
// that it has set: without it they are the other system's, and it would run with them.
func TestCutBetweenLinksAndState(t *testing.T) {
	m := inhabited(t)
	m.runs(2)
	links := upper.Directory + "/" + m.releases[2].contract.Root().String() + ".links"
	m.rootFiles()[links] = []byte("[]")
	m.byHand = 1
	states, end := m.recordOnce(mrand.New(mrand.NewPCG(18, 13)))
	if _, there := m.rootFiles()[links]; end != "system" || there || m.has(2) {
		t.Fatalf("ends in %s, state %v, links %v", end, m.has(2), there)
	}
	between := false
	for _, s := range states {
		m.powerOn(s.world)
		_, there := m.rootFiles()[links]
		if m.has(2) && !there {
			t.Errorf("%s: the state is there, and its links are not", s.how)
		}
		if between = between || there && !m.has(2); there && !m.has(2) {
			m.runs(1, "settle-state")
			if _, there := m.rootFiles()[links]; there {
				t.Errorf("%s: the links stay", s.how)
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
	stage := func(stuck func(m *machine) string, version uint64) (*machine, string) {
		m := inhabited(t)
		m.runs(2)
		m.bless()
		m.runs(2)
		m.rename("test_2.efi", "test_2+0.efi") // as `ota rollback` does
		m.runs(1)
		m.edits(2, "left", "from the first life")
		m.rootFiles()[ownstate.BlessedNote] = []byte("x")
		m.stuckFile = stuck(m)
		if version == 2 {
			m.deliver(m.parcel(m.releases[2]))
		} else {
			m.fetch(etcRelease(t, version, map[string]string{"motd": "three", "issue": "one", "removed": "one"}))
		}
		return m, m.boot()
	}
	of2 := func(m *machine) string { return upper.Directory + "/" + m.releases[2].contract.Root().String() }
	note := func(*machine) string { return ownstate.BlessedNote }
	for what, c := range map[string]struct {
		stuck   func(m *machine) string
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
				t.Fatalf("ends in %s, want %s:\n%s", end, c.end, m.said.String())
			}
			if end == "reboot" {
				m.runs(contract.Version(c.version), "carry-state")
				m.wantsUpper(contract.Version(c.version), mine)
				return
			}
			m.stuckFile = ""
			m.runs(2, "carry-state")
			m.wantsUpper(2, mine)
		})
	}
}

// A system that was blessed runs for weeks without a restart, and then another one starts:
// what it has changed stays, and counts where it was the last to run. FAULTS 105
func TestStateBlessedWithoutARestart(t *testing.T) {
	m := inhabited(t)
	m.runs(2)
	m.bless()
	m.edits(2, "motd", "two, mine")
	want := map[string]string{"issue": "mine", "removed": gone, "motd": "two, mine"}
	m.rename("test_2.efi", "test_2+0.efi") // as `ota rollback` does
	m.write(journal.Entry{Kind: journal.Rollback, Version: 2})
	m.runs(1, "settle-state")
	m.wantsUpper(2, want)
	one, two := m.releases[1].contract.Root().String(), m.releases[2].contract.Root().String()
	if got := string(m.rootFiles()[upper.Blessed]); got != two+"\n"+one+"\n" {
		t.Errorf("the state of %q counts", got)
	}
	m.runs(1)
	m.wantsUpper(2, want)
	// Fetched again it is a trial like any other.
	m.rootFiles()[bootjournal.File] = nil
	m.deliver(m.parcel(m.releases[2]))
	m.runs(2, "carry-state")
	m.wantsUpper(2, mine)
	m.byHand = 1
	m.runs(1)
	if m.has(2) {
		t.Error("the trial keeps its /etc, since it was blessed in an earlier life")
	}
}

// A blessing is cut after its note. The trial that falls back then has no state that
// counts: what changes after it is merged when it starts again.
func TestStateOfACutBlessing(t *testing.T) {
	m := inhabited(t)
	m.runs(2)
	m.rootFiles()[ownstate.BlessedNote] = []byte(m.releases[2].contract.Root().String() + "\n")
	m.edits(2, "motd", "mine, in the trial")
	m.runs(2) // it goes on
	m.wantsUpper(2, map[string]string{"issue": "mine", "removed": gone, "motd": "mine, in the trial"})
	m.byHand = 1
	m.runs(1, "settle-state")
	if m.has(2) {
		t.Error("the trial keeps its /etc")
	}
	m.edits(1, "issue", "mine, later")
	m.byHand = 0
	m.runs(2, "carry-state")
	m.wantsUpper(2, map[string]string{"issue": "mine, later", "removed": gone})
}

// A system that was blessed and never started again is the one that a system goes on from
// which is installed beside its root partition.
func TestStateAfterInstallingOverABlessedSystem(t *testing.T) {
	m := inhabited(t)
	m.runs(2)
	m.bless()
	m.edits(2, "motd", "mine")
	m.releases[3] = etcRelease(t, 3, map[string]string{"motd": "three", "issue": "one", "removed": "one"})
	m.owner = true
	m.powerOn(m.reinstalled(3))
	for range 3 {
		m.run()
	}
	if got := m.upperOf(3); got["motd"] != "mine" {
		t.Errorf("/etc holds %q:\n%s", got, m.said.String())
	}
}

// What is no note, and a note about a system without state, say nothing.
func TestForgedBlessing(t *testing.T) {
	m := inhabited(t)
	for _, text := range []string{"../../etc", strings.Repeat("a", 64), strings.Repeat("\x00", ownstate.MaxBlessed+1)} {
		m.rootFiles()[ownstate.BlessedNote] = []byte(text)
		m.ends("system")
		found, err := ownstate.Known(&m.agent.Host)
		if m.must(err); found.Noted != "" {
			t.Errorf("%.20q: %q was blessed", text, found.Noted)
		}
	}
}

// The same version, fetched again after its trial failed, merges what is there then.
func TestStateOfTheSameVersionAgain(t *testing.T) {
	m := inhabited(t)
	m.runs(2)
	for m.agent.Contract.Version == 2 {
		m.ends("system")
	}
	m.edits(1, "issue", "mine, later")
	m.edits(2, "left", "from the first trial") // as a cut leaves it
	m.rootFiles()[bootjournal.File] = nil      // somebody wants it again
	m.deliver(m.parcel(m.releases[2]))
	m.runs(2, "carry-state")
	m.wantsUpper(2, map[string]string{"issue": "mine, later", "removed": gone})
}

// What a release before kept for all systems cannot be read. A blessed system that has its
// own state does not need it.
func TestStateBesideAnUnreadableOne(t *testing.T) {
	m := inhabited(t)
	m.runs(2)
	m.bless()
	m.runs(2)
	m.unreadableFile = upper.Unnamed
	m.runs(2, "what was kept for all systems cannot be read")
	m.fetch(etcRelease(t, 3, map[string]string{"motd": "three"}))
	m.unreadableFile = ""
	m.runs(3)
}

// The image that the state lies on cannot be had: all that was changed stays, and the
// boot says so. FAULTS 105
func TestStateWithoutTheOtherSlot(t *testing.T) {
	m := inhabited(t)
	if end := m.boot(); end != "reboot" {
		t.Fatal(end)
	}
	old, err := m.partition(layout.SlotA.SystemNumber())
	m.must(err)
	_, err = old.WriteAt([]byte{0xff}, 3*verity.BlockSize+7)
	m.must(err)
	m.must(m.disk.Sync())
	m.runs(2, "the image of the system before cannot be had")
	if got := m.upperOf(2); got["issue"] != "mine" || got["removed"] != gone {
		t.Errorf("/etc holds %q", got)
	}
	m.wantsUpper(1, mine)
}

// There is no room for it: the trial is given up, and the system before it has what it
// had. That says nothing of the version, which runs once there is room. FAULTS 105
func TestNoRoomForState(t *testing.T) {
	m := inhabited(t)
	if end := m.boot(); end != "reboot" {
		t.Fatal(end)
	}
	m.fullFile = upper.Directory
	m.runs(1, "carry-state FAILED", "no space left on device")
	m.wantsUpper(1, mine)
	if m.has(2) {
		t.Error("the trial has state")
	}
	m.runs(1)
	if _, failed := m.failed()[2]; failed {
		t.Errorf("failed are %v", m.failed())
	}
	m.fullFile = ""
	m.deliver(m.parcel(m.releases[2]))
	m.runs(2, "carry-state")
	m.wantsUpper(2, mine)
}

// A system installed beside a root partition that was kept goes on with the state of
// the one that ran last.
func TestStateAfterInstallingAgain(t *testing.T) {
	m := inhabited(t)
	m.runs(2)
	m.bless()
	m.runs(2)
	m.edits(2, "motd", "mine")
	m.releases[3] = etcRelease(t, 3, map[string]string{"motd": "three", "issue": "one", "removed": "one"})
	m.owner = true
	m.powerOn(m.reinstalled(3))
	for range 3 {
		m.run()
	}
	if m.agent.Contract.Version != 3 || m.openVolume == nil {
		t.Fatalf("version %s runs:\n%s", m.agent.Contract.Version, m.said.String())
	}
	got := m.upperOf(3)
	if got["motd"] != "mine" || got["issue"] != "mine" || got["removed"] != gone {
		t.Errorf("/etc holds %q:\n%s", got, m.said.String())
	}
	if c := m.carried[len(m.carried)-1]; c.Base != "" {
		t.Errorf("with %s as the image before", c.Base)
	}
}

// An attacker who puts another image into the other slot, with a UKI of their own beside it, does
// not choose what is held to be unchanged.
func TestStrangersImageBefore(t *testing.T) {
	m := inhabited(t)
	if end := m.boot(); end != "reboot" {
		t.Fatal(end)
	}
	m.unnamed()
	stranger := etcRelease(t, 1, map[string]string{"issue": "mine"}) // so that it counts as unchanged
	m.esp.files["EFI/Linux/test_1.efi"].now.data = stranger.uki
	m.runs(2, "the image of the system before cannot be had")
	if got := m.upperOf(2); got["issue"] != "mine" {
		t.Errorf("/etc holds %q", got)
	}
}
