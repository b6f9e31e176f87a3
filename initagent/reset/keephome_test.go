package reset_test

import (
	"errors"
	"maps"
	mrand "math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/upper"
)

// openConsole is the recovery console of a machine in use, where the root partition was opened.
func openConsole(m *machinetest.Machine) (*recovery.Machine, hw.Console) {
	m.T.Helper()
	text, err := nextboot.Request{Console: &nextboot.Console{Person: true, Reason: "asked for"}}.Encode()
	m.Must(err)
	m.Vars[nextboot.Variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes, Data: text}
	m.Ends("recovery")
	r, c := m.Console()
	m.Typed = []string{m.RecoveryKey()}
	m.Works(r.Unlock(c))
	return r, c
}

// sameFiles reports what of a root partition is not as it was, but for what each start writes.
func sameFiles(m *machinetest.Machine, before map[string][]byte) (changed []string) {
	for name, text := range before {
		if !slices.Contains([]string{bootjournal.File, ownstate.BlessedNote, upper.Blessed, machinetest.Stale}, name) && string(m.RootFiles()[name]) != string(text) {
			changed = append(changed, name)
		}
	}
	return changed
}

// keptHome is what a reset that keeps /home leaves of /etc.
var keptHome = map[string]string{
	"passwd": machinetest.ImagePasswd + machinetest.AnnasPasswd,
	"shadow": "root:*:1::::::\nanna:$6$annas:1::::::\n",
	"group":  "root:x:0:\nsudo:x:27:anna\nanna:x:1000:\n",
}

// checkKeptHome checks that all but /home and what is the machine's own is gone, and that
// its people are there.
func checkKeptHome(m *machinetest.Machine, when string) {
	m.T.Helper()
	files := m.RootFiles()
	if string(files[machinetest.Letter]) != "dear" || files[rootpart.ListFile] == nil {
		m.T.Errorf("%s: /home or the machine's own is gone", when)
	}
	own := upper.Directory + "/" + ownstate.Own(&m.Agent.Host) + "/"
	for name := range files {
		seeded := strings.HasPrefix(name, upper.Bind+"/") && strings.Count(name, "/") == 1 // when it is mounted
		made := name == upper.Blessed || strings.HasPrefix(name, own) || seeded
		if !made && !strings.HasPrefix(name, rootpart.OwnDirectory+"/") && name != machinetest.Letter {
			m.T.Errorf("%s: %s stays", when, name)
		}
	}
	for _, theirs := range []string{answers.HandedOver, bootinfo.FirstStart, "fetch/seen.json"} {
		if name := path.Join(rootpart.Shared, theirs); files[name] != nil {
			m.T.Errorf("%s: %s stays, which may be an intruder's", when, name)
		}
	}
	if files[keephome.Path] != nil || files[ownstate.BlessedNote] != nil {
		m.T.Errorf("%s: a note stays", when)
	}
	got := m.UpperOf(1)
	if !maps.Equal(got, keptHome) {
		m.T.Errorf("%s: /etc holds %q, want %q", when, got, keptHome)
	}
}

// cutAnywhere starts the machine in each state that a cut has left: nothing was changed, or
// it comes to the same end, without a question where that was answered.
func cutAnywhere(m *machinetest.Machine, states []machinetest.CutState, before map[string][]byte) {
	m.T.Helper()
	ended := 0
	for _, s := range states {
		m.PowerOn(s.World)
		asks := m.Answers()
		m.Printed.Reset()
		m.Ends("system")
		if asked := strings.Contains(m.Printed.String(), "Type the machine's name"); asked && !asks {
			m.T.Errorf("%s: it asks again:\n%s", s.How, m.Printed.String())
		}
		if _, there := m.RootFiles()["bind/srv/y"]; there {
			if changed := sameFiles(m, before); len(changed) > 0 {
				m.T.Errorf("%s: %q is changed, and /srv is not", s.How, changed)
			}
			continue
		}
		ended++
		checkKeptHome(m, s.How)
	}
	if ended < 8 || ended == len(states) {
		m.T.Errorf("%d of %d cuts come to the end", ended, len(states))
	}
}

