// Package commandtest tests what every command must do. It is imported by tests
// only.
package commandtest

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"strings"
	"testing"

	"halogenos.internal/initagent/command"
)

// Run runs a command as root, and returns its exit code and what it said.
func Run(c command.Command, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = c.Exec(context.Background(), args, &out, &errs, 0)
	return code, out.String(), errs.String()
}

// option is a flag in a help text.
var option = regexp.MustCompile(`--[a-z][a-z-]*`)

// Use checks the command's help, its errors for wrong use, that it asks for
// root, and that its man page, in the directory that the test runs in, has the same
// synopsis. The command must not be able to do anything.
func Use(t *testing.T, c command.Command) {
	t.Helper()
	if !strings.HasPrefix(c.Help, "usage: "+c.Name) || !strings.HasSuffix(c.Help, "\n") {
		t.Errorf("the help begins with %q", strings.SplitN(c.Help, "\n", 2)[0])
	}
	for line := range strings.Lines(c.Help) {
		if len(strings.TrimRight(line, "\n")) > 80 {
			t.Errorf("help: a line of %d characters: %q", len(line)-1, line)
		}
	}
	for _, flag := range []string{"--help", "-h"} {
		if code, out, errs := Run(c, flag); code != command.OK || out != c.Help || errs != "" {
			t.Errorf("%s %s: %d, %q, %q", c.Name, flag, code, out, errs)
		}
	}
	wrong := [][]string{{"--no-such-flag"}, {"a", "b", "c", "d", "e", "f", "g", "h"}}
	if c.MaxArgs == command.Any {
		wrong = wrong[:1]
	}
	for _, args := range wrong {
		if code, out, errs := Run(c, args...); code != command.Usage || out != "" || !strings.HasSuffix(errs, c.Help) {
			t.Errorf("%s %q: %d, %q, %q", c.Name, args, code, out, errs)
		}
	}
	var out, errs bytes.Buffer
	if code := c.Exec(context.Background(), nil, &out, &errs, 1000); code != command.Failed || errs.String() != c.Name+": only root may do this\n" {
		t.Errorf("%s as a user: %d, %q", c.Name, code, &errs)
	}
	manual(t, c)
}

func manual(t *testing.T, c command.Command) {
	t.Helper()
	text, err := os.ReadFile(c.Name + ".8")
	if err != nil {
		t.Fatalf("the man page: %v", err)
	}
	page := string(text)
	for _, want := range append([]string{".Dt " + strings.ToUpper(c.Name) + " 8", ".Nm " + c.Name, ".Sh EXIT STATUS", ".Sh SEE ALSO"}, option.FindAllString(c.Help, -1)...) {
		want = strings.Replace(want, "--", "Fl -", 1)
		if !strings.Contains(page, want) {
			t.Errorf("%s.8 lacks %q", c.Name, want)
		}
	}
}
