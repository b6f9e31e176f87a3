package shell

import (
	"bytes"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// screen is what is written, for two goroutines.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (s *screen) waitFor(t *testing.T, text string) {
	t.Helper()
	for range 500 {
		if strings.Contains(s.String(), text) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("no %q on the screen: %q", text, s.String())
}

func nothing(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestInteract(t *testing.T) {
	for _, c := range []struct{ name, typed, want string }{
		{"a command", "echo one\n", "$ one\n$ \n"},
		{"leaving", "echo one\nexit\necho two\n", "$ one\n$ "},
		{"leaving after a failure", "false\nexit\necho two\n", "$ $ "},
		{"leaving with a status", "exit 3\necho two\n", "$ "},
		{"the end of the input", "echo one", "$ one\n\n"},
		{"a line that goes on", "echo 'a\nb'\nexit\n", "$ > a\nb\n$ "},
		{"a loop", "for i in 1 2; do\necho $i\ndone\nexit\n", "$ > > 1\n2\n$ "},
		{"a typing error", "echo )\necho two\nexit\n", "$ 1:6: a command can only contain words and redirects; encountered )\n$ two\n$ "},
		{"no such command", "no-such-command\necho $?\nexit\n", "$ \"no-such-command\": executable file not found in $PATH\n$ 127\n$ "},
		{"what is remembered", "x=5\ncd /\necho $x $PWD\nexit\n", "$ $ $ 5 /\n$ "},
		{"several", "echo one; false; echo $?\nexit\n", "$ one\n1\n$ "},
		{"nothing", "\n\nexit\n", "$ $ $ "},
	} {
		var out screen
		s, err := New(nothing(t), &out, &out, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Interact(strings.NewReader(c.typed)); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if got := out.String(); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// Ctrl-C ends what the shell does, and not the shell.
func TestInterrupt(t *testing.T) {
	var out screen
	interrupted := make(chan os.Signal)
	s, err := New(nothing(t), &out, &out, interrupted)
	if err != nil {
		t.Fatal(err)
	}
	in, keyboard := io.Pipe()
	left := make(chan error)
	go func() { left <- s.Interact(in) }()
	types := func(text string) {
		t.Helper()
		if _, err := io.WriteString(keyboard, text); err != nil {
			t.Fatal(err)
		}
	}
	types("echo begun; while true; do :; done\n")
	out.waitFor(t, "begun\n")
	interrupted <- os.Interrupt
	types("echo after\n")
	out.waitFor(t, "$ after\n")
	types("echo 'never\n")
	out.waitFor(t, "> ")
	interrupted <- os.Interrupt
	out.waitFor(t, "> \n$ ")
	types("echo again\n")
	out.waitFor(t, "again\n")
	if strings.Contains(out.String(), "never") {
		t.Errorf("a command that was given up was run: %q", out.String())
	}
	types("exit\n")
	if err := <-left; err != nil {
		t.Error(err)
	}
}

func TestScript(t *testing.T) {
	for text, want := range map[string]int{"echo $1; exit 7": 7, "true": 0, "false": 1, "echo )": 1} {
		var out screen
		s, err := New(nothing(t), &out, &out, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := Status(s.Script(strings.NewReader(text), "script", "word")); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
		if strings.Contains(text, "$1") && out.String() != "word\n" {
			t.Errorf("%q: %q", text, out.String())
		}
	}
}
