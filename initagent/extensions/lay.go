package extensions

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bounded"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/modindex"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/initagent/host"
)

// LayUsr lays the extensions over the system's /usr. It comes before what state.conf and the
// boot have mounted there.
//
// The layers are mounted nowhere else from then on, but for /opt: the overlays hold them.
func LayUsr(h *host.Host) error {
	if !h.Extensions.Opens() {
		return nil
	}
	indexes := layModules(h)
	lay(h, trees[0], indexes)
	var err error
	if indexes != "" {
		err = h.Unmount(indexes)
	}
	return errors.Join(err, h.Extensions.Stops())
}

// OwnOpt reports whether /opt as a whole is the machine's own: then it is mounted before LayOpt.
// What the machine has below it is mounted after, since an overlay shows no mount of its layers.
func OwnOpt(entries []stateconf.Entry) bool {
	return slices.ContainsFunc(entries, func(e stateconf.Entry) bool { return e.Path == "/"+trees[1] })
}

// LayOpt lays them over /opt, once it is mounted where it is the machine's own.
func LayOpt(h *host.Host, entries []stateconf.Entry) error {
	if !h.Extensions.Opens() {
		return nil
	}
	lay(h, trees[1], "")
	var err error
	own := OwnOpt(entries)
	for i, s := range h.Extensions.States {
		if !s.Opened {
			continue
		}
		if is, _ := isDirectory(filepath.Join(place(h, i), trees[1])); is && own {
			h.Log.Say("/opt is read-only as long as extension %s is enabled", s.Name)
		}
		err = errors.Join(err, h.Unmount(place(h, i)))
	}
	return errors.Join(err, h.Extensions.Stops())
}

// lay lays one directory of all extensions over the system's, and top over them, unless it is
// "". Where the kernel refuses, they are left out. Nothing is followed but what the layers
// themselves have in the same place: neither a directory that was renamed nor a file's data
// elsewhere.
func lay(h *host.Host, tree, top string) {
	var layers []string // the uppermost first
	var with []int
	for i, s := range h.Extensions.States {
		at := filepath.Join(place(h, i), tree)
		if is, _ := isDirectory(at); s.Opened && is {
			layers, with = append([]string{at}, layers...), append(with, i)
		}
	}
	if len(layers) == 0 {
		return
	}
	if top != "" {
		layers = append([]string{filepath.Join(top, tree)}, layers...)
	}
	target := h.Path(host.SystemDirectory, tree)
	err := h.Mount("overlay", target, "overlay", unix.MS_RDONLY|unix.MS_NODEV, "lowerdir="+strings.Join(append(layers, target), ":")+",redirect_dir=nofollow,metacopy=off")
	if err != nil {
		there := ""
		if tree == trees[1] { // every extension has a /usr, which was laid before
			there = ", and what it has in /usr is part of the system"
		}
		leaveOut(h, with, fmt.Errorf("/%s could not be laid over the system's%s: %w", tree, there, err))
	}
}

// leaveOut takes extensions out that were opened. They stay measured, and their devices open.
func leaveOut(h *host.Host, which []int, why error) {
	for _, i := range which {
		s := &h.Extensions.States[i]
		s.Opened, s.LeftOut = false, errors.Join(why, h.Unmount(place(h, i))).Error()
		h.Log.Say("WARNING: extension %s is left out: %s", s.Name, s.LeftOut)
		h.NoteSelf(journal.LeftOut, fmt.Sprintf("extension %s is left out: %s", s.Name, s.LeftOut))
	}
}

// Bounds of depmod's indexes, in bytes: of one, and of all that lie in memory.
const (
	maxIndex   = modindex.MaxSize
	maxIndexes = 256 << 20
)

// osRelease is the running kernel's release, by which it finds its modules.
const osRelease = "/proc/sys/kernel/osrelease"

