package qemutests

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/builder/vm"
	"halogenos.internal/qemu-tests/testos/protocol"
)

// tries is how many tries a release gets.
const tries = 3

// successor is what most tests try.
func successor() variant { return variant{Epoch: 1, Watchdog: 20} }

// bootOf is what a boot told its system of itself.
type bootOf struct {
	Version string
	Slot    string
	Trial   bool
}

func (b bootOf) String() string {
	return fmt.Sprintf("version %s in slot %s, trial %v", b.Version, b.Slot, b.Trial)
}

func oldSystem() bootOf { return bootOf{"1", "a", false} }
func newSystem() bootOf { return bootOf{"2", "b", true} }
func blessed() bootOf   { return bootOf{"2", "b", false} }

// boots waits for a system and compares which.
func (g *Guest) boots(want bootOf) protocol.Report {
	g.t.Helper()
	i, match := g.ExpectAny(greeting, `RECOVERY: [^\n]*\n[^\n]*\n`, asksForKey)
	if i != 0 {
		g.t.Fatalf("the boot came to %q, want %v", match[0], want)
	}
	var r protocol.Report
	must(g.t, json.Unmarshal([]byte(match[1]), &r))
	var got bootOf
	must(g.t, json.Unmarshal(r.Halogen["boot.json"], &got))
	if got != want {
		g.t.Fatalf("the boot came to %v, want %v", got, want)
	}
	checkSecured(g.t, want.String(), r)
	return r
}

// againTried is where the old system's boot gives version 2 another round of tries.
const againTried = `halogen: halogen_2\+3\.efi gets its tries again: it reached the system, and nothing says that it failed`

// onTrial is a machine, off, on which version 2 has so many tries left.
func onTrial(t testing.TB, v variant, left int, o vm.Options) *Guest {
	t.Helper()
	g := newGuest(t, Options{State: staged(t, v).State, VM: o})
	leaveTries(t, g.State(), left)
	return g
}

// leaveTries leaves version 2 so many tries.
func leaveTries(t testing.TB, s vm.State, left int) {
	t.Helper()
	if left < tries {
		mtools(t, s, "mren", fmt.Sprintf("::%s/halogen_2+%d.efi", bls.Directory, tries), fmt.Sprintf("::%s/halogen_2+%d-%d.efi", bls.Directory, left, tries-left))
	}
}

// lastTryAtInit is a machine in the last try of version 2 (see atInit).
func lastTryAtInit(t testing.TB) Provisioned {
	t.Helper()
	o := Options{Image: "testos-1", State: staged(t, successor()).State, Prepare: func(s vm.State) error {
		leaveTries(t, s, 1)
		return nil
	}}
	return suspendedAtInit(t, o, fmt.Sprintf("staged-2 %+v, one try left", successor()), nil)
}

// goesBack switches the machine on, has version 2 fail the tries that it has left, and
// in as many rounds more all that it is given again, and expects the old system, by
// itself, which remembers why.
func (g *Guest) goesBack(left, more int, why string, try func(n int)) {
	g.t.Helper()
	g.PowerOn()
	for n := range left + more*tries {
		if n >= left && (n-left)%tries == 0 {
			g.Expect(againTried)
		}
		try(n)
	}
	g.boots(oldSystem())
	g.failedFor(why)
	g.PowerOff()
	wantUKIs(g.t, g.State(), "halogen_1.efi", fmt.Sprintf("halogen_2+0-%d.efi", tries))
}

// failedFor expects that the journal has version 2 as failed.
func (g *Guest) failedFor(why string) {
	g.t.Helper()
	reason := journal.Failures(g.journal())[2]
	if !strings.Contains(reason, why) || reason == "" {
		g.t.Errorf("the journal has version 2 failed for %q, want %q", reason, why)
	}
}

func (g *Guest) journal() []journal.Entry {
	g.t.Helper()
	var read struct{ Text string }
	g.Do(&read, "read", "/var/lib/halogen/"+journal.Name)
	return journal.Parse([]byte(read.Text))
}

