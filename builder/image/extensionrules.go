package image

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	bootext "halogenos.internal/boot/extension"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/builder/modules"
	"halogenos.internal/builder/rootfs"
)

// releaseDir is where an extension says what it is for (systemd-sysext(8)).
const releaseDir = "usr/lib/extension-release.d"

// lookThrough refuses what an extension may not have (systemd-sysext(8)), and whatever
// would hide a file of the image: the image stays what it is.
func (b *build) lookThrough(e *extension) error {
	top, err := e.tree.List(".")
	if err != nil {
		return err
	}
	if other := slices.DeleteFunc(slices.Clone(top), func(name string) bool { return name == "usr" || name == "opt" }); len(other) > 0 {
		return fmt.Errorf("has /%s: an extension has nothing outside /usr and /opt (systemd-sysext(8)); take it out of the source, or put it below /usr", strings.Join(other, ", /"))
	}
	if len(top) == 0 {
		return errors.New("is empty: want a source with files below usr/ or opt/")
	}
	for _, name := range top {
		if _, err := b.tree.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("has /%s, for which the image has no directory, so that no machine would use this extension: make an empty /%[1]s in the root file system", name)
		}
	}
	if e.hidden, err = b.hidden(); err != nil {
		return err
	}
	files, rights := 0, ""
	err = filepath.WalkDir(e.tree.Dir(), func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(e.tree.Dir(), file)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !d.IsDir() {
			files++
		}
		if has, err := hasRights(file, info); err != nil {
			return err
		} else if has {
			rights = name
		}
		return b.lookAt(e, filepath.ToSlash(name), d)
	})
	if err != nil {
		return err
	}
	if files == 0 {
		return errors.New("has no file: want a source with files below usr/ or opt/")
	}
	if rights != "" {
		b.Progress.Note("extension %s has programs that run with other rights than those of their callers (set-ID or capabilities), such as /%s", e.Name, rights)
	}
	return nil
}

// hasRights reports whether a program runs with other rights than its caller's.
func hasRights(file string, info fs.FileInfo) (bool, error) {
	if !info.Mode().IsRegular() {
		return false, nil
	}
	if info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
		return true, nil
	}
	_, err := unix.Lgetxattr(file, "security.capability", nil)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	return err == nil, err
}

// lookAt judges one file of an extension.
func (b *build) lookAt(e *extension, name string, d fs.DirEntry) error {
	switch kind := d.Type(); {
	case kind&(fs.ModeDevice|fs.ModeNamedPipe) != 0:
		return fmt.Errorf("/%s is a device or a pipe: an extension has files, directories and symbolic links", name)
	case strings.HasPrefix(path.Base(name), ".wh."):
		return fmt.Errorf("/%s takes a file of another layer away, by its name: an extension only adds files", name)
	case !d.IsDir() && (name == "usr" || name == "opt"):
		return fmt.Errorf("/%s is no directory", name)
	case name == "usr/lib/os-release":
		return fmt.Errorf("has /%s, which says what system this is: that is the image's to say (systemd-sysext(8))", name)
	case name == releaseDir && !d.IsDir():
		return fmt.Errorf("/%s is no directory, and is where each extension has its own file: take it out of the source", name)
	case path.Dir(name) == releaseDir && name != releaseFileName(e.Name):
		return fmt.Errorf("has /%s, which is another extension's: want its source to have none, or /%s", name, releaseFileName(e.Name))
	case path.Dir(name) == "usr/lib/modules" && path.Base(name) != b.parts.kernel.release:
		return fmt.Errorf("has /%s, modules of another kernel than the image's, which is %s", name, b.parts.kernel.release)
	case slices.Contains(e.hidden, name):
		return fmt.Errorf("has /%s, which the boot or /%s gives to the machine: no machine would use this extension; give its files another place, or take an empty directory out", name, stateconf.Path)
	}
	return b.hides(e, name, d)
}

// hidden are the names for which a machine leaves an extension out.
func (b *build) hidden() ([]string, error) {
	text, err := b.tree.ReadFile(stateconf.Path, stateconf.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = []byte(stateconf.Default), nil
	}
	if err != nil {
		return nil, err
	}
	entries, err := stateconf.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("/%s: %w", stateconf.Path, err)
	}
	return bootext.Hidden(entries), nil
}

// hides refuses a file that lies where the image has one. Directories are the same in both,
// and then have the image's owner and mode.
func (b *build) hides(e *extension, name string, d fs.DirEntry) error {
	// Whatever is above it is a directory of the image, too: that was looked at before.
	info, err := b.tree.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case d.IsDir() && info.IsDir():
		return e.tree.Adopt(name, b.tree)
	case d.IsDir():
		return fmt.Errorf("/%s is a directory in the extension, and %s in the image, which it would hide: give its files the place that they have in the image", name, kindOf(info))
	}
	return fmt.Errorf("/%s is in the image, which the extension would hide: take it out of the source, or out of the root file system", name)
}

func kindOf(info fs.FileInfo) string {
	if info.Mode().Type() == fs.ModeSymlink {
		return "a symbolic link"
	}
	return "a file"
}

func releaseFileName(name string) string { return path.Join(releaseDir, "extension-release."+name) }

// releaseKeys are the lines of os-release by which systemd-sysext compares an extension
// with the system.
var releaseKeys = []string{"ID", "VERSION_ID", "SYSEXT_LEVEL"}

