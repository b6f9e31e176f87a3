package recovery

import (
	"fmt"
	"os"
	"path/filepath"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/keynote"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/phrase"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/moduletrust"
)

// AtConsole reports whether this is the recovery console, and not the running system.
func (m *Machine) AtConsole() bool {
	_, err := os.Stat(m.Path(contract.Path))
	return err == nil
}

// AskForSecret asks the next boot for a new machine secret, and with keys for new Secure
// Boot keys: it is for the running system, which has no secret. One write of a variable,
// of which a cut leaves the request or none; what was asked for before is replaced.
func (m *Machine) AskForSecret(keys bool) error {
	return m.ask(nextboot.Request{Secret: &nextboot.NewSecret{Keys: keys}})
}

// AskForPIN asks the next boot for a new machine secret that comes with another PIN, or
// with none, likewise.
func (m *Machine) AskForPIN(what nextboot.PIN) error {
	return m.ask(nextboot.Request{Secret: &nextboot.NewSecret{PIN: what}})
}

// AskForReset asks the next boot for a factory reset, likewise.
func (m *Machine) AskForReset() error { return m.ask(nextboot.Request{Reset: &nextboot.Reset{}}) }

// AskForRecoveryKey asks the next boot for a new recovery key. That is not left in the
// firmware's variable, which anyone who has the machine in hand can write, but on the root
// partition: a key is shown to who stands in front of the machine. One rename, of which a
// cut leaves the note before or this one.
func (m *Machine) AskForRecoveryKey() error {
	name := m.Path(filepath.Join(bootinfo.Directory, keynote.Name))
	var note keynote.Note
	text, err := os.ReadFile(name)
	if err == nil {
		note, err = keynote.Parse(text)
	}
	if err != nil { // what cannot be read says nothing
		note = keynote.Note{}
	}
	note.Wanted = true
	if text, err = note.Encode(); err == nil {
		err = hw.KeepFile(name, text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("leave the request for the next start on the root partition: %w", err)
	}
	return nil
}

// AskForPhrase asks the next boot for another phrase, likewise: no one who has the machine in
// hand is to have the phrase exchanged that its owner knows.
func (m *Machine) AskForPhrase() error {
	if err := hw.KeepFile(m.Path(filepath.Join(bootinfo.Directory, phrase.Wish)), nil, 0o600); err != nil {
		return fmt.Errorf("leave the request for the next start on the root partition: %w", err)
	}
	return nil
}

// AskForModules asks the next boot about the release's kernel modules, likewise: a wish of
// package moduletrust.
func (m *Machine) AskForModules(wish string) error {
	if err := hw.KeepFile(m.Path(filepath.Join(bootinfo.Directory, moduletrust.Wish)), []byte(wish+"\n"), 0o600); err != nil {
		return fmt.Errorf("leave the request for the next start on the root partition: %w", err)
	}
	return nil
}

// RememberKeymap has the starts to come use a keymap. One write of a variable, of which a cut
// leaves the keymap before or this one.
func (m *Machine) RememberKeymap(k keyboard.Keymap) error {
	if err := m.Variables.WriteAuthenticated(keyboard.Variable, nextboot.Vendor, nextboot.Attributes, k.Remember()); err != nil {
		return fmt.Errorf("the keymap counts here, and the starts to come will not know it: %w", err)
	}
	return nil
}

func (m *Machine) ask(r nextboot.Request) error {
	text, err := r.Encode()
	if err == nil {
		err = m.Variables.WriteAuthenticated(nextboot.Variable, nextboot.Vendor, nextboot.Attributes, text)
	}
	if err != nil {
		return fmt.Errorf("leave the request for the next start in the firmware's variable %s (is efivarfs mounted, and writable?): %w", nextboot.Variable, err)
	}
	return nil
}