// layModules makes the indexes of the image's and the extensions' modules, in a file system
// in memory, and returns where it is mounted; "" where no extension has any. An extension's
// own would hide the image's: where they cannot be merged, those that have any are left out.
func layModules(h *host.Host) (at string) {
	files, with, directory, err := mergeModules(h)
	if err == nil && len(files) == 0 {
		return ""
	}
	if err == nil {
		at = h.Path(places, "modules")
		err = writeModules(h, at, directory, files)
	}
	if err == nil {
		return at
	}
	leaveOut(h, with, fmt.Errorf("its kernel modules cannot be had beside the image's: %w", err))
	return ""
}

// mergeModules reads and merges the indexes. with are the extensions that have any. One whose
// own cannot be read is left out alone: no other one fails by its damage.
func mergeModules(h *host.Host) (files map[string][]byte, with []int, directory string, err error) {
	running, err := os.ReadFile(h.Path(osRelease))
	release := strings.TrimSpace(string(running))
	directory = filepath.Join(modules, release)
	var layers []map[string][]byte
	for i, s := range h.Extensions.States {
		if !s.Opened {
			continue
		}
		has, _ := isDirectory(filepath.Join(place(h, i), modules))
		own, failed := indexes(place(h, i), directory)
		switch {
		case failed != nil:
			leaveOut(h, []int{i}, fmt.Errorf("its kernel modules' indexes cannot be read: %w", failed))
		case len(own) > 0, err != nil && has:
			layers, with = append(layers, own), append(with, i)
		case s.Modules:
			h.Log.Say("WARNING: extension %s has no modules for kernel %s", s.Name, release)
		}
	}
	if err != nil || len(with) == 0 {
		return nil, with, directory, err
	}
	image, err := indexes(h.Path(host.SystemDirectory), directory)
	if err == nil && len(image) == 0 {
		err = fmt.Errorf("the image has no index in /%s", directory)
	}
	if err != nil {
		return nil, with, directory, err
	}
	files, err = mergeAll(image, layers)
	return files, with, directory, err
}

// mergeAll merges the image's files with those of the extensions. What says nothing of
// loadable modules stays the image's.
func mergeAll(image map[string][]byte, layers []map[string][]byte) (map[string][]byte, error) {
	files, size := map[string][]byte{}, 0
	for _, layer := range layers {
		for name := range layer {
			var all [][]byte
			for _, l := range append([]map[string][]byte{image}, layers...) {
				if text, there := l[name]; there {
					all = append(all, text)
				}
			}
			if _, done := files[name]; done {
				continue
			}
			switch own, there := image[name]; {
			case modindex.Merges(name):
				merged, err := modindex.Merge(name, all...)
				if err != nil {
					return nil, err
				}
				files[name] = merged
			case there:
				files[name] = own
			}
			if size += len(files[name]); size > maxIndexes {
				return nil, fmt.Errorf("the indexes have more than %d bytes", maxIndexes)
			}
		}
	}
	return files, nil
}

// indexes reads depmod's files of a directory in a tree, out of which no link leads.
func indexes(root, directory string) (map[string][]byte, error) {
	in, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	entries, err := os.ReadDir(filepath.Join(root, directory))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for _, e := range entries {
		if !modindex.Is(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		f, err := in.Open(filepath.Join(directory, e.Name()))
		if err != nil {
			return nil, err
		}
		text, err := bounded.Named(f, e.Name(), maxIndex)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		out[e.Name()] = text
	}
	return out, nil
}

// writeModules mounts a file system in memory and writes the indexes to it. Its /usr has the
// time of the image's, by which the running system knows an update (systemd,
// ConditionNeedsUpdate=).
func writeModules(h *host.Host, at, directory string, files map[string][]byte) error {
	size := 1 << 20
	for _, text := range files {
		size += len(text) + 8<<10
	}
	if err := h.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=0755,size=%d", size)); err != nil {
		return err
	}
	err := fillModules(filepath.Join(at, directory), files)
	info, failed := os.Stat(h.Path(host.SystemDirectory, trees[0]))
	if err = errors.Join(err, failed); err == nil {
		err = os.Chtimes(filepath.Join(at, trees[0]), time.Time{}, info.ModTime())
	}
	if err != nil {
		return errors.Join(err, h.Unmount(at))
	}
	return nil
}

func fillModules(directory string, files map[string][]byte) error {
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(directory, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
