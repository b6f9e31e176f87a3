package agent

import (
	"maps"
	"strings"
	"testing"

	"halogenos.internal/boot/journal"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/upper"
)

// unnamed makes the machine's state that of a release with one /etc for all systems.
func (m *machine) unnamed() map[string][]byte {
	own := map[string][]byte{}
	for name, text := range m.upperOf(1) {
		own["overlay/etc/upper/"+name] = []byte(text)
	}
	maps.DeleteFunc(m.rootFiles(), func(name string, _ []byte) bool { return strings.HasPrefix(name, upper.Directory+"/") })
	maps.Copy(m.rootFiles(), own)
	return own
}

// A machine whose release kept one /etc for all systems: the first update to this one
// takes it over, and leaves it alone for as long as there is something to fall back to.
func TestStateOfAnEarlierRelease(t *testing.T) {
	m := inhabited(t)
	end := m.boot() // it stages
	if end != "reboot" {
		t.Fatal(end)
	}
	old := m.unnamed()
	untouched := func() {
		t.Helper()
		for name, text := range old {
			if string(m.rootFiles()[name]) != string(text) {
				t.Errorf("%s is %q, and was %q", name, m.rootFiles()[name], text)
			}
		}
	}
	m.runs(2, "takes over the state that was kept for all systems")
	m.wantsUpper(2, mine)
	if c := m.carried[len(m.carried)-1]; c.Base == "" {
		t.Error("without the image that it lies on")
	}
	untouched()
	m.bless()
	m.runs(2)
	untouched()
	m.fetch(etcRelease(t, 3, map[string]string{"motd": "three"}))
	m.runs(3)
	if left, _ := (store{m}).Names(upper.Unnamed); len(left) > 0 {
		t.Errorf("%q is left, which nothing opens any more", left)
	}
	if got := m.upperOf(3); got["issue"] != "mine" {
		t.Errorf("/etc of version 3 holds %q", got)
	}
}

// What one /etc for all systems lacks of its image, nobody has deleted: a system user that
// it hid comes in. What a system's own lacks somebody has deleted, and it stays so.
func TestStateThatHidUsers(t *testing.T) {
	const root, me, daemon = "root:x:0:0::/root:/bin/sh\n", "me:x:1000:1000::/home/me:/bin/sh\n", "daemon:x:990:990::/:/bin/false\n"
	for name, want := range map[string]string{"one for all systems": root + me + daemon, "its own": root + me} {
		m := provisionedMachine(t, pinned)
		m.releases[1].etc = map[string]string{"passwd": root + daemon}
		m.edits(1, "passwd", root+me)
		m.fetch(etcRelease(t, 2, map[string]string{"passwd": root + daemon}))
		if end := m.boot(); end != "reboot" {
			t.Fatal(end)
		}
		if name != "its own" {
			m.unnamed()
		}
		m.runs(2, "carry-state")
		if got := m.upperOf(2)["passwd"]; got != want {
			t.Errorf("%s: passwd is %q, want %q", name, got, want)
		}
	}
}

// A release that keeps one /etc for all systems stages a version again whose trial it has
// given up before. It does not know what that trial has left.
func TestStateLeftByAnEarlierTrial(t *testing.T) {
	m := inhabited(t)
	if end := m.boot(); end != "reboot" {
		t.Fatal(end)
	}
	m.unnamed()
	m.edits(2, "left", "from the first trial")
	_, work := upper.Overlay(m.releases[2].contract.Root().String(), "etc")
	m.rootFiles()[work+"/made"] = nil
	m.runs(2, "carry-state")
	m.wantsUpper(2, mine)
	m.edits(2, "motd", "mine, in the trial")
	m.runs(2)
	m.wantsUpper(2, map[string]string{"issue": "mine", "removed": gone, "motd": "mine, in the trial"})
}

