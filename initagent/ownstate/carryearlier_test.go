package ownstate_test

import (
	"testing"

	"halogenos.internal/boot/journal"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/upper"
)

// A machine whose release kept one /etc for all systems: the first update to this one
// takes it over, and leaves it alone for as long as there is something to fall back to.
func TestStateOfAnEarlierRelease(t *testing.T) {
	m := machinetest.Inhabited(t)
	end := m.Boot() // it stages
	if end != "reboot" {
		t.Fatal(end)
	}
	old := m.Unnamed()
	untouched := func() {
		t.Helper()
		for name, text := range old {
			if string(m.RootFiles()[name]) != string(text) {
				t.Errorf("%s is %q, and was %q", name, m.RootFiles()[name], text)
			}
		}
	}
	m.Runs(2, "takes over the state that was kept for all systems")
	m.WantsUpper(2, machinetest.Mine)
	if c := m.Carried[len(m.Carried)-1]; c.Base == "" {
		t.Error("without the image that it lies on")
	}
	untouched()
	m.Bless()
	m.Runs(2)
	untouched()
	m.Fetch(machinetest.EtcRelease(t, 3, map[string]string{"motd": "three"}))
	m.Runs(3)
	if left, _ := (machinetest.Store{M: m}).Names(upper.Unnamed); len(left) > 0 {
		t.Errorf("%q is left, which nothing opens any more", left)
	}
	if got := m.UpperOf(3); got["issue"] != "mine" {
		t.Errorf("/etc of version 3 holds %q", got)
	}
}

// What one /etc for all systems lacks of its image, nobody has deleted: a system user that
// it hid comes in. What a system's own lacks somebody has deleted, and it stays so.
func TestStateThatHidUsers(t *testing.T) {
	const root, me, daemon = "root:x:0:0::/root:/bin/sh\n", "me:x:1000:1000::/home/me:/bin/sh\n", "daemon:x:990:990::/:/bin/false\n"
	for name, want := range map[string]string{"one for all systems": root + me + daemon, "its own": root + me} {
		m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
		m.Releases[1].Etc = map[string]string{"passwd": root + daemon}
		m.Edits(1, "passwd", root+me)
		m.Fetch(machinetest.EtcRelease(t, 2, map[string]string{"passwd": root + daemon}))
		if end := m.Boot(); end != "reboot" {
			t.Fatal(end)
		}
		if name != "its own" {
			m.Unnamed()
		}
		m.Runs(2, "carry-state")
		if got := m.UpperOf(2)["passwd"]; got != want {
			t.Errorf("%s: passwd is %q, want %q", name, got, want)
		}
	}
}

// A release that keeps one /etc for all systems stages a version again whose trial it has
// given up before. It does not know what that trial has left.
func TestStateLeftByAnEarlierTrial(t *testing.T) {
	m := machinetest.Inhabited(t)
	if end := m.Boot(); end != "reboot" {
		t.Fatal(end)
	}
	m.Unnamed()
	m.Edits(2, "left", "from the first trial")
	_, work := upper.Overlay(m.Releases[2].Contract.Root().String(), "etc")
	m.RootFiles()[work+"/made"] = nil
	m.Runs(2, "carry-state")
	m.WantsUpper(2, machinetest.Mine)
	m.Edits(2, "motd", "mine, in the trial")
	m.Runs(2)
	m.WantsUpper(2, map[string]string{"issue": "mine", "removed": machinetest.Gone, "motd": "mine, in the trial"})
}