// A reset that keeps /home, asked for in the running system: the next boot asks, deletes
// the rest, and gives the people their accounts back. Cut at any write, it goes on. FAULTS 42
func TestKeepHomeAsked(t *testing.T) {
	m := machinetest.Lived(t)
	secret := m.MachineSecret()
	for _, theirs := range []string{answers.HandedOver, bootinfo.FirstStart, "fetch/seen.json"} {
		m.RootFiles()[path.Join(rootpart.Shared, theirs)] = []byte("x")
	}
	m.RootFiles()[keephome.ReleaseKey] = m.Agent.Contract.ReleaseKey
	before := maps.Clone(m.RootFiles())
	m.AsksToKeepHome()
	m.Printed.Reset()
	m.Typed = []string{"test"}
	states, end := m.RecordOnce(mrand.New(mrand.NewPCG(71, 72)))
	if end != "system" || !secret.Equal(m.MachineSecret()) {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	for _, want := range []string{"asked for from the running system", "If it was not you", "Nothing brings it back", "anna, number 1000, in sudo", "Type the machine's name"} {
		if !strings.Contains(m.Printed.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, m.Printed.String())
		}
	}
	checkKeptHome(m, "done")
	if m.RootFiles()[keephome.ReleaseKey] == nil {
		t.Error("what was learned of the release key is gone: a key that was revoked counts again")
	}
	for _, op := range []string{"root disarm bind/home", "root own bind/home 755"} {
		if len(m.Written(op)) == 0 {
			t.Errorf("it does not %s", op)
		}
	}
	for _, says := range []string{"was confirmed. These accounts are kept: anna, number 1000, in sudo", "has deleted all else"} {
		if !m.JournalHas(journal.State, says) {
			t.Errorf("the journal does not say %q: %s", says, m.RootFiles()[bootjournal.File])
		}
	}
	m.OpensByItself()
	checkKeptHome(m, "started again")
	cutAnywhere(m, states, before)
}

// At the console it is confirmed and noted, and the next start does the same.
func TestKeepHomeAtConsole(t *testing.T) {
	m := machinetest.Lived(t)
	m.RootFiles()[keephome.ReleaseKey] = []byte("no key")
	before := maps.Clone(m.RootFiles())
	r, c := openConsole(m)
	for _, typed := range []string{"", "y", "tests"} {
		m.Typed = []string{typed}
		m.Refuses(r.ResetKeepingHome(c), "nothing was changed")
	}
	m.Typed = []string{"test"}
	states, _ := m.Recording(func() string {
		m.Works(r.ResetKeepingHome(c), "Accounts whose home lies under /home stay", "that start deletes all but /home")
		m.Must(r.Lock())
		return ""
	}, mrand.New(mrand.NewPCG(73, 74)), "console; ")
	m.Typed = nil
	m.Printed.Reset()
	boot, end := m.RecordOnce(mrand.New(mrand.NewPCG(75, 76)))
	if end != "system" || m.Printed.Len() > 0 {
		t.Fatalf("ends in %s, and asks %q:\n%s", end, m.Printed.String(), m.Said.String())
	}
	checkKeptHome(m, "done")
	if m.RootFiles()[keephome.ReleaseKey] != nil {
		t.Error("a release key that is damaged stays: it would keep the machine from its updates")
	}
	cutAnywhere(m, append(states, boot...), before)
}

