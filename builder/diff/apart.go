package diff

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/uki"
	"halogenos.internal/builder/erofs"
	"halogenos.internal/builder/zstdframe"
)

// apart compares what two files that differ consist of. It finds nothing where
// it does not know them.
func (c *comparison) apart(name string, a, b *io.SectionReader, depth int) error {
	if depth > maxDepth {
		return nil
	}
	if isDisk(a) && isDisk(b) {
		return c.disks(name, a, b, depth)
	}
	_, errA := erofs.ReadHeader(a)
	_, errB := erofs.ReadHeader(b)
	if errA == nil && errB == nil {
		return c.systems(name, a, b)
	}
	if fatA, errA := fat.Open(a); errA == nil {
		if fatB, errB := fat.Open(b); errB == nil {
			return c.trees(name+"!", fatA, fatB, false)
		}
	}
	if a.Size() > maxLoaded || b.Size() > maxLoaded {
		return nil
	}
	dataA, err := load(a)
	if err != nil {
		return err
	}
	dataB, err := load(b)
	if err != nil {
		return err
	}
	return c.contents(name, dataA, dataB, depth)
}

func load(r *io.SectionReader) ([]byte, error) {
	data := make([]byte, r.Size())
	if _, err := r.ReadAt(data, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return data, nil
}

// contents compares two files that lie in memory.
func (c *comparison) contents(name string, a, b []byte, depth int) error {
	if plainA, ok := decompress(a); ok {
		if plainB, ok := decompress(b); ok {
			if bytes.Equal(plainA, plainB) {
				c.add(name, "only the compression differs: %d bytes and %d for the same %d", len(a), len(b), len(plainA))
				return nil
			}
			return c.memory(name, plainA, plainB, depth+1)
		}
	}
	if membersA, ok := members(a); ok {
		if membersB, ok := members(b); ok {
			return c.members(name, membersA, membersB, depth)
		}
	}
	if bytes.HasPrefix(a, []byte("MZ")) && bytes.HasPrefix(b, []byte("MZ")) {
		return c.images(name, a, b, depth)
	}
	if bytes.HasPrefix(a, []byte("{")) && c.values(name, a, b) {
		return nil
	}
	c.lines(name, a, b)
	return nil
}

func (c *comparison) memory(name string, a, b []byte, depth int) error {
	return c.open(name, io.NewSectionReader(bytes.NewReader(a), 0, int64(len(a))), io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))), depth)
}

// decompress returns what a file unpacks to, if it is a compressed one.
func decompress(data []byte) ([]byte, bool) {
	var r io.Reader
	var err error
	switch {
	case bytes.HasPrefix(data, []byte("\x1f\x8b\x08")):
		r, err = gzip.NewReader(bytes.NewReader(data))
	case bytes.HasPrefix(data, []byte("\xfd7zXZ\x00")):
		r, err = xz.NewReader(bytes.NewReader(data), 128<<20)
	case bytes.HasPrefix(data, []byte("\x28\xb5\x2f\xfd")):
		var z *zstd.Decoder
		if z, err = zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1)); err == nil {
			defer z.Close()
			r = z
		}
	default:
		return nil, false
	}
	if err != nil {
		return nil, false
	}
	// An archive that is followed by padding ends in an error.
	plain, err := io.ReadAll(io.LimitReader(r, maxLoaded))
	return plain, err == nil || len(plain) > 0
}

// A member is a file in an archive.
type member struct {
	head string // what is said of it beside its name
	data []byte
}

