// Package diff says in what two artefacts of the builder differ: which file in
// which archive in which image, and how.
//
// It refuses nothing: what it cannot take apart, it compares byte by byte and
// says where the first difference is.
package diff

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"
)

// A Difference is one thing that is not the same.
type Difference struct {
	// Path says where: names of files, with '!' before what lies within.
	Path string `json:"path"`
	What string `json:"what"`
}

// String implements fmt.Stringer.
func (d Difference) String() string { return d.Path + ": " + d.What }

const (
	maxFound  = 1000    // differences
	maxLoaded = 1 << 30 // bytes of a file that is taken apart
	maxDepth  = 12
)

// Compare compares two files, or two directories with all that is in them.
func Compare(ctx context.Context, a, b string) ([]Difference, error) {
	work, err := os.MkdirTemp("", "halogen-diff-")
	if err != nil {
		return nil, err
	}
	c := &comparison{ctx: ctx, work: work}
	err = c.files(filepath.Base(a), a, b)
	return c.found, errors.Join(err, os.RemoveAll(work))
}

type comparison struct {
	ctx   context.Context
	work  string // for what must lie in a file to be taken apart
	found []Difference
}

func (c *comparison) add(path, format string, args ...any) {
	if len(c.found) < maxFound {
		c.found = append(c.found, Difference{path, fmt.Sprintf(format, args...)})
	}
}

func (c *comparison) files(name, a, b string) error {
	infoA, err := os.Stat(a)
	if err != nil {
		return err
	}
	infoB, err := os.Stat(b)
	if err != nil {
		return err
	}
	switch {
	case infoA.IsDir() != infoB.IsDir():
		c.add(name, "one is a directory, the other is not")
		return nil
	case infoA.IsDir():
		return c.trees("", os.DirFS(a), os.DirFS(b), false)
	}
	fileA, err := os.Open(a)
	if err != nil {
		return err
	}
	defer fileA.Close()
	fileB, err := os.Open(b)
	if err != nil {
		return err
	}
	defer fileB.Close()
	return c.open(name, io.NewSectionReader(fileA, 0, infoA.Size()), io.NewSectionReader(fileB, 0, infoB.Size()), 0)
}

