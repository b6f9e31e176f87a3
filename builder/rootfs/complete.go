package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Commands maps the path of a command of the machine in the image, such as
// usr/bin/ota, to its content. What lies below usr/share is documentation: it
// makes way for the root file system's own.
type Commands map[string][]byte

const documentation = "usr/share/"

// mountPoints are the directories that the boot and every init expect, with their
// modes. They are made where they are missing.
var mountPoints = []struct {
	name string
	mode uint32
}{
	{"boot", 0o755}, {"dev", 0o755}, {"efi", 0o755}, {"etc", 0o755}, {"home", 0o755}, {"proc", 0o555},
	{"root", 0o700}, {"run", 0o755}, {"sys", 0o555}, {"tmp", 0o1777}, {"var", 0o755},
}

// perMachine are files that would make all machines of an image share what
// must be each one's own secret or name, or that differ from build to build.
var perMachine = []struct{ name, why string }{
	{"var/lib/systemd/random-seed", "a random seed must not be shared"},
	{"var/lib/systemd/credential.secret", "a secret must not be shared"},
	{"var/lib/dbus/machine-id", "each machine makes its own"},
	// An update would find the image's own, and nothing to do.
	{"etc/.updated", "each machine notes itself what was brought up to date"},
	{"var/.updated", "each machine notes itself what was brought up to date"},
}

// sharedIDs are files with an identity of one machine that tools write once, when they are
// installed. They stay: machines in use may be known by it, to a storage target or to
// a pool of ZFS, and an update would change who they are.
var sharedIDs = []struct{ name, what, cure string }{
	{"etc/nvme/hostnqn", "the name by which NVMe targets know a machine", "without the file nvme takes one from the firmware's UUID"},
	{"etc/nvme/hostid", "the number by which NVMe targets know a machine", "without the file nvme takes one from the firmware's UUID"},
	{"etc/iscsi/initiatorname.iscsi", "the name by which iSCSI targets know a machine", "with the line GenerateName=yes alone Debian's open-iscsi makes one at the start; where iscsi-init.service does, remove the file"},
	{"etc/hostid", "the number by which ZFS knows a machine", "let each machine make its own (zgenhostid) in a unit of yours"},
}

// Complete adds what a system image must have beside the root file system:
// the machine's commands, state.conf, mount points. It takes away what must
// not be in an image, and returns a line for each thing that it took away.
func (t *Tree) Complete(commands Commands, date time.Time) ([]string, error) {
	notes, err := t.adoptEtc(date)
	if err != nil {
		return nil, err
	}
	if err := t.checkPlain(); err != nil {
		return nil, err
	}
	for _, m := range mountPoints {
		if _, err := t.AddDirectory(m.name, m.mode); err != nil {
			return nil, fmt.Errorf("add mount point /%s: %w", m.name, err)
		}
	}
	state, err := t.completeState(date)
	if err != nil {
		return nil, err
	}
	if err := t.addCommands(commands, date); err != nil {
		return nil, err
	}
	// What waits for an update compares this date with that of the last one
	// (systemd-update-done.service(8)). The source's is often as old as the tree: it
	// changes only when something is added at the top of /usr.
	t.dirs["usr"].ModTime = date
	personal, err := t.depersonalize(date)
	return slices.Concat(notes, state, personal), err
}

func (t *Tree) addCommands(commands Commands, date time.Time) error {
	for name, content := range commands {
		mode, page := uint32(0o755), strings.HasPrefix(name, documentation)
		if page {
			mode = 0o644
		}
		if _, err := t.Lstat(name); err == nil && page {
			continue
		} else if err == nil {
			return fmt.Errorf("the root file system has a file of its own at %s, where the machine's command belongs", name)
		}
		if err := t.AddFile(name, content, mode, date); err != nil {
			return fmt.Errorf("add command: %w", err)
		}
	}
	return nil
}