// members returns the files in a tar or cpio archive. The parts of an initramfs
// are taken as one archive.
func members(data []byte) (map[string]member, bool) {
	switch {
	case len(data) > 512 && string(data[257:262]) == "ustar":
		return tarMembers(data)
	case bytes.HasPrefix(data, []byte("070701")):
		all := make(map[string]member)
		var after []byte // what follows a part that is compressed
		for part := 0; ; part++ {
			rest, err := cpioMembers(data, all)
			if err != nil {
				return nil, false
			}
			if rest = bytes.TrimLeft(rest, "\x00"); len(rest) == 0 {
				rest, after = bytes.TrimLeft(after, "\x00"), nil
			}
			if len(rest) == 0 {
				return all, true
			}
			if bytes.HasPrefix(rest, []byte("070701")) {
				data = rest
				continue
			}
			end := zstdframe.End(rest)
			plain, ok := decompress(rest[:end])
			if !ok || !bytes.HasPrefix(plain, []byte("070701")) {
				all[fmt.Sprintf("(part %d)", part+2)] = member{data: rest}
				return all, true
			}
			data, after = plain, rest[end:]
		}
	}
	return nil, false
}

func tarMembers(data []byte) (map[string]member, bool) {
	all := make(map[string]member)
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all, true
		}
		if err != nil {
			return nil, false
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return nil, false
		}
		all[path.Clean(h.Name)] = member{
			fmt.Sprintf("mode %o, owner %d:%d, time %s, type %q, link %q", h.Mode, h.Uid, h.Gid, h.ModTime.UTC().Format("2006-01-02 15:04:05"), h.Typeflag, h.Linkname), content,
		}
	}
}

// cpioMembers reads one archive of the newc format and returns what follows it.
func cpioMembers(data []byte, into map[string]member) (rest []byte, err error) {
	const header = 110
	up := func(n int) int { return (n + 3) &^ 3 }
	for {
		if len(data) < header || !bytes.HasPrefix(data, []byte("070701")) {
			return nil, errors.New("not a cpio header")
		}
		field := func(i int) int {
			n, fault := strconv.ParseUint(string(data[6+8*i:14+8*i]), 16, 32)
			err = errors.Join(err, fault)
			return int(n)
		}
		mode, uid, gid, mtime, size, length := field(1), field(2), field(3), field(5), field(6), field(11)
		start := up(header + length)
		if err != nil || length == 0 || start+up(size) > len(data) && start+size != len(data) {
			return nil, errors.Join(err, errors.New("not a cpio header"))
		}
		name, content := string(data[header:header+length-1]), data[start:start+size]
		data = data[min(len(data), start+up(size)):]
		if name == "TRAILER!!!" {
			return data, nil
		}
		into[name] = member{fmt.Sprintf("mode %o, owner %d:%d, time %d", mode, uid, gid, mtime), content}
	}
}

