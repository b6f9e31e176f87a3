package qemutests

import (
	"os"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/builder/vm"
)

// command types a line at the recovery console and waits for what it says. The
// terminal edits lines, so nothing has to wait for an editor.
func (g *Guest) command(line, pattern string) []string {
	g.t.Helper()
	g.typeLine(line)
	return g.Expect(pattern)
}

// toConsole refuses the recovery key and waits for the console.
func (g *Guest) toConsole() {
	g.t.Helper()
	g.Expect(asksForKey)
	g.typeLine("")
	g.Expect(`halogen: the boot has stopped, and nothing was lost`)
	g.Expect(`\$ `)
}

func (g *Guest) unlock(key string) {
	g.t.Helper()
	g.command("unlock", `Recovery key \(an empty line gives up\): `)
	g.command(key, `The root partition is open at /run/state`)
}

// asksNothing leaves the console and expects the system, without a question.
func (g *Guest) asksNothing(what string) {
	g.t.Helper()
	g.typeLine("exit")
	i, match := g.ExpectAny(asksForKey, `RECOVERY: [^\n]*`, `halogen: handing over`)
	if i != 2 {
		g.t.Fatalf("%s the boot came to %.200q", what, match[0])
	}
	checkSecured(g.t, what, g.Boot())
}

// TestRescue: the firmware has changed and a hash block is damaged. At the console the
// owner looks around, replaces the recovery key, repairs the slot, and has the TPM open
// the machine again. Then the ESP is overwritten, and made again from the root partition.
// FAULTS 32, 48, 79
func TestRescue(t *testing.T) {
	t.Parallel()
	p := refusedAtInit(t)
	g := Machine(t, Options{State: p.State, Prepare: func(s vm.State) error {
		d := openDisk(t, s.Disk(), os.O_RDWR)
		d.flip(layout.SlotA.Verity(), 0x100) // the superblock, which no boot reads
		return nil
	}})
	g.toConsole()
	g.command("slots", `\* slot a +version 1 [^\n]*blessed`)
	g.command("eventlog", `PCR 7`)
	g.command("cat /sys/kernel/security/lockdown", `\[confidentiality\]`)
	g.command("dd if=/proc/kcore of=/dev/null bs=1 count=1", `not permitted`)
	g.command("reseal", "type `unlock` first")
	g.command("echo 'a typing error", `\$ `) // an open quote; the shell waits for its end
	g.command("'; echo ended", `ended`)
	g.command("echo )", `(?s)\).*\$ `)
	old := p.Notes[recoveryKeyNote]
	g.unlock(old)
	g.command("slots", `boot journal:`)
	g.typeLine("recovery-key")
	fresh := g.Expect(`NEW RECOVERY KEY:\s+(\S+)\s`)[1]
	g.typeGroups(fresh)
	g.Expect(`The new recovery key is the only one`)
	g.command("verify a", `superblock is not the expected one`)
	g.command("repair a", `slot a: whole again; 0 data blocks and 1 hash blocks written`)
	g.command("verify", `slot a: \d+ MiB are what`)
	g.command("reseal", `Say yes only if you know what changed it[^\n]*\[y/N\] `)
	g.command("y", `Accepted\.`)
	g.command("lock; echo status $?", `status 0`)
	g.command("unlock", `Recovery key`)
	g.command(old, `Nothing is lost: try again`)
	g.command(fresh, `The root partition is open`)
	g.command("dd if=/dev/zero of=/dev/vda1 bs=1048576 count=8; sync; echo gone", `gone`)
	g.command("slots", `slots: read the ESP`)
	g.command("esp-rebuild", `see that the power stays on\. \[y/N\] `)
	g.command("y", `The EFI system partition is made`)
	g.asksNothing("after reseal, from a new ESP")
	var kept struct{ Text string }
	if g.Do(&kept, "read", "/var/lib/kept"); kept.Text != keptFiles["/var/lib/kept"] {
		t.Errorf("/var/lib/kept holds %q", kept.Text)
	}
	g.PowerOff()
	openDisk(t, g.State().Disk(), os.O_RDONLY).checkESP()
}

// TestEnrollAgain: the firmware was reset, and has lost its keys.
// FAULTS 61
func TestEnrollAgain(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	g := Machine(t, Options{State: p.State, Prepare: vm.State.ResetVars})
	g.toConsole()
	g.unlock(p.Notes[recoveryKeyNote])
	g.command("reseal", `the firmware does not enforce Secure Boot`)
	g.command("enroll", `Write this to the firmware\? \[y/N\] `)
	g.command("y", `enforced from the next start on`)
	g.asksNothing("after enroll")
	for words, want := range map[string]string{
		"slots --json": `"state": "blessed"`, "verify": "slot a: ", "repair": "slot a: nothing to repair", "eventlog": "PCR 11",
		"eventlog --all --json": `"events"`, "firmware --json": `"secure_boot": "on"`,
	} {
		if r := g.Run("/usr/sbin/halogenctl", strings.Fields(words)...); r.Exit != 0 || !strings.Contains(r.Stdout, want) {
			t.Errorf("halogenctl %s: %d, %s%s", words, r.Exit, r.Stdout, r.Stderr)
		}
	}
	if r := g.Run("/usr/sbin/halogenctl", "unlock"); r.Exit != 2 {
		t.Errorf("halogenctl unlock: %d, %s%s", r.Exit, r.Stdout, r.Stderr)
	}
}

// TestReset wipes the root partition. After its firmware was put into Setup Mode the
// machine makes itself new.
func TestReset(t *testing.T) {
	t.Parallel()
	p := refusedAtInit(t)
	g := Machine(t, Options{State: p.State})
	g.toConsole()
	g.command("reset", `Type the machine's name, (\S+), to do it: `)
	g.command("something else", `reset: nothing was changed`)
	name := g.command("reset", `Type the machine's name, (\S+), to do it: `)[1]
	g.command(name, `The root partition is wiped\. Now open`)
	g.PowerCut()
	must(t, g.State().ResetVars())
	g.PowerOn()
	fresh, r := g.provision()
	if fresh == p.Notes[recoveryKeyNote] {
		t.Error("the recovery key is the old one")
	}
	checkSecured(t, "after a reset", r)
	checkSecured(t, "after a reset, and a start", g.Reboot())
}
