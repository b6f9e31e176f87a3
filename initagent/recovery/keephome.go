package recovery

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/upper"
)

// home is the name of /home among the directories that all systems share.
var home = upper.Name("/home")

// ResetKeepingHome deletes what was changed on this machine, /home excepted: /etc of each
// system, and the directories that they share. This machine's own, its keys and its copies
// of the ESP, stays, as do the slots. The next start makes the directories again.
//
// Each directory loses its name in one rename, and is on the disk without it, before what is
// in it goes. Cut anywhere, the machine starts with those that are left, and the same command
// deletes them and what is left of the others.
func (m *Machine) ResetKeepingHome(c hw.Console) error {
	p, open, err := m.kept()
	if err != nil {
		return err
	}
	open.Wipe()
	if p.disk.ReadOnly {
		return errors.New("the disk takes no writes: nothing can be deleted")
	}
	shared, err := m.Store.Names(upper.Bind)
	if err != nil {
		return err
	}
	if !slices.Contains(shared, home) {
		return fmt.Errorf("the root partition has no /home to keep (state.conf has no line \"bind /home\"): `reset` alone wipes everything; %s shows what is there", m.path(rootpart.Directory))
	}
	c.Print("This deletes all that was changed on this machine but /home: settings, users and their passwords, and what programs keep in /var.\n" +
		"The users have to be added again, with the numbers that own their directories in /home. Nothing brings the rest back.\n")
	if err := p.confirmByName(c, 0); err != nil {
		return err
	}
	directories := []string{upper.Directory, upper.Unnamed}
	for _, name := range shared {
		if name != home {
			directories = append(directories, path.Join(upper.Bind, name))
		}
	}
	for _, d := range directories {
		if err := m.Store.Discard(d); err != nil {
			return fmt.Errorf("%w: delete %s: %w", errPartly, d, err)
		}
	}
	// It names a system whose state is gone, and says nothing any more.
	if err := m.Store.Remove(path.Join(rootpart.Shared, upper.Note)); err != nil {
		return fmt.Errorf("%w: %w", errPartly, err)
	}
	c.Print("All but /home is deleted. `exit` starts again.\n")
	return nil
}

// errPartly says that a reset that keeps /home was not completed.
var errPartly = errors.New("only a part is deleted: `reset --keep-home` once more deletes the rest")

// confirmByName asks for the machine's name to be typed; anything else is a refusal.
func (p *place) confirmByName(c hw.Console, limit time.Duration) error {
	answer, err := c.Ask(fmt.Sprintf("Type the machine's name, %s, to do it: ", p.contract.ImageID), false, limit)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(answer)) != p.contract.ImageID {
		return errRefused
	}
	return nil
}