// The same where the first try is cut before it looks at the state.
func TestStateLeftByAnEarlierTrialAndACut(t *testing.T) {
	m := machinetest.Inhabited(t)
	if end := m.Boot(); end != "reboot" {
		t.Fatal(end)
	}
	m.Unnamed()
	m.Edits(2, "left", "from the first trial")
	own := upper.Directory + "/" + m.Releases[2].Contract.Root().String()
	_, work := upper.Overlay(m.Releases[2].Contract.Root().String(), "etc")
	m.RootFiles()[work+"/made"] = nil
	m.RootFiles()[own+"/"+upper.Mark] = []byte("an earlier boot 2026-01-02T03:04:05Z")
	m.Rename("test_2+3.efi", "test_2+2-1.efi")
	m.Runs(2, "carry-state")
	m.WantsUpper(2, machinetest.Mine)
	m.Edits(2, "motd", "mine, in the trial")
	m.Runs(2)
	m.WantsUpper(2, map[string]string{"issue": "mine", "removed": machinetest.Gone, "motd": "mine, in the trial"})
}

// A system that was blessed is given up for one of a release that keeps one /etc for all.
// What its owner changes there for weeks is merged when that release stages the blessed
// system again.
func TestStateOfABlessedSystemStagedByAnEarlierRelease(t *testing.T) {
	for _, cut := range []bool{false, true} {
		m := machinetest.Inhabited(t)
		if end := m.Boot(); end != "reboot" {
			t.Fatal(end)
		}
		m.Unnamed()
		m.Edits(2, "motd", "from the first life")
		root := m.Releases[2].Contract.Root().String()
		_, work := upper.Overlay(root, "etc")
		m.RootFiles()[work+"/made"] = nil
		m.RootFiles()[upper.Directory+"/"+root+"/"+upper.Mark] = []byte("an earlier boot 2026-01-02T03:04:05Z")
		m.RootFiles()[upper.Blessed] = []byte(root + "\n")
		m.RootFiles()[ownstate.BlessedNote] = []byte(root + "\n")
		m.RootFiles()["overlay/etc/upper/issue"] = []byte("mine, after the rollback")
		if cut {
			m.Rename("test_2+3.efi", "test_2+2-1.efi") // in the first try, before it looks at the state
		}
		m.Runs(2, "carry-state")
		want := map[string]string{"issue": "mine, after the rollback", "removed": machinetest.Gone}
		m.WantsUpper(2, want)
		found, err := ownstate.Known(&m.Agent.Host)
		if m.Must(err); found.Proven(root) {
			t.Error("the trial counts as blessed")
		}
		m.Edits(2, "motd", "mine, in the trial")
		m.Runs(2)
		m.WantsUpper(2, map[string]string{"issue": "mine, after the rollback", "removed": machinetest.Gone, "motd": "mine, in the trial"})
	}
}

// A system that was blessed keeps its state where somebody starts it by hand after `ota
// rollback`, and where its blessing was cut.
func TestStateOfABlessedSystemBesideAnEarlierRelease(t *testing.T) {
	for _, name := range []string{"test_2+0.efi", "test_2+1-2.efi"} {
		m := machinetest.Inhabited(t)
		if end := m.Boot(); end != "reboot" {
			t.Fatal(end)
		}
		m.Unnamed()
		m.Runs(2)
		m.Bless()
		m.Edits(2, "motd", "mine")
		m.Rename("test_2.efi", name)
		m.Write(journal.Entry{Kind: journal.Boot, Version: 1}) // of the earlier release
		m.ByHand = 2
		m.Runs(2)
		m.WantsUpper(2, map[string]string{"issue": "mine", "removed": machinetest.Gone, "motd": "mine"})
	}
}

// While the first trial of this release has tries, somebody starts the earlier release by
// hand. What is changed there is merged.
func TestStateAfterTheEarlierReleaseRan(t *testing.T) {
	m := machinetest.Inhabited(t)
	if end := m.Boot(); end != "reboot" {
		t.Fatal(end)
	}
	m.Unnamed()
	m.Runs(2)
	m.RootFiles()["overlay/etc/upper/issue"] = []byte("mine, by hand") // under version 1
	m.Write(journal.Entry{Kind: journal.Boot, Version: 1})
	m.Runs(2, "carry-state")
	m.WantsUpper(2, map[string]string{"issue": "mine, by hand", "removed": machinetest.Gone})
}
