package fetch

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/release"
)

// Endings of files that are not complete.
const (
	partial = ".part"   // blocks of it are missing
	packed  = ".packed" // as it lies in the archive
)

// own are all names that the fetcher writes.
func own() []string {
	return []string{
		release.FileName, archive.SignatureFile, release.UKIFile, release.BootManagerFile, release.IndexFile, release.IndexFile + packed,
		release.UKIFile + partial, release.BootManagerFile + partial, release.IndexFile + partial, release.FileName + partial, archive.SignatureFile + partial,
	}
}

// tidy takes away what is not a regular file, or belongs to another release: so
// nothing that lies in the directory decides where anything is written.
func (j *Job) tidy() error {
	var regular []string
	for _, name := range own() {
		info, err := j.Directory.Lstat(name)
		if err == nil && info.Mode().IsRegular() {
			regular = append(regular, name)
			continue
		}
		if err == nil {
			err = j.Directory.RemoveAll(name)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	have, err := fs.ReadFile(j.Directory.FS(), release.FileName)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && !bytes.Equal(have, j.head.Description) {
		for _, name := range regular {
			if err := j.Directory.Remove(name); err != nil {
				return err
			}
		}
	}
	return j.syncDirectory()
}

func (j *Job) syncDirectory() error {
	f, err := j.Directory.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// create opens a file of the directory's, new or as it is.
func (j *Job) create(name string) (*os.File, error) {
	return j.Directory.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
}

// settle gives a complete file its name: cut before the rename, the part is
// there, and after it the whole.
func (j *Job) settle(f *os.File, from, name string) error {
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("flush %s: %w", name, err)
	}
	if err := j.Directory.Rename(from, name); err != nil {
		return err
	}
	return j.syncDirectory()
}

// whole reports whether a file of the directory's is the release's.
func (j *Job) whole(name string) (bool, error) {
	f, err := j.Directory.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	return j.matches(f, name)
}

// matches compares a file with its description.
func (j *Job) matches(f *os.File, name string) (bool, error) {
	want, ok := j.head.Release.File(name)
	info, err := f.Stat()
	if err != nil || !ok || info.Size() != want.Size {
		return false, err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, want.Size)); err != nil {
		return false, fmt.Errorf("read %s: %w", name, err)
	}
	return bytes.Equal(sum.Sum(nil), want.SHA256), nil
}

// A small file is one that goes into the directory.
type small struct {
	name string
	at   string // its name so far
	good bool   // it is what release.json says
}

// smallFiles brings the files that go into the directory, as far as their blocks go.
func (j *Job) smallFiles(ctx context.Context) ([]*small, error) {
	var all []*small
	for _, name := range []string{release.UKIFile, release.BootManagerFile} {
		s := &small{name: name, at: name}
		var err error
		if s.good, err = j.whole(name); err != nil {
			return nil, err
		}
		if !s.good {
			s.at = name + partial
			if err := j.fillSmall(ctx, name, j.runningUKI(name)); err != nil {
				return nil, err
			}
		}
		if name == release.UKIFile {
			if err := j.judgeUKI(ctx, s); err != nil {
				return nil, err
			}
		}
		all = append(all, s)
	}
	return all, nil
}

// judgeUKI checks the UKI's key. What is said of a UKI that the disk did not keep
// means nothing: that one is fetched once more.
func (j *Job) judgeUKI(ctx context.Context, s *small) error {
	err := j.checkUKI(s.at)
	if err == nil || s.good {
		return err
	}
	if compareErr := j.compare([]*small{s}); compareErr != nil || s.good {
		return cmp.Or(compareErr, err)
	}
	return j.refill(ctx, []*small{s})
}

// fillSmall makes all blocks of a file right.
func (j *Job) fillSmall(ctx context.Context, name string, from *source) error {
	want, _ := j.head.Release.File(name)
	f, err := j.create(name + partial)
	if err != nil {
		return err
	}
	defer f.Close() // flushed
	if err := f.Truncate(want.Size); err != nil {
		return err
	}
	return j.fill(ctx, name, f, from, true)
}

// compare gives the files that are as release.json says their names.
func (j *Job) compare(all []*small) error {
	for _, s := range all {
		if s.good {
			continue
		}
		f, err := j.create(s.at)
		if err != nil {
			return err
		}
		if s.good, err = j.matches(f, s.name); err == nil && s.good {
			err = j.settle(f, s.at, s.name)
			s.at = s.name
		}
		_ = f.Close() // a second time, where it was settled
		if err != nil {
			return err
		}
	}
	return nil
}

// refill fetches what is not as release.json says once more, and copies nothing.
func (j *Job) refill(ctx context.Context, all []*small) error {
	for _, s := range all {
		if s.good {
			continue
		}
		s.at = s.name + partial
		if err := j.fillSmall(ctx, s.name, nil); err != nil {
			return err
		}
		if err := j.compare([]*small{s}); err != nil {
			return err
		}
		if !s.good {
			return fmt.Errorf("%s has another SHA-256 than %s says, though each block is as %s says: the release contradicts itself", s.name, release.FileName, release.IndexFile)
		}
		if s.name == release.UKIFile {
			if err := j.checkUKI(s.at); err != nil {
				return err
			}
		}
	}
	return nil
}

// runningUKI is what blocks of the new UKI can be copied from.
func (j *Job) runningUKI(name string) *source {
	if name != release.UKIFile || j.Source == nil || j.Source.UKI == nil {
		return nil
	}
	r := &rereader{open: j.Source.UKI}
	return &source{r: r, have: func(ctx context.Context, p *blockindex.Plan) error {
		body, size, err := j.Source.UKI()
		if err != nil {
			return err
		}
		if err := body.Close(); err != nil {
			return err
		}
		return p.HaveContent(ctx, r, min(size, maxUKI), j.head.Release.Salt)
	}}
}

// maxUKI bounds what is read of the running UKI, in bytes.
const maxUKI = 512 << 20

// A rereader reads at places of what can only be read front to back, as long as
// they do not lie too far apart.
type rereader struct {
	open  func() (io.ReadCloser, int64, error)
	body  io.ReadCloser
	at    int64
	again int
}

// maxAgain bounds how often it is read from the start.
const maxAgain = 64

// ReadAt implements io.ReaderAt.
func (r *rereader) ReadAt(p []byte, off int64) (int, error) {
	if r.body == nil || off < r.at {
		if r.again++; r.again > maxAgain {
			return 0, errors.New("read from the start too often")
		}
		if r.body != nil {
			if err := r.body.Close(); err != nil {
				return 0, err
			}
		}
		body, _, err := r.open()
		if err != nil {
			return 0, err
		}
		r.body, r.at = body, 0
	}
	skipped, err := io.CopyN(io.Discard, r.body, off-r.at)
	r.at += skipped
	if err != nil {
		return 0, err
	}
	n, err := io.ReadFull(r.body, p)
	r.at += int64(n)
	return n, err
}

// fetchIndex brings the block index. Whatever arrived of it is kept.
func (j *Job) fetchIndex(ctx context.Context) error {
	if j.openIndex() == nil {
		return nil // else it is not there, or damaged, and fetched again
	}
	place, ok := j.head.Place(release.IndexFile)
	if !ok {
		return fmt.Errorf("%s names no %s", release.FileName, release.IndexFile)
	}
	for try := 0; ; try++ {
		err := j.downloadIndex(ctx, place)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errDamaged) || try == 1 {
			return err
		}
		if err := j.Directory.Remove(release.IndexFile + packed); err != nil {
			return err
		}
	}
}

