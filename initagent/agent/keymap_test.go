package agent_test

import (
	"strings"
	"testing"

	"halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/recovery"
)

// What somebody has said of the keyboard at the recovery console counts at the starts to come;
// what is not a keymap costs no start.
func TestKeymap(t *testing.T) {
	m := machinetest.WithPIN(t, "1234")
	m.StartsBy("1234")
	if m.Keymap != "" || !strings.Contains(m.Printed.String(), "The keyboard is taken for: us.") {
		t.Errorf("the keyboard is taken for %q:\n%s", m.Keymap, m.Printed.String())
	}
	de, err := keyboard.FindKeymap("de")
	m.Must(err)
	r := &recovery.Machine{Host: host.Host{Given: host.Given{Machine: m.Agent.Machine, Variables: m.Agent.Variables}}}
	m.Must(r.RememberKeymap(de))
	m.StartsBy("1234")
	if !strings.Contains(m.Printed.String(), "The keyboard is taken for: de.") {
		t.Errorf("it says before the question:\n%s", m.Printed.String())
	}
	if m.Keymap != "de" || strings.Contains(m.Printed.String(), "for: us") {
		t.Errorf("the keyboard is taken for %q, want de:\n%s", m.Keymap, m.Printed.String())
	}
	m.AsksForPIN(nextboot.SetPIN)
	m.Printed.Reset()
	m.Typed = []string{"1234", m.RecoveryKey(), "1234", "1234"}
	if end := m.Boot(); end != "reboot" {
		t.Errorf("setting another PIN ends in %s", end)
	}
	if text := m.Printed.String(); !strings.Contains(text, "for: de.") || !strings.Contains(text, "The PIN is what these keys type now.") {
		t.Errorf("before a new PIN it says:\n%s", text)
	}

	m.RefusesKeymap = true // no half of it stays
	m.StartsBy("1234")
	if m.Keymap != "us" || !strings.Contains(m.Printed.String(), "The keyboard is taken for: us.") || !strings.Contains(m.Said.String(), "keymap de: ") {
		t.Errorf("refused, the keyboard is taken for %q:\n%s\n%s", m.Keymap, m.Printed.String(), m.Said.String())
	}
	m.RefusesKeymaps = true // nor can it be undone
	m.StartsBy("1234")
	if !strings.Contains(m.Printed.String(), "The keyboard is taken for: partly de, partly us.") || !strings.Contains(m.Said.String(), "keymap us: ") {
		t.Errorf("refused twice, it says:\n%s\n%s", m.Printed.String(), m.Said.String())
	}
	m.RefusesKeymap, m.RefusesKeymaps = false, false
	m.Keymap = ""
	m.Vars[keyboard.Variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes, Data: []byte("keymap 1 klingon")}
	m.Typed = []string{"1234"}
	m.Ends("system", "the keyboard is taken for a US one: there is no keymap")
	if m.Keymap != "" {
		t.Errorf("the keyboard is taken for %q", m.Keymap)
	}
}