// On btrfs nothing that was kept of the directories stays, and no request brings it back.
func TestResetKeepingHomeForgetsSnapshots(t *testing.T) {
	m := machinetest.Migrated(t)
	m.GivesUp("test_2+2-1.efi", "test_2+0-1.efi")
	m.Runs(1)
	m.AsksBack(1, false)
	m.Runs(1)
	m.AsksBack(1, true)
	text, err := nextboot.Request{Console: &nextboot.Console{Person: true, Reason: "asked for"}}.Encode()
	m.Must(err)
	m.Vars[nextboot.Variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes, Data: text}
	m.Ends("recovery")
	r, c := m.Console()
	m.Typed = []string{m.RecoveryKey(), "test"}
	m.Works(r.Unlock(c))
	m.Works(r.ResetKeepingHome(c), "It is noted")
	m.Must(r.Lock())
	m.Typed = []string{"test"} // nobody would stay
	m.Ends("system")
	for name, content := range m.RootFiles() {
		if strings.HasSuffix(name, "lib/db") || strings.HasSuffix(name, "root/x") || name == ownstate.RestoreNote {
			t.Errorf("%s is there: %q", name, content)
		}
	}
	if got := string(m.RootFiles()["bind/home/me"]); got != "two" {
		t.Errorf("/home has %q", got)
	}
}

// Where a system has run since, which knows nothing of the note, a person is asked again;
// and a note that is not understood deletes nothing.
func TestKeepHomeAfterAnotherSystem(t *testing.T) {
	note := func(m *machinetest.Machine, n keephome.Note) {
		text, err := n.Encode()
		m.Must(err)
		m.RootFiles()[keephome.Path] = text
	}
	people := machinetest.Lived(t).EtcPeople()
	for how, c := range map[string]struct {
		typed []string
		ends  bool
	}{"it goes on": {[]string{"test"}, true}, "it is given up": {[]string{""}, false}, "nobody is there": {nil, false}} {
		t.Run(how, func(t *testing.T) {
			m := machinetest.Lived(t)
			note(m, keephome.Note{Stage: keephome.Deleting, After: "another", People: people})
			m.Typed = c.typed
			m.Printed.Reset()
			m.Ends("system")
			if !strings.Contains(m.Printed.String(), "a system\nhas run since") {
				t.Errorf("it says:\n%s", m.Printed.String())
			}
			if c.ends {
				checkKeptHome(m, how)
			} else if m.RootFiles()["bind/srv/y"] == nil || m.RootFiles()[keephome.Path] != nil {
				t.Error("something is deleted, or the note stays")
			}
			m.OpensByItself()
		})
	}
	m := machinetest.Lived(t)
	m.RootFiles()[keephome.Path] = []byte(`{"format":9,"stage":"deleting"}`)
	m.Runs(1, "it is ignored")
	if m.RootFiles()["bind/srv/y"] == nil {
		t.Error("something is deleted")
	}
	m.UnreadableFile = keephome.Path
	m.Ends("recovery", "the note of a reset that keeps /home")
}

// Anyone who was there before this machine's /etc was its own keeps the account, too: where the
// other system has run in between, what it has made counts.
func TestKeepHomeThenOtherSystem(t *testing.T) {
	m := machinetest.Lived(t)
	m.Must(ownstate.WriteKeepHome(&m.Agent.Host, &keephome.Note{Stage: keephome.Deleted, People: m.EtcPeople()}))
	_, err := machinetest.Store{M: m}.ClearBut(keephome.Cleared, keephome.Stays)
	m.Must(err)
	delete(m.RootFiles(), ownstate.BlessedNote)
	other := upper.Directory + "/" + strings.Repeat("cd", 32) + "/etc/upper/passwd"
	m.RootFiles()[other] = []byte(machinetest.ImagePasswd + "ben:x:1000:1000::/home/ben:/bin/sh\n")
	m.Runs(1, "another system has made an /etc since")
	if m.RootFiles()[keephome.Path] != nil || !strings.Contains(m.UpperOf(1)["passwd"], "ben:") {
		t.Errorf("the note stays, or /etc is %q", m.UpperOf(1))
	}
}

// keepHome is the running system's: once, where something is there that would go.
func keepHome(x *machinetest.Explorer, m *machinetest.Machine, from *machinetest.Node, w *machinetest.World) {
	if n, ok := m.RunningName(from.Is); !ok || n.Counted || m.RootFiles()["bind/srv/y"] == nil {
		return
	}
	m.PowerOn(w)
	m.AsksToKeepHome()
	x.Reach(m, from, m.World(true, nil), "halogenctl reset --keep-home")
}

