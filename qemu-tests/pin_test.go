package qemutests

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/builder/vm"
	"halogenos.internal/initagent/tpm"
	"halogenos.internal/qemu-tests/testos/theft"
)

// showsPhrase matches the phrase where there is no screen, and onScreen what a line says where
// there is one.
const (
	showsPhrase = `This machine's phrase:  ((?:[a-z]+ ){3}[a-z]+)\n`
	onScreen    = `This machine's phrase is on its (screen)`
)

// usbKeyboard is one at an xHCI, and no other.
var usbKeyboard = []string{"-machine", "i8042=off", "-device", "qemu-xhci,id=keyboards", "-device", "usb-kbd,bus=keyboards.0"}

// asksForPIN matches the question for the PIN.
const asksForPIN = `PIN \(one letter alone: it is forgotten, the recovery key opens\): `

// TestPIN: a PIN is set at the start after the running system has asked for it, typed
// wrong and right at the next one, at the serial line or at a USB keyboard. It is nowhere
// in the memory of the system that it has started. Anyone who has the machine, replays its
// boot to its TPM, and does not know the PIN, gets nothing.
// The phrase is shown before each question, the same one, and is nowhere in memory afterwards.
// FAULTS 75, 104, 108, 109
func TestPIN(t *testing.T) {
	t.Parallel()
	const pin = "correcthorsebattery"
	keyboard := vm.Options{Display: true, Extra: usbKeyboard}
	for _, tt := range []struct {
		name  string
		o     vm.Options
		types func(g *Guest, line string)
		shows string
	}{
		{"serial", vm.Options{}, (*Guest).typeLine, showsPhrase},
		{"keyboard", keyboard, (*Guest).pressLine, onScreen},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := provisioned(t)
			from := p
			if len(tt.o.Extra) == 0 { // the other starts from power on
				from = provisionedAtInit(t)
			}
			g := Machine(t, Options{State: from.State, VM: tt.o})
			g.Boot()
			if r := g.Run("/usr/sbin/halogenctl", "pin", "set"); r.Exit != 0 {
				t.Fatalf("halogenctl pin set: %d, %s%s", r.Exit, r.Stdout, r.Stderr)
			}
			g.Do(nil, "reboot")
			words := g.Expect(tt.shows)[1]
			g.Expect(`A NEW PIN: this was asked for from the running system`)
			g.Expect(`Recovery key for the new secret \(an empty line changes nothing\): `)
			tt.types(g, p.Notes[recoveryKeyNote])
			g.Expect(`New PIN or passphrase, [^\n]*: `)
			tt.types(g, pin)
			g.Expect(`Once more: `)
			tt.types(g, pin)
			g.Expect(`The PIN is set`)
			if again := g.Expect(tt.shows)[1]; again != words {
				t.Errorf("the machine shows the phrase %q, and then %q", words, again)
			}
			g.Expect(asksForPIN)
			tt.types(g, pin+"x")
			g.Expect(`This is not the PIN\. `)
			g.Expect(asksForPIN)
			tt.types(g, pin)
			checkSecured(t, "opened by the PIN", g.Boot())
			needles := append(secrets(t, p), needle{name: "PIN", bytes: []byte(pin)})
			if tt.shows == showsPhrase {
				needles = append(needles, needle{name: "phrase", bytes: []byte(words)})
			}
			g.wantNoSecrets("PIN typed", needles, true)
			g.PowerOff()
			notWithoutPIN(t, g.State())
		})
	}
}

