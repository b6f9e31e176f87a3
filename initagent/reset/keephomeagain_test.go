package reset_test

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"halogenos.internal/boot/journal"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/upper"
)

// Where nobody would stay, anyone who has confirmed it at the console is asked first: what was
// said there is that accounts stay.
func TestKeepHomeOfNobody(t *testing.T) {
	for typed, ends := range map[string]bool{"": false, "test": true} {
		m := machinetest.Lived(t)
		m.Edits(1, "passwd", machinetest.ImagePasswd)
		m.NotesKeepHome(keephome.Note{Stage: keephome.Confirmed})
		m.Typed = []string{typed}
		m.Printed.Reset()
		m.Ends("system")
		if says := m.Printed.String(); !strings.Contains(says, "would keep no\naccount") || !strings.Contains(says, "No account is kept") {
			t.Errorf("it says %q", says)
		}
		if gone := m.RootFiles()["bind/srv/y"] == nil; gone != ends || m.RootFiles()[keephome.Path] != nil {
			t.Errorf("%q: deleted: %v, the note is %q", typed, gone, m.RootFiles()[keephome.Path])
		}
	}
}

// Anyone who gives up what was begun, or is not there, gets the accounts that are left nowhere
// but in the note.
func TestKeepHomeGivenUpHalfWay(t *testing.T) {
	for how, typed := range map[string][]string{"nobody": nil, "Enter": {""}} {
		m := machinetest.Lived(t)
		n := keephome.Note{Stage: keephome.Deleting, After: "another", People: m.EtcPeople()}
		text, err := n.Encode()
		m.Must(err)
		m.RootFiles()[keephome.Path] = text
		maps.DeleteFunc(m.RootFiles(), func(name string, _ []byte) bool {
			return strings.HasPrefix(name, upper.Directory+"/") || strings.HasPrefix(name, upper.Unnamed+"/")
		})
		m.Typed = typed
		m.Ends("system", "keep-home FAILED")
		if !strings.Contains(m.UpperOf(1)["passwd"], machinetest.AnnasPasswd) || m.RootFiles()["bind/srv/y"] == nil || m.RootFiles()[keephome.Path] != nil {
			t.Errorf("%s: /etc is %q, the note %q", how, m.UpperOf(1), m.RootFiles()[keephome.Path])
		}
	}
}

// A boot that somebody ends while a reset is half done does not say that nothing was lost, and
// neither does the console after it.
func TestKeepHomeInterrupted(t *testing.T) {
	m := machinetest.Lived(t)
	m.NotesKeepHome(keephome.Note{Stage: keephome.Deleting, People: m.EtcPeople()})
	good := m.World(true, nil)
	m.Looks = 0
	m.Ends("system")
	looks, restarts := m.Looks, 0
	for press := 1; press <= looks; press++ {
		m.PowerOn(good)
		m.Presses, m.Looks = press, 0
		m.Said.Reset()
		end := m.Boot()
		if end != "reboot" || m.RootFiles()[keephome.Path] == nil {
			continue
		}
		restarts++
		m.Presses = 0
		if end = m.Boot(); end != "recovery" || strings.Contains(m.Said.String(), "nothing was lost") {
			t.Errorf("pressed at look %d: it ends in %s:\n%s", press, end, m.Said.String())
		}
	}
	if restarts == 0 {
		t.Error("it never restarts while the reset is half done")
	}
}

// Without a terminal to ask at the machine starts, and nothing is deleted.
func TestKeepHomeWithoutTerminal(t *testing.T) {
	m := machinetest.Lived(t)
	m.NoTerminal = errors.New("there is no terminal")
	m.RootFiles()[keephome.Path] = []byte(`{"format":1,"stage":"confirmed","after":"another"}`)
	m.Ends("system", "keep-home FAILED", "there is no terminal")
	if m.RootFiles()["bind/srv/y"] == nil {
		t.Error("something is deleted")
	}
}

// A directory beside /home whose name is like that of one in it stays, and is said.
func TestKeepHomeBeside(t *testing.T) {
	m := machinetest.Lived(t)
	m.RootFiles()["bind/home-old/x"] = []byte("x")
	m.AsksToKeepHome()
	m.Typed = []string{"test"}
	m.Ends("system", "keeps this, too, which may lie in /home: /run/state/bind/home-old")
	if m.RootFiles()["bind/home-old/x"] == nil || !m.JournalHas(journal.State, "bind/home-old") {
		t.Errorf("the journal has %s", m.RootFiles()[bootjournal.File])
	}
}

// A going back that cannot end, since its plan is damaged, keeps no reset from its end: that
// deletes the plan.
func TestKeepHomeBeforeGoingBack(t *testing.T) {
	m := machinetest.Migrated(t)
	m.GivesUp("test_2+2-1.efi", "test_2+0-1.efi")
	m.Runs(1)
	m.RootFiles()["snapshots/plan.json"] = []byte("{")
	m.NotesKeepHome(keephome.Note{Stage: keephome.Deleting})
	m.Ends("system")
	if (machinetest.Store{M: m}).Has("snapshots/") || m.RootFiles()[machinetest.DB] != nil || m.RootFiles()[keephome.Path] != nil {
		t.Errorf("something is left:\n%s", m.Said.String())
	}
}
