package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/recovery"
)

// variables keeps one EFI variable.
type variables map[string][]byte

func (variables) Read(string, gpt.GUID) (uint32, []byte, error) { return 0, nil, fs.ErrNotExist }

func (v variables) WriteAuthenticated(name string, _ gpt.GUID, _ uint32, payload []byte) error {
	v[name] = payload
	return nil
}

func (variables) Room() (int64, bool) { return 0, false }

func nowhere() (*recovery.Machine, error) { return nil, errors.New("not here") }

func TestUse(t *testing.T) { commandtest.Use(t, cmd(nowhere)) }

// In the running system it leaves a request and does nothing else; at the recovery console
// it leaves none.
func TestRequest(t *testing.T) {
	for _, c := range []struct {
		args    []string
		console bool
		code    int
		want    string
		err     string
	}{
		{args: []string{"set"}, want: `{"format":5,"secret":{"pin":"set"}}`},
		{args: []string{"change"}, want: `{"format":5,"secret":{"pin":"set"}}`},
		{args: []string{"remove"}, want: `{"format":5,"secret":{"pin":"remove"}}`},
		{args: nil, code: command.Usage, err: "usage: pin"},
		{args: []string{"1234"}, code: command.Usage, err: "usage: pin"},
		{args: []string{"set"}, console: true, code: command.Failed, err: "only the running system"},
	} {
		root, vars := t.TempDir(), variables{}
		if c.console {
			file := filepath.Join(root, contract.Path)
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		machine := func() (*recovery.Machine, error) {
			return &recovery.Machine{Host: host.Host{Given: host.Given{Root: root, Variables: vars}}}, nil
		}
		code, out, errs := commandtest.Run(cmd(machine), c.args...)
		if code != c.code || string(vars[nextboot.Variable]) != c.want || !strings.Contains(errs, c.err) || (code == 0) != strings.Contains(out, "The next start asks") {
			t.Errorf("pin %q, at the console %v: %d, %q, %q, it leaves %q", c.args, c.console, code, out, errs, vars[nextboot.Variable])
		}
	}
	if code, _, errs := commandtest.Run(cmd(nowhere), "set"); code != command.Failed || errs != "pin: not here\n" {
		t.Errorf("%d, %q", code, errs)
	}
}
