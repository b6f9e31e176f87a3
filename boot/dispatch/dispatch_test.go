package dispatch

import (
	"bytes"
	"testing"
)

func TestFind(t *testing.T) {
	p := Program{Name: "tool", Help: "usage: tool COMMAND\n", Commands: []string{"make", "version"}}
	for _, c := range []struct {
		args      []string
		code      int
		found     bool
		out, errs string
	}{
		{args: []string{"make", "--help"}, found: true},
		{args: []string{"version"}, found: true},
		{args: []string{"--help"}, out: p.Help},
		{args: []string{"-h"}, out: p.Help},
		{args: []string{"-help"}, out: p.Help},
		{args: []string{"help", "make"}, out: p.Help},
		{args: []string{"--version"}, out: "tool unknown\n"},
		{code: Usage, errs: "tool: no command\n" + p.Help},
		{args: []string{""}, code: Usage, errs: "tool: unknown command \"\"\n" + p.Help},
		{args: []string{"mak"}, code: Usage, errs: "tool: unknown command \"mak\"\n" + p.Help},
		{args: []string{"--colour", "make"}, code: Usage, errs: "tool: unknown command \"--colour\"\n" + p.Help},
	} {
		var out, errs bytes.Buffer
		code, found := p.Find(c.args, &out, &errs)
		if code != c.code || found != c.found || out.String() != c.out || errs.String() != c.errs {
			t.Errorf("%q: %d, %v, %q, %q", c.args, code, found, &out, &errs)
		}
	}
}
