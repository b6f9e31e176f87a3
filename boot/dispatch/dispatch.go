// Package dispatch is what programs that consist of commands have in common, as
// ota, halogen and halogenctl do: which command a command line names, and the
// answer to one that names none.
package dispatch

import (
	"fmt"
	"io"
	"slices"

	"halogenos.internal/boot/version"
)

// Exit codes that mean the same in every program.
const (
	OK     = 0
	Failed = 1
	Usage  = 2
)

// A Program is one that consists of commands.
type Program struct {
	Name     string
	Help     string // the whole text of --help
	Commands []string
}

// Find reports whether the first argument is one of the commands. Where it is
// not, it has been answered (help, the version, or what is wrong) and the
// program is to end with the exit code.
func (p Program) Find(args []string, stdout, stderr io.Writer) (code int, found bool) {
	wrong := "no command"
	if len(args) > 0 {
		switch name := args[0]; {
		case slices.Contains(p.Commands, name):
			return OK, true
		case slices.Contains([]string{"help", "--help", "-help", "-h"}, name):
			fmt.Fprint(stdout, p.Help)
			return OK, false
		case name == "--version" || name == "-version":
			fmt.Fprint(stdout, version.Line(p.Name))
			return OK, false
		default:
			wrong = fmt.Sprintf("unknown command %q", name)
		}
	}
	fmt.Fprintf(stderr, "%s: %s\n%s", p.Name, wrong, p.Help)
	return Usage, false
}
