package upper

import (
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
// read-only, so that they belong to somebody else. A program that takes on that identity
// must not run; the others are listed.
func (m *maker) checkOwners(fresh int) error {
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
	return o.directory(f, "/", 0)
}

// owners is one look for them.
type owners struct {
	*maker
	etc    int // holds the new upper directories
	looked int
}

// passed reports whether a directory of the image has this machine's numbers, or is not
// seen: the entries of state.conf.
func (o *owners) passed(directory string) bool {
	return slices.ContainsFunc(o.Entries, func(e stateconf.Entry) bool { return e.Path == directory })
}

func (o *owners) directory(f *os.File, name string, depth int) error {
	names, err := f.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("look for owners in the image: %s: %w", name, err)
	}
	for _, n := range names {
		if o.looked++; o.looked > etcmerge.MaxEntries || depth > etcmerge.MaxDepth {
			o.lasts(name, "the image is too large to be searched for files of users that have another number here")
			return nil
		}
		if err := o.entry(int(f.Fd()), n, path.Join(name, n), depth); err != nil {
			return err
		}
	}
	return nil
}

func (o *owners) entry(parent int, base, name string, depth int) error {
	if o.passed(name) {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("look for owners in the image: %s: %w", name, err)
	}
	if err := o.judge(name, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	fd, err := beneath(parent, base, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("look for owners in the image: %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	return o.directory(f, name, depth+1)
}

func (o *owners) judge(name string, st *unix.Stat_t) error {
	for _, k := range []struct {
		what, file string
		number     uint32
		numbers    map[uint32]uint32
		set        uint32
	}{
		{"user", "passwd", st.Uid, o.users, unix.S_ISUID}, {"group", "group", st.Gid, o.groups, unix.S_ISGID},
	} {
		own, moved := k.numbers[k.number]
		if !moved || own == k.number {
			continue
		}
		image, here := o.name(k.file, k.number)
		says := fmt.Sprintf("it belongs to the image's %s %q, number %d, which is %q on this machine", k.what, image, k.number, here)
		if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&k.set == 0 {
			o.lasts(name, says)
			continue
		}
		return fmt.Errorf("%s runs as its %s: %s. Rename or renumber %q here (usermod, groupmod), and try again", name, k.what, says, here)
	}
	return nil
}

// name is who has a number in the image, and who has it on this machine.
func (o *owners) name(file string, number uint32) (image, here string) {
	if t, err := openIn(o.Image, "the image", "etc"); err == nil && t != nil {
		image = nameOf(t, file, number)
		closeTrees(t)
	}
	if t, err := openTree(o.etc, "etc", path.Join(Name(etc), "upper"), false); err == nil {
		here = nameOf(t, file, number)
		closeTrees(t)
	}
	return image, here
}

// nameOf is the first name of a number in an account file.
func nameOf(t *tree, file string, number uint32) string {
	f, err := t.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, _ := io.ReadAll(io.LimitReader(f, etcmerge.MaxText))
	for line := range strings.Lines(string(text)) {
		if field := strings.Split(line, ":"); len(field) > 2 && field[2] == strconv.FormatUint(uint64(number), 10) {
			return field[0]
		}
	}
	return ""
}
