package esp

import (
	"errors"
	"fmt"
	"strings"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/layout"
)

// A Saved is a file of the ESP, from its copy.
type Saved struct {
	Name string // from the root of the ESP
	Data []byte
}

// Managers returns the copies of the boot manager that there are.
func (k *Keeper) Managers() (images [][]byte, err error) {
	x, err := k.Index()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{layout.RemovableManager, layout.Manager} {
		data, err := k.copyOf(x.get(name))
		switch {
		case errors.Is(err, errNoCopy):
		case err != nil:
			return nil, fmt.Errorf("copy of %s: %w", name, err)
		default:
			images = append(images, data)
		}
	}
	return images, nil
}

// Saved returns all that a new ESP is made of: the copies, each compared with the
// index, and, where Starts is given, by it. It is an error when the machine could
// not start from them: a file is damaged, or there is no boot manager on the
// removable path, or no UKI.
func (k *Keeper) Saved() ([]Saved, error) {
	x, err := k.Index()
	if err != nil {
		return nil, err
	}
	var out []Saved
	manager, uki := false, false
	for i := range x.Copies {
		c := &x.Copies[i]
		if c.Damaged {
			k.Say("there is no good copy of %s", c.Name)
			continue
		}
		data, err := k.copyOf(c)
		if err != nil {
			return nil, fmt.Errorf("copy of %s: %w", c.Name, err)
		}
		if k.Starts != nil && strings.EqualFold(c.Name[max(0, len(c.Name)-4):], ".efi") {
			if err := k.Starts(data); err != nil {
				return nil, fmt.Errorf("copy of %s: %w", c.Name, err)
			}
		}
		manager = manager || c.Name == layout.RemovableManager
		uki = uki || strings.HasPrefix(c.Name, bls.Directory+"/")
		out = append(out, Saved{c.Name, data})
	}
	if !manager || !uki {
		return nil, fmt.Errorf("the %d copies hold no boot manager, or no UKI: the machine would not start from them", len(out))
	}
	return out, nil
}
