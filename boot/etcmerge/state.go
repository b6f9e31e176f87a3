package etcmerge

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"path"
	"slices"
	"strings"
)

// A stateKind says what a conflict's state is a digest of, and begins it.
type stateKind string

const (
	stateTree  stateKind = "tree"  // a file, with all that lies in it
	stateEntry stateKind = "entry" // a directory's own metadata
	stateLine  stateKind = "line"  // an entry of an account file
)

// parseState returns the kind of a state, empty for one that is not known.
func parseState(state string) stateKind {
	kind, _, _ := strings.Cut(state, ":")
	return stateKind(kind)
}

func (k stateKind) of(h hash.Hash) string { return string(k) + ":" + hex.EncodeToString(h.Sum(nil)) }

// describe adds a file of an upper directory to a digest. What the kernel or a
// relabelling may change by themselves is left out.
func describe(h io.Writer, name string, e *Entry, content []byte) {
	if e.Type == Whiteout {
		fmt.Fprintf(h, "%q whiteout\n", name)
		return
	}
	mode := e.Mode
	if e.Type == Link {
		mode = 0
	}
	fmt.Fprintf(h, "%q %d %04o %d %d %q %d %x\n", name, e.Type, mode, e.UID, e.GID, e.Target, e.Rdev, content)
	var names []string
	for name := range e.Xattrs {
		if !strings.HasPrefix(name, "security.") && !strings.HasPrefix(name, "trusted.") || name == capability {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(h, "\t%q=%q\n", name, e.Xattrs[name])
	}
}

// sum is the digest of a file's content.
func (r *reader) sum(s *source, path string) ([]byte, error) {
	f, err := r.open(s, path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

// stateOfTree is the state of a file in an upper directory.
func (r *reader) stateOfTree(f *file) (string, error) {
	all, err := r.list(f)
	if err != nil {
		return "", err
	}
	slices.SortFunc(all, func(a, b *file) int { return strings.Compare(a.path, b.path) })
	h := sha256.New()
	for _, in := range all {
		var content []byte
		if in.is(Regular) {
			if content, err = r.sum(in.from, in.path); err != nil {
				return "", err
			}
		}
		describe(h, in.path, in.Entry, content)
	}
	return stateTree.of(h), nil
}

// list is a file with all that lies in it, but for the list of conflicts itself.
func (r *reader) list(f *file) ([]*file, error) {
	all := []*file{f}
	if !f.is(Directory) {
		return all, nil
	}
	names, err := r.names(f.from, f.path)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		in, err := r.file(f.from, join(f.path, name))
		if err != nil {
			return nil, err
		}
		if in == nil || in.path == ListPath {
			continue
		}
		below, err := r.list(in)
		if err != nil {
			return nil, err
		}
		all = append(all, below...)
	}
	return all, nil
}

func stateOfEntry(f *Entry) string {
	h := sha256.New()
	describe(h, "", f, nil)
	return stateEntry.of(h)
}

// indexed is the account file that was asked for last: its lines, by name. There may be
// as many conflicts as lines.
type indexed struct {
	from  *source
	path  string
	lines map[string][]byte
}

// of returns the lines of a file, whose content is asked for where it is another one.
func (x *indexed) of(from *source, path string, content []byte) map[string][]byte {
	if x.from != from || x.path != path {
		*x = indexed{from, path, map[string][]byte{}}
		for line := range bytes.SplitSeq(content, []byte("\n")) {
			name, _, _ := bytes.Cut(line, []byte(":"))
			x.lines[string(name)] = fmt.Appendf(x.lines[string(name)], "%q\n", line)
		}
	}
	return x.lines
}

// stateOfLine is the state of what an account file says of a name.
func stateOfLine(lines map[string][]byte, name string) string {
	h := sha256.New()
	h.Write(lines[name])
	return stateLine.of(h)
}

// stateOfLineIn reads the file; the state is empty where it is not a text.
func (r *reader) stateOfLineIn(s *source, path, name string) (string, error) {
	if r.indexed.from == s && r.indexed.path == path {
		return stateOfLine(r.indexed.lines, name), nil
	}
	text, ok, err := r.textUpTo(s, path, MaxAccounts)
	if err != nil || !ok {
		return "", err
	}
	return stateOfLine(r.indexed.of(s, path, text), name), nil
}

// state is that of what an upper directory has at a path, empty for nothing.
func (r *reader) state(upper *source, c Conflict) (string, error) {
	f, err := r.below(upper, string(c.Path))
	if f == nil || err != nil {
		return "", err
	}
	switch parseState(c.State) {
	case stateTree:
		return r.stateOfTree(f)
	case stateEntry:
		return stateOfEntry(f.Entry), nil
	case stateLine:
		if !f.is(Regular) {
			return "", nil
		}
		return r.stateOfLineIn(upper, f.path, string(c.Entry))
	}
	return c.State, nil // of a kind that a later release may know
}

// below is what a tree has at a path that comes from a list: every directory on the way
// has to be one.
func (r *reader) below(s *source, name string) (*file, error) {
	if name == "" || path.IsAbs(name) || path.Clean(name) != name || strings.HasPrefix(name, "..") && within(name, "..") {
		return nil, nil
	}
	for i, c := range name {
		if c != '/' {
			continue
		}
		if dir, err := r.file(s, name[:i]); err != nil || !dir.is(Directory) {
			return nil, err
		}
	}
	return r.file(s, name)
}

func (r *reader) undecided(l List, upper *source) ([]Conflict, error) {
	var open []Conflict
	for _, c := range l.Conflicts {
		if c.Kept {
			continue
		}
		state, err := r.state(upper, c)
		if err != nil {
			return nil, err
		}
		if state == c.State {
			open = append(open, c)
		}
	}
	return open, nil
}