// notWithoutPIN has the TPM of a machine that is off asked by a thief.
func notWithoutPIN(t *testing.T, state vm.State) {
	t.Helper()
	s, err := state.Clone(filepath.Join(t.TempDir(), "stolen"))
	must(t, err)
	d := openDisk(t, s.Disk(), os.O_RDONLY)
	_, size := d.partition(layout.Root)
	volume, err := os.Open(d.cut(layout.Root))
	must(t, err)
	defer volume.Close()
	sealed, err := theft.Sealed(volume, size)
	must(t, err)
	if sealed.PIN == nil {
		t.Fatal("the sealed secret asks for no PIN")
	}
	socket, stop := softwareTPM(t, s)
	defer stop()
	wire, err := linuxudstpm.Open(socket)
	must(t, err)
	defer wire.Close()
	replay(t, wire, s)
	chip := tpm.OpenTransport(wire)
	defer chip.Close()
	if err := chip.Admits(sealed); err != nil {
		t.Errorf("the boot was not replayed: %v", err)
	}
	if _, _, err := chip.Unseal(sealed); !errors.Is(err, tpm.ErrPIN) {
		t.Errorf("without a PIN: %v", err)
	}
	guess, err := sealed.PIN.PIN([]byte("1234"))
	must(t, err)
	if _, _, err := chip.UnsealBy(sealed, guess); !errors.Is(err, tpm.ErrWrongPIN) && !errors.Is(err, tpm.ErrLockout) {
		t.Errorf("with a guess: %v", err)
	}
}

// TestNewRecoveryKey: the running system asks for a new recovery key, without the one that
// was lost; the next start shows it and has it confirmed, and the one before opens nothing.
// It asks for another phrase as well, which the start after that shows.
// FAULTS 109
func TestNewRecoveryKey(t *testing.T) {
	t.Parallel()
	p := provisionedAtInit(t)
	g := Machine(t, Options{State: p.State})
	g.Boot()
	if r := g.Run("/usr/sbin/halogenctl", "recovery-key", "new"); r.Exit != 0 {
		t.Fatalf("halogenctl recovery-key new: %d, %s%s", r.Exit, r.Stdout, r.Stderr)
	}
	if r := g.Run("/usr/sbin/halogenctl", "phrase", "new"); r.Exit != 0 {
		t.Fatalf("halogenctl phrase new: %d, %s%s", r.Exit, r.Stdout, r.Stderr)
	}
	g.Do(nil, "reboot")
	g.Expect(`A NEW RECOVERY KEY: this was asked for from the running system`)
	g.Expect(`Make a new one, and show it here\? \[y/N\] `)
	g.typeLine("y")
	fresh := g.Expect(shownKey)[1]
	g.typeGroups(fresh)
	g.Expect(`The new recovery key is confirmed`)
	before := g.Expect(showsPhrase)[1]
	g.Expect(`Make a new one, and show it here\? \[y/N\] `)
	g.typeLine("y")
	words := g.Expect(`NEW PHRASE:\s+((?:[a-z]+ ){3}[a-z]+)\s`)[1]
	g.Expect(`leaves the phrase as it was\. \[y/N\] `)
	g.typeLine("y")
	g.Expect(`The new phrase counts from now on`)
	if words == before {
		t.Errorf("the new phrase is the one before, %q", words)
	}
	checkSecured(t, "after a new recovery key", g.Boot())
	if r := g.Run("/usr/sbin/halogenctl", "phrase", "new"); r.Exit != 0 {
		t.Fatalf("halogenctl phrase new: %d, %s%s", r.Exit, r.Stdout, r.Stderr)
	}
	g.Do(nil, "reboot")
	if again := g.Expect(showsPhrase)[1]; again != words {
		t.Errorf("the machine shows the phrase %q, want %q", again, words)
	}
	g.Expect(`Make a new one, and show it here\? \[y/N\] `)
	g.typeLine("")
	g.Boot()
	g.PowerOff()
	d := openDisk(t, g.State().Disk(), os.O_RDONLY)
	_, size := d.partition(layout.Root)
	volume, err := os.Open(d.cut(layout.Root))
	must(t, err)
	defer volume.Close()
	header, _, err := luks2.Open(volume, size)
	must(t, err)
	for key, opens := range map[string]bool{fresh: true, p.Notes[recoveryKeyNote]: false} {
		volumeKey, _, err := header.Unlock(volume, []byte(key), 4<<30)
		luks2.Wipe(volumeKey)
		if (err == nil) != opens || !opens && !errors.Is(err, luks2.ErrPassphrase) {
			t.Errorf("the new key %t: %v", opens, err)
		}
	}
}

