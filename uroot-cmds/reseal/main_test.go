package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recovery"
)

// What it does is tested on the simulated machine, in initagent/recovery.
func TestUse(t *testing.T) {
	commandtest.UseAtConsole(t, func(machine func() (*recovery.Machine, error), terminal func() (hw.Console, error)) command.Command {
		return cmd(machine, terminal, untold)
	})
}

func untold(journal.Entry) error { return nil }

// variables keeps one EFI variable.
type variables map[string][]byte

func (variables) Read(string, gpt.GUID) (uint32, []byte, error) { return 0, nil, fs.ErrNotExist }

func (v variables) WriteAuthenticated(name string, _ gpt.GUID, _ uint32, payload []byte) error {
	v[name] = payload
	return nil
}

func (variables) Room() (int64, bool) { return 0, false }

type locked struct{ recovery.Keeper }

func (locked) Kept() (*recovery.Opened, error) { return nil, recovery.ErrLocked }

type nobody struct{ hw.Console }

func (nobody) Close() error { return nil }

// In the running system it leaves a request and does nothing else; at the recovery console
// it leaves none.
func TestRequest(t *testing.T) {
	for _, c := range []struct {
		args      []string
		console   bool
		code      int
		want, err string
	}{
		{args: []string{"--new-secret"}, want: `{"format":2,"secret":{}}`},
		{args: []string{"--new-secret", "--new-keys"}, want: `{"format":2,"secret":{"keys":true}}`},
		{args: []string{"--new-keys"}, code: command.Usage, err: "wrong usage"},
		{args: nil, code: command.Failed, err: "only the recovery console does this"},
		{args: nil, console: true, code: command.Failed, err: "`unlock` first"},
		{args: []string{"--new-secret"}, console: true, code: command.Failed, err: "`unlock` first"},
		{args: []string{"--new-secret", "--new-keys"}, console: true, code: command.Failed, err: "`unlock` first"},
	} {
		root, vars := t.TempDir(), variables{}
		if c.console {
			file := filepath.Join(root, contract.Path)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		machine := func() (*recovery.Machine, error) {
			return &recovery.Machine{Host: host.Host{Given: host.Given{Root: root, Variables: vars}}, Keeper: locked{}}, nil
		}
		code, _, errs := commandtest.Run(cmd(machine, func() (hw.Console, error) { return nobody{}, nil }, untold), c.args...)
		if code != c.code || string(vars[nextboot.Variable]) != c.want || !strings.Contains(errs, c.err) {
			t.Errorf("reseal %q, at the console %v: %d, %q, it leaves %q", c.args, c.console, code, errs, vars[nextboot.Variable])
		}
	}
}
