package pcr_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/pcr"
)

// What real firmware and real boot managers have measured is read whole.
func TestMeasuredOfRealLogs(t *testing.T) {
	for name, programs := range map[string]int{"ovmf-setup": 3, "ovmf-enforced": 2, "systemd252-enforced": 2, "systemd252-off": 3, "systemd252-detour": 3} {
		log := readLog(t, name)
		keys, err := log.MeasuredKeys()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		run, err := log.MeasuredPrograms()
		if err != nil || len(run) != programs || !slices.Equal(run, log.BootPrograms()) {
			t.Errorf("%s: programs %v, %v; want %d", name, run, err, programs)
		}
		if got, want := len(log.MeasuredDrivers()), len(log.Drivers().ROMs); got != want {
			t.Errorf("%s: %d drivers, want %d", name, got, want)
		}
		if name != "ovmf-enforced" {
			continue
		}
		want := enforcedVariables(t)
		if !keys.SecureBoot || !bytes.Equal(keys.PK, want.PK) || !bytes.Equal(keys.KEK, want.KEK) || !bytes.Equal(keys.DB, want.DB) || len(keys.DBX) > 0 || len(keys.Authorities) != 1 {
			t.Errorf("%s: %+v", name, keys)
		}
	}
}

// A log whose digests are true and whose words are not hides nothing.
func TestMeasuredKeysRefuses(t *testing.T) {
	off := variable(global, "SecureBoot", []byte{0})
	lists := func(b *builder) *builder {
		return b.event(7, pcr.EventVariableConfig, variable(global, "PK", nil)).
			event(7, pcr.EventVariableConfig, variable(global, "KEK", nil)).
			event(7, pcr.EventVariableConfig, variable(security, "db", nil)).
			event(7, pcr.EventVariableConfig, variable(security, "dbx", nil))
	}
	on := func() *builder { return newLog(pcr.SHA256).firmware(1, nil, nil, nil, nil) }
	for _, test := range []struct {
		name string
		log  *builder
		want string
	}{
		{"nothing", newLog(pcr.SHA256), "no SecureBoot"},
		{"no dbx", newLog(pcr.SHA256).event(7, pcr.EventVariableConfig, variable(global, "SecureBoot", []byte{1})), "no PK"},
		{"another value than was measured", lists(newLog(pcr.SHA256).measured(7, pcr.EventVariableConfig, variable(global, "SecureBoot", []byte{1}), off)), "not what was measured"},
		{"off, called an action, and on once more", on().event(7, pcr.EventEFIAction, off), "may stand for anything"},
		{"off, called a separator", on().event(7, pcr.EventSeparator, off), "may stand for anything"},
		{"off, in nobody's name", on().event(7, pcr.EventIPL, off), "may stand for anything"},
		{"on and off", on().event(7, pcr.EventVariableConfig, off), "measured twice"},
		{"db's entry as db", on().event(7, pcr.EventVariableConfig, variable(security, "db", []byte("x"))), "db is measured twice"},
		{"a shim", on().event(7, pcr.EventVariableAuthority, variable(global, "Shim", []byte("x"))), "a shim in between"},
		{"neither on nor off", lists(newLog(pcr.SHA256).event(7, pcr.EventVariableConfig, variable(global, "SecureBoot", []byte{2}))), "want 00 or 01"},
	} {
		if k, err := parse(t, test.log).MeasuredKeys(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %+v, %v; want %q", test.name, k, err, test.want)
		}
	}
	if k, err := parse(t, on().event(7, pcr.EventVariableConfig, variable(global, "DeployedMode", []byte{1}))).MeasuredKeys(); err != nil || !k.SecureBoot {
		t.Errorf("a variable of the firmware's own: %+v, %v", k, err)
	}
}

func TestMeasuredProgramsRefuses(t *testing.T) {
	program := append([]byte("MZ\x90\x00"), make([]byte, 100)...)
	base := func() *builder {
		return newLog(pcr.SHA256).event(4, pcr.EventEFIAction, []byte("Calling EFI Application from Boot Option")).event(4, pcr.EventSeparator, make([]byte, 4))
	}
	for name, log := range map[string]*builder{
		"called an action":       base().event(4, pcr.EventEFIAction, program),
		"called a separator":     base().event(4, pcr.EventSeparator, program),
		"called a driver":        base().measured(4, pcr.EventBootDriver, []byte("a path"), program),
		"under a harmless text":  base().measured(4, pcr.EventEFIAction, []byte("Calling EFI Application from Boot Option"), program),
		"under another's name":   base().measured(4, pcr.EventIPL, []byte("nothing"), program),
		"text of a whole script": base().event(4, pcr.EventEFIAction, bytes.Repeat([]byte("x"), 201)),
	} {
		if run, err := parse(t, log).MeasuredPrograms(); err == nil || !strings.Contains(err.Error(), "may stand for a program") {
			t.Errorf("%s: %v, %v", name, run, err)
		}
	}
	run, err := parse(t, base().measured(4, pcr.EventBootApplication, []byte("a path"), program)).MeasuredPrograms()
	if err != nil || len(run) != 1 || run[0] != sum(program) {
		t.Errorf("a program: %v, %v", run, err)
	}
}
