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
// what is no keymap costs no start.
func TestKeymap(t *testing.T) {
	m := machinetest.WithPIN(t, "1234")
	m.StartsBy("1234")
	if m.Keymap != "" {
		t.Errorf("the keyboard is taken for %s", m.Keymap)
	}
	de, err := keyboard.FindKeymap("de")
	m.Must(err)
	r := &recovery.Machine{Host: host.Host{Machine: m.Agent.Machine, Variables: m.Agent.Variables}}
	m.Must(r.RememberKeymap(de))
	m.StartsBy("1234")
	if !strings.Contains(m.Printed.String(), "The keyboard is taken for: de.") {
		t.Errorf("it says before the question:\n%s", m.Printed.String())
	}
	if m.Keymap != "de" {
		t.Errorf("the keyboard is taken for %q, want de", m.Keymap)
	}
	m.Keymap = ""
	m.Vars[keyboard.Variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes, Data: []byte("keymap 1 klingon")}
	m.Typed = []string{"1234"}
	m.Ends("system", "the keyboard is taken for a US one: there is no keymap")
	if m.Keymap != "" {
		t.Errorf("the keyboard is taken for %q", m.Keymap)
	}
}
