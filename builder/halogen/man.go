package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"halogenos.internal/builder/manpage"
)

const manSummary = `usage: halogen man DIR

Writes the manual pages of halogen and its commands, which are made of what they say
to --help, to DIR. The build does so; nobody else needs it.
`

// man writes the manual pages.
func (c command) man(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("man", flag.ContinueOnError)
	rest, err := c.parse(f, args, manSummary)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return c.misused(f, "want one DIR")
	}
	files, err := c.manualFiles()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(rest[0], 0o755); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(rest[0], name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// manualFiles are the pages by the names of their files. Where a page has several
// names, the other files lead to the first.
func (c command) manualFiles() (map[string]string, error) {
	files := map[string]string{}
	for _, p := range manuals() {
		page, err := c.manual(p)
		if err != nil {
			return nil, err
		}
		first := page.Names[0] + ".1"
		files[first] = page.Mdoc()
		for _, name := range page.Names[1:] {
			files[name+".1"] = ".so man1/" + first + "\n"
		}
	}
	return files, nil
}

// manual completes a page by what its command says to --help.
func (c command) manual(p manual) (manpage.Page, error) {
	page := p.Page
	help, err := c.helpOf(p.command)
	if err != nil {
		return page, err
	}
	page.Help = help
	if p.command == "" {
		// The commands are a list in the text, and exit codes have a section.
		page.Help = strings.Replace(help, "Commands:\n", p.about+"\n\n", 1)
		page.Help = page.Help[:strings.Index(page.Help, "Exit codes:")]
	}
	page.ExitCodes = usage[strings.Index(usage, "Exit codes:"):]
	if page.Names == nil {
		page.Names = []string{strings.TrimSuffix("halogen-"+strings.ReplaceAll(p.command, " ", "-"), "-")}
	}
	if page.Summary == "" {
		page.Summary = summaryOf(p.command)
	}
	page.Date = time.Now()
	if n, err := strconv.ParseInt(c.getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		page.Date = time.Unix(n, 0)
	}
	return page, nil
}

// helpOf is what a command says to --help.
func (c command) helpOf(name string) (string, error) {
	var out, errs bytes.Buffer
	quiet := command{stdout: &out, stderr: &errs, getenv: c.getenv, executable: c.executable}
	if code := quiet.run(append(strings.Fields(name), "--help")); code != exitOK {
		return "", fmt.Errorf("halogen %s --help: exit code %d: %s", name, code, &errs)
	}
	return out.String(), nil
}

// summaryOf is what the list of commands says of one.
func summaryOf(name string) string {
	m := regexp.MustCompile(`(?m)^  ` + regexp.QuoteMeta(name) + `\s+(\S.*)$`).FindStringSubmatch(usage)
	if m == nil {
		return ""
	}
	return m[1]
}