// trees compares two directories; with attributes, also owners, modes and times.
func (c *comparison) trees(base string, a, b fs.FS, attributes bool) error {
	namesA, err := list(a)
	if err != nil {
		return err
	}
	namesB, err := list(b)
	if err != nil {
		return err
	}
	all := maps.Clone(namesA)
	maps.Copy(all, namesB)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		at := strings.TrimPrefix(base+"/"+name, "/")
		infoA, infoB := namesA[name], namesB[name]
		switch {
		case infoA == nil:
			c.add(at, "only the second has it")
			continue
		case infoB == nil:
			c.add(at, "only the first has it")
			continue
		case infoA.Mode().Type() != infoB.Mode().Type():
			c.add(at, "is %s and %s", infoA.Mode(), infoB.Mode())
			continue
		}
		if attributes {
			c.attributes(at, infoA, infoB)
		}
		switch infoA.Mode().Type() {
		case fs.ModeSymlink:
			targetA, err := fs.ReadLink(a, name)
			if err != nil {
				return err
			}
			targetB, err := fs.ReadLink(b, name)
			if err != nil {
				return err
			}
			if targetA != targetB {
				c.add(at, "is a link to %q and to %q", targetA, targetB)
			}
		case 0:
			if err := c.regular(at, a, b, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// list returns what is in a tree by its name.
func list(tree fs.FS) (map[string]fs.FileInfo, error) {
	all := make(map[string]fs.FileInfo)
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		all[name] = info
		return err
	})
	return all, err
}

func (c *comparison) attributes(at string, a, b fs.FileInfo) {
	if a.Mode() != b.Mode() {
		c.add(at, "has the mode %s and %s", a.Mode(), b.Mode())
	}
	if !a.ModTime().Equal(b.ModTime()) {
		c.add(at, "is of %s and %s", a.ModTime().UTC().Format("2006-01-02 15:04:05.999999999"), b.ModTime().UTC().Format("2006-01-02 15:04:05.999999999"))
	}
	statA, okA := a.Sys().(*syscall.Stat_t)
	statB, okB := b.Sys().(*syscall.Stat_t)
	if okA && okB && (statA.Uid != statB.Uid || statA.Gid != statB.Gid) {
		c.add(at, "belongs to %d:%d and %d:%d", statA.Uid, statA.Gid, statB.Uid, statB.Gid)
	}
}

func (c *comparison) regular(at string, a, b fs.FS, name string) error {
	section := func(tree fs.FS) (*io.SectionReader, func() error, error) {
		f, err := tree.Open(name)
		if err != nil {
			return nil, nil, err
		}
		info, err := f.Stat()
		if err != nil {
			return nil, nil, errors.Join(err, f.Close())
		}
		if r, ok := f.(io.ReaderAt); ok {
			return io.NewSectionReader(r, 0, info.Size()), f.Close, nil
		}
		content, err := io.ReadAll(io.LimitReader(f, maxLoaded))
		return io.NewSectionReader(bytes.NewReader(content), 0, int64(len(content))), f.Close, err
	}
	readerA, closeA, err := section(a)
	if err != nil {
		return err
	}
	defer closeA()
	readerB, closeB, err := section(b)
	if err != nil {
		return err
	}
	defer closeB()
	return c.open(at, readerA, readerB, 0)
}

// open compares two files and takes them apart if they differ.
func (c *comparison) open(name string, a, b *io.SectionReader, depth int) error {
	at, same, err := firstDifference(a, b)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if same {
		return nil
	}
	before := len(c.found)
	if err := c.apart(name, a, b, depth); err != nil {
		return err
	}
	if len(c.found) > before {
		return nil
	}
	if a.Size() != b.Size() {
		c.add(name, "has %d bytes and %d; the first difference is at byte %d", a.Size(), b.Size(), at)
	} else {
		c.add(name, "differs from byte %d on", at)
	}
	return nil
}

// firstDifference returns where two files first differ.
func firstDifference(a, b *io.SectionReader) (at int64, same bool, err error) {
	bufA, bufB := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		n, errA := a.ReadAt(bufA, at)
		m, errB := b.ReadAt(bufB, at)
		if errA != nil && !errors.Is(errA, io.EOF) || errB != nil && !errors.Is(errB, io.EOF) {
			return at, false, errors.Join(errA, errB)
		}
		least := min(n, m)
		if !bytes.Equal(bufA[:least], bufB[:least]) {
			for i := range least {
				if bufA[i] != bufB[i] {
					return at + int64(i), false, nil
				}
			}
		}
		at += int64(least)
		if n != m {
			return at, false, nil
		}
		if n < len(bufA) {
			return at, true, nil
		}
	}
}

// values compares two JSON texts, by the way to each value.
func (c *comparison) values(name string, a, b []byte) bool {
	var valueA, valueB any
	if json.Unmarshal(a, &valueA) != nil || json.Unmarshal(b, &valueB) != nil {
		return false
	}
	c.value(name, valueA, valueB)
	return true
}

func (c *comparison) value(at string, a, b any) {
	switch x := a.(type) {
	case map[string]any:
		if y, ok := b.(map[string]any); ok {
			all := maps.Clone(x)
			maps.Copy(all, y)
			for _, key := range slices.Sorted(maps.Keys(all)) {
				c.value(at+"."+key, x[key], y[key])
			}
			return
		}
	case []any:
		if y, ok := b.([]any); ok && len(x) == len(y) {
			for i := range x {
				c.value(fmt.Sprintf("%s[%d]", at, i), x[i], y[i])
			}
			return
		}
	}
	if textA, textB := short(a), short(b); textA != textB {
		c.add(at, "%s and %s", textA, textB)
	}
}

func short(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%.200s", text)
}

// lines compares two texts and shows the first lines that differ.
func (c *comparison) lines(name string, a, b []byte) bool {
	if len(a) > 1<<20 || len(b) > 1<<20 || !utf8.Valid(a) || !utf8.Valid(b) || bytes.IndexByte(a, 0) >= 0 || bytes.IndexByte(b, 0) >= 0 {
		return false
	}
	linesA, linesB := strings.Split(string(a), "\n"), strings.Split(string(b), "\n")
	for i := range max(len(linesA), len(linesB)) {
		lineA, lineB := "(end)", "(end)"
		if i < len(linesA) {
			lineA = fmt.Sprintf("%.120q", linesA[i])
		}
		if i < len(linesB) {
			lineB = fmt.Sprintf("%.120q", linesB[i])
		}
		if lineA != lineB {
			c.add(name, "line %d is %s and %s", i+1, lineA, lineB)
			return true
		}
	}
	return false
}
