package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/recovery"
)

// variables keeps the firmware's, and counts what is written.
type variables struct {
	has    map[string][]byte
	writes int
	full   bool
}

func (v *variables) Read(name string, _ gpt.GUID) (uint32, []byte, error) {
	if text, has := v.has[name]; has {
		return 7, text, nil
	}
	return 0, nil, fs.ErrNotExist
}

func (v *variables) WriteAuthenticated(name string, _ gpt.GUID, _ uint32, payload []byte) error {
	if v.full {
		return errors.New("no space")
	}
	v.writes++
	v.has[name] = payload
	return nil
}

func (*variables) Room() (int64, bool) { return 0, false }

// What is chosen is what the next start reads, once; what there is none of is refused with those that there
// are, and leaves the language as it was.
func TestLanguage(t *testing.T) {
	root := t.TempDir()
	cmdline := filepath.Join(root, "proc", "cmdline")
	if err := errors.Join(os.Mkdir(filepath.Dir(cmdline), 0o755), os.WriteFile(cmdline, []byte("quiet "+words.Argument+"de\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	vars := &variables{has: map[string][]byte{}}
	c := cmd(func() (*recovery.Machine, error) {
		return &recovery.Machine{Host: host.Host{Given: host.Given{Variables: vars, Root: root}}}, nil
	})
	commandtest.Use(t, c)
	for _, tt := range []struct {
		args           []string
		code           int
		out, errs, has string
		writes         int
	}{
		{nil, command.OK, "de (the image's); there are " + strings.Join(words.Codes(), ", ") + "\n", "", "", 0},
		{[]string{"klingon"}, command.Failed, "", "there are " + strings.Join(words.Codes(), ", "), "", 0},
		{[]string{"../de"}, command.Failed, "", `"../de" is not a language`, "", 0},
		{[]string{"en"}, command.OK, "", "", "language 1 en", 1},
		{nil, command.OK, "en (chosen for this machine); there are", "", "language 1 en", 1},
		{[]string{"EN"}, command.OK, "", "", "language 1 en", 1}, // flash wears
		{[]string{"de"}, command.OK, "", "", "language 1 de", 2},
	} {
		code, out, errs := commandtest.Run(c, tt.args...)
		if code != tt.code || !strings.HasPrefix(out, tt.out) || !strings.Contains(errs, tt.errs) || (errs == "") != (tt.errs == "") || string(vars.has[words.Variable]) != tt.has || vars.writes != tt.writes {
			t.Errorf("language %q: %d, %q, %q, remembers %q, %d writes", tt.args, code, out, errs, vars.has[words.Variable], vars.writes)
		}
	}
	vars.has[words.Variable] = []byte("language 2 xx")
	if code, out, errs := commandtest.Run(c); code != command.Failed || !strings.HasPrefix(out, "de (the image's)") || !strings.Contains(errs, "is passed over") {
		t.Errorf("a variable that is none: %d, %q, %q", code, out, errs)
	}
	if code, _, errs := commandtest.Run(c, "de"); code != command.OK || string(vars.has[words.Variable]) != "language 1 de" {
		t.Errorf("a variable that is none is not replaced: %d, %q", code, errs)
	}
	vars.full = true
	if code, _, errs := commandtest.Run(c, "en"); code != command.Failed || !strings.Contains(errs, words.Variable) || !strings.Contains(errs, "no space") {
		t.Errorf("%d, %q", code, errs)
	}
	nowhere := cmd(func() (*recovery.Machine, error) { return nil, errors.New("not here") })
	if code, _, errs := commandtest.Run(nowhere, "de"); code != command.Failed || errs != "language: not here\n" {
		t.Errorf("%d, %q", code, errs)
	}
}
