// Package extensions opens the extensions of the running release that the machine has
// enabled, through dm-verity, and lays their /usr and /opt over the system's.
//
// It refuses to believe a file of the root partition: what it holds counts by the root hash
// that the UKI names, with whatever comes of it later as an I/O error of that extension
// alone. It writes nothing to the root partition, so that a cut at any time leaves what was
// there.
package extensions

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/extension"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/ownstate"
	"halogenos.internal/initagent/rootpart"
)

// Directory is where the root partition has the files and the choice.
const Directory = rootpart.Shared + "/" + extension.Directory

// places is a directory of the initramfs with a mount point for each extension. The names are
// short, since an overlay's options, which name them all, have one page.
const places = "/extensions"

// place is where an extension is mounted, until the overlays hold it.
func place(h *host.Host, number int) string { return h.Path(places, strconv.Itoa(number)) }

// ReadList reads which extensions the running release has, in the UKI's initramfs.
func ReadList(h *host.Host) error {
	text, err := os.ReadFile(h.Path(contract.ExtensionsPath))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		h.Listed, err = contract.ParseExtensions(text)
	}
	return err
}

// Look reads the machine's choice, and reports whether this boot has extensions to open or to
// say something about.
func Look(h *host.Host) bool {
	if h.State.Root != bootflow.RootOpen {
		h.Extensions = extension.Begin(h.Listed, extension.Choice{}, nil)
		return false
	}
	c, err := choice(h)
	h.Extensions = extension.Begin(h.Listed, c, err)
	return h.Extensions.Calls()
}

// choice reads which extensions are enabled; none where there is no choice.
func choice(h *host.Host) (extension.Choice, error) {
	text, err := h.Store.Read(path.Join(Directory, extension.ChoiceName), extension.MaxChoice)
	if errors.Is(err, fs.ErrNotExist) {
		return extension.Choice{}, nil
	}
	if err != nil {
		return extension.Choice{}, err
	}
	return extension.ParseChoice(text)
}

// MayStart is an error where a release that has these extensions would not start on this
// machine, since an essential one is enabled and its file is not there.
func MayStart(h *host.Host, list []contract.Extension) error {
	c, err := choice(h)
	b := extension.Begin(list, c, err)
	for i := range b.States {
		s := &b.States[i]
		if !s.Enabled || !s.Essential {
			continue
		}
		image, err := find(h, s)
		if err != nil {
			s.LeftOut = err.Error()
			continue
		}
		image.Close()
	}
	return b.Stops()
}

// Add opens and measures what is enabled. What does not open is left out, and the boot goes
// on; its error is that an essential one is. What was opened then goes with the root
// partition.
func Add(h *host.Host) error {
	entries, err := ownstate.Entries(h)
	if err != nil {
		return err
	}
	b := h.Extensions
	for i := range b.States {
		s := &b.States[i]
		if !s.Enabled {
			continue
		}
		if err := open(h, s, place(h, i), entries); err != nil {
			s.LeftOut = err.Error()
			continue
		}
		s.Opened = true
	}
	if b.Stops() == nil {
		measure(h)
	}
	lines := b.Lines()
	for _, line := range lines {
		h.Log.Say("WARNING: %s", line)
	}
	if lines != nil {
		h.NoteSelf(journal.LeftOut, strings.Join(lines, "; "))
	}
	if err := b.Stops(); err != nil {
		return err
	}
	for _, s := range b.States {
		if s.Opened {
			h.Log.Say("extension %s, root hash %.16s, is part of this system", s.Name, s.Root())
		}
	}
	return nil
}

// measure has PCR 13 tell what was added to the system, before any of it runs. The TPM has
// given its key by now, and gives none in this boot again. One that it does not take is left
// out: a boot report would not have it.
func measure(h *host.Host) {
	if h.Chip.Err != nil {
		return
	}
	for i := range h.Extensions.States {
		s := &h.Extensions.States[i]
		if !s.Opened {
			continue
		}
		if err := h.Chip.TPM.Extend(pcr.SystemExts, extension.Event(s.Name, s.Root())); err != nil {
			s.Opened, s.LeftOut = false, fmt.Sprintf("the TPM did not take its measurement: %v", err)
			continue
		}
		s.Measured = true
	}
}

// device is the name of an extension's device of the device mapper.
func device(s *extension.State) string { return "extension-" + s.Name }

