package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"halogenos.internal/builder/initramfs"
	"halogenos.internal/builder/rootfs"
)

// Files of the directory that holds the machine's programs.
const (
	busyboxFile = "bb"
	listFile    = "bb.list"
)

const maxProgram = 256 << 20 // bytes

// osCommands are the machine's programs that the running system has too, with
// their place in the image. The ones that the directory does not have are left
// out.
var osCommands = map[string]string{"ota": "usr/bin/ota", "otad": "usr/sbin/otad", "halogenctl": "usr/sbin/halogenctl"}

// Their manual pages and completions lie below a directory of this name, as they do
// in the image.
const (
	shareDirectory = "share"
	sharePlace     = "usr/share"
	maxShared      = 256     // files
	maxPage        = 1 << 20 // bytes of each
)

// loadMachine reads the programs of the machine from a directory.
func loadMachine(dir string) (initramfs.Busybox, rootfs.Commands, error) {
	var b initramfs.Busybox
	program, err := readProgram(filepath.Join(dir, busyboxFile))
	if err != nil {
		return b, nil, fmt.Errorf("the machine's busybox: %w (`make build` makes it; --machine names its directory)", err)
	}
	list, err := readProgram(filepath.Join(dir, listFile))
	if err != nil {
		return b, nil, fmt.Errorf("list of the busybox's commands: %w", err)
	}
	names, err := initramfs.ParseCommands(string(list))
	if err != nil {
		return b, nil, fmt.Errorf("%s: %w", filepath.Join(dir, listFile), err)
	}
	commands := make(rootfs.Commands)
	for name, place := range osCommands {
		program, err := readProgram(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return b, nil, err
		}
		commands[place] = program
	}
	if err := loadShare(dir, commands); err != nil {
		return b, nil, err
	}
	return initramfs.Busybox{Program: program, Commands: names}, commands, nil
}

// loadShare adds the manual pages and completions, where the directory has them.
func loadShare(dir string, into rootfs.Commands) error {
	share := os.DirFS(filepath.Join(dir, shareDirectory))
	count := 0
	return fs.WalkDir(share, ".", func(name string, e fs.DirEntry, err error) error {
		if name == "." && errors.Is(err, fs.ErrNotExist) {
			return fs.SkipAll
		}
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if count++; !info.Mode().IsRegular() || info.Size() > maxPage || count > maxShared {
			return fmt.Errorf("%s is not one of up to %d files of up to %d bytes", filepath.Join(dir, shareDirectory, name), maxShared, maxPage)
		}
		into[path.Join(sharePlace, name)], err = fs.ReadFile(share, name)
		return err
	})
}

func readProgram(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxProgram {
		return nil, fmt.Errorf("%s is not a file of up to %d bytes", path, maxProgram)
	}
	return os.ReadFile(path)
}
