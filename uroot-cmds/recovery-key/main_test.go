package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/keynote"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recovery"
)

// What it does is tested on the simulated machine, in initagent/recovery.
func TestUse(t *testing.T) { commandtest.UseAtConsole(t, cmd) }

// In the running system it leaves a request on the root partition, beside what the note
// says otherwise.
func TestRequest(t *testing.T) {
	root := t.TempDir()
	name := filepath.Join(root, "var/lib/halogen", keynote.Name)
	machine := func() (*recovery.Machine, error) {
		return &recovery.Machine{Host: host.Host{Given: host.Given{Root: root}}}, nil
	}
	terminal := func() (hw.Console, error) {
		t.Error("it asks at a terminal")
		return nil, os.ErrInvalid
	}
	run := func(args ...string) (int, string) {
		code, _, errs := commandtest.Run(cmd(machine, terminal), args...)
		return code, errs
	}
	if code, errs := run("new"); code != command.Failed || !strings.Contains(errs, "leave the request") {
		t.Errorf("without a root partition: %d, %q", code, errs)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	for before, want := range map[string]string{
		"": `{"format":1,"wanted":true}`,
		`{"format":1,"unconfirmed":true,"shown":3}`: `{"format":1,"unconfirmed":true,"shown":3,"wanted":true}`,
		"what is this": `{"format":1,"wanted":true}`,
	} {
		if err := os.WriteFile(name, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
		code, errs := run("new")
		text, err := os.ReadFile(name)
		if code != command.OK || errs != "" || err != nil || string(text) != want+"\n" {
			t.Errorf("after %q: %d, %q, %q, %v", before, code, errs, text, err)
		}
	}
	if code, errs := run(); code != command.Failed || !strings.Contains(errs, "halogenctl recovery-key new") {
		t.Errorf("without an argument: %d, %q", code, errs)
	}
	if code, _ := run("old"); code != command.Usage {
		t.Errorf("another argument: %d", code)
	}
}
