package agent_test

import (
	"encoding/json"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/microcode"
	"halogenos.internal/boot/microcode/microcodetest"
	"halogenos.internal/boot/statefiles"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/staging"
)

// A trial whose power is cut again and again gets its tries twice, and then it is
// over. FAULTS 49
func TestTrialInterrupted(t *testing.T) {
	m := machinetest.FetchedMachine(t)
	for range 3 {
		m.Runs(2)
	}
	m.Wants("test_1.efi", "test_2+0-3.efi")
	m.Runs(2, "test_2+3.efi gets its tries again", "nothing says that it failed")
	m.Wants("test_1.efi", "test_2+2-1.efi")
	m.Holds(5, 1, 2)
	m.Runs(2)
	m.Runs(2)
	m.Runs(1, "version 2 is not taken again: it was not blessed in two rounds of tries")
	m.Wants("test_1.efi", "test_2+0-3.efi")
	m.Runs(1)
	if !strings.Contains(m.Failed()[2], "two rounds") {
		t.Errorf("failed are %v", m.Failed())
	}
	// And stays out.
	m.Deliver(m.Parcel(m.Releases[2]))
	m.Runs(1)
	if m.RootFiles()[staging.NoteFile] != nil || slices.Contains(m.Systems(), "test_2+3.efi") {
		t.Errorf("a version that failed is staged again:\n%s", m.Said.String())
	}
}

// In the second round it proves itself.
func TestTrialBlessedLate(t *testing.T) {
	m := machinetest.FetchedMachine(t)
	for range 4 {
		m.Runs(2)
	}
	m.Bless()
	m.Runs(2)
	m.Wants("test_1.efi", "test_2.efi")
	if len(m.Failed()) > 0 {
		t.Errorf("failed are %v", m.Failed())
	}
	// What loses its tries after it was blessed has not failed as a release.
	m.Rename("test_2.efi", "test_2+0.efi")
	m.Runs(1)
	if len(m.Failed()) > 0 {
		t.Errorf("failed are %v", m.Failed())
	}
}

// FAULTS 50
func TestTrialFails(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(m *machinetest.Machine)
		says string
	}{
		{"it never reaches initagent", func(m *machinetest.Machine) { m.Rename("test_2+3.efi", "test_2+0-3.efi") }, "it never reached the system"},
		{"its health check fails", func(m *machinetest.Machine) {
			m.Runs(2)
			m.Write(journal.Entry{Kind: journal.Unhealthy, Version: 2, Reason: "no network"})
			m.Runs(2)
			m.Runs(2)
		}, "unhealthy: no network"},
		{"somebody goes back", func(m *machinetest.Machine) {
			m.Runs(2)
			m.Write(journal.Entry{Kind: journal.Rollback, Version: 2, Reason: "asked for"})
			m.Rename("test_2+2-1.efi", "test_2+0-1.efi")
		}, "rollback: asked for"},
		{"it hangs in the system", func(m *machinetest.Machine) {
			m.Runs(2)
			m.WatchdogReset = true
			m.Runs(2, "the watchdog ended the boot before this one")
			m.WatchdogReset = false
			m.Runs(2)
		}, "the watchdog ended it"},
		{"it hangs the last time", func(m *machinetest.Machine) {
			m.Runs(2)
			m.Runs(2)
			m.Runs(2)
			m.WatchdogReset = true
		}, "the watchdog ended it"},
		{"its journal is gone", func(m *machinetest.Machine) {
			m.Runs(2)
			m.Runs(2)
			m.Runs(2)
			delete(m.RootFiles(), bootjournal.File)
		}, "it never reached the system"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := machinetest.FetchedMachine(t)
			c.run(m)
			m.Runs(1, "version 2 is not taken again: "+c.says)
			m.WatchdogReset = false
			m.Runs(1)
			if m.Failed()[2] != c.says {
				t.Errorf("failed are %v", m.Failed())
			}
		})
	}
}

