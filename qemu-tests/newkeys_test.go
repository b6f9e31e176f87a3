package qemutests

import (
	"bytes"
	"encoding/hex"
	"os"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/builder/vm"
	"halogenos.internal/qemu-tests/testos/protocol"
)

// managerCopy is the boot manager's second place, which a boot entry names.
const managerCopy = "EFI/systemd/systemd-bootx64.efi"

// A newKeysTest is a machine that gets a new secret and new Secure Boot keys.
type newKeysTest struct {
	*Guest
	key   string // the recovery key
	dumps []memoryDump
}

// A memoryDump is searched when the new secrets can be read: on a machine that is off.
type memoryDump struct {
	when, path string
	open       bool // the root partition was, and the kernel has its key
}

func (g *newKeysTest) dump(when string, open bool) {
	g.t.Helper()
	g.dumps = append(g.dumps, memoryDump{when, g.dumpMemory(), open})
}

// TestNewKeys: a machine gets a new secret and new Secure Boot keys, once asked for by
// the running system and once at the recovery console. From the next start on its
// firmware enforces the new keys, and nothing that the old ones have signed; the TPM
// opens by itself what was there, and the old secret opens nothing. No secret is left in
// memory, the old ones no more than the new.
// FAULTS 75, 100, 104
func TestNewKeys(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	old := secrets(t, p)
	for _, tt := range []struct {
		name string
		make func(g *newKeysTest)
	}{
		{"asked for by the running system", (*newKeysTest).askedFor},
		{"at the recovery console", (*newKeysTest).atConsole},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := &newKeysTest{Guest: Machine(t, Options{State: p.State}), key: p.Notes[recoveryKeyNote]}
			tt.make(g)
			first := g.asksNothingNew("the first start with the new keys")
			if !strings.Contains(g.Console().Text(), "the firmware enforces this machine's new Secure Boot keys, and the old ones are gone") {
				t.Error("nothing says that the firmware enforces the new keys")
			}
			g.dump("the first start with the new keys", true)
			g.checkNewKeys(p)
			g.Do(nil, "reboot")
			second := g.asksNothingNew("the second start")
			if before := notedReport(t, p, thirdReport).PCRs["7"]; first.PCRs["7"] == before || second.PCRs["7"] != first.PCRs["7"] {
				t.Errorf("PCR 7 is %s, %s at the next start, and was %s", first.PCRs["7"], second.PCRs["7"], before)
			}
			g.PowerOff()
			g.checkNewSecrets(t, p, old)
			g.startsNothingOld(p)
		})
	}
}

// askedFor asks in the running system, and types the recovery key at the next start,
// which has closed everything when it restarts the machine.
func (g *newKeysTest) askedFor() {
	g.t.Helper()
	g.Boot()
	r := g.Run("/usr/sbin/halogenctl", "reseal", "--new-secret", "--new-keys")
	if r.Exit != 0 || !strings.Contains(r.Stdout, "The next start asks for the recovery key") {
		g.t.Fatalf("halogenctl reseal: %d, %s%s", r.Exit, r.Stdout, r.Stderr)
	}
	g.PowerOff()
	// The restart stops the machine, with its memory as it is.
	g.VM.NoReboot, g.VM.Extra = true, []string{"-action", "shutdown=pause"}
	g.PowerOn()
	const question = `Recovery key for the new secret \(an empty line changes nothing\): `
	g.Expect(`A NEW MACHINE SECRET AND NEW SECURE BOOT KEYS: this was asked for from the running system`)
	g.Expect(question)
	g.typeLine(wrongKey(g.key))
	g.Expect(`Nothing is lost: try again`)
	g.Expect(question)
	g.typeLine(g.key)
	g.Expect(`The machine has a new secret\.`)
	g.Expect(`halogen: reboot: the machine secret was replaced`)
	ctx, cancel := g.wait()
	defer cancel()
	_, err := g.QMP().WaitEvent(ctx, "SHUTDOWN")
	must(g.t, err)
	g.dump("the end of the boot that made new keys", false)
	g.PowerCut()
	g.VM.NoReboot, g.VM.Extra = false, nil
	g.PowerOn()
}

// atConsole does it at the recovery console, which is closed again afterwards.
func (g *newKeysTest) atConsole() {
	g.t.Helper()
	g.Expect(`halogen: press r for the recovery console`)
	g.typed("r")
	g.expectConsole()
	g.unlock(g.key)
	g.command("reseal --new-secret --new-keys", `Make a new machine secret and new Secure Boot keys, and accept this machine as it is now\?(?s:.*?)\[y/N\] `)
	g.command("y", `Recovery key, once more \(an empty line gives up\): `)
	g.command(g.key, `The machine has a new secret\.`)
	g.Expect(`The firmware holds the new Secure Boot keys\.`)
	g.command("lock; echo status $?", `status 0`)
	g.dump("the console that made new keys, closed again", false)
	g.typeLine("exit")
}

