package release

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/strictjson"
	"halogenos.internal/builder/files"
)

// ProgressName is the file beside the manifest that says since when a release has the share
// of machines that it has. Machines do not read it, and it holds nothing but counts.
const ProgressName = "rollout.json"

const (
	progressFormat = 1
	maxProgress    = 64 << 10
)

// progress is the content of ProgressName.
type progress struct {
	Format   int                       `json:"format"`
	Channels map[manifest.Channel]wave `json:"channels"`
}

// A wave is how things were when a release got its share.
type wave struct {
	Version contract.Version `json:"version"`
	Percent int              `json:"percent"`
	Kept    int              `json:"kept"`
	Failed  int              `json:"failed"`
	Time    time.Time        `json:"time"`
}

func readProgress(directory Directory) (progress, error) {
	p := progress{Format: progressFormat}
	path := filepath.Join(string(directory), ProgressName)
	text, err := files.Read(path, maxProgress)
	if err == nil {
		if err = strictjson.Decode(text, &p); err == nil && p.Format != progressFormat {
			err = fmt.Errorf("format %d, want %d", p.Format, progressFormat)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w: remove it, and the wave begins again", path, err)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if p.Channels == nil {
		p.Channels = map[manifest.Channel]wave{}
	}
	return p, err
}

// of is the wave that a channel is in, by how things are now. A release that is new there
// has no reports of before; where the share was set by hand, or a call was cut after the
// manifest, the wave begins now.
func (p progress) of(c manifest.Channel, now wave) wave {
	w := p.Channels[c]
	switch {
	case w.Version != now.Version:
		now.Kept, now.Failed = 0, 0
		return now
	case w.Percent != now.Percent:
		return now
	}
	w.Kept, w.Failed = min(w.Kept, now.Kept), min(w.Failed, now.Failed) // reports were moved elsewhere
	return w
}

// keep writes it. Cut before that, the wave begins at the next call.
func (p progress) keep(directory Directory) (err error) {
	text, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	unlock, err := lock(string(directory))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	return writeFile(string(directory), ProgressName, append(text, '\n'))
}
