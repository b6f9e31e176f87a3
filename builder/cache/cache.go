// Package cache keeps what costs time to compute between builds, by the content that it
// was computed of.
//
// It refuses a directory that somebody else could write: what lies there decides whether
// a secret is found. What is torn, or not what it says it is, counts as missing. Nothing
// in it is ever needed: it may be deleted at any time, by parts or as a whole, and a cache
// that cannot be written costs time only.
package cache

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bounded"
)

const (
	// MaxBytes is what all entries take together; those that were not used for longest make
	// way.
	MaxBytes = 256 << 20
	// maxEntry bounds one of them, in bytes.
	maxEntry = 64 << 20
	magic    = "halogen cache 1\n"
	// newEntry starts the name of an entry that is being written. A build that was stopped
	// leaves it.
	newEntry = "new-"
	leftover = time.Hour // after which such an entry belongs to no build any more
)

// A Key names what something was computed of, and by what.
type Key = [sha256.Size]byte

// A Dir is a directory with entries. Its methods may run at the same time, in several
// processes too: an entry appears by rename, whole or not at all. Without its sync a power
// cut may leave it torn, which its checksum tells.
type Dir struct {
	root    *os.Root
	program Key
	most    int64 // bytes of all entries
}

// Open opens a cache, and makes it where nothing has its name.
func Open(dir string) (*Dir, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the cache: %w", err)
	}
	info, err := root.Stat(".") // of what is open: the name may have changed hands
	if err == nil {
		err = ours(info)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cache %s: %w: what it holds decides whether a secret is found; give another directory, or make it one that you alone can write (chown, chmod go-w)", dir, err), root.Close())
	}
	program, err := programKey()
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return &Dir{root: root, program: program, most: MaxBytes}, nil
}

// Close releases the directory.
func (d *Dir) Close() error { return d.root.Close() }

// ours refuses what another user owns or can write. Where a file has an access control
// list, the bits of its group are what the list can grant at most (acl(5)).
func ours(info fs.FileInfo) error {
	if uid := int(info.Sys().(*syscall.Stat_t).Uid); uid != os.Geteuid() {
		return fmt.Errorf("belongs to the user %d, and this program runs as %d", uid, os.Geteuid())
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("others than its owner can write it (mode %04o)", info.Mode().Perm())
	}
	return nil
}

// programKey is the digest of this program. All rules, decompressors and checks are in it:
// another one finds nothing of what this one has kept.
func programKey() (Key, error) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return Key{}, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return Key{}, fmt.Errorf("hash this program: %w", err)
	}
	return Key(h.Sum(nil)), nil
}

// KeyOf names what this program makes of these parts.
func (d *Dir) KeyOf(parts ...[]byte) Key {
	h := sha256.New()
	h.Write(d.program[:])
	for _, p := range parts {
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(p))))
		h.Write(p)
	}
	return Key(h.Sum(nil))
}

// head starts the file of an entry: what it is, and the digest of that with its content.
func head(kind string, key Key, content []byte) []byte {
	h := sha256.New()
	fmt.Fprintf(h, "%s%s %x\n", magic, kind, key)
	h.Write(content)
	return h.Sum([]byte(magic))
}

// entryName is the form of a file's name here. Others are somebody's own, and stay.
var entryName = regexp.MustCompile(`^(?:new-[A-Z2-7]+-)?[a-z]+-[0-9a-f]{64}$`)

func fileName(kind string, key Key) string { return kind + "-" + hex.EncodeToString(key[:]) }

// Get returns an entry, and reports whether there is one that is whole.
func (d *Dir) Get(kind string, key Key) ([]byte, bool) {
	name := fileName(kind, key)
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || ours(info) != nil || info.Size() > maxEntry {
		return nil, false
	}
	file, err := bounded.Read(f, maxEntry)
	const start = len(magic) + sha256.Size
	if err != nil || len(file) < start || !bytes.Equal(file[:start], head(kind, key, file[start:])) {
		return nil, false
	}
	now := time.Now()
	_ = d.root.Chtimes(name, now, now) // where this fails, it makes way sooner
	return file[start:], true
}

// Put keeps an entry, and removes those that were not used for longest where there are
// too many. Whatever fails here costs a later build time, and no more.
func (d *Dir) Put(kind string, key Key, content []byte) error {
	if err := d.put(kind, key, content); err != nil {
		return err
	}
	if err := d.trim(); err != nil {
		return fmt.Errorf("keep the cache small: %w", err)
	}
	return nil
}

func (d *Dir) put(kind string, key Key, content []byte) (err error) {
	if len(content) > maxEntry-len(magic)-sha256.Size {
		return fmt.Errorf("keep in the cache: %d bytes are more than %d", len(content), maxEntry)
	}
	name := newEntry + rand.Text() + "-" + fileName(kind, key)
	f, err := d.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("keep in the cache: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("keep in the cache: %w", err), d.root.Remove(name))
		}
	}()
	_, err = f.Write(head(kind, key, content))
	if err == nil {
		_, err = f.Write(content)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return d.root.Rename(name, fileName(kind, key))
}

// trim removes what is too much, and what builds that were stopped have left. Only files
// with names of entries are its own.
func (d *Dir) trim() error {
	list, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return err
	}
	var all []fs.FileInfo
	var total int64
	for _, e := range list {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || !entryName.MatchString(e.Name()) {
			continue // another build has removed it, or it is not ours
		}
		if strings.HasPrefix(e.Name(), newEntry) {
			if time.Since(info.ModTime()) > leftover {
				_ = d.root.Remove(e.Name())
			}
			continue
		}
		all, total = append(all, info), total+info.Size()
	}
	slices.SortFunc(all, func(a, b fs.FileInfo) int {
		return cmp.Or(a.ModTime().Compare(b.ModTime()), strings.Compare(a.Name(), b.Name()))
	})
	for _, info := range all {
		if total <= d.most {
			break
		}
		if err := d.root.Remove(info.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		total -= info.Size()
	}
	return nil
}
