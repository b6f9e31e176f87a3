package machine

import (
	"fmt"

	"halogenos.internal/boot/journal"
	"halogenos.internal/initagent/bootinfo"
)

// historyFormat is that of History. A reader leaves alone what it does not know.
const historyFormat = 1

// A History is what became of this machine's systems, oldest first.
type History struct {
	Format  int             `json:"format"`
	Entries []journal.Entry `json:"entries"`
}

// History reads the boot journal. Starts as any other are left out unless all is wanted.
func (m *Machine) History(all bool) (*History, error) {
	r, err := m.Running()
	if err != nil {
		return nil, err
	}
	if err := m.haveState(r); err != nil {
		return nil, err
	}
	entries, err := bootinfo.ReadJournal(m.state(r))
	if err != nil {
		return nil, fmt.Errorf("read the boot journal: %w", err)
	}
	if !all {
		entries = journal.History(entries)
	}
	if entries == nil {
		entries = []journal.Entry{}
	}
	return &History{Format: historyFormat, Entries: entries}, nil
}
