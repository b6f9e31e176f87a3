package manpage

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/testkit"
)

const helpText = `usage: halogen cook [--hot] DISH|MEAL [OPTION]...
       halogen cook list | eat ...

Cooks a DISH, as 'halogen buy --cheap' has it ('halogen eat' says how). It has a
back\slash, e.g. \fB, and more than one line. See --oven, or OVEN_DATE.
.starts with a dot, and 'quotes.

  list      what there is
  eat       all of it, until
            nothing --is left
  a-long-name-of-it
            and its text

With a table:

  DIR/<a>    the first
  DIR/<b>    the second

  halogen cook DISH      # a comment
    --hot .and dots

  do it     command 1
            command 2

Options:
  --hot
        make it hot
  --oven NAME=VALUE
        ` + "set NAME=VALUE of it; 'x' (default a)\n"

func page() Page {
	return Page{
		Names: []string{"halogen-cook", "halogen-eat"}, Summary: "cook", Help: helpText, ExitCodes: "0 done, 1 failed, 2 wrong usage.",
		Files: []Entry{{"/etc/x", "a file"}}, Environment: []Entry{{"OVEN_DATE", "when"}}, Examples: []Example{{"One:", "halogen cook \\\n    it"}, {"Two:", "x"}},
		See: []string{"b 5", "a 8", "c 1"}, Date: time.Unix(1795900000, 0),
	}
}

func TestMdoc(t *testing.T) {
	have := page().Mdoc()
	for _, want := range []string{
		".Dd November 28, 2026\n.Dt HALOGEN-COOK 1\n.Os HalogenOS\n.Sh NAME\n.Nm halogen-cook ,\n.Nm halogen-eat\n.Nd cook\n",
		".Nm halogen\n.Cm cook\n.Op Fl -hot\n.Ar DISH | MEAL\n.Op Ar OPTION ...\n",
		".Nm halogen\n.Cm cook list | eat ...\n.Sh DESCRIPTION\nCooks a\n.Ar DISH ,\nas\n.Ic halogen buy \\-\\-cheap\nhas it\n.Ic ( halogen eat\nsays how).\n",
		"back\\eslash, e.g.\n\\efB, and",
		".Fl -oven ,\nor\n.Ev OVEN_DATE .\n\\&.starts with a dot, and 'quotes.\n.Bl -tag -width Ds\n.It Cm list\nwhat there is\n.It Cm eat\nall of it, until nothing\n.Fl -is\nleft\n.It Cm a-long-name-of-it\nand its text\n.El\n",
		".Pp\nWith a table:\n.Bl -tag -width Ds\n.It Pa DIR/<a>\nthe first\n",
		".Bd -literal\nhalogen cook DISH      # a comment\n  \\-\\-hot .and dots\n.Ed\n",
		".Bd -literal\ndo it     command 1\n          command 2\n.Ed\n",
		".It Fl -hot\nMake it hot.\n.It Fl -oven Ar NAME=VALUE\nSet NAME=VALUE of it; 'x' (default a).\n.El\n",
		".Sh ENVIRONMENT\n.Bl -tag -width Ds\n.It Ev OVEN_DATE\nwhen\n.El\n.Sh FILES\n",
		".It 0\nDone.\n.It 1\nFailed.\n.It 2\nWrong usage.\n.El\n",
		".Sh EXAMPLES\nOne:\n.Bd -literal -offset indent\nhalogen cook \\e\n    it\n.Ed\n.Pp\nTwo:\n",
		".Sh SEE ALSO\n.Xr c 1 ,\n.Xr b 5 ,\n.Xr a 8\n",
	} {
		if !strings.Contains(have, want) {
			t.Errorf("it lacks\n%s", want)
		}
	}
	if t.Failed() {
		t.Log(have)
	}
	file := filepath.Join(t.TempDir(), "halogen-cook.1")
	if err := os.WriteFile(file, []byte(have), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(testkit.Need(t, "mandoc"), "-T", "lint", "-W", "warning", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// Help texts that are not as expected make a page all the same, and no requests of
// roff, which reach files and programs.
func TestOddHelp(t *testing.T) {
	for _, text := range []string{"", "\n\n\n", "usage: x\n\n  a\n\nOptions:\n  --a \n", "x\n\n.so /etc/passwd\n'so x\n\n  .so x\n", "usage: [so\n\n  .\n   .\n  a  b\n\nOptions:\n  --\n        .so x\n"} {
		p := Page{Names: []string{"x"}, Summary: ".so x", Help: text, ExitCodes: "0 done", Examples: []Example{{".so x", ".so x"}}}
		for line := range strings.Lines(p.Mdoc()) {
			if strings.HasPrefix(line, ".so") || strings.HasPrefix(line, "'") {
				t.Errorf("%q makes %q", text, line)
			}
		}
	}
}