// Each boot says why it was this system's turn.
func TestBootEntries(t *testing.T) {
	m := machinetest.FetchedMachine(t)
	m.Runs(2)
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	m.ByHand = 1
	m.Runs(1)
	m.ByHand = 0
	m.Rename("test_2.efi", "test_2+0.efi")
	m.Runs(1)
	m.Rename("test_2+0.efi", "")
	m.Runs(1)
	var got []string
	for _, e := range m.Entries() {
		if e.Kind == journal.Boot {
			got = append(got, fmt.Sprintf("%s %s %v: %s", e.Version, e.Slot, e.Trial, e.Reason))
		}
	}
	want := []string{
		"2 b true: it is on trial: try 1 of 3",
		"2 b true: it is on trial: try 2 of 3",
		"2 b false: it is the newest that was blessed",
		"1 a false: it was chosen by hand: version 2 would be next",
		"1 a false: version 2 has no tries left",
		"1 a false: it is the only system",
	}
	if tail := got[max(0, len(got)-len(want)):]; !slices.Equal(tail, want) {
		t.Errorf("boots\n%s\nwant\n%s", strings.Join(tail, "\n"), strings.Join(want, "\n"))
	}
}

// A journal that cannot be read, or is none, costs no boot, and is not replaced
// where it may come back. FAULTS 82
func TestJournalUnreadable(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.Write(journal.Entry{Kind: journal.Failed, Version: 9})
	m.UnreadableFile = bootjournal.File
	m.Ends("system", "the boot journal was not written: input/output error")
	m.UnreadableFile = ""
	if _, ok := m.Failed()[9]; !ok {
		t.Error("what failed is forgotten")
	}
	m.RootFiles()[bootjournal.File] = []byte(strings.Repeat("x", bootjournal.MaxSize+1))
	m.Ends("system", "the boot journal begins again")
	if kinds := m.Kinds(); len(kinds) != 1 || kinds[0] != journal.Boot {
		t.Errorf("entries are %q", kinds)
	}
	m.RootFiles()[bootjournal.File] = []byte("{\"kind\":\"boo")
	m.Ends("system")
	if kinds := m.Kinds(); len(kinds) != 1 {
		t.Errorf("entries are %q", kinds)
	}
}

// The system sees the directory that it shares with the boot; but what it has put in
// its place leads nowhere else.
func TestSharedDirectory(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	shared := filepath.Join(m.Root, host.SystemDirectory, statefiles.Directory)
	if !slices.Contains(m.Mounted, shared) {
		t.Errorf("mounted are %q", m.Mounted)
	}
	for _, part := range []string{"var/lib/halogen", "var/lib"} {
		m.Must(os.RemoveAll(filepath.Join(m.Root, host.SystemDirectory, "var/lib")))
		at := filepath.Join(m.Root, host.SystemDirectory, part)
		m.Must(os.MkdirAll(filepath.Dir(at), 0o755))
		m.Must(os.Symlink("/run", at))
		m.Ends("system", "is not a directory", "cannot be updated")
		if slices.ContainsFunc(m.Mounted, func(p string) bool { return strings.HasSuffix(p, "halogen") }) {
			t.Errorf("mounted are %q", m.Mounted)
		}
	}
}

