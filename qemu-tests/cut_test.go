package qemutests

import (
	"os"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/qemu-tests/testos/protocol"
)

// A moment is when the power goes: some time after the console showed something.
type moment struct {
	shown string // expression
	after time.Duration
}

// enforced is what the second boot shows before it makes the root partition: the
// kernel got the machine's key from db.
const enforced = `(?s)integrity: Loaded X.509 cert 'HalogenOS.*?halogen: open-verity \(`

// TestProvisioningCut cuts while partitions, the tree, keys and signatures are made.
// FAULTS 42, 60
func TestProvisioningCut(t *testing.T) {
	t.Parallel()
	provisionCut(t, []moment{
		{`make partition 6`, 0}, // the table is written now
		{`halogen: partition \(`, 300 * time.Millisecond},
		{`halogen: make-tree \(`, 0},
		{`halogen: open-verity \(`, 2 * time.Second}, // keys are generated, sealed, put on the ESP
		{`vendor keys: `, 400 * time.Millisecond},
		{`BOOTX64.EFI: signed`, 0},
		{`db gets `, 0},
		{`PK gets `, 0},
	})
}

// TestEnrollmentCut cuts while signatures are made, keys are enrolled, and the volume is
// made.
// FAULTS 42, 60
func TestEnrollmentCut(t *testing.T) {
	t.Parallel()
	provisionCut(t, []moment{
		{`vendor keys: `, 0},
		{`_1.efi: signed`, 0},
		{`KEK gets `, 100 * time.Millisecond},
		{`halogen: enroll \(`, 0},
		{enforced, 1200 * time.Millisecond}, // LUKS2 header
		{enforced, 3 * time.Second},         // file system, record
		{`RECOVERY KEY:`, 0},                // shown, and not written down
		{`halogen: make-root \(`, 0},
	})
}

// provisionCut cuts the power at one moment of provisioning after the other, in one
// machine's life: each boot goes on where the cut left it. Then it boots on, and comes
// to what an undisturbed machine comes to.
func provisionCut(t *testing.T, moments []moment) {
	t.Helper()
	g := newGuest(t, Options{Image: "testos-1"})
	key, cuts := "", 0
	for _, m := range moments {
		if g.cutAt(m, &key) {
			cuts++
		} else {
			t.Logf("no boot came to %q any more", m.shown)
		}
	}
	// A cut right before and one right after a write may skip what follows.
	if least := len(moments) - 2; cuts < least {
		t.Errorf("%d cuts; want %d at least", cuts, least)
	}
	g.PowerOn()
	r := g.bootThrough(&key)
	checkSecured(t, "after the cuts", r)
	before := len(g.Console().Text())
	checkSecured(t, "after a restart", g.Reboot())
	if strings.Contains(g.Console().Text()[before:], "Recovery key (") {
		t.Error("the TPM does not open what was made between cuts")
	}
	g.PowerOff()
	checkProvisionedDisk(t, Provisioned{State: g.State(), Notes: map[string]string{recoveryKeyNote: key}})
}

// cutAt switches the machine on and cuts the power at the moment. It is false when
// the machine got to its system first.
func (g *Guest) cutAt(m moment, key *string) bool {
	g.t.Helper()
	g.PowerOn()
	defer g.PowerCut()
	for {
		switch i, match := g.ExpectAny(m.shown, shownKey, protocol.Greeting+` \{`, `RECOVERY: [^\n]*`); i {
		case 0:
			time.Sleep(m.after)
			return true
		case 1:
			*key = match[1]
			g.confirm()
		case 2:
			return false
		default:
			g.t.Fatalf("on the way to %q the boot came to %s", m.shown, match[0])
		}
	}
}

// bootThrough lets the machine provision itself as far as it still has to.
func (g *Guest) bootThrough(key *string) protocol.Report {
	g.t.Helper()
	if i, match := g.ExpectAny(shownKey, `halogen: unlock \(`, `RECOVERY: [^\n]*`, asksForKey); i == 0 {
		*key = match[1]
		g.confirm()
	} else if i != 1 {
		g.t.Fatalf("the boot came to %s", match[0])
	}
	return g.Boot()
}

// checkProvisionedDisk is TestOthersAgree for a machine that was cut: the ESP may say
// that it was not unmounted, and nothing of a provisioning may be left.
func checkProvisionedDisk(t *testing.T, p Provisioned) {
	t.Helper()
	d := openDisk(t, p.State.Disk(), os.O_RDONLY)
	d.checkTable()
	checkLUKS(t, p, d.cut(layout.Root))
	checkSignatures(t, p)
	for _, name := range espFiles(t, p.State, ".json") {
		t.Errorf("%s was left on the ESP", name)
	}
	for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB} {
		keyEntry(t, p.State, v)
	}
}
