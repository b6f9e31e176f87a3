package machine

import (
	"encoding/json"
	"errors"
	"fmt"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/notes"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/uroot-cmds/ota/fetch"
	"halogenos.internal/uroot-cmds/ota/worker"
)

// notesFile has what was said of the release that was fetched last.
const notesFile = "notes.json"

const notesFormat = 1

// News is what a release brings, as its distributor says.
type News struct {
	Format   int              `json:"format"`
	Version  contract.Version `json:"version"`
	From     contract.Version `json:"from"` // that it was fetched under
	Urgency  notes.Urgency    `json:"urgency"`
	Security bool             `json:"security"`
	Notes    []notes.Release  `json:"notes"`
	Read     bool             `json:"read"` // somebody has read it since
}

// said adds to the outcome what is said of the release. What is not signed as it should
// be is not shown, and the release is taken all the same: it has a signature of its own.
func (u *update) said(out *Outcome) {
	all, err := u.found.Said(u.self, out.Version)
	switch {
	case errors.Is(err, fetch.ErrNoNotes):
	case err != nil:
		u.Tell(worker.Event{Note: fmt.Sprintf("the notes of version %s are not shown: %v", out.Version, err)})
	default:
		out.Notes = all
		out.Urgency, out.Security = notes.Summary(all)
	}
}

// keepNews keeps what is said of the release for those who use it then. Without notes
// there is none of an earlier one either.
func (u *update) keepNews(out *Outcome) error {
	name := u.state(u.running, notesFile)
	if len(out.Notes) == 0 {
		return hw.RemoveFile(name)
	}
	n := News{Format: notesFormat, Version: out.Version, From: u.running.Contract.Version, Urgency: out.Urgency, Security: out.Security, Notes: out.Notes}
	return keepNews(name, &n)
}

func keepNews(name string, n *News) error {
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return hw.KeepFile(name, append(text, '\n'), 0o644)
}

// News says what the running version has brought. nil is nothing that is known.
func (m *Machine) News() (*News, error) {
	r, err := m.Running()
	if err != nil {
		return nil, err
	}
	return m.news(r)
}

func (m *Machine) news(r *Running) (*News, error) {
	var n News
	there, err := decode(m.state(r, notesFile), &n)
	if err != nil || !there || n.Format != notesFormat || n.Version != r.Contract.Version {
		return nil, err
	}
	if err := (&notes.Notes{ImageID: r.Contract.ImageID, Releases: n.Notes}).Validate(); err != nil {
		return nil, nil // it is damaged
	}
	return &n, nil
}

// NewsRead notes that somebody has read what the running version has brought.
func (m *Machine) NewsRead() error {
	r, err := m.Running()
	if err != nil {
		return err
	}
	n, err := m.news(r)
	if err != nil || n == nil || n.Read {
		return err
	}
	n.Read = true
	return keepNews(m.state(r, notesFile), n)
}

// newsFile is in memory, and has the line for those at a login who are not root.
const newsFile = "run/halogen/news"

// LeaveNews leaves the line for a login; empty takes it away.
func (m *Machine) LeaveNews(line string) error {
	if line == "" {
		return hw.RemoveFile(m.path(newsFile))
	}
	return hw.KeepFile(m.path(newsFile), []byte(line+"\n"), 0o644)
}
