package agent

import (
	"errors"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/unlock"
	"halogenos.internal/initagent/upper"
)

// openConsole is the recovery console of a machine in use, where the root partition was opened.
func (m *machine) openConsole() (*recovery.Machine, hw.Console) {
	m.t.Helper()
	text, err := nextboot.Request{Console: &nextboot.Console{Person: true, Reason: "asked for"}}.Encode()
	m.must(err)
	m.vars[nextboot.Variable] = efiVariable{nextboot.Attributes, text}
	m.ends("recovery")
	r, c := m.console()
	m.typed = []string{m.recoveryKey()}
	m.works(r.Unlock(c))
	return r, c
}

// asksToKeepHome is root of the running system.
func (m *machine) asksToKeepHome() {
	m.t.Helper()
	text := fmt.Sprintf(`{"format":1,"after":%q}`, keephome.LastStart(journal.Parse(m.rootFiles()[bootjournal.File])))
	m.rootFiles()[keephome.Requested] = []byte(text)
}

const (
	imagePasswd = "root:x:0:0::/root:/bin/sh\nsystemd:x:998:998::/:/usr/sbin/nologin\n"
	annasPasswd = "anna:x:1000:1000::/home/anna:/bin/sh\n"
	letter      = "bind/home/anna/letter"
)

// stale is of a system that was never blessed: its state goes at the next start anyway.
var stale = upper.Directory + "/" + strings.Repeat("ab", 32) + "/etc/upper/passwd"

// sameFiles reports what of a root partition is not as it was, but for what each start writes.
func (m *machine) sameFiles(before map[string][]byte) (changed []string) {
	for name, text := range before {
		if !slices.Contains([]string{bootjournal.File, ownstate.BlessedNote, upper.Blessed, stale}, name) && string(m.rootFiles()[name]) != string(text) {
			changed = append(changed, name)
		}
	}
	return changed
}

// lived is a machine with a person, and a daemon's user, in its /etc.
func lived(t *testing.T) *machine {
	m := provisionedMachine(t, pinned)
	m.releases[1].etc = map[string]string{
		"passwd": imagePasswd, "shadow": "root:*:1::::::\n", "group": "root:x:0:\nsudo:x:27:\n", "motd": "one",
	}
	for file, text := range map[string]string{
		"passwd": imagePasswd + annasPasswd + "other:x:1001:1001::/srv/other:/bin/sh\n",
		"shadow": "root:$6$roots:1::::::\nanna:$6$annas:1::::::\n",
		"group":  "root:x:0:\nsudo:x:27:anna,other\nanna:x:1000:\nother:x:1001:\n",
		"motd":   "mine", "machine-id": "0123\n", "ssh/ssh_host_rsa_key": "secret",
	} {
		m.edits(1, file, text)
	}
	for _, name := range []string{stale, "overlay/etc/upper/passwd", "bind/var/lib/x", "bind/srv/y", "snapshots/z", ownstate.BlessedNote} {
		m.rootFiles()[name] = []byte("x")
	}
	m.rootFiles()[letter] = []byte("dear")
	return m
}

// keptHome is what a reset that keeps /home leaves of /etc.
var keptHome = map[string]string{
	"passwd": imagePasswd + annasPasswd,
	"shadow": "root:*:1::::::\nanna:$6$annas:1::::::\n",
	"group":  "root:x:0:\nsudo:x:27:anna\nanna:x:1000:\n",
}

// checkKeptHome checks that all but /home and what is the machine's own is gone, and that
// its people are there.
func (m *machine) checkKeptHome(when string) {
	m.t.Helper()
	files := m.rootFiles()
	if string(files[letter]) != "dear" || files[rootpart.ListFile] == nil {
		m.t.Errorf("%s: /home or the machine's own is gone", when)
	}
	own := upper.Directory + "/" + ownstate.Own(&m.agent.Host) + "/"
	for name := range files {
		seeded := strings.HasPrefix(name, upper.Bind+"/") && strings.Count(name, "/") == 1 // when it is mounted
		made := name == upper.Blessed || strings.HasPrefix(name, own) || seeded
		if !made && !strings.HasPrefix(name, rootpart.OwnDirectory+"/") && name != letter {
			m.t.Errorf("%s: %s stays", when, name)
		}
	}
	if files[keephome.Path] != nil || files[ownstate.BlessedNote] != nil {
		m.t.Errorf("%s: a note stays", when)
	}
	got := m.upperOf(1)
	if !maps.Equal(got, keptHome) {
		m.t.Errorf("%s: /etc holds %q, want %q", when, got, keptHome)
	}
}

