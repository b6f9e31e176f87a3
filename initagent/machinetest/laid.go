package machinetest

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"halogenos.internal/initagent/rootpart"
)

// lay has a directory of the system answer as an overlay of two layers does: with the
// files of the upper one in front of its own, until the machine is off.
func (m *Machine) lay(upper, target string) {
	m.T.Helper()
	files := map[string][]byte{}
	if name, ok := strings.CutPrefix(upper, filepath.Join(m.Root, rootpart.Directory)+"/"); ok {
		for kept, content := range m.RootFiles() {
			if path.Dir(kept) == name {
				files[path.Base(kept)] = content
			}
		}
	} else {
		entries, err := os.ReadDir(upper)
		m.Must(err)
		for _, e := range entries {
			content, err := os.ReadFile(filepath.Join(upper, e.Name()))
			m.Must(err)
			files[e.Name()] = content
		}
	}
	m.Laid = files
	for name, content := range files {
		at := filepath.Join(target, name)
		below, err := os.ReadFile(at)
		if errors.Is(err, fs.ErrNotExist) {
			below, err = nil, nil
		}
		m.Must(err)
		if m.below == nil {
			m.below = map[string][]byte{}
		}
		m.below[at] = below
		m.Must(os.WriteFile(at, content, 0o644))
	}
}

// takeAway has the image's directories answer for themselves again.
func (m *Machine) takeAway() {
	for at, content := range m.below {
		if content == nil {
			m.Must(os.Remove(at))
			continue
		}
		m.Must(os.WriteFile(at, content, 0o644))
	}
	clear(m.below)
}
