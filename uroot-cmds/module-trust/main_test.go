package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/moduletrust"
	"halogenos.internal/initagent/recovery"
)

func nowhere() (*recovery.Machine, error) { return nil, errors.New("not here") }

func TestUse(t *testing.T) { commandtest.Use(t, cmd(nowhere)) }

// In the running system it leaves the request that a start reads, and does nothing else; at the
// recovery console it leaves none.
func TestRequest(t *testing.T) {
	for _, c := range []struct {
		args    []string
		console bool
		code    int
		err     string
	}{
		{args: []string{"ask"}},
		{args: []string{"no"}},
		{args: nil, code: command.Usage, err: "usage: module-trust"},
		{args: []string{"yes"}, code: command.Usage, err: "usage: module-trust"},
		{args: []string{"ask"}, console: true, code: command.Failed, err: "only the running system"},
	} {
		root := t.TempDir()
		wish := filepath.Join(root, bootinfo.Directory, moduletrust.Wish)
		err := os.MkdirAll(filepath.Dir(wish), 0o755)
		if c.console {
			file := filepath.Join(root, contract.Path)
			err = errors.Join(err, os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
		machine := func() (*recovery.Machine, error) {
			return &recovery.Machine{Host: host.Host{Given: host.Given{Root: root}}}, nil
		}
		code, out, errs := commandtest.Run(cmd(machine), c.args...)
		text, err := os.ReadFile(wish)
		if code != c.code || (err == nil) != (code == 0) || !strings.Contains(errs, c.err) || (code == 0) != strings.Contains(out, "The next start") {
			t.Errorf("module-trust %q, at the console %v: %d, %q, %q; the request: %v", c.args, c.console, code, out, errs, err)
		}
		if code == 0 && strings.TrimSpace(string(text)) != c.args[0] {
			t.Errorf("module-trust %q leaves %q", c.args, text)
		}
	}
}