// TestPad: a group of the recovery key is chosen on the pad on the screen, half of it by the volume
// and power keys, and half by arrow keys and Enter; the rest is typed on the keyboard, which takes
// the pad away.
func TestPad(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	g := Machine(t, Options{State: p.State, VM: vm.Options{Display: true}})
	g.Boot()
	if r := g.Run("/usr/sbin/halogenctl", "pin", "set"); r.Exit != 0 {
		t.Fatalf("halogenctl pin set: %d, %s%s", r.Exit, r.Stdout, r.Stderr)
	}
	g.Do(nil, "reboot")
	g.Expect(`Recovery key for the new secret \(an empty line changes nothing\): `)
	const letters, group = "cbdefghijklnrtuv", 8
	key := p.Notes[recoveryKeyNote]
	keys, at := []string{"volumedown"}, 0 // which only shows the pad
	for i, letter := range key[:group] {
		want := strings.IndexRune(letters, letter)
		for at != want {
			switch buttons := i < group/2; {
			case buttons && at < want:
				keys, at = append(keys, "volumedown"), at+1
			case buttons:
				keys, at = append(keys, "volumeup"), at-1
			case at/8 < want/8:
				keys, at = append(keys, "down"), at+8
			case at/8 > want/8:
				keys, at = append(keys, "up"), at-8
			case at < want:
				keys, at = append(keys, "right"), at+1
			default:
				keys, at = append(keys, "left"), at-1
			}
		}
		if i < group/2 {
			keys = append(keys, "power")
		} else {
			keys = append(keys, "left", "right", "ret") // Enter chooses after an arrow key
		}
	}
	time.Sleep(time.Second) // as in pressLine
	g.press(keys...)        // slower than buttons are read, which do not come by the same way as the keyboard
	time.Sleep(time.Second)
	g.screen("pad.png")
	g.pressLine(key[group:])
	g.Expect(`New PIN or passphrase, [^\n]*: `)
	g.pressLine("") // changes nothing
	g.Boot()
	g.PowerOff()
}

// TestKeymap: what somebody has said of the keyboard at the recovery console counts there and
// at the next start, where a PIN is typed at keys that a German keyboard has elsewhere. A name
// that there is no keymap of is refused, with those that there are. The recovery key is typed as it
// is printed under a keymap that has its letters elsewhere, which is in force again afterwards.
// FAULTS 108
func TestKeymap(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	const pin, pressed = "zyklopenzange", "yzklopenyange" // at the keys of a US keyboard
	g := Machine(t, Options{State: p.State, VM: vm.Options{Display: true, Extra: usbKeyboard}})
	g.Boot()
	if r := g.Run("/usr/sbin/halogenctl", "pin", "set"); r.Exit != 0 {
		t.Fatalf("halogenctl pin set: %d, %s%s", r.Exit, r.Stdout, r.Stderr)
	}
	g.Do(nil, "reboot")
	g.Expect(`Recovery key for the new secret \(an empty line changes nothing\): `)
	g.typeLine(p.Notes[recoveryKeyNote])
	g.Expect(`New PIN or passphrase, [^\n]*: `)
	g.typeLine(pin)
	g.Expect(`Once more: `)
	g.typeLine(pin)
	g.Expect(`The PIN is set`)
	g.Expect(`halogen: press r for the recovery console`)
	g.typed("r")
	g.expectConsole()
	g.command("keymap klingon", `there is no keymap "klingon": .*\bde\b`)
	g.command("keymap de; echo it ends in $?", `it ends in 0`)
	g.typeLine("exit")
	g.Expect(`The keyboard is taken for: de\.`)
	g.Expect(asksForPIN)
	g.pressLine(pressed)
	checkSecured(t, "opened by a PIN typed by a keymap", g.Boot())

	g.Do(nil, "reboot")
	g.Expect(`halogen: press r for the recovery console`)
	g.typed("r")
	g.expectConsole()
	g.command("keymap dvorak; echo it ends in $?", `it ends in 0`)
	g.typeLine("exit")
	g.Expect(`The keyboard is taken for: dvorak\.`)
	g.Expect(asksForPIN)
	g.pressLine("k") // any letter alone
	g.Expect(`Recovery key \(an empty line opens the recovery console\): `)
	g.pressLine(p.Notes[recoveryKeyNote])
	g.Expect(`Set a new PIN\?`)
	g.pressLine("y") // which types an f again
	g.Boot()
	g.PowerOff()
}