func (c *comparison) members(name string, a, b map[string]member, depth int) error {
	all := maps.Clone(a)
	maps.Copy(all, b)
	for _, key := range slices.Sorted(maps.Keys(all)) {
		x, inA := a[key]
		y, inB := b[key]
		at := name + "!/" + key
		switch {
		case !inA:
			c.add(at, "only the second has it")
			continue
		case !inB:
			c.add(at, "only the first has it")
			continue
		case x.head != y.head:
			c.add(at, "%s and %s", x.head, y.head)
		}
		if err := c.memory(at, x.data, y.data, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// images compares the sections of two EFI images.
func (c *comparison) images(name string, a, b []byte, depth int) error {
	imageA, errA := uki.Parse(a)
	imageB, errB := uki.Parse(b)
	if errA != nil || errB != nil {
		return nil
	}
	all := make(map[string]bool)
	for _, image := range []*uki.Image{imageA, imageB} {
		for _, s := range image.Sections() {
			all[s.Name] = true
		}
	}
	for _, section := range slices.Sorted(maps.Keys(all)) {
		x, inA := imageA.Section(section)
		y, inB := imageB.Section(section)
		at := name + "!/" + section
		switch {
		case !inA:
			c.add(at, "only the second has the section")
		case !inB:
			c.add(at, "only the first has the section")
		default:
			if err := c.memory(at, x, y, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

func isDisk(r *io.SectionReader) bool {
	magic := make([]byte, 8)
	_, err := r.ReadAt(magic, 512)
	return err == nil && string(magic) == "EFI PART"
}

// disks compares the tables of two disks, and the partitions that have the same
// number.
func (c *comparison) disks(name string, a, b *io.SectionReader, depth int) error {
	tableA, _, errA := gpt.Read(a, uint64(a.Size()/512), 512)
	tableB, _, errB := gpt.Read(b, uint64(b.Size()/512), 512)
	if errA != nil || errB != nil {
		return nil
	}
	if tableA.Disk != tableB.Disk {
		c.add(name, "the disk is %s and %s", tableA.Disk, tableB.Disk)
	}
	if a.Size() != b.Size() {
		c.add(name, "has %d bytes and %d", a.Size(), b.Size())
	}
	for _, p := range tableA.Partitions {
		at := fmt.Sprintf("%s!/%d-%s", name, p.Number, p.Label)
		i := slices.IndexFunc(tableB.Partitions, func(q gpt.Partition) bool { return q.Number == p.Number })
		if i < 0 {
			c.add(at, "only the first has the partition")
			continue
		}
		q := tableB.Partitions[i]
		if p != q {
			c.add(at, "partition %+v and %+v", p, q)
		}
		offA, sizeA := tableA.Bytes(p)
		offB, sizeB := tableB.Bytes(q)
		if err := c.open(at, io.NewSectionReader(a, offA, sizeA), io.NewSectionReader(b, offB, sizeB), depth+1); err != nil {
			return err
		}
	}
	for _, q := range tableB.Partitions {
		if !slices.ContainsFunc(tableA.Partitions, func(p gpt.Partition) bool { return p.Number == q.Number }) {
			c.add(fmt.Sprintf("%s!/%d-%s", name, q.Number, q.Label), "only the second has the partition")
		}
	}
	return nil
}

// extractor unpacks an EROFS image (erofs-utils).
const extractor = "fsck.erofs"

// systems compares the files in two system images, and what their superblocks
// say.
func (c *comparison) systems(name string, a, b *io.SectionReader) error {
	headA, err := erofs.ReadHeader(a)
	if err != nil {
		return err
	}
	headB, err := erofs.ReadHeader(b)
	if err != nil {
		return err
	}
	if headA.UUID != headB.UUID {
		c.add(name, "the image is %s and %s", headA.UUID, headB.UUID)
	}
	if !headA.Created.Equal(headB.Created) {
		c.add(name, "the image is of %s and %s", headA.Created.UTC(), headB.Created.UTC())
	}
	dir, err := os.MkdirTemp(c.work, "")
	if err != nil {
		return err
	}
	var trees []fs.FS
	for i, r := range []*io.SectionReader{a, b} {
		image, tree := filepath.Join(dir, fmt.Sprintf("%d.erofs", i)), filepath.Join(dir, strconv.Itoa(i))
		if err := save(image, r); err != nil {
			return err
		}
		out, err := exec.CommandContext(c.ctx, extractor, "--extract="+tree, "--preserve-perms", image).CombinedOutput()
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("%s: %s is not installed: it is in the package erofs-utils", name, extractor)
		}
		if err != nil {
			return fmt.Errorf("%s: %s: %w: %.500s", name, extractor, err, out)
		}
		if err := os.Remove(image); err != nil {
			return err
		}
		trees = append(trees, os.DirFS(tree))
	}
	return c.trees(name+"!", trees[0], trees[1], true)
}

// save copies into a file; zeros become holes.
func save(name string, r *io.SectionReader) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for at := int64(0); at < r.Size(); at += int64(len(buf)) {
		n, err := r.ReadAt(buf, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return errors.Join(err, f.Close())
		}
		if block.IsZero(buf[:n]) {
			continue
		}
		if _, err := f.WriteAt(buf[:n], at); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Truncate(r.Size()), f.Close())
}