// find opens the file of an extension. Another file than the release's is found out by its size
// or by the top of its tree.
func find(h *host.Host, s *extension.State) (hw.Image, error) {
	size, err := s.FileSize()
	if err != nil {
		return nil, err
	}
	name := extension.FileName(s.Root())
	image, err := h.Store.OpenImage(path.Join(Directory, name), size)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("its file is missing (%s)", path.Join(bootinfo.Directory, extension.Directory, name))
	}
	if err != nil {
		return nil, err
	}
	tree := io.NewSectionReader(image, s.ImageSize, size-s.ImageSize)
	if err := verity.CheckTop(image, tree, s.VerityParams(), s.Root()); err != nil {
		image.Close()
		return nil, fmt.Errorf("its file is not what the release names: %w", err)
	}
	return image, nil
}

// open opens an extension and mounts it. A block that was changed is found out when it is
// read, now or later.
func open(h *host.Host, s *extension.State, at string, entries []stateconf.Entry) error {
	if err := h.Kernel.Load("loop", "dm_verity", "erofs", "overlay"); err != nil {
		return err
	}
	image, err := find(h, s)
	if err != nil {
		return err
	}
	defer image.Close() // dm-verity holds the block device
	node, err := image.Attach()
	if err != nil {
		return err
	}
	// Never RestartOnCorruption: a trial is to be judged by its own image.
	node, err = h.OpenImage(hw.Verity{Name: device(s), DataDevice: node, HashDevice: node, HashStart: s.ImageSize, Params: s.VerityParams(), Root: s.Root()})
	if err != nil {
		return err
	}
	if err := h.Mount(node, at, "erofs", unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
		return errors.Join(err, h.CloseImage(device(s)))
	}
	if err := fits(h, at, entries); err != nil {
		return errors.Join(err, h.Unmount(at), h.CloseImage(device(s)))
	}
	return nil
}

// trees are the directories of an extension that are used, and no other one is.
var trees = []string{"usr", "opt"}

// fits reports whether an extension can lie over this system: it has something to lay there,
// the system has a place for it, and it hides nothing that the boot, or what comes after it,
// takes for the image's or for this machine's own.
func fits(h *host.Host, at string, entries []stateconf.Entry) error {
	some := false
	for _, tree := range trees {
		is, err := isDirectory(filepath.Join(at, tree))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || !is {
			return errors.Join(fmt.Errorf("its /%s is no directory", tree), err)
		}
		some = true
		if is, err := isDirectory(h.Path(host.SystemDirectory, tree)); err != nil || !is {
			return errors.Join(fmt.Errorf("it has /%s, for which the image has no directory", tree), err)
		}
	}
	if !some {
		return errors.New("it has neither /usr nor /opt")
	}
	for _, name := range extension.Hidden(entries) {
		if err := hides(at, name); err != nil {
			return err
		}
	}
	if err := leadsTo(at, modules); err != nil {
		return err
	}
	return readable(at)
}

// readable is an error where a directory of an extension cannot be read. Its overlay looks
// for each of the image's names there first, and has none of them where that fails: so one
// damaged block would take the system's own files away, its init with them. No block that
// only a file has is read here: an extension hides no file of the image.
func readable(at string) error {
	for _, tree := range trees {
		top := filepath.Join(at, tree)
		err := filepath.WalkDir(top, func(name string, _ fs.DirEntry, err error) error {
			if err != nil && (name != top || !errors.Is(err, fs.ErrNotExist)) {
				return fmt.Errorf("its /%s cannot be read, and would hide the system's: %w", strings.TrimPrefix(name, at+"/"), err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// modules is where a system has its kernels' modules. An extension may have more of them.
const modules = "usr/lib/modules"

// opaque is how an overlay knows a directory that hides those below it (kernel documentation,
// filesystems/overlayfs.rst).
const opaque = "trusted.overlay.opaque"

// leadsTo is an error where an extension mounted at a directory has something else than a
// directory on the way to one of the image's, or in its place, or one that hides what lies
// below it.
func leadsTo(at, directory string) error {
	own := at
	for part := range strings.SplitSeq(directory, "/") {
		own = filepath.Join(own, part)
		is, err := isDirectory(own)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := unix.Lgetxattr(own, opaque, nil); !is || err == nil {
			return fmt.Errorf("it has a /%s that hides what the system has there", strings.TrimPrefix(own, at+"/"))
		}
	}
	return nil
}

// hides is an error where an extension mounted at a directory has a name of the image's, or
// hides what leads to it.
func hides(at, name string) error {
	if err := leadsTo(at, path.Dir(name)); err != nil {
		return err
	}
	_, err := os.Lstat(filepath.Join(at, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("it has /%s, which is not for an extension", name)
}

// isDirectory follows no link.
func isDirectory(name string) (bool, error) {
	info, err := os.Lstat(name)
	return err == nil && info.IsDir(), err
}
