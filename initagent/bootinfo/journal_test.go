package bootinfo

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/journal"
)

var now = time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)

func TestAppend(t *testing.T) {
	directory := t.TempDir()
	if entries, err := ReadJournal(directory); err != nil || len(entries) != 0 {
		t.Fatalf("no journal: %v, %v", entries, err)
	}
	var writers sync.WaitGroup
	for i := range 20 {
		writers.Go(func() {
			if err := AppendJournal(directory, journal.Entry{Time: now, Kind: journal.Unhealthy, Reason: fmt.Sprint(i)}); err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	entries, err := ReadJournal(directory)
	if err != nil || len(entries) != 20 {
		t.Errorf("%d of 20 entries, %v", len(entries), err)
	}
	left, err := os.ReadDir(directory)
	if err != nil || len(left) != 1 {
		t.Errorf("files %v, %v", left, err)
	}
}

// What lies in the journal's place is not followed, waited for, or replaced. FAULTS 82
func TestHostile(t *testing.T) {
	entry := journal.Entry{Time: now, Kind: journal.Blessed, Version: 2}
	for _, c := range []struct {
		name string
		set  func(path string) error
		says string
	}{
		{"a link", func(p string) error { return os.Symlink("/etc/passwd", p) }, "symbolic"},
		{"a pipe", func(p string) error { return unix.Mkfifo(p, 0o600) }, "not a file"},
		{"a directory", func(p string) error { return os.Mkdir(p, 0o700) }, "not a file"},
	} {
		directory := t.TempDir()
		if err := c.set(filepath.Join(directory, journal.Name)); err != nil {
			t.Fatal(err)
		}
		if err := AppendJournal(directory, entry); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := AppendJournal(filepath.Join(t.TempDir(), "none"), entry); err == nil {
		t.Error("no directory: no error")
	}
}

// What lies in the place of the new journal goes, and is not written through.
func TestHostileNew(t *testing.T) {
	directory := t.TempDir()
	other := filepath.Join(directory, "other")
	for _, err := range []error{os.WriteFile(other, []byte("theirs"), 0o600), os.Symlink(other, filepath.Join(directory, journal.Name+".new"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := AppendJournal(directory, journal.Entry{Time: now, Kind: journal.Blessed, Version: 2}); err != nil {
		t.Fatal(err)
	}
	entries, err := ReadJournal(directory)
	if content, rerr := os.ReadFile(other); err != nil || rerr != nil || len(entries) != 1 || string(content) != "theirs" {
		t.Errorf("entries %v, and the file that the link led to has %q: %v, %v", entries, content, err, rerr)
	}
}

// A file that somebody has filled is read from its end, and bounded again.
func TestHuge(t *testing.T) {
	directory := t.TempDir()
	path := filepath.Join(directory, journal.Name)
	if err := os.WriteFile(path, []byte(strings.Repeat("x\n", journal.MaxSize)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := AppendJournal(directory, journal.Entry{Time: now, Kind: journal.Blessed, Version: 2}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > journal.MaxSize {
		t.Errorf("%d bytes, %v", info.Size(), err)
	}
	if entries, err := ReadJournal(directory); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}
