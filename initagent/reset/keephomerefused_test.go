package reset_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/unlock"
	"halogenos.internal/initagent/upper"
)

// Without a /home that could be kept, or without the recovery key, nothing is deleted.
func TestKeepHomeRefused(t *testing.T) {
	m := machinetest.Lived(t)
	without := func() {
		maps.DeleteFunc(m.RootFiles(), func(name string, _ []byte) bool { return strings.HasPrefix(name, "bind/home") })
	}
	without()
	m.AsksToKeepHome()
	m.Typed = []string{"test"}
	m.Ends("system", "has no /home to keep")
	without() // the start has made one
	r, c := openConsole(m)
	m.Typed = []string{"test"}
	m.Refuses(r.ResetKeepingHome(c), "has no /home to keep")
	if m.RootFiles()["bind/srv/y"] == nil || m.RootFiles()[keephome.Path] != nil {
		t.Error("something is deleted, or noted")
	}
	m.Must(r.Lock())
	m.Refuses(r.ResetKeepingHome(c), "type `unlock` first")
	if len(m.Typed) != 1 {
		t.Errorf("it asks: %q", m.Printed.String())
	}
}

// Who declines, or is not there, gets the system as usual, and so does a trial.
func TestKeepHomeDeclined(t *testing.T) {
	m := machinetest.Lived(t)
	files := maps.Clone(m.RootFiles())
	same := func(how string) {
		t.Helper()
		if m.RootFiles()[keephome.Requested] != nil {
			t.Errorf("%s: the request stays", how)
		}
		if changed := sameFiles(m, files); len(changed) > 0 {
			t.Errorf("%s: %q is changed", how, changed)
		}
	}
	for how, typed := range map[string][]string{"nobody": nil, "Enter": {""}, "another name": {"tests", "test"}} {
		m.AsksToKeepHome()
		m.Printed.Reset()
		m.Typed, m.Waits = typed, nil
		m.Ends("system", "keep-home FAILED")
		if len(m.Waits) != 1 || m.Waits[0] != unlock.SecretTimeout {
			t.Errorf("%s: it waits %v", how, m.Waits)
		}
		if !m.JournalHas(journal.State, "was asked for, and not confirmed") {
			t.Errorf("%s: the journal has %s", how, m.RootFiles()[bootjournal.File])
		}
		same(how)
	}
	m.Typed = nil
	m.Fetch(machinetest.EtcRelease(t, 2, map[string]string{"motd": "two"}))
	m.Runs(2)
	m.AsksToKeepHome()
	m.Runs(2, "while a version is on trial")
	if m.RootFiles()[keephome.Requested] != nil || string(m.RootFiles()["bind/srv/y"]) != "x" {
		t.Error("a trial deletes, or keeps the request")
	}
}

// An account in the way of a program of the image's is found before anything is deleted.
func TestKeepHomeTriesAccounts(t *testing.T) {
	m := machinetest.Lived(t)
	m.Releases[1].Etc["passwd"] += "guest:x:1000:1000::/var/guest:/bin/sh\n"
	m.Programs = map[string]uint32{"/usr/bin/game": 1000}
	m.AsksToKeepHome()
	m.Typed = []string{"test"}
	m.Ends("system", "nothing is deleted", "/usr/bin/game runs as its user")
	if m.RootFiles()["bind/srv/y"] == nil || m.RootFiles()[keephome.Path] != nil {
		t.Error("something is deleted, or noted")
	}
	m.Programs = nil
	m.AsksToKeepHome()
	m.Typed = []string{"test"}
	m.Ends("system")
	if m.RootFiles()["bind/srv/y"] != nil || !strings.Contains(m.UpperOf(1)["passwd"], machinetest.AnnasPasswd) {
		t.Errorf("/etc is %q", m.UpperOf(1))
	}
}

