package qemutests

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/vm"
)

// TestAcceptAgain: the firmware measures its keys differently than before. The TPM
// refuses, wrong recovery keys cost nothing, the right one opens, and once the change
// was accepted the machine starts by itself again.
func TestAcceptAgain(t *testing.T) {
	t.Parallel()
	p := refusedAtInit(t)
	g := Machine(t, Options{State: p.State})
	g.expectRefusal("PCR 7 (Secure Boot)", "nobody vouches for")
	for _, wrong := range []string{wrongKey(p.Notes[recoveryKeyNote]), "not a recovery key"} {
		g.typeLine(wrong)
		g.Expect(`Nothing is lost: try again`)
		g.Expect(asksForKey)
	}
	g.openAndAccept(p, "Accepted", "")
}

// TestForeignKey: somebody has let db trust one more key. The recovery key opens, and
// nothing is accepted.
// FAULTS 87
func TestForeignKey(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	g := Machine(t, Options{State: p.State, Prepare: func(s vm.State) error {
		return addToDB(s.Vars(), strangersEntry(t, s))
	}})
	g.expectRefusal("PCR 7 (Secure Boot)", "db gained", "stranger")
	g.typeLine(p.Notes[recoveryKeyNote])
	g.Expect(`the TPM was left as it is: the firmware's keys are not those that this machine wants: [^\n]*stranger`)
	if r := g.Boot(); !rootIsOpen(r) {
		t.Errorf("devices %+v; want root", r.DM)
	}
	if strings.Contains(g.Console().Text(), "Say yes only if you know what changed it") {
		t.Error("the owner was asked to accept it")
	}
}

// openAndAccept types the recovery key, accepts the machine as it is, and what is lost by
// it where that is asked about, and expects that nothing is asked from the next start on.
func (g *Guest) openAndAccept(p Provisioned, want, lost string) {
	g.t.Helper()
	g.typeLine(p.Notes[recoveryKeyNote])
	g.Expect(`Say yes only if you know what changed it[^\n]*\[y/N\] `)
	g.typeLine("y")
	if lost != "" {
		g.Expect(lost)
		g.Expect(`Type the word "weaker" to give it up: `)
		g.typeLine("weaker")
	}
	g.Expect(want)
	checkSecured(g.t, "opened by the recovery key", g.Boot())
	var read struct{ Text string }
	if g.Do(&read, "read", "/var/lib/kept"); read.Text != keptFiles["/var/lib/kept"] {
		g.t.Errorf("/var/lib/kept holds %q", read.Text)
	}
	before := len(g.Console().Text())
	checkSecured(g.t, "after accepting", g.Reboot())
	for _, question := range []string{"Recovery key (", "[y/N]"} {
		if strings.Contains(g.Console().Text()[before:], question) {
			g.t.Errorf("the boot after accepting asks %q", question)
		}
	}
}

// TestOtherMachine: the disk, and the firmware's keys, in a machine with another TPM.
func TestOtherMachine(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	g := Machine(t, Options{State: p.State, Prepare: vm.State.ResetTPM})
	g.expectRefusal("the TPM was cleared, is another one, or something stands in between")
	g.openAndAccept(p, "Bound to this TPM", "the TPM's list of systems is gone")
	g.PowerOff()
	checkLUKS(t, p, openDisk(t, g.State().Disk(), os.O_RDONLY).cut(layout.Root))
}

// lockOut brings the TPM of a machine that is off into dictionary attack lockout.
func lockOut(t *testing.T, s vm.State) {
	t.Helper()
	socket, stop := softwareTPM(t, s)
	defer stop()
	dir := t.TempDir()
	run := func(tool string, args ...string) (string, error) {
		cmd := exec.Command(testkit.Need(t, tool), append([]string{"-T", "swtpm:path=" + socket}, args...)...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, args := range [][]string{
		{"tpm2_dictionarylockout", "--setup-parameters", "--max-tries=1", "--recovery-time=100000", "--lockout-recovery-time=100000"},
		{"tpm2_createprimary", "-Q", "-C", "o", "-G", "ecc", "-p", "right", "-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|decrypt", "-c", "key"},
	} {
		if out, err := run(args[0], args[1:]...); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	var out string
	var err error
	for range 3 {
		if out, err := run("tpm2_flushcontext", "-t"); err != nil { // there is no resource manager
			t.Fatalf("flush: %v: %s", err, out)
		}
		out, err = run("tpm2_create", "-Q", "-C", "key", "-P", "wrong", "-u", "pub", "-r", "priv")
		if err == nil {
			t.Fatal("a wrong authorisation was taken")
		}
	}
	if !strings.Contains(out, "lockout") {
		t.Fatalf("the TPM is not locked out: %s", out)
	}
	if out, err := run("tpm2_shutdown"); err != nil { // or the restart counts as one more try
		t.Fatalf("shutdown: %v: %s", err, out)
	}
}
