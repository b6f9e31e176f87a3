package bootjournal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/journal"
	"halogenos.internal/initagent/hw"
)

// store has files in memory.
type store struct {
	hw.Store
	files      map[string][]byte
	unreadable error
}

func (s *store) Read(name string, limit int64) ([]byte, error) {
	text, there := s.files[name]
	switch {
	case s.unreadable != nil:
		return nil, s.unreadable
	case !there:
		return nil, fs.ErrNotExist
	case int64(len(text)) > limit:
		return nil, fmt.Errorf("%w: too large", hw.ErrUnfit)
	}
	return text, nil
}

func (s *store) Keep(name string, content []byte) error { s.files[name] = content; return nil }

func (*store) MakeDirectory(string, fs.FileMode) error { return nil }

func opened(t *testing.T, ready *bool) (*Journal, *store, *bytes.Buffer) {
	t.Helper()
	said, s := new(bytes.Buffer), &store{files: map[string][]byte{}}
	m := hw.Machine{Store: s, Log: hw.NewLog(said, io.Discard), Now: func() time.Time { return time.Unix(1e9, 0) }}
	return &Journal{Machine: m, Root: t.TempDir(), Ready: func() bool { return *ready }}, s, said
}

// What happens before the root partition is open is written once it is, in its order.
func TestEntriesWait(t *testing.T) {
	ready := false
	j, s, _ := opened(t, &ready)
	j.Note(journal.Entry{Kind: journal.Healed, Reason: "the first"})
	if len(s.files) > 0 || len(j.Entries()) != 1 {
		t.Fatalf("%d files, %d entries wait", len(s.files), len(j.Entries()))
	}
	ready = true
	j.Note(journal.Entry{Kind: journal.Healed, Reason: "the second"})
	have := journal.Parse(s.files[File])
	if len(have) != 2 || have[0].Reason != "the first" || have[1].Reason != "the second" || have[1].Time.IsZero() {
		t.Errorf("the journal is %v", have)
	}
	if again := j.Entries(); len(again) != 2 {
		t.Errorf("what was written still waits: %v", again)
	}
}

// A journal that cannot be read says which versions have failed, and must not be replaced;
// what is not a journal begins again.
func TestUnreadableIsNotReplaced(t *testing.T) {
	ready := true
	j, s, said := opened(t, &ready)
	s.unreadable = errors.New("input/output error")
	s.files[File] = []byte("kept")
	if err := j.Append(journal.Entry{Kind: journal.Failed, Version: 2}); err == nil || string(s.files[File]) != "kept" {
		t.Errorf("%v, and the journal is %q", err, s.files[File])
	}
	if _, err := j.Failures(); err == nil {
		t.Error("a journal that cannot be read says that nothing has failed")
	}
	s.unreadable = nil
	s.files[File] = []byte(strings.Repeat("x", MaxSize+1))
	j.Note(journal.Entry{Kind: journal.Healed})
	failed, err := j.Failures()
	if _, there := failed[2]; err != nil || !there || !strings.Contains(said.String(), "begins again") {
		t.Errorf("version 2 has failed before: %v, %v; said %q", failed, err, said)
	}
}
