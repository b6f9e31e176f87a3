// Package scan searches the files of an image for keys, passwords and what
// else must not be in one, by what is in a file and not by its name. It reads
// contents, extended attributes, the targets of links and the names of files,
// and unpacks archives and text encodings on the way.
//
// It refuses to pass over what it cannot look into: an encrypted archive, one
// in a format that it does not know, or one nested too deep or too large is a
// finding of its own. It judges by form alone. Secrets that have none (a
// password in a script) it cannot find.
package scan

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Initramfs is the name under which findings in the initramfs are reported.
const Initramfs = "initramfs"

const (
	maxPerRule  = 100       // findings of one rule in one file of the image
	maxDepth    = 8         // archives within archives
	maxMember   = 256 << 20 // bytes of a file in an archive, unpacked
	maxHeld     = 512 << 20 // bytes in memory at a time for one file of the image
	maxUnpacked = 16 << 30  // bytes that one file of the image may unpack to
)

// A Finding is a secret, or what looks like one.
type Finding struct {
	// File is its name from the top of the image, such as /etc/shadow. What
	// lies in an archive follows a '!': /srv/backup.tar.gz!/etc/shadow.
	File   string `json:"file"`
	Offset int64  `json:"offset"` // bytes from the start of that file, unpacked
	Rule   string `json:"rule"`
}

// String implements fmt.Stringer.
func (f Finding) String() string { return fmt.Sprintf("%s at byte %d: %s", f.File, f.Offset, f.Rule) }

// A Scanner collects findings. Its methods may run at the same time.
type Scanner struct {
	rules   []rule
	matcher *matcher
	allow   []Allow
	// Unpacked, if set, gets every file of a tree whose name is that of a
	// kernel module, with its content as the kernel would load it. It must not
	// keep the content. What it returns is kept in Results.
	Unpacked func(name string, content []byte) (note []byte, err error)
	// Results, if set, spare the search of what was searched before. Known then gets what
	// Unpacked had returned, and has the file searched again by false; Depends says what else
	// than the content that came from.
	Results Results
	Known   func(name string, note []byte) bool
	Depends func(name string) string

	xz sync.Pool // of readers

	mu       sync.Mutex
	findings []Finding
	allowed  []Finding
	used     []bool
	files    int
	bytes    int64
}

// New makes a scanner that does without the findings that are allowed.
func New(allow []Allow) *Scanner {
	all := rules()
	return &Scanner{rules: all, matcher: newMatcher(all), allow: allow, used: make([]bool, len(allow))}
}

// Tree searches everything below a directory: the content of regular files,
// the targets of symbolic links, and the name and the extended attributes of
// all. The top directory's own attributes are those of "/".
func (s *Scanner) Tree(ctx context.Context, dir string) error {
	entries, err := list(dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	work := make(chan entry)
	failed := make(chan error, runtime.GOMAXPROCS(0))
	var workers sync.WaitGroup
	for range cap(failed) {
		workers.Go(func() {
			for e := range work {
				if err := s.entry(ctx, dir, e); err != nil {
					failed <- fmt.Errorf("search %s: %w", filepath.Join(dir, e.name), err)
					cancel()
					return
				}
			}
		})
	}
	for _, e := range entries {
		select {
		case work <- e:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(work)
	workers.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return ctx.Err()
	}
}

// An entry is anything in a tree.
type entry struct {
	name string // relative to the tree; "." is its top
	mode fs.FileMode
	size int64
}

// list returns all entries below a directory, the largest first, so that none
// is left for the end.
func list(dir string) ([]entry, error) {
	var entries []entry
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		entries = append(entries, entry{name, info.Mode(), info.Size()})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the files of the image: %w", err)
	}
	slices.SortStableFunc(entries, func(a, b entry) int { return cmp.Compare(b.size, a.size) })
	return entries, nil
}

// entry searches one entry of a tree.
func (s *Scanner) entry(ctx context.Context, dir string, e entry) error {
	path := filepath.Join(dir, e.name)
	name := filepath.Join("/", e.name)
	j := s.job(ctx)
	j.match(name, []byte(filepath.Base(name)), 0)
	if err := j.attributes(path, name); err != nil {
		return err
	}
	if e.mode&fs.ModeSymlink != 0 {
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		if err := j.object(name+"#target", []byte(target), 0); err != nil {
			return err
		}
	}
	s.keep(j)
	if e.mode.IsRegular() {
		return s.file(ctx, path, name)
	}
	return nil
}

// file searches the content of a file, which lies in memory for it as the
// kernel maps it.
func (s *Scanner) file(ctx context.Context, path, name string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var content []byte
	if info.Size() > 0 {
		if content, err = unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED); err != nil {
			return fmt.Errorf("map: %w", err)
		}
		defer unix.Munmap(content)
	}
	return s.parts(ctx, name, content, written(f, info.Size()))
}