// bless drops the counter, as a script does where there is nothing else.
func (g *Guest) bless(r protocol.Report) {
	g.t.Helper()
	esp := ""
	for _, d := range r.Disks {
		for i, p := range d.Partitions {
			if p.Label == layout.ESPLabel && i < len(d.Kernel) {
				esp = "/dev/" + d.Kernel[i]
			}
		}
	}
	g.mountFAT(esp)
	var files []struct{ Name string }
	g.Do(&files, "ls", "/mnt/"+bls.Directory)
	for _, f := range files {
		if n, err := bls.Parse(f.Name); err == nil && n.Version == 2 {
			g.Do(nil, "mv", path.Join("/mnt", bls.Directory, f.Name), path.Join("/mnt", bls.Directory, n.Blessed().String()))
		}
	}
	g.Do(nil, "sync")
	g.Do(nil, "umount", "/mnt")
}

// TestTrialBlessed: the plug is pulled on version 2's last try, which costs it nothing
// in the end: it is tried again, and blessed. Its epoch is higher, so the old system
// gets no key from then on, even where it is all that is left. No cut while the names
// on the ESP change loses a system.
// FAULTS 49, 51
func TestTrialBlessed(t *testing.T) {
	t.Parallel()
	g := newGuest(t, Options{State: lastTryAtInit(t).State})
	g.PowerOn()
	g.Expect(`halogen: handing over`)
	time.Sleep(time.Second)
	g.PowerCut()
	before := filepath.Join(t.TempDir(), "before.img")
	must(t, vm.CopySparse(before, g.State().Disk()))
	g.VM.WriteLog = filepath.Join(t.TempDir(), "writes")
	g.PowerOn()
	g.Expect(againTried)
	g.bless(g.boots(newSystem()))
	g.Do(nil, "reboot")
	g.boots(blessed())
	g.PowerOff()
	openESPCuts(t, before, g.VM.WriteLog).keepsUKIs(1, 2)
	g.VM.WriteLog = ""
	openDisk(t, g.State().Disk(), os.O_RDONLY).checkTable()
	wantUKIs(t, g.State(), "halogen_1+0.efi", "halogen_2.efi")
	mtools(t, g.State(), "mdel", "::"+bls.Directory+"/halogen_2.efi")
	g.PowerOn()
	g.Expect(`RECOVERY: this system's epoch is 0 and the TPM's floor is 1[^\n]*there is no other system to fall back to`)
	if open := g.expectConsole(); slices.Contains(open, "root") {
		t.Errorf("open in the recovery console: %q", open)
	}
}

// TestTrialNeverBlessed: a system that starts again and again and is never blessed gets
// two rounds of tries, and no more. In the first round it is the kernel that restarts
// it, when it reads a corrupt block.
// FAULTS 32
func TestTrialNeverBlessed(t *testing.T) {
	t.Parallel()
	const file = "/usr/sbin/e2fsck"
	g := newGuest(t, Options{State: lastTryAtInit(t).State})
	openDisk(t, g.State().Disk(), os.O_RDWR).flip(layout.SlotB.System(), fileOffset(t, "testos-1", file)+100)
	g.goesBack(1, 1, "it was not blessed in two rounds of tries", func(n int) {
		g.boots(newSystem())
		if n == 0 {
			g.restartsOn("sha256", file)
		} else {
			g.Do(nil, "reset")
		}
	})
}

// TestTrialPanics: a command line from outside the UKI names the console's shell as the
// first process of version 2. It ends, and the kernel with it, before anything else of
// ours has run.
// FAULTS 77, 78
func TestTrialPanics(t *testing.T) {
	t.Parallel()
	g := onTrial(t, successor(), 1, vm.Options{NoReboot: true, SMBIOS: []string{"io.systemd.stub.kernel-cmdline-extra=rdinit=/bin/sh"}})
	g.endsInit = true
	g.PowerOn()
	g.Expect(`only initagent may be process 1, and this is \["/bin/sh"\]`)
	g.Expect(`Kernel panic - not syncing: Attempted to kill init!`)
	g.endsAtRestart()
	g.VM = withDefaults(vm.Options{})
	g.goesBack(0, 0, "it never reached the system", nil)
}

// TestTrialHangs: the kernel of version 2 hangs with interrupts disabled, once while
// initagent is at work and then in the system; the watchdog ends it.
func TestTrialHangs(t *testing.T) {
	t.Parallel()
	g := onTrial(t, successor(), 2, vm.Options{Watchdog: vm.I6300ESB})
	g.goesBack(2, 0, "watchdog", func(n int) {
		if n == 0 {
			g.Expect(`halogen: open-verity \(`)
		} else {
			g.boots(newSystem())
			g.Do(nil, "watchdog", "5")
		}
		g.freeze()
	})
}

