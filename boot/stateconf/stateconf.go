// Package stateconf reads state.conf, by which a system image says which of its
// directories may change and are kept on the root partition.
//
// It refuses a directory inside another, since the order of the mounts would then
// matter, and directories that must stay as the image has them.
package stateconf

import (
	"fmt"
	"path"
	"strings"
)

// Path is where the system image has the file.
const Path = "usr/lib/halogen/state.conf"

// MaxSize bounds the file in bytes, and maxEntries the directories it names.
const (
	MaxSize    = 64 << 10
	maxEntries = 64
)

// Default is what an image without the file gets.
const Default = `# Which directories of this system may change. Everything else is read-only.
#   overlay DIR   changes lie over the image's directory: files that an update
#                 brings appear unless they were changed here
#   bind DIR      a directory of its own, which starts as a copy of the image's
#   tmpfs DIR     in memory, empty at every boot
overlay /etc
bind /var
bind /home
bind /root
bind /srv
bind /opt
bind /usr/local
tmpfs /tmp
`

// A Mode is how a directory is made writable.
type Mode string

// The modes.
const (
	Overlay Mode = "overlay"
	Bind    Mode = "bind"
	Tmpfs   Mode = "tmpfs"
)

// An Entry is one directory.
type Entry struct {
	Mode Mode
	Path string // absolute and clean
}

// GoesBack reports whether the directory goes back to what it held before an update, if
// somebody asks for it: what people keep in their homes has nothing to do with the system.
func (e Entry) GoesBack() bool {
	return e.Mode == Bind && e.Path != "/home" && !strings.HasPrefix(e.Path, "/home/")
}

// fixed are directories that are the image's or the kernel's whatever happens:
// making one of them writable would undo the verification.
var fixed = []string{"/", "/usr", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/bin", "/sbin", "/lib", "/lib64", "/boot", "/efi", "/proc", "/sys", "/dev", "/run"}

// Parse reads the file.
func Parse(text []byte) ([]Entry, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("state.conf has %d bytes, more than %d", len(text), MaxSize)
	}
	var entries []Entry
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		e, err := parseEntry(words)
		if err == nil {
			err = clash(entries, e)
		}
		if err != nil {
			return nil, fmt.Errorf("state.conf line %d: %w", n, err)
		}
		if entries = append(entries, e); len(entries) > maxEntries {
			return nil, fmt.Errorf("state.conf names more than %d directories", maxEntries)
		}
	}
	return entries, nil
}

func parseEntry(words []string) (Entry, error) {
	if len(words) != 2 {
		return Entry{}, fmt.Errorf("want a mode and a directory, have %d words", len(words))
	}
	e := Entry{Mode(words[0]), words[1]}
	if e.Mode != Overlay && e.Mode != Bind && e.Mode != Tmpfs {
		return Entry{}, fmt.Errorf("unknown mode %q: want overlay, bind or tmpfs", words[0])
	}
	// An overlay's options are separated by commas and colons.
	if !path.IsAbs(e.Path) || path.Clean(e.Path) != e.Path || strings.ContainsAny(e.Path, ",:\\\x00") {
		return Entry{}, fmt.Errorf("directory %q is not an absolute path without '..', ',', ':' and '\\'", e.Path)
	}
	for _, f := range fixed {
		if e.Path == f || f != "/" && f != "/usr" && strings.HasPrefix(e.Path, f+"/") {
			return Entry{}, fmt.Errorf("directory %s is part of the verified system and stays read-only", e.Path)
		}
	}
	return e, nil
}

func clash(entries []Entry, e Entry) error {
	for _, other := range entries {
		if e.Path == other.Path {
			return fmt.Errorf("directory %s is named twice", e.Path)
		}
		if strings.HasPrefix(e.Path, other.Path+"/") || strings.HasPrefix(other.Path, e.Path+"/") {
			return fmt.Errorf("directory %s and directory %s lie in one another", e.Path, other.Path)
		}
	}
	return nil
}
