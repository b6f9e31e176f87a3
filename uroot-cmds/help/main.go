// Command help tells a person at the recovery console which command cures what.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/command"
	"halogenos.internal/initagent/recovery"
)

const help = `usage: help

Lists the commands of the recovery console by what went wrong. Each command's
--help says more. On a screen that is too low for it the list comes in pages.

Exit codes: 0 shown, 2 wrong usage.
`

func main() { cmd(person{language, rows, os.Stdin}).Main() }

// A person is who reads the list.
type person struct {
	language func() words.Language
	rows     func() int // of their screen; 0 for one that does not say, or none
	keyboard io.Reader
}

// language is that of the console; a machine that cannot say it has the list in English.
func language() words.Language {
	m, err := recovery.Linux()
	if err != nil {
		return words.English
	}
	l, _, _ := m.ScreenLanguage()
	return l
}

func rows() int {
	size, err := unix.IoctlGetWinsize(int(os.Stdout.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Row)
}

func cmd(p person) command.Command {
	return command.Command{Name: "help", Help: help, Run: func(_ context.Context, c *command.Call) error {
		l, keys := p.language(), bufio.NewReader(p.keyboard)
		all := pages(l.Help(), p.rows())
		for i, page := range all {
			if _, err := fmt.Fprint(c.Stdout, page); err != nil {
				return err
			}
			if i == len(all)-1 {
				return nil
			}
			fmt.Fprint(c.Stdout, l.Say(words.PageOf, i+1, len(all)))
			if _, err := keys.ReadString('\n'); err != nil {
				return nil // nobody reads on
			}
		}
		return nil
	}}
}

// pages puts pieces together as far as a screen has room for them above a line: what has scrolled away
// is gone, as Linux's console has no way back. A piece that has no room is a page all the same.
func pages(pieces []string, rows int) (all []string) {
	taken := 0
	for _, piece := range pieces {
		needs := strings.Count(piece, "\n")
		if len(all) == 0 || rows > 0 && taken+needs > rows-1 {
			all, taken = append(all, ""), 0
		}
		all[len(all)-1] += piece
		taken += needs
	}
	return all
}