// cutAnywhere starts the machine in each state that a cut has left: nothing was changed, or
// it comes to the same end, without a question where that was answered.
func (m *machine) cutAnywhere(states []cutState, before map[string][]byte) {
	m.t.Helper()
	ended := 0
	for _, s := range states {
		m.powerOn(s.world)
		asks := m.answers()
		m.printed.Reset()
		m.ends("system")
		if asked := strings.Contains(m.printed.String(), "Type the machine's name"); asked && !asks {
			m.t.Errorf("%s: it asks again:\n%s", s.how, m.printed.String())
		}
		if _, there := m.rootFiles()["bind/srv/y"]; there {
			if changed := m.sameFiles(before); len(changed) > 0 {
				m.t.Errorf("%s: %q is changed, and /srv is not", s.how, changed)
			}
			continue
		}
		ended++
		m.checkKeptHome(s.how)
	}
	if ended < 8 || ended == len(states) {
		m.t.Errorf("%d of %d cuts come to the end", ended, len(states))
	}
}

// A reset that keeps /home, asked for in the running system: the next boot asks, deletes
// the rest, and gives the people their accounts back. Cut at any write, it goes on. FAULTS 42
func TestKeepHomeAsked(t *testing.T) {
	m := lived(t)
	secret := m.machineSecret()
	before := maps.Clone(m.rootFiles())
	m.asksToKeepHome()
	m.printed.Reset()
	m.typed = []string{"test"}
	states, end := m.recordOnce(mrand.New(mrand.NewPCG(71, 72)))
	if end != "system" || !secret.Equal(m.machineSecret()) {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	for _, want := range []string{"asked for from the running system", "If it was not you", "Nothing brings it back", "anna, number 1000, in sudo", "Type the machine's name"} {
		if !strings.Contains(m.printed.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, m.printed.String())
		}
	}
	m.checkKeptHome("done")
	for _, says := range []string{"was confirmed. These accounts are kept: anna, number 1000, in sudo", "has deleted all else"} {
		if !m.journalHas(journal.State, says) {
			t.Errorf("the journal does not say %q: %s", says, m.rootFiles()[bootjournal.File])
		}
	}
	m.opensByItself()
	m.checkKeptHome("started again")
	m.cutAnywhere(states, before)
}

// At the console it is confirmed and noted, and the next start does the same.
func TestKeepHomeAtConsole(t *testing.T) {
	m := lived(t)
	before := maps.Clone(m.rootFiles())
	r, c := m.openConsole()
	for _, typed := range []string{"", "y", "tests"} {
		m.typed = []string{typed}
		m.refuses(r.ResetKeepingHome(c), "nothing was changed")
	}
	m.typed = []string{"test"}
	states, _ := m.recording(func() string {
		m.works(r.ResetKeepingHome(c), "Accounts whose home lies under /home stay", "that start deletes all but /home")
		m.must(r.Lock())
		return ""
	}, mrand.New(mrand.NewPCG(73, 74)), "console; ")
	m.typed = nil
	m.printed.Reset()
	boot, end := m.recordOnce(mrand.New(mrand.NewPCG(75, 76)))
	if end != "system" || m.printed.Len() > 0 {
		t.Fatalf("ends in %s, and asks %q:\n%s", end, m.printed.String(), m.said.String())
	}
	m.checkKeptHome("done")
	m.cutAnywhere(append(states, boot...), before)
}

// On btrfs nothing that was kept of the directories stays, and no request brings it back.
func TestResetKeepingHomeForgetsSnapshots(t *testing.T) {
	m := migrated(t)
	m.givesUp("test_2+2-1.efi", "test_2+0-1.efi")
	m.runs(1)
	m.asksBack(1, false)
	m.runs(1)
	m.asksBack(1, true)
	text, err := nextboot.Request{Console: &nextboot.Console{Person: true, Reason: "asked for"}}.Encode()
	m.must(err)
	m.vars[nextboot.Variable] = efiVariable{nextboot.Attributes, text}
	m.ends("recovery")
	r, c := m.console()
	m.typed = []string{m.recoveryKey(), "test"}
	m.works(r.Unlock(c))
	m.works(r.ResetKeepingHome(c), "It is noted")
	m.must(r.Lock())
	m.typed = []string{"test"} // nobody would stay
	m.ends("system")
	for name, content := range m.rootFiles() {
		if strings.HasSuffix(name, "lib/db") || strings.HasSuffix(name, "root/x") || name == ownstate.RestoreNote {
			t.Errorf("%s is there: %q", name, content)
		}
	}
	if got := string(m.rootFiles()["bind/home/me"]); got != "two" {
		t.Errorf("/home has %q", got)
	}
}

