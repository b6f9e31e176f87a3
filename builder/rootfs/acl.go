package rootfs

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Tags and version of an access control list (Linux,
// include/uapi/linux/posix_acl.h and posix_acl_xattr.h).
const (
	aclVersion   = 2
	aclUserOwner = 0x01
	aclUser      = 0x02
	aclGroupFile = 0x04
	aclGroup     = 0x08
	aclMask      = 0x10
	aclOther     = 0x20
	aclNobody    = math.MaxUint32 // the ID of entries that name nobody
)

// modeACL is the size in bytes of a list for the owner, the group and others.
const modeACL = 4 + 3*8

// maxACL bounds the text of an access control list in bytes.
const maxACL = 1 << 20

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// accounts finds the number of a user or a group by its name.
type accounts interface {
	number(group bool, name string) (uint32, error)
}

// encodeACL translates an access control list from its text form (POSIX.1e
// draft 17, section 23.3, with the number as a fourth field as star and
// libarchive write it) into the attribute that Linux keeps it in.
func encodeACL(text string, names accounts) (string, error) {
	if len(text) > maxACL {
		return "", fmt.Errorf("access control list has %d bytes, more than %d", len(text), maxACL)
	}
	var list []aclEntry
	for line := range strings.Lines(strings.ReplaceAll(text, ",", "\n")) {
		line, _, _ = strings.Cut(line, "#") // "#effective:r--"
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		e, err := parseACLEntry(line, names)
		if err != nil {
			return "", fmt.Errorf("access control list has %.80q: %w", line, err)
		}
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b aclEntry) int { return cmp.Or(cmp.Compare(a.tag, b.tag), cmp.Compare(a.id, b.id)) })
	if err := checkACL(list); err != nil {
		return "", fmt.Errorf("access control list %.200q: %w", text, err)
	}
	out := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range list {
		out = binary.LittleEndian.AppendUint16(out, e.tag)
		out = binary.LittleEndian.AppendUint16(out, e.perm)
		out = binary.LittleEndian.AppendUint32(out, e.id)
	}
	return string(out), nil
}

func parseACLEntry(line string, names accounts) (aclEntry, error) {
	f := strings.Split(strings.TrimPrefix(line, "default:"), ":")
	if len(f) == 2 && (f[0][:min(1, len(f[0]))] == "m" || f[0][:min(1, len(f[0]))] == "o") {
		f = []string{f[0], "", f[1]} // "mask:rwx" and "other:r-x" without the empty field
	}
	if len(f) < 3 || len(f) > 4 {
		return aclEntry{}, errors.New("want KIND:NAME:PERMISSIONS")
	}
	tags := map[string][2]uint16{
		"user": {aclUserOwner, aclUser}, "u": {aclUserOwner, aclUser}, "group": {aclGroupFile, aclGroup}, "g": {aclGroupFile, aclGroup},
		"mask": {aclMask, 0}, "m": {aclMask, 0}, "other": {aclOther, 0}, "o": {aclOther, 0},
	}[strings.TrimSpace(f[0])]
	name := strings.TrimSpace(f[1])
	e := aclEntry{tag: tags[0], id: aclNobody}
	if name != "" {
		e.tag = tags[1]
	}
	if e.tag == 0 {
		return e, fmt.Errorf("unknown kind %q", f[0])
	}
	for _, c := range strings.TrimSpace(f[2]) {
		bit, ok := map[rune]uint16{'r': 4, 'w': 2, 'x': 1, '-': 0}[c]
		if !ok {
			return e, fmt.Errorf("unknown permission %q", c)
		}
		e.perm |= bit
	}
	if name == "" {
		return e, nil
	}
	var err error
	if len(f) == 4 {
		e.id, err = parseID(strings.TrimSpace(f[3]))
	} else if e.id, err = parseID(name); err != nil {
		e.id, err = names.number(e.tag == aclGroup, name)
	}
	return e, err
}

// parseID reads the number of a user or a group. The largest one means nobody.
func parseID(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == aclNobody {
		return 0, fmt.Errorf("%q is not the number of an account", text)
	}
	return uint32(n), nil
}

// checkACL refuses a sorted list that the kernel would (posix_acl_valid).
func checkACL(list []aclEntry) error {
	count := make(map[uint16]int)
	for i, e := range list {
		count[e.tag]++
		if i > 0 && e.tag == list[i-1].tag && e.id == list[i-1].id {
			return errors.New("names one account twice")
		}
	}
	switch {
	case count[aclUserOwner] != 1 || count[aclGroupFile] != 1 || count[aclOther] != 1:
		return errors.New("lacks what the owner, the group or others may do")
	case count[aclUser]+count[aclGroup] > 0 && count[aclMask] != 1:
		return errors.New("names accounts, but has no mask")
	}
	return nil
}

// resolveACLs sets the access control lists that tar archives have as text. It
// comes when the whole tree is there: names of accounts are those of the tree.
func (t *Tree) resolveACLs() error {
	names := &treeAccounts{tree: t}
	for file, lists := range t.acls {
		for attribute, text := range lists {
			value, err := encodeACL(text, names)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			if attribute == accessACL && len(value) == modeACL {
				continue // it says no more than the mode
			}
			if dir := t.dirs[file]; dir != nil {
				dir.Xattrs[attribute] = value // set by Seal
				continue
			}
			if attribute == defaultACL {
				return fmt.Errorf("%s: has a default access control list, which only a directory can have", file)
			}
			at, err := t.parent(file)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			if err := setXattr(at, path.Base(file), attribute, value); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	t.acls = nil
	return nil
}

// treeAccounts are the accounts that a tree itself knows. ostree has some of
// them below /usr.
type treeAccounts struct {
	tree  *Tree
	known map[string]uint32 // read when the first name comes
}

const maxAccounts = 16 << 20 // bytes of passwd or group

func (a *treeAccounts) number(group bool, name string) (uint32, error) {
	if a.known == nil {
		a.known = make(map[string]uint32)
		for _, file := range []string{"etc/passwd", "usr/etc/passwd", "usr/lib/passwd", "etc/group", "usr/etc/group", "usr/lib/group"} {
			text, err := a.tree.ReadFile(file, maxAccounts)
			if err != nil {
				continue // what is not there knows nobody
			}
			for line := range strings.Lines(string(text)) {
				f := strings.Split(strings.TrimSpace(line), ":")
				if len(f) < 3 {
					continue
				}
				key := path.Base(file) + ":" + f[0]
				if id, err := parseID(f[2]); err == nil && f[0] != "" {
					if _, have := a.known[key]; !have {
						a.known[key] = id
					}
				}
			}
		}
	}
	file := "passwd"
	if group {
		file = "group"
	}
	id, ok := a.known[file+":"+name]
	if !ok {
		return 0, fmt.Errorf("/etc/%s of the root file system has no %q: add it, or pack with --numeric-owner", file, name)
	}
	return id, nil
}
