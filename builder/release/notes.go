package release

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"

	"halogenos.internal/boot/notes"
	"halogenos.internal/boot/release"
	"halogenos.internal/builder/files"
)

// ReadNotes reads what a distributor has written about a release: AppStream metadata in
// XML, or Markdown where the file's name ends so.
func ReadNotes(name string, r *release.Release) (*notes.Notes, error) {
	text, err := files.Read(name, notes.MaxSize)
	if err != nil {
		return nil, fmt.Errorf("notes: %w", err)
	}
	var n *notes.Notes
	switch ending := strings.ToLower(filepath.Ext(name)); ending {
	case ".md", ".markdown":
		n, err = notes.FromMarkdown(text, r.ImageID, r.Version)
	case ".xml":
		n, err = notes.ParseReleases(text, r.ImageID)
	default:
		err = fmt.Errorf("its name ends in %q, want .xml for AppStream metadata or .md for Markdown", ending)
	}
	if err != nil {
		return nil, fmt.Errorf("notes %s: %w", name, err)
	}
	if newest := n.Releases[0].Version; newest != r.Version {
		return nil, fmt.Errorf("notes %s: the newest release there is %s, and not %s, which is published", name, newest, r.Version)
	}
	return n, nil
}

// readNotes reads the notes that were named, before anything is written.
func (p *publisher) readNotes() error {
	if p.Notes == "" {
		return nil
	}
	n, err := ReadNotes(p.Notes, p.build.release)
	if err != nil {
		return err
	}
	p.notes, err = n.Encode()
	return err
}

// writeNotes puts the notes beside the archive. They may change later: machines take
// those whose signature fits, and do without meanwhile.
func (p *publisher) writeNotes(dir string) error {
	if p.notes == nil {
		return nil
	}
	name := filepath.Base(notes.FileName(p.build.release.Version))
	if err := writeFile(dir, name, p.notes); err != nil || p.signer == nil {
		return err
	}
	signature, err := p.signer.Sign(bytes.NewReader(p.notes), p.Now)
	if err != nil {
		return fmt.Errorf("sign %s: %w", name, err)
	}
	return writeFile(dir, filepath.Base(notes.SignatureName(p.build.release.Version)), signature)
}
