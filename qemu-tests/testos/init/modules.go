package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mountAs mounts, and loads the file system's module when the kernel lacks it: the
// kernel itself would ask /sbin/modprobe, which this system has not.
func mountAs(source, target, kind string, flags uintptr) error {
	err := unix.Mount(source, target, kind, flags, "")
	if errors.Is(err, unix.ENODEV) && modprobe(kind) == nil {
		err = unix.Mount(source, target, kind, flags, "")
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// modprobe loads a module by its name with what it depends on (modules.dep(5)).
func modprobe(name string) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	dir := filepath.Join("/usr/lib/modules", unix.ByteSliceToString(uts.Release[:]))
	b, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return err
	}
	files, err := loadOrder(string(b), name)
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := loadModule(filepath.Join(dir, file)); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return nil
}

// loadOrder returns the files of a module and its dependencies in the order in which
// they are to be loaded. A line of modules.dep names all dependencies, the deepest
// last.
func loadOrder(dep, name string) ([]string, error) {
	for line := range strings.Lines(dep) {
		file, needs, _ := strings.Cut(strings.TrimSpace(line), ":")
		base, _, _ := strings.Cut(filepath.Base(file), ".ko")
		if strings.ReplaceAll(base, "-", "_") != strings.ReplaceAll(name, "-", "_") {
			continue
		}
		order := []string{file}
		for _, need := range strings.Fields(needs) {
			order = append([]string{need}, order...)
		}
		return order, nil
	}
	return nil, fmt.Errorf("no module %s in modules.dep", name)
}

// loadModule loads a module file, compressed or not, so that the kernel itself
// checks its signature (finit_module(2)).
func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if ext := filepath.Ext(path); ext == ".xz" || ext == ".zst" || ext == ".gz" {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}
