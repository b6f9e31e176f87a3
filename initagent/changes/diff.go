package changes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/pmezard/go-difflib/difflib"
)

// Limits of what is compared by line: the time for it grows with their square.
const (
	maxDiff  = 1 << 20 // bytes
	maxLines = 20_000
)

// Diff writes how an entry, and what is in it, differs from the image's.
func (m *Machine) Diff(ctx context.Context, w io.Writer, name string) error {
	p, rel, err := m.find(name)
	if err != nil {
		return err
	}
	found, skipped, err := m.compare(ctx, p, rel)
	if err != nil {
		return err
	}
	for _, s := range skipped {
		if _, err := fmt.Fprintln(w, s); err != nil {
			return err
		}
	}
	if len(found) == 0 && len(skipped) == 0 {
		_, err := fmt.Fprintf(w, "%s is the image's\n", Shown(name))
		return err
	}
	for _, c := range found {
		if err := p.diff(ctx, w, c); err != nil {
			return fmt.Errorf("compare %s: %w", Shown(c.Path), err)
		}
	}
	return nil
}

// diff writes what is to be said of one change: a line, and for a text the difference.
func (p Pair) diff(ctx context.Context, w io.Writer, c Change) error {
	merged, image, err := p.lookup(p.within(c.Path))
	if err != nil {
		return err
	}
	defer merged.close()
	defer image.close()
	if _, err := fmt.Fprintln(w, c); err != nil {
		return err
	}
	// What is not a file on either side was said in full.
	if merged != nil && !merged.isFile() || image != nil && !image.isFile() {
		return nil
	}
	here, err := merged.text()
	there, errs := image.text()
	if err := errors.Join(err, errs); err != nil {
		_, err := fmt.Fprintf(w, "cannot be read: %v\n", err)
		return err
	}
	if here == there && len(here) <= maxDiff {
		return nil
	}
	if strings.Contains(here, "\x00") || strings.Contains(there, "\x00") {
		_, err := fmt.Fprintln(w, "binary files differ")
		return err
	}
	u := difflib.UnifiedDiff{A: lines(there), B: lines(here), FromFile: "/dev/null", ToFile: "/dev/null", Context: 3}
	if image != nil {
		u.FromFile, u.FromDate = inHeader(c.Path), "image"
	}
	if merged != nil {
		u.ToFile, u.ToDate = inHeader(c.Path), merged.changed(true).Format(time.DateTime)
	}
	if max(len(u.A), len(u.B)) > maxLines || max(len(here), len(there)) > maxDiff {
		_, err := fmt.Fprintf(w, "too long to be compared by line: more than %d lines or %d KiB\n", maxLines, maxDiff>>10)
		return err
	}
	text, err := unified(ctx, u)
	if err == nil {
		_, err = io.WriteString(w, visible(text))
	}
	return err
}

// unified is the difference, unless it takes too long for a person who waits.
func unified(ctx context.Context, u difflib.UnifiedDiff) (string, error) {
	var text string
	done := make(chan error, 1)
	go func() {
		var err error
		text, err = difflib.GetUnifiedDiffString(u)
		done <- err
	}()
	select {
	case err := <-done:
		return text, err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// text is a file's content, one byte more than maxDiff at most; "" of no file.
func (n *node) text() (string, error) {
	if n == nil {
		return "", nil
	}
	f, err := n.file()
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxDiff+1))
	return string(text), err
}

// lines are a text's, each with its end. The last one may have none, which is said as
// diff(1) does.
func lines(text string) []string {
	if text == "" {
		return nil
	}
	all := strings.SplitAfter(text, "\n")
	last := len(all) - 1
	if all[last] == "" {
		return all[:last]
	}
	all[last] += "\n\\ No newline at end of file\n"
	return all
}

// String is the change on one line.
func (c Change) String() string { return fmt.Sprintf("%-8s %s", c.Kind, c.Text()) }

// Text is the entry, and what differs of it.
func (c Change) Text() string {
	text := Shown(c.Path)
	if c.Kind != Changed && c.Type != "file" {
		text += " (" + c.Type + ")"
	}
	if len(c.What) > 0 {
		text += ": " + strings.Join(c.What, "; ")
	}
	return text
}
