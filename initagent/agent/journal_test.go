package agent

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
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/microcode"
	"halogenos.internal/boot/microcode/microcodetest"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/handover"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/staging"
)

// fetchedMachine has version 2 staged, and has not started it yet.
func fetchedMachine(t *testing.T) *machine {
	t.Helper()
	m := provisionedMachine(t, pinned)
	m.fetch(newRelease(t, 2, 5, pinned))
	if end := m.boot(); end != "reboot" {
		t.Fatalf("staging ends in %s:\n%s", end, m.said.String())
	}
	return m
}

// failed are the versions that the machine does not take again.
func (m *machine) failed() map[contract.Version]string {
	return journal.Failures(journal.Parse(m.rootFiles()[bootjournal.File]))
}

// write adds an entry to the journal, as the running system does.
func (m *machine) write(e journal.Entry) {
	m.t.Helper()
	text, err := journal.Append(m.rootFiles()[bootjournal.File], e)
	m.must(err)
	m.rootFiles()[bootjournal.File] = text
}

// A trial whose power is cut again and again gets its tries twice, and then it is
// over. FAULTS 49
func TestTrialInterrupted(t *testing.T) {
	m := fetchedMachine(t)
	for range 3 {
		m.runs(2)
	}
	m.wants("test_1.efi", "test_2+0-3.efi")
	m.runs(2, "test_2+3.efi gets its tries again", "nothing says that it failed")
	m.wants("test_1.efi", "test_2+2-1.efi")
	m.holds(5, 1, 2)
	m.runs(2)
	m.runs(2)
	m.runs(1, "version 2 is not taken again: it was not blessed in two rounds of tries")
	m.wants("test_1.efi", "test_2+0-3.efi")
	m.runs(1)
	if !strings.Contains(m.failed()[2], "two rounds") {
		t.Errorf("failed are %v", m.failed())
	}
	// And stays out.
	m.deliver(m.parcel(m.releases[2]))
	m.runs(1)
	if m.rootFiles()[staging.NoteFile] != nil || slices.Contains(m.systems(), "test_2+3.efi") {
		t.Errorf("a version that failed is staged again:\n%s", m.said.String())
	}
}

// In the second round it proves itself.
func TestTrialBlessedLate(t *testing.T) {
	m := fetchedMachine(t)
	for range 4 {
		m.runs(2)
	}
	m.bless()
	m.runs(2)
	m.wants("test_1.efi", "test_2.efi")
	if len(m.failed()) > 0 {
		t.Errorf("failed are %v", m.failed())
	}
	// What loses its tries after it was blessed has not failed as a release.
	m.rename("test_2.efi", "test_2+0.efi")
	m.runs(1)
	if len(m.failed()) > 0 {
		t.Errorf("failed are %v", m.failed())
	}
}

// FAULTS 50
func TestTrialFails(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(m *machine)
		says string
	}{
		{"it never reaches initagent", func(m *machine) { m.rename("test_2+3.efi", "test_2+0-3.efi") }, "it never reached the system"},
		{"its health check fails", func(m *machine) {
			m.runs(2)
			m.write(journal.Entry{Kind: journal.Unhealthy, Version: 2, Reason: "no network"})
			m.runs(2)
			m.runs(2)
		}, "unhealthy: no network"},
		{"somebody goes back", func(m *machine) {
			m.runs(2)
			m.write(journal.Entry{Kind: journal.Rollback, Version: 2, Reason: "asked for"})
			m.rename("test_2+2-1.efi", "test_2+0-1.efi")
		}, "rollback: asked for"},
		{"it hangs in the system", func(m *machine) {
			m.runs(2)
			m.watchdogReset = true
			m.runs(2, "the watchdog ended the boot before this one")
			m.watchdogReset = false
			m.runs(2)
		}, "the watchdog ended it"},
		{"it hangs the last time", func(m *machine) {
			m.runs(2)
			m.runs(2)
			m.runs(2)
			m.watchdogReset = true
		}, "the watchdog ended it"},
		{"its journal is gone", func(m *machine) {
			m.runs(2)
			m.runs(2)
			m.runs(2)
			delete(m.rootFiles(), bootjournal.File)
		}, "it never reached the system"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := fetchedMachine(t)
			c.run(m)
			m.runs(1, "version 2 is not taken again: "+c.says)
			m.watchdogReset = false
			m.runs(1)
			if m.failed()[2] != c.says {
				t.Errorf("failed are %v", m.failed())
			}
		})
	}
}

