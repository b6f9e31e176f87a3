package agent

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"halogenos.internal/boot/journal"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/upper"
)

// notesKeepHome leaves a note of a reset that was begun since the last start.
func (m *machine) notesKeepHome(n keephome.Note) {
	m.t.Helper()
	n.After = keephome.LastStart(journal.Parse(m.rootFiles()[bootjournal.File]))
	text, err := n.Encode()
	m.must(err)
	m.rootFiles()[keephome.Path] = text
}

// Where nobody would stay, whoever has confirmed it at the console is asked first: what was
// said there is that accounts stay.
func TestKeepHomeOfNobody(t *testing.T) {
	for typed, ends := range map[string]bool{"": false, "test": true} {
		m := lived(t)
		m.edits(1, "passwd", imagePasswd)
		m.notesKeepHome(keephome.Note{Stage: keephome.Confirmed})
		m.typed = []string{typed}
		m.printed.Reset()
		m.ends("system")
		if says := m.printed.String(); !strings.Contains(says, "would keep no\naccount") || !strings.Contains(says, "No account is kept") {
			t.Errorf("it says %q", says)
		}
		if gone := m.rootFiles()["bind/srv/y"] == nil; gone != ends || m.rootFiles()[keephome.Path] != nil {
			t.Errorf("%q: deleted: %v, the note is %q", typed, gone, m.rootFiles()[keephome.Path])
		}
	}
}

// Whoever gives up what was begun, or is not there, gets the accounts that are left nowhere
// but in the note.
func TestKeepHomeGivenUpHalfWay(t *testing.T) {
	for how, typed := range map[string][]string{"nobody": nil, "Enter": {""}} {
		m := lived(t)
		n := keephome.Note{Stage: keephome.Deleting, After: "another", People: m.etcPeople()}
		text, err := n.Encode()
		m.must(err)
		m.rootFiles()[keephome.Path] = text
		maps.DeleteFunc(m.rootFiles(), func(name string, _ []byte) bool {
			return strings.HasPrefix(name, upper.Directory+"/") || strings.HasPrefix(name, upper.Unnamed+"/")
		})
		m.typed = typed
		m.ends("system", "keep-home FAILED")
		if !strings.Contains(m.upperOf(1)["passwd"], annasPasswd) || m.rootFiles()["bind/srv/y"] == nil || m.rootFiles()[keephome.Path] != nil {
			t.Errorf("%s: /etc is %q, the note %q", how, m.upperOf(1), m.rootFiles()[keephome.Path])
		}
	}
}

// A boot that somebody ends while a reset is half done does not say that nothing was lost, and
// neither does the console after it.
func TestKeepHomeInterrupted(t *testing.T) {
	m := lived(t)
	m.notesKeepHome(keephome.Note{Stage: keephome.Deleting, People: m.etcPeople()})
	good := m.world(true, nil)
	m.looks = 0
	m.ends("system")
	looks, restarts := m.looks, 0
	for press := 1; press <= looks; press++ {
		m.powerOn(good)
		m.presses, m.looks = press, 0
		m.said.Reset()
		end := m.boot()
		if end != "reboot" || m.rootFiles()[keephome.Path] == nil {
			continue
		}
		restarts++
		m.presses = 0
		if end = m.boot(); end != "recovery" || strings.Contains(m.said.String(), "nothing was lost") {
			t.Errorf("pressed at look %d: it ends in %s:\n%s", press, end, m.said.String())
		}
	}
	if restarts == 0 {
		t.Error("it never restarts while the reset is half done")
	}
}

// Without a terminal to ask at the machine starts, and nothing is deleted.
func TestKeepHomeWithoutTerminal(t *testing.T) {
	m := lived(t)
	m.noTerminal = errors.New("there is no terminal")
	m.rootFiles()[keephome.Path] = []byte(`{"format":1,"stage":"confirmed","after":"another"}`)
	m.ends("system", "keep-home FAILED", "there is no terminal")
	if m.rootFiles()["bind/srv/y"] == nil {
		t.Error("something is deleted")
	}
}

// A directory beside /home whose name is like that of one in it stays, and is said.
func TestKeepHomeBeside(t *testing.T) {
	m := lived(t)
	m.rootFiles()["bind/home-old/x"] = []byte("x")
	m.asksToKeepHome()
	m.typed = []string{"test"}
	m.ends("system", "keeps this, too, which may lie in /home: /run/state/bind/home-old")
	if m.rootFiles()["bind/home-old/x"] == nil || !m.journalHas(journal.State, "bind/home-old") {
		t.Errorf("the journal has %s", m.rootFiles()[bootjournal.File])
	}
}

// A going back that cannot end, since its plan is damaged, keeps no reset from its end: that
// deletes the plan.
func TestKeepHomeBeforeGoingBack(t *testing.T) {
	m := migrated(t)
	m.givesUp("test_2+2-1.efi", "test_2+0-1.efi")
	m.runs(1)
	m.rootFiles()["snapshots/plan.json"] = []byte("{")
	m.notesKeepHome(keephome.Note{Stage: keephome.Deleting})
	m.ends("system")
	if (store{m}).has("snapshots/") || m.rootFiles()[db] != nil || m.rootFiles()[keephome.Path] != nil {
		t.Errorf("something is left:\n%s", m.said.String())
	}
}
