package reports

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/trialreport"
)

// put stores a report as a server does.
func put(t *testing.T, directory string, number int, r trialreport.Report) {
	t.Helper()
	r.Format, r.ImageID, r.Arch, r.Channel = trialreport.Format, "os", "x86_64", cmp.Or(r.Channel, "stable")
	if r.Day == "" {
		r.Day = "2026-01-02"
	}
	text, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(directory, fmt.Sprintf("os-%s-%d.json", r.Version, number)), string(text))
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRead(t *testing.T) {
	directory := t.TempDir()
	for i := range 10 {
		put(t, directory, i, trialreport.Report{Version: 3, Result: trialreport.Kept, Vendor: "QEMU", Product: "PC", Seconds: int64(10 * i)})
	}
	put(t, filepath.Join(directory, "2026"), 10, trialreport.Report{Version: 3, Result: trialreport.Failed, Cause: trialreport.Hang, Vendor: "Evil <b>", Product: "Book", Day: "2026-01-09"})
	put(t, directory, 11, trialreport.Report{Version: 3, Result: trialreport.Failed, Cause: trialreport.Hang, Vendor: "Evil <b>", Product: "Book", Day: "2025-12-31"})
	put(t, directory, 12, trialreport.Report{Version: 3, Result: trialreport.Failed, Cause: trialreport.Unhealthy})
	put(t, directory, 13, trialreport.Report{Version: 12, Channel: "beta", Result: trialreport.Kept})
	// What somebody has put there who wants to get at more than the reports.
	write(t, filepath.Join(directory, "torn.json"), `{"format":1,`)
	write(t, filepath.Join(directory, "large.json"), strings.Repeat(" ", trialreport.MaxSize+1))
	write(t, filepath.Join(directory, "index.html"), "not looked at")
	if err := os.Symlink("/etc/passwd", filepath.Join(directory, "link.json")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(directory, "fifo.json"), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := Read(t.Context(), directory)
	if err != nil {
		t.Fatal(err)
	}
	if c.Malformed != 2 || c.Of("x86_64", "os", 3, "stable") != (Counts{10, 3}) || c.Of("x86_64", "os", 12, "beta") != (Counts{1, 0}) ||
		c.Of("x86_64", "os", 12, "stable") != (Counts{}) || c.Of("x86_64", "other", 3, "stable") != (Counts{}) {
		t.Errorf("%+v", c)
	}
	var text, html strings.Builder
	if err := c.Text(&text); err != nil {
		t.Fatal(err)
	}
	const want = `x86_64/os
  12: 1 kept, 0 failed (0.0 %), 2026-01-02 to 2026-01-02
  3: 10 kept, 3 failed (23.1 %), 2025-12-31 to 2026-01-09
    failed: hang 2, unhealthy 1
    2 of 2 on Evil <b> Book
    1 of 1 on unknown
2 files are not reports
`
	if text.String() != want {
		t.Errorf("have\n%swant\n%s", text.String(), want)
	}
	if err := c.HTML(&html); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"<td>12</td>", "width: 76.9%", "2 of 2 on Evil &lt;b&gt; Book", "hang 2, unhealthy 1", "a trial takes 50 s"} {
		if !strings.Contains(html.String(), part) {
			t.Errorf("the page lacks %q:\n%s", part, html.String())
		}
	}
}

// Too many reports are said, and what was read still counts.
func TestTooMany(t *testing.T) {
	defer func(n int) { maxReports = n }(maxReports)
	maxReports = 3
	directory := t.TempDir()
	for i := range 3 {
		put(t, directory, i, trialreport.Report{Version: 3, Result: trialreport.Failed, Cause: trialreport.Hang})
	}
	if c, err := Read(t.Context(), directory); err != nil || c.Missing != "" {
		t.Errorf("as many as are read: %+v, %v", c, err)
	}
	put(t, directory, 3, trialreport.Report{Version: 3, Result: trialreport.Kept})
	c, err := Read(t.Context(), directory)
	if err != nil || c.Images[0].Releases[0].Failed != 3 || !strings.Contains(c.Missing, "more than 3 reports") {
		t.Fatalf("one more: %+v, %v", c, err)
	}
	var text strings.Builder
	if err := c.Text(&text); err != nil || !strings.Contains(text.String(), "not all was read: there are more than 3 reports") {
		t.Errorf("%v, %q", err, text.String())
	}
}

func TestNone(t *testing.T) {
	c, err := Read(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := c.Text(&text); err != nil || text.String() != "there are no reports yet\n" {
		t.Errorf("%v, %q", err, text.String())
	}
	if _, err := Read(t.Context(), filepath.Join(t.TempDir(), "missing")); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("a directory that is not there: %v", err)
	}
}