// Of two files of one version the one that was started is condemned. FAULTS 45
func TestCondemnTheOneStarted(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.Releases[2] = machinetest.NewRelease(t, 2, 5, nil)
	m.Stage(m.Releases[2], true)
	trial := m.Files()[bls.Directory+"/test_2+3.efi"]
	m.SetFile(bls.Directory+"/test_2+3.efi", nil)
	m.SetFile(bls.Directory+"/test_2.efi", trial)
	m.SetFile(bls.Directory+"/test_2+2-1.efi", trial)
	if end := m.Boot(); end != "reboot" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	m.Wants("test_1.efi", "test_2+0.efi", "test_2+2-1.efi")
	said := m.Said.String()
	if before, after := strings.Index(said, "condemn: the system image"), strings.Index(said, "has no tries left"); before < 0 || after < before {
		t.Errorf("it says too late why:\n%s", said)
	}
	m.SetFile(bls.Directory+"/test_2+0-2.efi", []byte("x"))
	if end := m.Boot(); end != "reboot" { // and finds a name that nothing has
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	m.Wants("test_1.efi", "test_2+0-2.efi", "test_2+0-3.efi", "test_2+0.efi")
	m.Ends("system", "besides the one that counts")
	m.Wants("test_1.efi", "test_2+0.efi")
}

// A system that cannot be condemned is not started for ever. FAULTS 46, 47
func TestCannotCondemn(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.Releases[2] = machinetest.NewRelease(t, 2, 5, nil)
	m.Stage(m.Releases[2], true)
	m.SetFile(bls.Directory+"/test_2.efi", m.Files()[bls.Directory+"/test_2+3.efi"])
	m.SetFile(bls.Directory+"/test_2+3.efi", nil)
	m.ESP.Fails = syscall.EROFS
	m.Ends("recovery", "read-only file system")
}

// The power is cut at every write of what follows a trial that has used up its
// tries. However often that happens, the fallback stays blessed, the trial is
// started no more than two rounds' worth of times, and it ends. FAULTS 49
func TestCutJudgement(t *testing.T) {
	m := machinetest.FetchedMachine(t)
	fresh := m.World(true, nil)
	for _, c := range []struct {
		name string
		set  func()
	}{
		{"interrupted", func() { m.Runs(2); m.Runs(2); m.Runs(2) }},
		{"failed", func() { m.Rename("test_2+3.efi", "test_2+0-3.efi") }},
	} {
		m.PowerOn(fresh)
		c.set()
		states, end := m.Record(m.World(true, nil), mrand.New(mrand.NewPCG(9, 10)), "")
		if end != "system" {
			t.Fatalf("%s: ends in %s", c.name, end)
		}
		for _, s := range states {
			m.PowerOn(s.World)
			judgedInTheEnd(m, c.name+": "+s.How)
		}
		t.Logf("%s: %d states after a cut", c.name, len(states))
	}
}

// judgedInTheEnd starts the machine until version 2 has failed, as it goes on
// being interrupted.
func judgedInTheEnd(m *machinetest.Machine, how string) {
	m.T.Helper()
	trials := 0
	for range 10 {
		m.Said.Reset()
		if end := m.Boot(); end != "system" && end != "reboot" {
			m.T.Fatalf("%s: ends in %s:\n%s", how, end, m.Said.String())
		}
		if m.Agent.Contract.Version == 2 {
			trials++
		}
		if !slices.Contains(m.Systems(), "test_1.efi") {
			m.T.Fatalf("%s: the fallback is gone: %q", how, m.Systems())
		}
		if _, ok := m.Failed()[2]; ok && m.Agent.Contract.Version == 1 {
			if trials > 4 {
				m.T.Errorf("%s: %d more starts of the trial", how, trials)
			}
			if s := m.RunningSlot(); s != layout.SlotA {
				m.T.Errorf("%s: slot %s runs", how, s)
			}
			return
		}
	}
	m.T.Errorf("%s: it does not end: %q", how, m.Systems())
}

// The running system gets to know what it is, and why it runs.
// FAULTS 112 (M10)
func TestReport(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	read := func() (r bootinfo.Report) {
		text, err := os.ReadFile(filepath.Join(m.Root, statefiles.RunDirectory, "boot.json"))
		m.Must(err)
		m.Must(json.Unmarshal(text, &r))
		return r
	}
	r := read()
	s, err := machinetest.Distributor()
	m.Must(err)
	want := fmt.Sprintf("%X", s.Entity.PrimaryKey.Fingerprint)
	if r.ImageID != "test" || r.Arch != "x86_64" || r.Version != "1" || r.Epoch != 5 || r.Floor != 5 || r.Slot != layout.SlotA || r.Trial ||
		r.Reason != "it is the only system" || !r.Signed || r.ReleaseKey != want || r.Root != "tpm" || r.Watchdog != "" || r.WatchdogReset {
		t.Errorf("report %+v", r)
	}
	if last := r.Steps[len(r.Steps)-1]; last.Step != "mount-state" || last.Error != "" {
		t.Errorf("the last step is %+v", last)
	}
	m.Extra = "another firmware"
	m.WatchdogReset = true
	m.Must(os.MkdirAll(filepath.Join(m.Root, "proc"), 0o755))
	m.Must(os.WriteFile(filepath.Join(m.Root, microcode.CPUInfo), []byte("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 33\nstepping\t: 2\nmicrocode\t: 0xa20120a\n"), 0o644))
	file := filepath.Join(m.Root, microcode.AMD.Path()) // where Linux puts the archive's
	m.Must(os.MkdirAll(filepath.Dir(file), 0o755))
	m.Must(os.WriteFile(file, microcodetest.AMD(microcode.Processor{Signature: 0xa20f12, Revision: 0xa201213}), 0o644))
	m.Typed = []string{m.RecoveryKey(), "n"}
	m.Ends("system")
	if r := read(); r.Root != "key" || !r.WatchdogReset || r.Watchdog != "" || // this system feeds none
		r.Processor == nil || r.Processor.String() != "AuthenticAMD 19-21-02, microcode 0xa20120a" || r.Microcode != "0xa201213" {
		t.Errorf("report %+v", r)
	}
}
