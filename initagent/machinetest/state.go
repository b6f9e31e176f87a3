package machinetest

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/journal"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/upper"
)

// UpperOf is what a version's upper directory of /etc holds, without the list of conflicts.
func (m *Machine) UpperOf(v contract.Version) map[string]string {
	top, _ := upper.Overlay(m.Releases[v].Contract.Root().String(), "etc")
	out := map[string]string{}
	for name, text := range m.RootFiles() {
		if own, ok := strings.CutPrefix(name, top+"/"); ok && own != etcmerge.ListPath {
			out[own] = string(text)
		}
	}
	return out
}

// Edits writes a file of /etc in a version's system.
func (m *Machine) Edits(v contract.Version, name, text string) {
	top, _ := upper.Overlay(m.Releases[v].Contract.Root().String(), "etc")
	m.RootFiles()[top+"/"+name] = []byte(text)
}

// EtcRelease is a release with an /etc.
func EtcRelease(t testing.TB, v uint64, etc map[string]string) *Edition {
	r := NewRelease(t, v, 5, Pinned)
	r.Etc = etc
	return r
}

// Inhabited is a machine whose owner has changed /etc of version 1, and whose fetcher
// has brought version 2.
func Inhabited(t *testing.T) *Machine {
	t.Helper()
	m := ProvisionedMachine(t, Pinned)
	m.Releases[1].Etc = map[string]string{"motd": "one", "issue": "one", "removed": "one"}
	m.Edits(1, "issue", "mine")
	m.Edits(1, "removed", Gone)
	m.Fetch(EtcRelease(t, 2, map[string]string{"motd": "two", "issue": "one", "removed": "one", "fresh": "two"}))
	return m
}

// Mine is what the owner has changed in /etc.
var Mine = map[string]string{"issue": "mine", "removed": Gone}

// WantsUpper fails the test where a version's /etc does not hold these files.
func (m *Machine) WantsUpper(v contract.Version, want map[string]string) {
	m.T.Helper()
	if got := m.UpperOf(v); !maps.Equal(got, want) {
		m.T.Errorf("/etc of version %s holds %q, want %q", v, got, want)
	}
}

// Unnamed makes the machine's state that of a release with one /etc for all systems.
func (m *Machine) Unnamed() map[string][]byte {
	own := map[string][]byte{}
	for name, text := range m.UpperOf(1) {
		own["overlay/etc/upper/"+name] = []byte(text)
	}
	maps.DeleteFunc(m.RootFiles(), func(name string, _ []byte) bool { return strings.HasPrefix(name, upper.Directory+"/") })
	maps.Copy(m.RootFiles(), own)
	return own
}

// AsksToKeepHome is root of the running system.
func (m *Machine) AsksToKeepHome() {
	m.T.Helper()
	text := fmt.Sprintf(`{"format":1,"after":%q}`, keephome.LastStart(journal.Parse(m.RootFiles()[bootjournal.File])))
	m.RootFiles()[keephome.Requested] = []byte(text)
}

// Accounts, and a file under /home.
const (
	ImagePasswd = "root:x:0:0::/root:/bin/sh\nsystemd:x:998:998::/:/usr/sbin/nologin\n"
	AnnasPasswd = "anna:x:1000:1000::/home/anna:/bin/sh\n"
	Letter      = "bind/home/anna/letter"
)

// Stale is of a system that was never blessed: its state goes at the next start anyway.
var Stale = upper.Directory + "/" + strings.Repeat("ab", 32) + "/etc/upper/passwd"

// Lived is a machine with a person, and a daemon's user, in its /etc.
func Lived(t *testing.T) *Machine {
	m := ProvisionedMachine(t, Pinned)
	m.Releases[1].Etc = map[string]string{
		"passwd": ImagePasswd, "shadow": "root:*:1::::::\n", "group": "root:x:0:\nsudo:x:27:\n", "motd": "one",
	}
	for file, text := range map[string]string{
		"passwd": ImagePasswd + AnnasPasswd + "other:x:1001:1001::/srv/other:/bin/sh\n",
		"shadow": "root:$6$roots:1::::::\nanna:$6$annas:1::::::\n",
		"group":  "root:x:0:\nsudo:x:27:anna,other\nanna:x:1000:\nother:x:1001:\n",
		"motd":   "mine", "machine-id": "0123\n", "ssh/ssh_host_rsa_key": "secret",
	} {
		m.Edits(1, file, text)
	}
	for _, name := range []string{Stale, "overlay/etc/upper/passwd", "bind/var/lib/x", "bind/srv/y", "snapshots/z", ownstate.BlessedNote} {
		m.RootFiles()[name] = []byte("x")
	}
	m.RootFiles()[Letter] = []byte("dear")
	return m
}

// EtcPeople are the people of version 1.
func (m *Machine) EtcPeople() etcmerge.People {
	m.T.Helper()
	people, _, err := ownstate.People(&m.Agent.Host)
	if err == nil && len(people) == 0 {
		err = errors.New("there are none")
	}
	m.Must(err)
	return people
}

// NotesKeepHome leaves a note of a reset that was begun since the last start.
func (m *Machine) NotesKeepHome(n keephome.Note) {
	m.T.Helper()
	n.After = keephome.LastStart(journal.Parse(m.RootFiles()[bootjournal.File]))
	text, err := n.Encode()
	m.Must(err)
	m.RootFiles()[keephome.Path] = text
}