// Without a /home that could be kept, or without the recovery key, nothing is deleted.
func TestKeepHomeRefused(t *testing.T) {
	m := lived(t)
	without := func() {
		maps.DeleteFunc(m.rootFiles(), func(name string, _ []byte) bool { return strings.HasPrefix(name, "bind/home") })
	}
	without()
	m.asksToKeepHome()
	m.typed = []string{"test"}
	m.ends("system", "has no /home to keep")
	without() // the start has made one
	r, c := m.openConsole()
	m.typed = []string{"test"}
	m.refuses(r.ResetKeepingHome(c), "has no /home to keep")
	if m.rootFiles()["bind/srv/y"] == nil || m.rootFiles()[keephome.Path] != nil {
		t.Error("something is deleted, or noted")
	}
	m.must(r.Lock())
	m.refuses(r.ResetKeepingHome(c), "type `unlock` first")
	if len(m.typed) != 1 {
		t.Errorf("it asks: %q", m.printed.String())
	}
}

// Who declines, or is not there, gets the system as usual, and so does a trial.
func TestKeepHomeDeclined(t *testing.T) {
	m := lived(t)
	files := maps.Clone(m.rootFiles())
	same := func(how string) {
		t.Helper()
		if m.rootFiles()[keephome.Requested] != nil {
			t.Errorf("%s: the request stays", how)
		}
		if changed := m.sameFiles(files); len(changed) > 0 {
			t.Errorf("%s: %q is changed", how, changed)
		}
	}
	for how, typed := range map[string][]string{"nobody": nil, "Enter": {""}, "another name": {"tests", "test"}} {
		m.asksToKeepHome()
		m.printed.Reset()
		m.typed, m.waits = typed, nil
		m.ends("system", "keep-home FAILED")
		if len(m.waits) != 1 || m.waits[0] != unlock.SecretTimeout {
			t.Errorf("%s: it waits %v", how, m.waits)
		}
		if !m.journalHas(journal.State, "was asked for, and not confirmed") {
			t.Errorf("%s: the journal has %s", how, m.rootFiles()[bootjournal.File])
		}
		same(how)
	}
	m.typed = nil
	m.fetch(etcRelease(t, 2, map[string]string{"motd": "two"}))
	m.runs(2)
	m.asksToKeepHome()
	m.runs(2, "while a version is on trial")
	if m.rootFiles()[keephome.Requested] != nil || string(m.rootFiles()["bind/srv/y"]) != "x" {
		t.Error("a trial deletes, or keeps the request")
	}
}

// A disk that takes no note changes nothing; one that fails later ends in the console, which
// says what is left, and the next start goes on.
func TestKeepHomeFails(t *testing.T) {
	m := lived(t)
	m.asksToKeepHome()
	m.typed = []string{"test"}
	m.fullFile = keephome.Path
	m.ends("system", "nothing is deleted", "is full")
	if m.rootFiles()["bind/srv/y"] == nil || m.rootFiles()[keephome.Path] != nil {
		t.Error("something is deleted, or noted")
	}
	m.fullFile = ""
	m.asksToKeepHome()
	m.typed = []string{"test"}
	m.stuckFile = "bind/srv"
	m.ends("recovery", "the reset that keeps /home is not complete", "remove bind/srv", "/home is whole", "halogen/keep-home")
	if string(m.rootFiles()[letter]) != "dear" {
		t.Error("/home is gone")
	}
	m.typed = nil
	m.ends("recovery", "the reset that keeps /home is not complete", "halogen: the boot has stopped. `help`")
	// Asked for once more at the console, it keeps the accounts that it has noted.
	delete(m.rootFiles(), upper.Directory+"/"+ownstate.Own(&m.agent.Host)+"/etc/upper/passwd")
	r, c := m.console()
	m.typed = []string{m.recoveryKey(), "test"}
	m.works(r.Unlock(c))
	m.works(r.ResetKeepingHome(c), "anna, number 1000, in sudo")
	m.must(r.Lock())
	m.stuckFile = ""
	m.ends("system")
	m.checkKeptHome("it goes on")
}

