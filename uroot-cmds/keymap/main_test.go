package main

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/keyboard"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/recovery"
)

// variables keeps the firmware's.
type variables map[string][]byte

func (variables) Read(string, gpt.GUID) (uint32, []byte, error) { return 0, nil, fs.ErrNotExist }

func (v variables) WriteAuthenticated(name string, _ gpt.GUID, _ uint32, payload []byte) error {
	if v == nil {
		return errors.New("the firmware is full")
	}
	v[name] = payload
	return nil
}

func (variables) Room() (int64, bool) { return 0, false }

func TestKeymap(t *testing.T) {
	var vars variables
	told := 0
	machine := func() (*recovery.Machine, error) {
		return &recovery.Machine{Host: host.Host{Given: host.Given{Variables: vars}}}, nil
	}
	var fails error
	undone := 0
	set := func(_ string, entries []keyboard.Entry) (func() error, error) {
		told = len(entries)
		return func() error { undone++; return nil }, fails
	}
	commandtest.Use(t, cmd(machine, set))
	if code, out, _ := commandtest.Run(cmd(machine, set)); code != command.OK || !strings.Contains(out, "bepo") || told > 0 {
		t.Errorf("%d, %q", code, out)
	}
	if code, _, errs := commandtest.Run(cmd(machine, set), "klingon"); code != command.Failed || !strings.Contains(errs, "there is no keymap") || told > 0 {
		t.Errorf("%d, %q", code, errs)
	}
	if code, _, errs := commandtest.Run(cmd(machine, set), "de"); code != command.Failed || !strings.Contains(errs, "the starts to come will not know it: the firmware is full") || told == 0 {
		t.Errorf("%d, %q", code, errs)
	}
	if undone > 0 {
		t.Error("a keymap that was set is undone")
	}
	fails = errors.New("a key in the middle")
	if code, _, errs := commandtest.Run(cmd(machine, set), "de"); code != command.Failed || !strings.Contains(errs, "a key in the middle") || undone != 1 {
		t.Errorf("set in half: %d, %q, undone %d times", code, errs, undone)
	}
	fails = nil
	vars = variables{}
	if code, _, errs := commandtest.Run(cmd(machine, set), "DE"); code != command.OK || string(vars[keyboard.Variable]) != "keymap 1 de" {
		t.Errorf("%d, %q, remembers %q", code, errs, vars[keyboard.Variable])
	}
}
