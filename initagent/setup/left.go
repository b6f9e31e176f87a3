package setup

import (
	"errors"
	"io/fs"
	"path"
	"strings"

	"halogenos.internal/boot/bounded"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/lastgood"
)

// ReadLeft reads what the first boot left for the second, the newest file
// that makes sense. None is nil, and so is an ESP that cannot be read: a machine
// in use does without, and on any other nothing is lost by starting over.
func ReadLeft(h *host.Host) error {
	h.Left = firstboot.Left{Unlocked: h.Left.Unlocked}
	err := h.ReadESP(func(files fs.FS) error {
		entries, err := fs.ReadDir(files, firstboot.Directory)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		newest := -1
		for _, e := range entries {
			h.Left.Unlocked = h.Left.Unlocked || lastgood.Is(e.Name())
			h.Left.Marked = h.Left.Marked || strings.EqualFold(e.Name(), path.Base(firstboot.DeletionMark))
			n, ok := firstboot.Count(e.Name())
			if !ok {
				continue
			}
			h.Left.Keys = true
			// A file that a cut left unfinished is as good as none: it is
			// written before anything depends on it.
			text, err := bounded.File(files, path.Join(firstboot.Directory, e.Name()), firstboot.MaxSize)
			if err != nil {
				h.Log.Say("%v", err)
				continue
			}
			if p, err := firstboot.Parse(text); err == nil && n > newest {
				h.Left.Pending, newest = p, n
			}
		}
		return err
	})
	if err != nil {
		h.Log.Say("what an earlier start may have left on the ESP is not known: %v", err)
	}
	return nil
}
