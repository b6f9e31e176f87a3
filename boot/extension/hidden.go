package extension

import (
	"path"
	"strings"

	"halogenos.internal/boot/stateconf"
)

// Updater is the directory of the program by which fwupd updates firmware. The boot lays the
// one that this machine has signed over it.
const Updater = "usr/libexec/fwupd/efi"

// Hidden are the names that no extension may have: what says which system this is, what the
// boot lays over the image, and the directories that state.conf gives to the machine. /opt as a
// whole is laid over the machine's own.
func Hidden(entries []stateconf.Entry) []string {
	names := []string{"usr/lib/os-release", path.Dir(stateconf.Path), Updater}
	for _, e := range entries {
		name := strings.TrimPrefix(e.Path, "/")
		if below, _, is := strings.Cut(name, "/"); is && (below == "usr" || below == "opt") {
			names = append(names, name)
		}
	}
	return names
}