// freeze hangs the kernel and waits for the watchdog.
func (g *Guest) freeze() {
	g.t.Helper()
	ctx, cancel := g.wait()
	defer cancel()
	must(g.t, g.Freeze(ctx))
	g.bites()
}

// bites waits for the watchdog.
func (g *Guest) bites() {
	g.t.Helper()
	ctx, cancel := g.wait()
	defer cancel()
	if _, err := g.QMP().WaitEvent(ctx, "WATCHDOG"); err != nil {
		g.t.Fatal(err)
	}
}

// TestTrialSystemHangs: the system of version 2 hangs, the kernel under it does not.
// FAULTS 50
func TestTrialSystemHangs(t *testing.T) {
	t.Parallel()
	g := onTrial(t, successor(), 1, vm.Options{Watchdog: vm.I6300ESB})
	g.goesBack(1, 0, "watchdog", func(int) {
		checkWatchdog(t, g.boots(newSystem()), vm.I6300ESB, successor().Watchdog)
		g.systemHangs()
	})
}

// TestTrialCorrupt: the first block of version 2 is corrupt. It gets no other try.
// FAULTS 32
func TestTrialCorrupt(t *testing.T) {
	t.Parallel()
	g := newGuest(t, Options{State: stagedAtInit(t, successor()).State})
	openDisk(t, g.State().Disk(), os.O_RDWR).flip(layout.SlotB.System(), 1234)
	g.PowerOn()
	g.Expect(`halogen: halogen_2\+0-1\.efi has no tries left`)
	g.boots(oldSystem())
	g.failedFor("")
	g.PowerOff()
	wantUKIs(t, g.State(), "halogen_1.efi", "halogen_2+0-1.efi")
}

// TestBothBad: neither slot can be started. The recovery console opens, says so, and
// the root partition is closed.
func TestBothBad(t *testing.T) {
	t.Parallel()
	g := newGuest(t, Options{State: stagedAtInit(t, successor()).State})
	d := openDisk(t, g.State().Disk(), os.O_RDWR)
	for _, s := range []layout.Slot{layout.SlotA, layout.SlotB} {
		d.flip(s.System(), 1234)
	}
	g.PowerOn()
	g.Expect(`halogen: halogen_2\+0-1\.efi has no tries left`)
	g.Expect(`RECOVERY: [^\n]+\n[^\n]*there is no other system to fall back to`)
	if open := g.expectConsole(); slices.Contains(open, "root") {
		t.Errorf("open in the recovery console: %q", open)
	}
}

// TestStageFull: there is no room on the ESP, neither for version 2 nor for what every
// boot keeps there. The running system starts, says so, and what was there stays.
// FAULTS 47
func TestStageFull(t *testing.T) {
	t.Parallel()
	g := newGuest(t, Options{State: fetched(t, successor()).State})
	for _, name := range espFiles(t, g.State(), ".bin") {
		mtools(t, g.State(), "mdel", "::"+name)
	}
	openFAT(t, g.State()).fill()
	before := espFiles(t, g.State(), "")
	g.PowerOn()
	g.Expect(`halogen: stage FAILED[^\n]*the ESP is too full`)
	g.boots(oldSystem())
	if !strings.Contains(g.Console().Text(), "the event log of this boot was not kept: ") {
		t.Error("nothing says that the event log was not kept")
	}
	g.PowerOff()
	if after := espFiles(t, g.State(), ""); !slices.Equal(after, before) {
		t.Errorf("files on the ESP: %q, before that %q", after, before)
	}
	wantUKIs(t, g.State(), "halogen_1.efi")
}

// restartsOn gives the system a command on which the kernel restarts the machine.
func (g *Guest) restartsOn(words ...string) {
	g.t.Helper()
	line, err := protocol.Line(words...)
	must(g.t, err)
	must(g.t, g.SendLine(line))
	if i, match := g.ExpectAny(`BdsDxe: starting`, `(?m)^(OK|ERR) [^\n]*`); i != 0 {
		g.t.Fatalf("%q: %q; want a restart", words, match[0])
	}
}