// depersonalize takes out what belongs to one machine or one build.
func (t *Tree) depersonalize(date time.Time) ([]string, error) {
	var notes []string
	for _, p := range perMachine {
		info, err := t.Lstat(p.name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Type() == fs.ModeSymlink {
			continue
		} else if err != nil {
			return nil, err
		}
		if err := t.removeAt(p.name); err != nil {
			return nil, err
		}
		notes = append(notes, fmt.Sprintf("left out /%s: %s", p.name, p.why))
	}
	shared, err := t.sharedIdentities()
	if err != nil {
		return nil, err
	}
	initrds, err := t.removeInitrds()
	if err != nil {
		return nil, err
	}
	id, err := t.resetMachineID(date)
	return slices.Concat(notes, shared, initrds, id), err
}

// sharedIdentities warns of what would make machines the same to others.
func (t *Tree) sharedIdentities() ([]string, error) {
	var notes []string
	for _, id := range sharedIDs {
		text, err := t.ReadFile(id.name, 64<<10)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		if len(bytes.TrimSpace(text)) == 0 || generated.Match(text) && !named.Match(text) {
			continue
		}
		notes = append(notes, fmt.Sprintf("WARNING: /%s has %s, and all machines of the image would share it: take it out of the root file system (%s)", id.name, id.what, id.cure))
	}
	return notes, nil
}

// What /etc/iscsi/initiatorname.iscsi has before and after a machine has made its name.
var (
	generated = regexp.MustCompile(`(?m)^GenerateName=yes`)
	named     = regexp.MustCompile(`(?m)^InitiatorName=`)
)

// initrdPlaces are the directories that an initramfs of the distribution lies in:
// Debian's, systemd's kernel-install(8) and ostree's, Fedora's and mkosi's. A star is any
// directory.
var initrdPlaces = []string{"boot", "boot/*/*", "usr/lib/modules/*", "lib/modules/*"}

// removeInitrds takes the distribution's initramfs out: it is never booted, it is large, and
// it is seldom the same twice.
func (t *Tree) removeInitrds() ([]string, error) {
	var notes []string
	for _, place := range initrdPlaces {
		dirs, err := t.directories(place)
		if err != nil {
			return nil, err
		}
		for _, dir := range dirs {
			gone, err := t.removeInitrdsIn(dir)
			if err != nil {
				return nil, err
			}
			notes = append(notes, gone...)
		}
	}
	return notes, nil
}

func (t *Tree) removeInitrdsIn(dir string) ([]string, error) {
	names, err := t.List(dir)
	if err != nil {
		return nil, err
	}
	var notes []string
	for _, name := range names {
		if !strings.HasPrefix(name, "initrd") && !strings.HasPrefix(name, "initramfs") {
			continue
		}
		file := path.Join(dir, name)
		if info, err := t.Lstat(file); err != nil {
			return nil, err
		} else if info.IsDir() {
			continue
		}
		if err := t.removeAt(file); err != nil {
			return nil, err
		}
		notes = append(notes, fmt.Sprintf("left out /%s: the UKI has an initramfs of its own", file))
	}
	return notes, nil
}

// directories are those that a name with stars stands for.
func (t *Tree) directories(pattern string) ([]string, error) {
	all := []string{"."}
	for part := range strings.SplitSeq(pattern, "/") {
		var next []string
		for _, dir := range all {
			names := []string{part}
			if part == "*" {
				var err error
				if names, err = t.List(dir); err != nil {
					return nil, err
				}
			}
			for _, name := range names {
				if info, err := t.Lstat(path.Join(dir, name)); err == nil && (info.IsDir() || part != "*") {
					next = append(next, path.Join(dir, name))
				}
			}
		}
		all = next
	}
	return all, nil
}

func (t *Tree) removeAt(name string) error {
	at, err := t.locate(name)
	if err != nil {
		return err
	}
	return t.Remove(at)
}

// resetMachineID takes the ID of one machine out of the image. With systemd an
// empty file stays, which it fills in without taking the boot for the first
// (machine-id(5), "First Boot Semantics"): that would set all units to their
// presets, whatever the distributor enabled. Others look for no file at all.
func (t *Tree) resetMachineID(date time.Time) ([]string, error) {
	const name = "etc/machine-id"
	text, err := t.ReadFile(name, 4096)
	if errors.Is(err, fs.ErrNotExist) || err == nil && (len(text) == 0 || string(text) == "uninitialized\n") {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("machine-id: %w", err)
	}
	if err := t.removeAt(name); err != nil {
		return nil, fmt.Errorf("machine-id: %w", err)
	}
	if t.HasSystemd() {
		if err := t.AddFile(name, nil, 0o444, date); err != nil {
			return nil, fmt.Errorf("machine-id: %w", err)
		}
	}
	return []string{"took the ID out of /etc/machine-id: each machine makes its own"}, nil
}

// HasSystemd reports whether systemd is in the tree: below /usr, or below /lib
// where /usr is not merged.
func (t *Tree) HasSystemd() bool {
	for _, name := range []string{"usr/lib/systemd/systemd", "lib/systemd/systemd"} {
		if _, err := t.Resolve(name); err == nil {
			return true
		}
	}
	return false
}