// Where a system has run since, which knows nothing of the note, a person is asked again;
// and a note that is not understood deletes nothing.
func TestKeepHomeAfterAnotherSystem(t *testing.T) {
	note := func(m *machine, n keephome.Note) {
		text, err := n.Encode()
		m.must(err)
		m.rootFiles()[keephome.Path] = text
	}
	people := lived(t).etcPeople()
	for how, c := range map[string]struct {
		typed []string
		ends  bool
	}{"it goes on": {[]string{"test"}, true}, "it is given up": {[]string{""}, false}, "nobody is there": {nil, false}} {
		t.Run(how, func(t *testing.T) {
			m := lived(t)
			note(m, keephome.Note{Stage: keephome.Deleting, After: "another", People: people})
			m.typed = c.typed
			m.printed.Reset()
			m.ends("system")
			if !strings.Contains(m.printed.String(), "a system\nhas run since") {
				t.Errorf("it says:\n%s", m.printed.String())
			}
			if c.ends {
				m.checkKeptHome(how)
			} else if m.rootFiles()["bind/srv/y"] == nil || m.rootFiles()[keephome.Path] != nil {
				t.Error("something is deleted, or the note stays")
			}
			m.opensByItself()
		})
	}
	m := lived(t)
	m.rootFiles()[keephome.Path] = []byte(`{"format":9,"stage":"deleting"}`)
	m.runs(1, "it is ignored")
	if m.rootFiles()["bind/srv/y"] == nil {
		t.Error("something is deleted")
	}
	m.unreadableFile = keephome.Path
	m.ends("recovery", "the note of a reset that keeps /home")
}

// etcPeople are the people of version 1.
func (m *machine) etcPeople() etcmerge.People {
	m.t.Helper()
	people, _, err := ownstate.People(&m.agent.Host)
	if err == nil && len(people) == 0 {
		err = errors.New("there are none")
	}
	m.must(err)
	return people
}

// Whoever was there before this machine's /etc was its own keeps the account, too: where the
// other system has run in between, what it has made counts.
func TestKeepHomeThenOtherSystem(t *testing.T) {
	m := lived(t)
	m.must(ownstate.WriteKeepHome(&m.agent.Host, &keephome.Note{Stage: keephome.Deleted, People: m.etcPeople()}))
	_, err := store{m}.ClearBut(keephome.Stays)
	m.must(err)
	delete(m.rootFiles(), ownstate.BlessedNote)
	other := upper.Directory + "/" + strings.Repeat("cd", 32) + "/etc/upper/passwd"
	m.rootFiles()[other] = []byte(imagePasswd + "ben:x:1000:1000::/home/ben:/bin/sh\n")
	m.runs(1, "another system has made an /etc since")
	if m.rootFiles()[keephome.Path] != nil || !strings.Contains(m.upperOf(1)["passwd"], "ben:") {
		t.Errorf("the note stays, or /etc is %q", m.upperOf(1))
	}
}

// keepHome is the running system's: once, where something is there that would go.
func keepHome(x *explorer, m *machine, from *node, w *world) {
	if n, ok := m.runningName(from.is); !ok || n.Counted || m.rootFiles()["bind/srv/y"] == nil {
		return
	}
	m.powerOn(w)
	m.asksToKeepHome()
	x.reach(m, from, m.world(true, nil), "halogenctl reset --keep-home")
}

