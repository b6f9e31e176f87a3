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
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/keephome"
	"halogenos.internal/initagent/recovery"
)

type nobody struct{ hw.Console }

func (nobody) Close() error { return nil }

// variables keeps EFI variables, or fails.
type variables struct {
	written map[string]string
	fails   error
}

func (variables) Read(string, gpt.GUID) (uint32, []byte, error) { return 0, nil, fs.ErrNotExist }

func (v variables) WriteAuthenticated(name string, _ gpt.GUID, _ uint32, payload []byte) error {
	if v.fails == nil {
		v.written[name] = string(payload)
	}
	return v.fails
}

func (variables) Room() (int64, bool) { return 0, false }

func terminals() (hw.Console, error) { return nobody{}, nil }

// What it does is tested on the simulated machine, in initagent/recovery. In a running system it
// leaves a request, and does nothing else.
func TestUse(t *testing.T) {
	vars := variables{written: map[string]string{}}
	elsewhere, shared := filepath.Join(t.TempDir(), "no-initramfs"), t.TempDir()
	machine := func() (*recovery.Machine, error) {
		return &recovery.Machine{Host: host.Host{Given: host.Given{Root: elsewhere, Variables: vars}}}, nil
	}
	commandtest.Use(t, cmd(machine, terminals, shared))
	if code, _, errs := commandtest.Run(cmd(machine, terminals, shared), "--yes"); code != 2 || !strings.HasSuffix(errs, help) || len(vars.written) > 0 {
		t.Errorf("it takes --yes: %d, %q", code, errs)
	}
	fails := func() (hw.Console, error) { return nil, errors.New("not here") }
	code, out, errs := commandtest.Run(cmd(machine, fails, shared))
	if code != 0 || errs != "" || !strings.Contains(out, "The next start asks for the machine's name") || vars.written[nextboot.Variable] != `{"format":3,"reset":{}}` {
		t.Errorf("%d, %q, %q, it leaves %v", code, out, errs, vars.written)
	}
	clear(vars.written)
	if code, out, errs := commandtest.Run(cmd(machine, fails, shared), "--keep-home"); code != 1 || out != "" || !strings.Contains(errs, "does not tell of this start") {
		t.Errorf("--keep-home without a journal: %d, %q, %q", code, out, errs)
	}
	if err := bootinfo.AppendJournal(shared, journal.Entry{Kind: journal.Boot, Version: 3, Boot: "x"}); err != nil {
		t.Fatal(err)
	}
	code, out, errs = commandtest.Run(cmd(machine, fails, shared), "--keep-home")
	text, err := os.ReadFile(filepath.Join(shared, keephome.RequestName))
	if code != 0 || errs != "" || !strings.Contains(out, "then deletes all but /home") || len(vars.written) > 0 || err != nil {
		t.Errorf("--keep-home in the running system: %d, %q, %q, it leaves %v, %v", code, out, errs, vars.written, err)
	}
	if r, err := keephome.ParseRequest(text); err != nil || !strings.HasPrefix(r.After, "x ") {
		t.Errorf("the request is %s, %v", text, err)
	}
	vars.fails = fs.ErrPermission
	if code, out, errs := commandtest.Run(cmd(machine, fails, shared)); code != 1 || out != "" || !strings.Contains(errs, "is efivarfs mounted, and writable?") {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
}

// At the console it leaves no request.
func TestAtConsole(t *testing.T) {
	root, shared, vars := t.TempDir(), t.TempDir(), variables{written: map[string]string{}}
	file := filepath.Join(root, contract.Path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	machine := func() (*recovery.Machine, error) {
		return &recovery.Machine{Host: host.Host{Given: host.Given{Root: root, Variables: vars}}}, nil
	}
	fails := func() (hw.Console, error) { return nil, errors.New("not here") }
	if code, _, errs := commandtest.Run(cmd(machine, fails, shared)); code != 1 || errs != "reset: not here\n" {
		t.Errorf("%d, %q", code, errs)
	}
	if code, _, errs := commandtest.Run(cmd(machine, terminals, shared)); code != 1 || !strings.HasPrefix(errs, "reset: parse boot contract") || len(vars.written) > 0 {
		t.Errorf("%d, %q, it leaves %v", code, errs, vars.written)
	}
}