// Among all that a machine is asked for and cut in: where all but /home is gone, none of it
// is left, no note is, and the system that runs has its people. FAULTS 42
func TestEverySequenceKeepingHome(t *testing.T) {
	machines := machinetest.Knowing(t, 2, 5, 5)
	m := machines[0]
	for _, r := range m.Releases {
		r.Etc = map[string]string{"passwd": machinetest.ImagePasswd}
	}
	m.Edits(1, "passwd", machinetest.ImagePasswd+machinetest.AnnasPasswd)
	for _, name := range []string{"bind/srv/y", "bind/var/z", machinetest.Letter} {
		m.RootFiles()[name] = []byte("x")
	}
	x := machinetest.Explore(machines, keepHome)
	for _, p := range x.Problems[:min(3, len(x.Problems))] {
		t.Error(p)
	}
	reset, trials := 0, 0
	for _, n := range x.Nodes {
		for _, files := range n.W.Volumes {
			if string(files[machinetest.Letter]) != "x" {
				t.Fatalf("/home is gone:\n%s", n.How)
			}
			if n.Ends != "system" || n.After != n.Is.Key || files["bind/srv/y"] != nil {
				continue
			}
			top, _ := upper.Overlay(machines[0].Releases[n.Runs].Contract.Root().String(), "etc")
			if files["bind/var/z"] != nil || files[keephome.Path] != nil || !strings.Contains(string(files[top+"/passwd"]), machinetest.AnnasPasswd) {
				t.Errorf("version %s runs without its people, or something is left:\n%s", n.Runs, n.How)
			}
			if reset++; n.Runs == 2 {
				trials++
			}
		}
	}
	if reset == 0 || trials == 0 {
		t.Errorf("it came to %d ends after a reset, %d of them with version 2", reset, trials)
	}
	t.Logf("%d states after a cut, %d different conditions, each of them started", x.States, len(x.Nodes))
}

// Where the image has its homes in another directory, or /etc whole, nothing is deleted.
func TestKeepHomeElsewhere(t *testing.T) {
	for conf, why := range map[string]string{
		"overlay /etc\nbind /var\n": "no line \"bind /home\"",
		"bind /etc\nbind /home\n":   "no line \"overlay /etc\"",
	} {
		m := machinetest.Lived(t)
		file := filepath.Join(m.Root, host.SystemDirectory, stateconf.Path)
		m.Must(errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(conf), 0o644)))
		m.AsksToKeepHome()
		m.Typed = []string{"test"}
		m.Ends("system", why)
		if m.RootFiles()["bind/srv/y"] == nil || m.RootFiles()[keephome.Path] != nil {
			t.Errorf("%s: something is deleted, or noted", why)
		}
		// Confirmed at the console, which has no image to look at.
		m.NotesKeepHome(keephome.Note{Stage: keephome.Confirmed})
		m.Ends("system", "nothing is deleted", why)
		if m.RootFiles()["bind/srv/y"] == nil || m.RootFiles()[keephome.Path] != nil {
			t.Errorf("%s: something is deleted, or noted", why)
		}
		// Begun by another system.
		m.NotesKeepHome(keephome.Note{Stage: keephome.Deleting})
		m.Ends("recovery", "is not complete", why)
		if m.RootFiles()["bind/srv/y"] == nil || m.RootFiles()[keephome.Path] == nil {
			t.Errorf("%s: something is deleted, or the note is", why)
		}
	}
}

// What a damaged file system does not let go is in the journal: somebody may be about to give
// the machine away.
func TestKeepHomeLeaves(t *testing.T) {
	m := machinetest.Lived(t)
	m.Stays = []string{"bind/srv.unfinished: structure needs cleaning"}
	m.AsksToKeepHome()
	m.Typed = []string{"test"}
	m.Ends("system", "WARNING: a reset that keeps /home could not remove this")
	if !m.JournalHas(journal.State, "bind/srv.unfinished: structure needs cleaning") {
		t.Errorf("the journal has %s", m.RootFiles()[bootjournal.File])
	}
}
