package config

import (
	"fmt"
	"slices"
	"strings"

	"halogenos.internal/boot/contract"
)

// An Extension is a system extension that a release is to have.
type Extension struct {
	Name      string
	Source    string // directory, tar archive or image of containers; empty: named later
	Essential bool   // a machine that has it enabled does not start without it
}

// extensionSection starts the names of the sections of extensions.
const extensionSection = "Extension"

// extensionKeys are the keys of such a section, and what takes their values over.
func (r *reader) extensionKeys(e *Extension) map[string]func(string) error {
	return map[string]func(string) error{
		"Source": func(value string) error {
			if value == "" || strings.ContainsAny(value, "\n\x00") {
				return fmt.Errorf("%q is not the name of a directory or an archive", value)
			}
			e.Source = r.local(value)
			return nil
		},
		"Essential": r.yes(&e.Essential),
	}
}

// extension takes an entry of a section [Extension NAME] over.
func (r *reader) extension(e entry) error {
	name := strings.TrimPrefix(e.section, extensionSection+" ")
	have, err := r.config.extensionNamed(name)
	if err != nil {
		return fmt.Errorf("section [%s]: %w", e.section, err)
	}
	if e.key == "" {
		return nil
	}
	set, ok := r.extensionKeys(have)[e.key]
	if !ok {
		return unknownKey(e)
	}
	if err := set(e.value); err != nil {
		return fmt.Errorf("%s: %w", e.key, err)
	}
	return nil
}

// extensionNamed returns the extension of that name, which is added where there is none.
func (c *Config) extensionNamed(name string) (*Extension, error) {
	if !contract.ValidID(name) {
		return nil, fmt.Errorf("extension %q: want a name of 1 to 64 of a-z, 0-9 and '-', starting with a letter", name)
	}
	at := slices.IndexFunc(c.Extensions, func(e Extension) bool { return e.Name == name })
	if at < 0 {
		if at = len(c.Extensions); at == contract.MaxExtensions {
			return nil, fmt.Errorf("extension %s is one too many: a release has up to %d", name, contract.MaxExtensions)
		}
		c.Extensions = append(c.Extensions, Extension{Name: name})
	}
	return &c.Extensions[at], nil
}

// AddExtension takes an extension as the command line has it, NAME=SRC or
// NAME=SRC,essential. One that uki.conf has gets the source.
func (c *Config) AddExtension(text string) error {
	name, source, ok := strings.Cut(text, "=")
	source, essential := strings.CutSuffix(source, ",essential")
	if !ok || source == "" {
		return fmt.Errorf("%q is not NAME=SRC or NAME=SRC,essential", text)
	}
	e, err := c.extensionNamed(name)
	if err != nil {
		return err
	}
	e.Source, e.Essential = source, e.Essential || essential
	return nil
}