// Each boot says why it was this system's turn.
func TestBootEntries(t *testing.T) {
	m := fetchedMachine(t)
	m.runs(2)
	m.runs(2)
	m.bless()
	m.runs(2)
	m.byHand = 1
	m.runs(1)
	m.byHand = 0
	m.rename("test_2.efi", "test_2+0.efi")
	m.runs(1)
	m.rename("test_2+0.efi", "")
	m.runs(1)
	var got []string
	for _, e := range m.entries() {
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
	m := provisionedMachine(t, nil)
	m.write(journal.Entry{Kind: journal.Failed, Version: 9})
	m.unreadableFile = bootjournal.File
	m.ends("system", "the boot journal was not written: input/output error")
	m.unreadableFile = ""
	if _, ok := m.failed()[9]; !ok {
		t.Error("what failed is forgotten")
	}
	m.rootFiles()[bootjournal.File] = []byte(strings.Repeat("x", bootjournal.MaxSize+1))
	m.ends("system", "the boot journal begins again")
	if kinds := m.kinds(); len(kinds) != 1 || kinds[0] != journal.Boot {
		t.Errorf("entries are %q", kinds)
	}
	m.rootFiles()[bootjournal.File] = []byte("{\"kind\":\"boo")
	m.ends("system")
	if kinds := m.kinds(); len(kinds) != 1 {
		t.Errorf("entries are %q", kinds)
	}
}

// The system sees the directory that it shares with the boot; but what it has put in
// its place leads nowhere else.
func TestSharedDirectory(t *testing.T) {
	m := provisionedMachine(t, nil)
	shared := filepath.Join(m.root, host.SystemDirectory, handover.SystemShared)
	if !slices.Contains(m.mounted, shared) {
		t.Errorf("mounted are %q", m.mounted)
	}
	for _, part := range []string{"var/lib/halogen", "var/lib"} {
		m.must(os.RemoveAll(filepath.Join(m.root, host.SystemDirectory, "var/lib")))
		at := filepath.Join(m.root, host.SystemDirectory, part)
		m.must(os.MkdirAll(filepath.Dir(at), 0o755))
		m.must(os.Symlink("/run", at))
		m.ends("system", "is no directory", "cannot be updated")
		if slices.ContainsFunc(m.mounted, func(p string) bool { return strings.HasSuffix(p, "halogen") }) {
			t.Errorf("mounted are %q", m.mounted)
		}
	}
}

// Of two files of one version the one that was started is condemned. FAULTS 45
func TestCondemnTheOneStarted(t *testing.T) {
	m := provisionedMachine(t, nil)
	m.releases[2] = newRelease(t, 2, 5, nil)
	m.stage(m.releases[2], true)
	trial := m.files()[bls.Directory+"/test_2+3.efi"]
	m.setFile(bls.Directory+"/test_2+3.efi", nil)
	m.setFile(bls.Directory+"/test_2.efi", trial)
	m.setFile(bls.Directory+"/test_2+2-1.efi", trial)
	if end := m.boot(); end != "reboot" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	m.wants("test_1.efi", "test_2+0.efi", "test_2+2-1.efi")
	said := m.said.String()
	if before, after := strings.Index(said, "condemn: the system image"), strings.Index(said, "has no tries left"); before < 0 || after < before {
		t.Errorf("it says too late why:\n%s", said)
	}
	m.setFile(bls.Directory+"/test_2+0-2.efi", []byte("x"))
	if end := m.boot(); end != "reboot" { // and finds a name that nothing has
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	m.wants("test_1.efi", "test_2+0-2.efi", "test_2+0-3.efi", "test_2+0.efi")
	m.ends("system", "besides the one that counts")
	m.wants("test_1.efi", "test_2+0.efi")
}

// A system that cannot be condemned is not started for ever. FAULTS 46, 47
func TestCannotCondemn(t *testing.T) {
	m := provisionedMachine(t, nil)
	m.releases[2] = newRelease(t, 2, 5, nil)
	m.stage(m.releases[2], true)
	m.setFile(bls.Directory+"/test_2.efi", m.files()[bls.Directory+"/test_2+3.efi"])
	m.setFile(bls.Directory+"/test_2+3.efi", nil)
	m.esp.fails = syscall.EROFS
	m.ends("recovery", "read-only file system")
}

// The power is cut at every write of what follows a trial that has used up its
// tries. However often that happens, the fallback stays blessed, the trial is
// started no more than two rounds' worth of times, and it ends. FAULTS 49
func TestCutJudgement(t *testing.T) {
	m := fetchedMachine(t)
	fresh := m.world(true, nil)
	for _, c := range []struct {
		name string
		set  func()
	}{
		{"interrupted", func() { m.runs(2); m.runs(2); m.runs(2) }},
		{"failed", func() { m.rename("test_2+3.efi", "test_2+0-3.efi") }},
	} {
		m.powerOn(fresh)
		c.set()
		states, end := m.record(m.world(true, nil), mrand.New(mrand.NewPCG(9, 10)), "")
		if end != "system" {
			t.Fatalf("%s: ends in %s", c.name, end)
		}
		for _, s := range states {
			m.powerOn(s.world)
			m.judgedInTheEnd(c.name + ": " + s.how)
		}
		t.Logf("%s: %d states after a cut", c.name, len(states))
	}
}

// judgedInTheEnd starts the machine until version 2 has failed, as it goes on
// being interrupted.
func (m *machine) judgedInTheEnd(how string) {
	m.t.Helper()
	trials := 0
	for range 10 {
		m.said.Reset()
		if end := m.boot(); end != "system" && end != "reboot" {
			m.t.Fatalf("%s: ends in %s:\n%s", how, end, m.said.String())
		}
		if m.agent.Contract.Version == 2 {
			trials++
		}
		if !slices.Contains(m.systems(), "test_1.efi") {
			m.t.Fatalf("%s: the fallback is gone: %q", how, m.systems())
		}
		if _, ok := m.failed()[2]; ok && m.agent.Contract.Version == 1 {
			if trials > 4 {
				m.t.Errorf("%s: %d more starts of the trial", how, trials)
			}
			if s := m.runningSlot(); s != layout.SlotA {
				m.t.Errorf("%s: slot %s runs", how, s)
			}
			return
		}
	}
	m.t.Errorf("%s: it does not end: %q", how, m.systems())
}

// The running system gets to know what it is, and why it runs.
// FAULTS 112 (M10)
func TestReport(t *testing.T) {
	m := provisionedMachine(t, pinned)
	read := func() (r bootinfo.Report) {
		text, err := os.ReadFile(filepath.Join(m.root, handover.RunDirectory, "boot.json"))
		m.must(err)
		m.must(json.Unmarshal(text, &r))
		return r
	}
	r := read()
	s, err := distributor()
	m.must(err)
	want := fmt.Sprintf("%X", s.entity.PrimaryKey.Fingerprint)
	if r.ImageID != "test" || r.Arch != "x86_64" || r.Version != "1" || r.Epoch != 5 || r.Floor != 5 || r.Slot != layout.SlotA || r.Trial ||
		r.Reason != "it is the only system" || !r.Signed || r.ReleaseKey != want || r.Root != "tpm" || r.Watchdog != "" || r.WatchdogReset {
		t.Errorf("report %+v", r)
	}
	if last := r.Steps[len(r.Steps)-1]; last.Step != "mount-state" || last.Error != "" {
		t.Errorf("the last step is %+v", last)
	}
	m.extra = "another firmware"
	m.watchdogReset = true
	m.must(os.MkdirAll(filepath.Join(m.root, "proc"), 0o755))
	m.must(os.WriteFile(filepath.Join(m.root, microcode.CPUInfo), []byte("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 33\nstepping\t: 2\nmicrocode\t: 0xa20120a\n"), 0o644))
	file := filepath.Join(m.root, microcode.AMD.Path()) // where Linux puts the archive's
	m.must(os.MkdirAll(filepath.Dir(file), 0o755))
	m.must(os.WriteFile(file, microcodetest.AMD(microcode.Processor{Signature: 0xa20f12, Revision: 0xa201213}), 0o644))
	m.typed = []string{m.recoveryKey(), "n"}
	m.ends("system")
	if r := read(); r.Root != "key" || !r.WatchdogReset || r.Watchdog != "" || // this system feeds none
		r.Processor == nil || r.Processor.String() != "AuthenticAMD 19-21-02, microcode 0xa20120a" || r.Microcode != "0xa201213" {
		t.Errorf("report %+v", r)
	}
}