// attributes searches the extended attributes of an entry, which go into the
// image with it. They are reported as <name>#<attribute>.
func (j *job) attributes(path, name string) error {
	n, err := unix.Llistxattr(path, nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil
	}
	list := make([]byte, 64<<10) // the kernel's limit, as of a value
	if err == nil {
		n, err = unix.Llistxattr(path, list)
	}
	if err != nil {
		return fmt.Errorf("list extended attributes: %w", err)
	}
	for key := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, key, value)
		if err != nil {
			return fmt.Errorf("read extended attribute %s: %w", key, err)
		}
		if err := j.object(name+"#"+key, value[:n], 0); err != nil {
			return err
		}
	}
	return nil
}

// keep takes over what a job has found.
func (s *Scanner) keep(j *job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range j.findings {
		s.add(f)
	}
}

// Bytes searches one file that lies in memory.
func (s *Scanner) Bytes(ctx context.Context, name string, content []byte) error {
	return s.parts(ctx, name, content, []part{{0, int64(len(content))}})
}

// parts searches a file of which all but some parts is holes.
func (s *Scanner) parts(ctx context.Context, name string, content []byte, parts []part) error {
	j := s.job(ctx)
	err := s.searchOnce(j, name, content, parts)
	s.keep(j)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files++
	for _, p := range parts {
		s.bytes += p.end - p.start
	}
	s.bytes += maxUnpacked - j.budget
	return err
}

// searchOnce searches a file, unless the result is known. A file with holes is not read as
// a whole, and so has no digest.
func (s *Scanner) searchOnce(j *job, name string, content []byte, parts []part) error {
	keeps := s.Results != nil && len(parts) == 1 && parts[0] == part{0, int64(len(content))}
	var key [sha256.Size]byte
	if keeps {
		key = s.key(name, content)
		if s.known(j, key, name) {
			return nil
		}
	}
	err := j.parts(name, content, parts)
	if err == nil && s.Unpacked != nil && module(name) && !j.handed {
		j.note, err = s.Unpacked(name, content) // it is as it is, whatever its name says
	}
	if keeps && err == nil {
		s.remember(j, key, name)
	}
	return err
}

// add keeps a finding.
func (s *Scanner) add(f Finding) {
	allowed := false
	for i := range s.allow {
		if s.allow[i].Matches(f) {
			allowed, s.used[i] = true, true
		}
	}
	if allowed {
		s.allowed = append(s.allowed, f)
	} else {
		s.findings = append(s.findings, f)
	}
}

// Searched returns how many files were searched, and how many bytes, what was
// unpacked included.
func (s *Scanner) Searched() (files int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files, s.bytes
}

// Findings returns what was found, in the order of the names, and beside it
// what is allowed.
func (s *Scanner) Findings() (refused, allowed []Finding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	order := func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Rule, b.Rule))
	}
	slices.SortFunc(s.findings, order)
	slices.SortFunc(s.allowed, order)
	return slices.Compact(slices.Clone(s.findings)), slices.Compact(slices.Clone(s.allowed))
}

const maxListed = 50 // findings in an error's text

// A SecretsError names the secrets that are in the image.
type SecretsError struct{ Findings []Finding }

// Error implements error.
func (e *SecretsError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "in the image there are accounts without a password, or secrets that every machine, and everybody who has a copy, would share (%d):", len(e.Findings))
	for i, f := range e.Findings {
		if i == maxListed {
			fmt.Fprintf(&b, "\n  and %d more", len(e.Findings)-i)
			break
		}
		fmt.Fprintf(&b, "\n  %s", f)
	}
	b.WriteString("\ntake them out, or say in [Allow] of the configuration why they may be there")
	return b.String()
}

// Finish returns an error when anything was found that is not allowed, or when
// an entry of the allow list has matched nothing: it would hide what is put
// there later.
func (s *Scanner) Finish() error {
	refused, _ := s.Findings()
	if len(refused) > 0 {
		return &SecretsError{Findings: refused}
	}
	var unused []error
	for i, a := range s.allow {
		if !s.used[i] && !a.Optional {
			unused = append(unused, fmt.Errorf("[Allow] has %s for %s, which matches nothing: take it out, or mark it with '?'", a.Rule, a.Pattern))
		}
	}
	return errors.Join(unused...)
}
