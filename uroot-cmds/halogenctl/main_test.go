package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

func TestRun(t *testing.T) {
	for _, c := range []struct {
		args      []string
		code      int
		out, errs string
		executes  []string
		failure   error
	}{
		{args: []string{"slots", "--json"}, executes: []string{"slots", "--json"}},
		{args: []string{"eventlog", "--all"}, executes: []string{"eventlog", "--all"}},
		{args: []string{"--help"}, out: help},
		{args: []string{"--version"}, out: "halogenctl unknown\n"},
		{args: nil, code: 2, errs: "no command"},
		{args: []string{"unlock"}, code: 2, errs: `unknown command "unlock"`},
		{args: []string{"initagent"}, code: 2, errs: `unknown command "initagent"`},
		{args: []string{"--colour", "slots"}, code: 2, errs: "usage: halogenctl"},
		{args: []string{"verify"}, code: 1, executes: []string{"verify"}, failure: errors.New("no such file"), errs: "halogenctl: no such file"},
	} {
		var out, errs bytes.Buffer
		var executed []string
		code := run(c.args, &out, &errs, func(args []string) error { executed = args; return c.failure })
		if code != c.code || out.String() != c.out || !strings.Contains(errs.String(), c.errs) || (c.errs == "") != (errs.Len() == 0) || !slices.Equal(executed, c.executes) {
			t.Errorf("halogenctl %q: %d, %q, %q, executes %q", c.args, code, &out, &errs, executed)
		}
	}
}

// Each of its commands is one that exists, and the man page names them all.
func TestCommands(t *testing.T) {
	page, err := os.ReadFile("halogenctl.8")
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	if want := "CONTROL := halogenctl " + strings.Join(commands(), " ") + "\n"; !strings.Contains(string(makefile), want) {
		t.Errorf("the Makefile lacks %q", want)
	}
	for _, name := range commands() {
		if _, err := os.Stat("../" + name + "/main.go"); err != nil {
			t.Error(err)
		}
		if !strings.Contains(help, "\n  "+name+" ") || !strings.Contains(string(page), ".It Cm "+name) {
			t.Errorf("%s is not in the help or the man page", name)
		}
	}
}

// The Makefile's stamp is the version of what it builds, in a busybox too.
func TestStamp(t *testing.T) {
	if testing.Short() {
		testkit.Skip(t, "builds programs")
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	set := regexp.MustCompile(`(?m)^STAMP +=( -X \S+=)\$\$\(cat \$\(OUT\)/version\)$`).FindStringSubmatch(string(makefile))
	if set == nil {
		t.Fatal("the Makefile has no STAMP")
	}
	stamp := set[1] + "1.2+20261128.abc"
	for name, build := range map[string][]string{
		"busybox":  {"uroot-cmds/build-busybox"},
		"go build": {"go", "build", "-ldflags=" + stamp, "-o"},
	} {
		program := filepath.Join(t.TempDir(), "halogenctl")
		c := exec.Command(build[0], append(build[1:], program, "./uroot-cmds/halogenctl")...)
		c.Dir = filepath.Join("..", "..")
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "STAMP="+stamp)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		if out, err := exec.Command(program, "--version").CombinedOutput(); err != nil || string(out) != "halogenctl 1.2+20261128.abc\n" {
			t.Errorf("%s: %q, %v", name, out, err)
		}
	}
}
