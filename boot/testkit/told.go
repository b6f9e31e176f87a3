package testkit

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// ErrorsEnv names the environment variable with the path of a file that Tells adds its
// rows to, for somebody to read: HALOGEN_ERRORS=errors.md go test -run Tells ./...
const ErrorsEnv = "HALOGEN_ERRORS"

// An Error is one that people meet, and what it must say.
type Error struct {
	What  string // what was done, for the table
	Thing string // which file, option, address or version it is about
	Cure  string // the way out
}

// Tells checks that what was printed names the thing and, after the cause, a way out.
func Tells(t testing.TB, e Error, printed string) {
	t.Helper()
	printed = strings.TrimSpace(printed)
	thing, cure := strings.Index(printed, e.Thing), strings.LastIndex(printed, e.Cure)
	switch {
	case e.Thing == "" || e.Cure == "":
		t.Errorf("%s: the row says nothing of the thing or of the way out", e.What)
	case thing < 0:
		t.Errorf("%s: %q is not named in %q", e.What, e.Thing, printed)
	case cure < 0:
		t.Errorf("%s: no way out, such as %q, in %q", e.What, e.Cure, printed)
	case cure+len(e.Cure) <= thing+len(e.Thing) && cure != thing:
		t.Errorf("%s: the way out comes before %q in %q", e.What, e.Thing, printed)
	}
	if name := os.Getenv(ErrorsEnv); name != "" {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := fmt.Fprintf(f, "| %s | %s |\n", e.What, strings.NewReplacer("\n", "<br>", "|", "\\|").Replace(printed)); err != nil {
			t.Fatal(err)
		}
	}
}