// All accounts are shown, and all groups, before the name is asked for: the image's first.
func TestKeepHomeShowsAll(t *testing.T) {
	m := machinetest.Lived(t)
	passwd, group := machinetest.ImagePasswd+machinetest.AnnasPasswd, "root:x:0:\n"
	for i := range 30 {
		passwd += fmt.Sprintf("p%d:x:%d:1000::/home/p:/bin/sh\n", i, 2000+i)
		group += fmt.Sprintf("g%d:x:%d:anna\n", i, 2000+i)
	}
	m.Edits(1, "passwd", passwd)
	m.Edits(1, "group", group+"anna:x:1000:\nsudo:x:1600:anna,p29\n")
	m.AsksToKeepHome()
	m.Printed.Reset()
	m.Typed = []string{"", "", "", "test"}
	m.Ends("system")
	for _, want := range []string{"anna, number 1000, in sudo g0", " g29\n", "Page 1 of 4: Enter shows the next.", "p29, number 2029, in sudo anna\n"} {
		if !strings.Contains(m.Printed.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, m.Printed.String())
		}
	}
	if !m.JournalHas(journal.State, "p29, number 2029, in sudo anna") || m.RootFiles()["bind/srv/y"] != nil {
		t.Errorf("the journal is %s", m.RootFiles()[bootjournal.File])
	}
}

// A disk that takes no note changes nothing; one that fails later ends in the console, which
// says what is left, and the next start goes on.
func TestKeepHomeFails(t *testing.T) {
	m := machinetest.Lived(t)
	m.AsksToKeepHome()
	m.Typed = []string{"test"}
	m.FullFile = keephome.Path
	m.Ends("system", "nothing is deleted", "is full")
	if m.RootFiles()["bind/srv/y"] == nil || m.RootFiles()[keephome.Path] != nil {
		t.Error("something is deleted, or noted")
	}
	m.FullFile = ""
	m.AsksToKeepHome()
	m.Typed = []string{"test"}
	m.StuckFile = "bind/srv"
	m.Ends("recovery", "the reset that keeps /home is not complete", "remove bind/srv", "/home is whole", "halogen/keep-home")
	if string(m.RootFiles()[machinetest.Letter]) != "dear" {
		t.Error("/home is gone")
	}
	m.Typed = nil
	m.Ends("recovery", "the reset that keeps /home is not complete", "halogen: the boot has stopped. `help`")
	// Asked for once more at the console, it keeps the accounts that it has noted.
	delete(m.RootFiles(), upper.Directory+"/"+ownstate.Own(&m.Agent.Host)+"/etc/upper/passwd")
	r, c := m.Console()
	m.Typed = []string{m.RecoveryKey(), "test"}
	m.Works(r.Unlock(c))
	m.Works(r.ResetKeepingHome(c), "anna, number 1000, in sudo")
	m.Must(r.Lock())
	m.StuckFile = ""
	m.Ends("system")
	checkKeptHome(m, "it goes on")
}

// A variable of the firmware asks for nothing that leaves /home to be read, and a request
// counts only until another system has run; each is gone afterwards.
func TestForgedKeepHomeRequest(t *testing.T) {
	m := machinetest.Lived(t)
	m.Vars[nextboot.Variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes, Data: []byte(`{"format":4,"keepHome":{}}`)}
	m.Typed = []string{"test"}
	m.Ends("system", "it is ignored")
	for text, why := range map[string]string{
		`{"format":1,"after":"x 2026-01-01T00:00:00Z"}`: "another system has run since",
		`{"format":2,"after":""}`:                       "it is ignored",
		"{":                                             "it is ignored",
		strings.Repeat(" ", keephome.MaxRequest+1): "it is ignored",
	} {
		m.RootFiles()[keephome.Requested] = []byte(text)
		m.Typed = []string{"test"}
		m.Ends("system", why)
		if m.RootFiles()[keephome.Requested] != nil || m.RootFiles()["bind/srv/y"] == nil {
			t.Errorf("%s stays, or something is deleted", text)
		}
	}
}