// openIndex opens the directory's index, if it is the release's.
func (j *Job) openIndex() error {
	f, err := j.Directory.Open(release.IndexFile)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		var index *blockindex.Index
		if index, err = j.head.Index(io.NewSectionReader(f, 0, info.Size()), j.PartBlocks); err == nil {
			j.closeIndex()
			j.index, j.opened = index, f
			return nil
		}
	}
	return errors.Join(err, f.Close())
}

func (j *Job) closeIndex() {
	if j.opened != nil {
		_ = j.opened.Close() // it was only read
		j.opened = nil
	}
}

// appended writes what arrives behind what is there.
type appended struct {
	f  io.WriterAt
	at int64
	s  *step
}

// Write implements io.Writer.
func (a *appended) Write(p []byte) (int, error) {
	n, err := a.f.WriteAt(p, a.at)
	a.at += int64(n)
	a.s.add(int64(n))
	if err != nil {
		err = fmt.Errorf("%s: %w", release.IndexFile, err)
	}
	return n, err
}

func (j *Job) downloadIndex(ctx context.Context, place blockindex.Place) error {
	f, err := j.create(release.IndexFile + packed)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	have := min(info.Size(), place.Packed)
	s := j.step(Fetching, release.IndexFile, place.Packed)
	s.add(have)
	if have < place.Packed {
		if err := j.read(ctx, &appended{f, have, s}, place.Offset+have, place.Packed-have); err != nil {
			return err
		}
	}
	content, err := j.head.Content(io.NewSectionReader(f, 0, place.Packed), release.IndexFile)
	if err != nil {
		return err
	}
	if err := j.keepIndex(fallible{content}); err != nil {
		return err
	}
	return j.Directory.Remove(release.IndexFile + packed)
}

// fallible marks what is wrong with what it reads as damage on the way.
type fallible struct{ r io.Reader }

// Read implements io.Reader.
func (f fallible) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: %w", errDamaged, err)
	}
	return n, err
}

// keepIndex reads the index and puts it into the directory.
func (j *Job) keepIndex(content io.Reader) error {
	want, _ := j.head.Release.File(release.IndexFile)
	limited := &io.LimitedReader{R: content, N: want.Size + 1} // to its end, where its SHA-256 is compared
	if err := j.keep(release.IndexFile, limited); err != nil {
		return err
	}
	if err := j.openIndex(); err != nil {
		return fmt.Errorf("%s, as it was kept: %w", release.IndexFile, err)
	}
	return nil
}

// keep puts a file into the directory.
func (j *Job) keep(name string, content io.Reader) error {
	f, err := j.create(name + partial)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	return j.settle(f, name+partial, name)
}
