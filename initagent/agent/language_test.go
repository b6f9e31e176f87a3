package agent_test

import (
	"strings"
	"testing"

	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/machinetest"
)

const german words.Language = "de"

func remembers(m *machinetest.Machine, text string) {
	m.Vars[words.Variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes, Data: []byte(text)}
}

// A machine asks in the language that was chosen for it, and takes the English answers; its log is
// English. What is not a language costs no start.
func TestLanguage(t *testing.T) {
	m := machinetest.WithPIN(t, "1234")
	remembers(m, string(german.Remember()))
	m.StartsBy("0000", "1111", "2222", "y", "1234")
	for _, text := range []string{german.Text(words.AskPIN), german.Text(words.ThreeWrong), "Erkennungswörter dieses Rechners:", "Das ist nicht die PIN."} {
		if !strings.Contains(m.Printed.String(), text) {
			t.Errorf("nothing of %q:\n%s", text, m.Printed.String())
		}
	}
	for _, text := range []string{words.AskPIN, "This machine", "The keyboard"} {
		if strings.Contains(m.Printed.String(), text) {
			t.Errorf("it says in English: %q\n%s", text, m.Printed.String())
		}
	}
	remembers(m, "language 1 klingon")
	m.Typed = []string{"1234"}
	m.Printed.Reset()
	m.Ends("system", "the language stays what the image has: ")
	if !strings.Contains(m.Printed.String(), words.AskPIN) {
		t.Errorf("it asks:\n%s", m.Printed.String())
	}
}

// The recovery console says in the language what has stopped the boot, and in the log in English.
func TestLanguageOfTheConsole(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	remembers(m, string(german.Remember()))
	m.Presses, m.Looks = 1, 0
	m.Printed.Reset()
	if end := m.Boot(); end != "recovery" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	for _, text := range []string{words.Stopped, words.CureAsked} {
		if !strings.Contains(m.Said.String(), text) || strings.Contains(m.Said.String(), german.Text(text)) {
			t.Errorf("the log has not %q alone:\n%s", text, m.Said.String())
		}
		if !strings.Contains(m.Printed.String(), german.Text(text)) || strings.Contains(m.Printed.String(), text) {
			t.Errorf("the screen has not %q alone:\n%s", german.Text(text), m.Printed.String())
		}
	}
	// What it says of the line RECOVERY is right below that line.
	reason, _, _ := strings.Cut(german.Text(words.Stopped), "\n")
	if _, shown, _ := strings.Cut(m.Printed.String(), "RECOVERY: "); strings.Count(strings.SplitAfter(shown, reason)[0], "\n") != 1 {
		t.Errorf("the screen has not the reason above:\n%s", m.Printed.String())
	}
}
