package main

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
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
		{args: nil, code: 2, errs: "no command"},
		{args: []string{"unlock"}, code: 2, errs: `"unlock" is none of its commands`},
		{args: []string{"initagent"}, code: 2, errs: `"initagent" is none of its commands`},
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
