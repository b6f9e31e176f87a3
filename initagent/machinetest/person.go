package machinetest

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/hw"
)

// person writes down every recovery key and types what the test says.
type person struct {
	m        *Machine
	language words.Language
}

func (p person) Open(l words.Language) (hw.Console, error) {
	return person{p.m, l}, p.m.NoTerminal
}

// Language implements hw.Console.
func (p person) Language() words.Language { return p.language }

func (person) Close() error { return nil }

var keyPattern = regexp.MustCompile(`(?:RECOVERY KEY|SCHLÜSSEL dieses Rechners):\s+(\S+)\s`)

func (p person) Print(text string) {
	p.m.Printed.WriteString(text)
	if match := keyPattern.FindStringSubmatch(text); match != nil {
		p.m.Shown = append(p.m.Shown, match[1])
	}
}

// PrintSecret implements hw.Console.
func (p person) PrintSecret(text, _ string) { p.Print(text) }

// Room implements hw.Console.
func (p person) Room() (columns, lines int) { return 0, 0 }

// Positions implements hw.Console.
func (p person) Positions() (restore func()) {
	was := p.m.Keymap
	p.m.Keymap = ""
	return func() { p.m.Keymap = was }
}

// AskKey implements hw.Console.
func (p person) AskKey(prompt string, _ bool, timeout time.Duration) ([]byte, error) {
	return p.Ask(prompt, false, timeout)
}

func (p person) Ask(prompt string, _ bool, timeout time.Duration) ([]byte, error) {
	p.m.Printed.WriteString(prompt)
	p.m.Waits = append(p.m.Waits, timeout)
	if p.m.Listening {
		p.m.T.Errorf("two wait for what is typed after %q", prompt)
	}
	if p.m.Pulled != "" && strings.HasPrefix(prompt, p.m.Pulled) {
		panic(Halt{"death"})
	}
	enter := strings.HasPrefix(prompt, "Press Enter") || p.asks(prompt, words.KeyWritten)
	if p.m.Absent && enter {
		return nil, hw.ErrNobody
	}
	if enter || strings.HasPrefix(prompt, "\nTHE RECOVERY KEY THAT WAS SHOWN LAST") {
		return nil, nil
	}
	first := strings.HasSuffix(prompt, p.language.Text(words.KeyLater)+"): ")
	if p.asks(prompt, words.KeyGroups) && (p.m.Echo || first && !p.m.Later) {
		return []byte(p.groups(prompt, p.m.Shown[len(p.m.Shown)-1])), nil
	}
	switch {
	case p.m.Owner && strings.HasPrefix(prompt, "\nRecovery key"):
		return []byte(p.m.Shown[len(p.m.Shown)-1]), nil
	case p.m.Owner && strings.HasSuffix(prompt, "[y/N] "):
		return []byte("y"), nil
	}
	if len(p.m.Typed) == 0 {
		return nil, hw.ErrNobody
	}
	answer := p.m.Typed[0]
	p.m.Typed = p.m.Typed[1:]
	return []byte(answer), nil
}

// asks reports whether a question is one of the catalogue's, in the person's language.
func (p person) asks(question, text string) bool {
	begins, _, _ := strings.Cut(p.language.Text(text), "%")
	return strings.HasPrefix(question, begins)
}

// groups are those of a recovery key that a question asks for.
func (p person) groups(question, key string) string {
	var a, b int
	format, _, _ := strings.Cut(p.language.Text(words.KeyGroups), "\n")
	if _, err := fmt.Sscanf(question, format, &a, &b); err != nil {
		return err.Error()
	}
	parts := strings.Split(key, "-")
	return parts[a-1] + parts[b-1]
}

// plugsIn expects that what is plugged in beside a person's program gets its driver.
func (p person) plugsIn(what string) {
	select {
	case <-p.m.hotplug:
	case <-time.After(10 * time.Second):
		p.m.T.Errorf("what is plugged in beside %s gets no driver", what)
	}
}

func (p person) Program(environment []string, path string, args ...string) error {
	p.m.NothingUnseals("what an installer stick brings")
	if !p.m.hidden {
		p.m.T.Error("an installer stick's program could read the kernel's memory")
	}
	p.plugsIn("the installer")
	p.m.Program, p.m.Environment = append([]string{path}, args...), environment
	return p.m.ProgramEnds
}

// Keymap implements hw.Person.
func (p person) Keymap(k keyboard.Keymap) error {
	p.m.Keymap = k.Name
	if p.m.RefusesKeymaps || p.m.RefusesKeymap && k.Name != "us" {
		return unix.EINVAL
	}
	return nil
}

// Quiet implements hw.Person.
func (p person) Quiet() (restore func()) {
	p.m.quiet = true
	return func() { p.m.quiet = false }
}

func (p person) Shell() error {
	if !p.m.quiet {
		p.m.T.Error("the kernel writes over the recovery console")
	}
	if p.m.OpenVolume != nil {
		p.m.T.Error("the recovery console opens beside an open root partition")
	}
	if p.m.Agent.Phrase != nil {
		p.m.T.Error("the recovery console could read the phrase")
	}
	if p.m.Agent.Released || p.m.Agent.Secret != nil {
		p.m.T.Error("the recovery console opens in a boot that has had a secret in memory")
	}
	if !p.m.hidden {
		p.m.T.Error("the recovery console opens, and its shell could read the kernel's memory")
	}
	p.m.NothingUnseals("the recovery console")
	p.plugsIn("the recovery console")
	panic(Halt{"recovery"})
}

// listener is asked once it was asked that often.
type listener struct{ m *Machine }

// Listen implements hw.Person.
func (p person) Listen() hw.Listener {
	if p.m.Listening {
		p.m.T.Error("two listen at once")
	}
	p.m.Listening = true
	return listener{p.m}
}

func (l listener) Asked() bool {
	if !l.m.Listening {
		l.m.T.Error("it is asked after it was closed")
	}
	l.m.Looks++
	return l.m.Presses > 0 && l.m.Looks >= l.m.Presses
}

func (l listener) Touched() bool { return l.m.Presses > 0 && l.m.Looks >= l.m.Presses }

func (l listener) Close() { l.m.Listening = false }