// Among all that a machine is asked for and cut in: where all but /home is gone, none of it
// is left, no note is, and the system that runs has its people. FAULTS 42
func TestEverySequenceKeepingHome(t *testing.T) {
	machines := knowing(t, 2, 5, 5)
	m := machines[0]
	for _, r := range m.releases {
		r.etc = map[string]string{"passwd": imagePasswd}
	}
	m.edits(1, "passwd", imagePasswd+annasPasswd)
	for _, name := range []string{"bind/srv/y", "bind/var/z", letter} {
		m.rootFiles()[name] = []byte("x")
	}
	x := explore(machines, keepHome)
	for _, p := range x.problems[:min(3, len(x.problems))] {
		t.Error(p)
	}
	reset, trials := 0, 0
	for _, n := range x.nodes {
		for _, files := range n.w.volumes {
			if string(files[letter]) != "x" {
				t.Fatalf("/home is gone:\n%s", n.how)
			}
			if n.ends != "system" || n.after != n.is.key || files["bind/srv/y"] != nil {
				continue
			}
			top, _ := upper.Overlay(machines[0].releases[n.runs].contract.Root().String(), "etc")
			if files["bind/var/z"] != nil || files[keephome.Path] != nil || !strings.Contains(string(files[top+"/passwd"]), annasPasswd) {
				t.Errorf("version %s runs without its people, or something is left:\n%s", n.runs, n.how)
			}
			if reset++; n.runs == 2 {
				trials++
			}
		}
	}
	if reset == 0 || trials == 0 {
		t.Errorf("it came to %d ends after a reset, %d of them with version 2", reset, trials)
	}
	t.Logf("%d states after a cut, %d different conditions, each of them started", x.states, len(x.nodes))
}

// A variable of the firmware asks for nothing that leaves /home to be read, and a request
// counts only until another system has run; each is gone afterwards.
func TestForgedKeepHomeRequest(t *testing.T) {
	m := lived(t)
	m.vars[nextboot.Variable] = efiVariable{nextboot.Attributes, []byte(`{"format":4,"keepHome":{}}`)}
	m.typed = []string{"test"}
	m.ends("system", "it is ignored")
	for text, why := range map[string]string{
		`{"format":1,"after":"x 2026-01-01T00:00:00Z"}`: "another system has run since",
		`{"format":2,"after":""}`:                       "it is ignored",
		"{":                                             "it is ignored",
		strings.Repeat(" ", keephome.MaxRequest+1): "it is ignored",
	} {
		m.rootFiles()[keephome.Requested] = []byte(text)
		m.typed = []string{"test"}
		m.ends("system", why)
		if m.rootFiles()[keephome.Requested] != nil || m.rootFiles()["bind/srv/y"] == nil {
			t.Errorf("%s stays, or something is deleted", text)
		}
	}
}

// Where the image has its homes in another directory, or /etc whole, nothing is deleted.
func TestKeepHomeElsewhere(t *testing.T) {
	for conf, why := range map[string]string{
		"overlay /etc\nbind /var\n": "no line \"bind /home\"",
		"bind /etc\nbind /home\n":   "no line \"overlay /etc\"",
	} {
		m := lived(t)
		file := filepath.Join(m.root, host.SystemDirectory, stateconf.Path)
		m.must(errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(conf), 0o644)))
		m.asksToKeepHome()
		m.typed = []string{"test"}
		m.ends("system", why)
		if m.rootFiles()["bind/srv/y"] == nil || m.rootFiles()[keephome.Path] != nil {
			t.Errorf("%s: something is deleted, or noted", why)
		}
		// Confirmed at the console, which has no image to look at.
		m.notesKeepHome(keephome.Note{Stage: keephome.Confirmed})
		m.ends("system", "nothing is deleted", why)
		if m.rootFiles()["bind/srv/y"] == nil || m.rootFiles()[keephome.Path] != nil {
			t.Errorf("%s: something is deleted, or noted", why)
		}
		// Begun by another system.
		m.notesKeepHome(keephome.Note{Stage: keephome.Deleting})
		m.ends("recovery", "is not complete", why)
		if m.rootFiles()["bind/srv/y"] == nil || m.rootFiles()[keephome.Path] == nil {
			t.Errorf("%s: something is deleted, or the note is", why)
		}
	}
}

// What a damaged file system does not let go is in the journal: somebody may be about to give
// the machine away.
func TestKeepHomeLeaves(t *testing.T) {
	m := lived(t)
	m.stays = []string{"bind/srv.unfinished: structure needs cleaning"}
	m.asksToKeepHome()
	m.typed = []string{"test"}
	m.ends("system", "WARNING: a reset that keeps /home could not remove this")
	if !m.journalHas(journal.State, "bind/srv.unfinished: structure needs cleaning") {
		t.Errorf("the journal has %s", m.rootFiles()[bootjournal.File])
	}
}