// asksNothingNew waits for the system, and expects that nobody is asked anything.
func (g *newKeysTest) asksNothingNew(what string) protocol.Report {
	g.t.Helper()
	i, match := g.ExpectAny(asksForKey, `RECOVERY: [^\n]*`, `\[y/N\] `, `halogen: handing over`)
	if i != 3 {
		g.t.Fatalf("%s came to %.200q", what, match[0])
	}
	r := g.Boot()
	checkSecured(g.t, what, r)
	return r
}

// checkNewKeys compares what the firmware holds with what it held, and looks for the
// data.
func (g *newKeysTest) checkNewKeys(p Provisioned) {
	g.t.Helper()
	for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB} {
		now, was := g.firmwareHolds(v), keyEntry(g.t, p.State, v)
		if len(now) != 1 || now[0].Type != secureboot.TypeX509 || bytes.Equal(now[0].Data, was.Data) {
			g.t.Errorf("%s holds %v; want one certificate, and not the one from before", v.Name, now)
		}
	}
	for path, want := range keptFiles {
		var read struct{ Text string }
		if g.Do(&read, "read", path); read.Text != want {
			g.t.Errorf("%s holds %q; %q was written", path, read.Text, want)
		}
	}
}

// firmwareHolds is a key variable as the running system reads it; empty where there is
// none.
func (g *Guest) firmwareHolds(v secureboot.Variable) secureboot.Database {
	g.t.Helper()
	var read struct{ Hex string }
	if g.Try(&read, "read", "/sys/firmware/efi/efivars/"+v.Name+"-"+v.GUID.String()) != nil {
		return nil
	}
	value, err := hex.DecodeString(read.Hex)
	must(g.t, err)
	if len(value) < 4 {
		g.t.Fatalf("%s: %d bytes, which have no attributes", v.Name, len(value))
	}
	all, err := secureboot.ParseDatabase(value[4:])
	must(g.t, err)
	return all
}

// checkNewSecrets reads the new secrets of a machine that is off, which have to be others
// than the old ones, and searches the dumps for both.
func (g *newKeysTest) checkNewSecrets(t *testing.T, p Provisioned, old []needle) {
	t.Helper()
	now := Provisioned{State: g.State(), Notes: p.Notes}
	checkLUKS(t, now, openDisk(t, g.State().Disk(), os.O_RDONLY).cut(layout.Root))
	checkSignatures(t, now)
	all := secrets(t, now)
	kept := []string{volumeKeyNeedle, volumeKeyNeedle + ", tweak", "recovery key", "recovery key without dashes", "recovery key's bytes"}
	for _, was := range old {
		same := slices.ContainsFunc(all, func(n needle) bool { return bytes.Equal(n.bytes, was.bytes) })
		if same != slices.Contains(kept, was.name) {
			t.Errorf("the %s has stayed the same: %v", was.name, same)
		}
		if was.name == passphraseNeedle && opens(t, g.State(), was.bytes) {
			t.Error("the old secret's passphrase opens the root partition")
		}
		if !same {
			was.name = "old " + was.name
			all = append(all, was)
		}
	}
	for _, d := range g.dumps {
		wantNone(t, d.when, searchDump(t, d.path, all), all, d.open)
		must(t, os.Remove(d.path))
	}
}

// opens reports whether a passphrase opens the root partition of a machine that is off.
func opens(t testing.TB, s vm.State, passphrase []byte) bool {
	t.Helper()
	d := openDisk(t, s.Disk(), os.O_RDONLY)
	_, size := d.partition(layout.Root)
	volume, err := os.Open(d.cut(layout.Root))
	must(t, err)
	defer volume.Close()
	header, _, err := luks2.Open(volume, size)
	must(t, err)
	_, _, err = header.Unlock(volume, passphrase, 1<<30)
	return err == nil
}

// startsNothingOld puts the boot manager back that the machine had before, and expects
// that the firmware starts it from neither place.
func (g *Guest) startsNothingOld(p Provisioned) {
	g.t.Helper()
	image := espContent(g.t, p.State, bootManager)
	espWrite(g.t, g.State(), bootManager, image)
	espWrite(g.t, g.State(), managerCopy, image)
	g.refusesManager()
}

// refusesManager switches the machine on, whose firmware must not start the boot manager.
func (g *Guest) refusesManager() {
	g.t.Helper()
	g.PowerOn()
	if i, match := g.ExpectAny(`BdsDxe: failed to load [^\n]*: Access Denied`, `halogen: `); i != 0 {
		g.t.Errorf("with the old boot manager the machine came to %q", match[0])
	}
	g.PowerCut()
	if strings.Contains(g.Console().Text(), "halogen: ") {
		g.t.Error("the old boot manager has started initagent")
	}
}
