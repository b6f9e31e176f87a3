package commandtest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recovery"
)

// locked keeps nothing.
type locked struct{ recovery.Keeper }

func (locked) Kept() (*recovery.Opened, error) { return nil, recovery.ErrLocked }

// nobody is a console at which nobody may be asked.
type nobody struct{ hw.Console }

func (nobody) Close() error { return nil }

// UseAtConsole is Use for a command of the recovery console that needs the root
// partition open and a person. It checks, too, what the command says where it has
// not got them.
func UseAtConsole(t *testing.T, cmd func(func() (*recovery.Machine, error), func() (hw.Console, error)) command.Command) {
	t.Helper()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, filepath.Dir(contract.Path)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, contract.Path), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	machine := func() (*recovery.Machine, error) {
		return &recovery.Machine{Host: host.Host{Given: host.Given{Root: root}}, Keeper: locked{}}, nil
	}
	terminal := func() (hw.Console, error) { return nobody{}, nil }
	whole := cmd(machine, terminal)
	Use(t, whole)
	fails := errors.New("not here")
	for _, c := range []struct {
		machine  func() (*recovery.Machine, error)
		terminal func() (hw.Console, error)
		want     string
	}{
		{machine, terminal, "the root partition is not open: type `unlock` first"},
		{func() (*recovery.Machine, error) { return nil, fails }, terminal, "not here"},
		{machine, func() (hw.Console, error) { return nil, fails }, "not here"},
	} {
		code, out, errs := Run(cmd(c.machine, c.terminal))
		if code != command.Failed || out != "" || errs != whole.Name+": "+c.want+"\n" {
			t.Errorf("%d, %q, %q, want %q", code, out, errs, c.want)
		}
	}
}
