package upper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/stateconf"
)

// checkOwners looks for files of the image, outside the directories that are made with
// this machine's numbers, whose owner or group has another number here: the image is
// read-only, so that they belong to somebody else. A program that gives them rights must
// not run; the others are listed. All of the image is looked at: it has no index by owner,
// its size is bounded by the slot, and its builder has signed it.
func (m *maker) checkOwners(ctx context.Context, fresh int) error {
	if len(m.users)+len(m.groups) == 0 {
		return nil
	}
	top, err := unix.Open(m.Image, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", m.Image, err)
	}
	f := os.NewFile(uintptr(top), m.Image)
	defer f.Close()
	o := &owners{maker: m, etc: fresh}
	return o.directory(ctx, f, "/", 0)
}

// TryPeople finds out, without writing, whether [Store.Carry] can give an image an /etc with
// the accounts of people and nothing else. Of c it needs People, Image, Entries and Options.
func (s Store) TryPeople(ctx context.Context, c Carry) error {
	image, err := openIn(c.Image, "the image's /etc", Name(etc))
	if err != nil || image == nil {
		return err
	}
	defer closeTrees(image)
	plan, err := etcmerge.PlanPeople(ctx, image, c.People, c.Options)
	if err != nil {
		return err
	}
	m := &maker{Carry: c, report: new(Report), users: plan.Users, groups: plan.Groups}
	return m.checkOwners(ctx, -1)
}

// owners is one look for them.
type owners struct {
	*maker
	etc int // holds the new upper directories; -1 where People alone are known
	// Who has which number, by account file; nil until somebody asks.
	inImage, onMachine map[string]map[uint32]string
}

// maxImageDepth bounds how many directories are open at once.
const maxImageDepth = etcmerge.MaxDepth

// passed reports whether a directory of the image has this machine's numbers, or is not
// seen: the entries of state.conf.
func (o *owners) passed(directory string) bool {
	return slices.ContainsFunc(o.Entries, func(e stateconf.Entry) bool { return e.Path == directory })
}

func (o *owners) directory(ctx context.Context, f *os.File, name string, depth int) error {
	names, err := f.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("look for owners in the image: %s: %w", name, err)
	}
	for _, n := range names {
		if depth > maxImageDepth {
			return fmt.Errorf("look for owners in the image: %s lies within %d directories: nobody can say whether a program there gives rights to somebody else", name, depth)
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("look for owners in the image: %s: %w", name, err)
		}
		if err := o.entry(ctx, int(f.Fd()), n, path.Join(name, n), depth); err != nil {
			return err
		}
	}
	return nil
}

func (o *owners) entry(ctx context.Context, parent int, base, name string, depth int) error {
	if o.passed(name) {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("look for owners in the image: %s: %w", name, err)
	}
	if err := o.judge(parent, base, name, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	fd, err := beneath(parent, base, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("look for owners in the image: %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	return o.directory(ctx, f, name, depth+1)
}

func (o *owners) judge(parent int, base, name string, st *unix.Stat_t) error {
	for _, k := range []struct {
		what, file string
		number     uint32
		numbers    map[uint32]uint32
		set, runs  uint32
	}{
		{"user", "passwd", st.Uid, o.users, unix.S_ISUID, unix.S_IXUSR}, {"group", "group", st.Gid, o.groups, unix.S_ISGID, unix.S_IXGRP},
	} {
		own, moved := k.numbers[k.number]
		if !moved || own == k.number {
			continue
		}
		image, here := o.name(k.file, k.number)
		says := fmt.Sprintf("it belongs to the image's %s %q, number %d, which is %q on this machine", k.what, image, k.number, here)
		how, err := gives(parent, base, st, k.set, k.runs)
		if err != nil {
			return fmt.Errorf("look for owners in the image: %s: %w", name, err)
		}
		if how == "" {
			o.lasts(name, says)
			continue
		}
		return fmt.Errorf("%s %s its %s: %s. Rename or renumber %q here (usermod, groupmod), and try again", name, how, k.what, says, here)
	}
	return nil
}

// capability holds the capabilities of a program (capabilities(7)).
const capability = "security.capability"

// gives says which rights a file gives by its owner or group: it runs as them (set), or
// with rights for them alone (runs), as root's setuid program for one group does. "" for
// none: what everybody may run gives them nothing.
func gives(parent int, base string, st *unix.Stat_t, set, runs uint32) (string, error) {
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return "", nil
	case st.Mode&set != 0:
		return "runs as", nil
	case st.Mode&runs == 0 || st.Mode&unix.S_IXOTH != 0:
		return "", nil
	case st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0:
		return "runs with other rights for", nil
	}
	_, err := unix.Lgetxattr(handle(parent)+"/"+base, capability, nil)
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("attribute %s: %w", capability, err)
	}
	return "runs with capabilities for", nil
}

// name is who has a number in the image, and who has it on this machine.
func (o *owners) name(file string, number uint32) (image, here string) {
	if o.inImage == nil {
		o.inImage, o.onMachine = map[string]map[uint32]string{}, map[string]map[uint32]string{}
		if t, err := openIn(o.Image, "the image", "etc"); err == nil && t != nil {
			o.inImage["passwd"], o.inImage["group"] = namesIn(t, "passwd"), namesIn(t, "group")
			closeTrees(t)
		}
		if t, err := openTree(o.etc, "etc", path.Join(Name(etc), "upper"), false); err == nil {
			o.onMachine["passwd"], o.onMachine["group"] = namesIn(t, "passwd"), namesIn(t, "group")
			closeTrees(t)
		} else if o.etc < 0 {
			for file, text := range o.People {
				o.onMachine[file] = firstNames(string(text))
			}
		}
	}
	return o.inImage[file][number], o.onMachine[file][number]
}

// namesIn has the first name of each number in an account file.
func namesIn(t *tree, file string) map[uint32]string {
	f, err := t.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	text, _ := io.ReadAll(io.LimitReader(f, etcmerge.MaxAccounts))
	return firstNames(string(text))
}

// firstNames has them of the text of one.
func firstNames(text string) map[uint32]string {
	names := map[uint32]string{}
	for line := range strings.Lines(text) {
		field := strings.Split(line, ":")
		if len(field) < 3 {
			continue
		}
		number, err := strconv.ParseUint(field[2], 10, 32)
		if _, known := names[uint32(number)]; err == nil && !known {
			names[uint32(number)] = field[0]
		}
	}
	return names
}
