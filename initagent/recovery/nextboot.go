package recovery

import (
	"fmt"
	"os"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/nextboot"
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