// releaseFile writes what the extension is for: the system of the image, in this version.
// Where the source has the file, its other lines are kept.
func (b *build) releaseFile(e *extension) error {
	text, err := systemRelease(b.tree)
	if err != nil {
		return err
	}
	system, name := releaseLines(text), releaseFileName(e.Name)
	had, err := e.tree.ReadFile(name, maxOSRelease)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if unquoted(system["ID"]) == "" {
		system["ID"] = "linux" // os-release(5)
	}
	own := releaseLines(had)
	if err := b.fitsRelease(name, own, system); err != nil {
		return err
	}
	var out strings.Builder
	for _, key := range releaseKeys {
		if system[key] != "" {
			fmt.Fprintf(&out, "%s=%s\n", key, system[key])
		}
	}
	fmt.Fprintf(&out, "IMAGE_ID=%s\nIMAGE_VERSION=%s\n", b.Config.ImageID, b.Version)
	for _, key := range slices.Sorted(maps.Keys(own)) {
		if !slices.Contains(releaseKeys, key) && key != "IMAGE_ID" && key != "IMAGE_VERSION" {
			fmt.Fprintf(&out, "%s=%s\n", key, own[key])
		}
	}
	if err := e.tree.AddFile(name, []byte(out.String()), 0o644, b.Date); err != nil {
		return fmt.Errorf("add /%s: %w", name, err)
	}
	// The two directories are of the build where the source or the image has none.
	for _, dir := range []string{"usr/lib", "usr", "."} {
		if err := e.tree.Adopt(dir, b.tree); err != nil {
			return err
		}
	}
	return nil
}

// fitsRelease refuses what the source says of the system that it is for, where that is another
// one than the image's.
func (b *build) fitsRelease(name string, own, system map[string]string) error {
	const cure = "correct it, or leave the file to the build"
	for _, key := range releaseKeys {
		is, ok := own[key]
		if is, want := unquoted(is), unquoted(system[key]); ok && is != want && (key != "ID" || is != "_any") {
			has := key + "=" + want
			if want == "" {
				has = "has no " + key
			}
			return fmt.Errorf("/%s says %s=%s, and the image's os-release %s: %s", name, key, is, has, cure)
		}
	}
	// As systemd writes it (systemd.unit(5), ConditionArchitecture=).
	arch := strings.ReplaceAll(b.Config.Arch, "_", "-")
	if is, ok := own["ARCHITECTURE"]; ok && unquoted(is) != arch && unquoted(is) != "_any" {
		return fmt.Errorf("/%s says ARCHITECTURE=%s, and the image is for %s: take the extension's files for that one, or %s", name, unquoted(is), arch, cure)
	}
	if is, ok := own["SYSEXT_SCOPE"]; ok && !slices.Contains(strings.Fields(unquoted(is)), "system") {
		return fmt.Errorf("/%s says SYSEXT_SCOPE=%s, by which it is not for a system that runs: %s", name, unquoted(is), cure)
	}
	return nil
}

// releaseLines reads os-release(5), or what is written in the same way. The values are as they
// are written, in quotation marks or without.
func releaseLines(text []byte) map[string]string {
	values := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && key != "" && key[0] != '#' {
			values[key] = value
		}
	}
	return values
}

func unquoted(value string) string { return strings.Trim(value, `"'`) }

// claims are the names of what extensions have, and of which each is. A machine has any of
// them enabled, in no order that an owner would know.
type claims map[string]claim

type claim struct {
	extension string
	directory string // its owner and mode; "" for any other file
}

// add refuses what another extension has, but for directories and depmod's files, which
// are merged. Of a directory that the image does not have, the machine takes the owner and the
// mode of one of them: they have to agree.
func (c claims) add(e *extension) error {
	return filepath.WalkDir(e.tree.Dir(), func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(e.tree.Dir(), file)
		if err != nil {
			return err
		}
		if ofDepmod(name, d.IsDir()) {
			return nil
		}
		if strings.HasPrefix(name, "usr/lib/modules/") && modules.IsModule(name) {
			// Modules are loaded by their names, wherever they lie.
			base, _, _ := strings.Cut(path.Base(name), ".ko")
			name = "usr/lib/modules/**/" + strings.ReplaceAll(base, "-", "_") + ".ko"
		}
		is := claim{extension: e.Name}
		if d.IsDir() {
			info, err := d.Info()
			if err != nil {
				return err
			}
			is.directory = attributes(info)
		}
		switch have, ok := c[name]; {
		case !ok:
			c[name] = is
		case have.directory == "" || is.directory == "":
			return fmt.Errorf("/%s is in the extension %s, too, and a machine may have both: leave it in one, or put it into the image", name, have.extension)
		case have.directory != is.directory:
			return fmt.Errorf("the directory /%s has %s, and %s in the extension %s: a machine may have both, so give it the same in both, or put it into the image", name, is.directory, have.directory, have.extension)
		}
		return nil
	})
}

// attributes are a directory's owner and mode.
func attributes(info fs.FileInfo) string {
	s, _ := info.Sys().(*syscall.Stat_t) // of Linux
	return fmt.Sprintf("owner %d:%d and mode %04o", s.Uid, s.Gid, s.Mode&0o7777)
}

// systemRelease is the text of the image's os-release.
func systemRelease(t *rootfs.Tree) ([]byte, error) {
	text, err := t.ReadFile("etc/os-release", maxOSRelease)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = t.ReadFile("usr/lib/os-release", maxOSRelease)
	}
	if err != nil {
		return nil, fmt.Errorf("os-release: %w", err)
	}
	return text, nil
}