// The same where the first try is cut before it looks at the state.
func TestStateLeftByAnEarlierTrialAndACut(t *testing.T) {
	m := inhabited(t)
	if end := m.boot(); end != "reboot" {
		t.Fatal(end)
	}
	m.unnamed()
	m.edits(2, "left", "from the first trial")
	own := upper.Directory + "/" + m.releases[2].contract.Root().String()
	_, work := upper.Overlay(m.releases[2].contract.Root().String(), "etc")
	m.rootFiles()[work+"/made"] = nil
	m.rootFiles()[own+"/"+upper.Mark] = []byte("an earlier boot 2026-01-02T03:04:05Z")
	m.rename("test_2+3.efi", "test_2+2-1.efi")
	m.runs(2, "carry-state")
	m.wantsUpper(2, mine)
	m.edits(2, "motd", "mine, in the trial")
	m.runs(2)
	m.wantsUpper(2, map[string]string{"issue": "mine", "removed": gone, "motd": "mine, in the trial"})
}

// A system that was blessed is given up for one of a release that keeps one /etc for all.
// What its owner changes there for weeks is merged when that release stages the blessed
// system again.
func TestStateOfABlessedSystemStagedByAnEarlierRelease(t *testing.T) {
	for _, cut := range []bool{false, true} {
		m := inhabited(t)
		if end := m.boot(); end != "reboot" {
			t.Fatal(end)
		}
		m.unnamed()
		m.edits(2, "motd", "from the first life")
		root := m.releases[2].contract.Root().String()
		_, work := upper.Overlay(root, "etc")
		m.rootFiles()[work+"/made"] = nil
		m.rootFiles()[upper.Directory+"/"+root+"/"+upper.Mark] = []byte("an earlier boot 2026-01-02T03:04:05Z")
		m.rootFiles()[upper.Blessed] = []byte(root + "\n")
		m.rootFiles()[ownstate.BlessedNote] = []byte(root + "\n")
		m.rootFiles()["overlay/etc/upper/issue"] = []byte("mine, after the rollback")
		if cut {
			m.rename("test_2+3.efi", "test_2+2-1.efi") // in the first try, before it looks at the state
		}
		m.runs(2, "carry-state")
		want := map[string]string{"issue": "mine, after the rollback", "removed": gone}
		m.wantsUpper(2, want)
		found, err := ownstate.Known(&m.agent.Host)
		if m.must(err); found.Proven(root) {
			t.Error("the trial counts as blessed")
		}
		m.edits(2, "motd", "mine, in the trial")
		m.runs(2)
		m.wantsUpper(2, map[string]string{"issue": "mine, after the rollback", "removed": gone, "motd": "mine, in the trial"})
	}
}

// A system that was blessed keeps its state where somebody starts it by hand after `ota
// rollback`, and where its blessing was cut.
func TestStateOfABlessedSystemBesideAnEarlierRelease(t *testing.T) {
	for _, name := range []string{"test_2+0.efi", "test_2+1-2.efi"} {
		m := inhabited(t)
		if end := m.boot(); end != "reboot" {
			t.Fatal(end)
		}
		m.unnamed()
		m.runs(2)
		m.bless()
		m.edits(2, "motd", "mine")
		m.rename("test_2.efi", name)
		m.write(journal.Entry{Kind: journal.Boot, Version: 1}) // of the earlier release
		m.byHand = 2
		m.runs(2)
		m.wantsUpper(2, map[string]string{"issue": "mine", "removed": gone, "motd": "mine"})
	}
}

// While the first trial of this release has tries, somebody starts the earlier release by
// hand. What is changed there is merged.
func TestStateAfterTheEarlierReleaseRan(t *testing.T) {
	m := inhabited(t)
	if end := m.boot(); end != "reboot" {
		t.Fatal(end)
	}
	m.unnamed()
	m.runs(2)
	m.rootFiles()["overlay/etc/upper/issue"] = []byte("mine, by hand") // under version 1
	m.write(journal.Entry{Kind: journal.Boot, Version: 1})
	m.runs(2, "carry-state")
	m.wantsUpper(2, map[string]string{"issue": "mine, by hand", "removed": gone})
}
