package scan

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"bytes"
	"compress/bzip2"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"halogenos.internal/builder/vmlinux"
)

// kind says what a file holds beside its own bytes.
type kind uint8

const (
	nothing  kind = iota // it is no archive
	more                 // it was unpacked, but its own bytes count too
	contents             // its members are all there is
)

// errBudget ends the unpacking of a file that gets too large.
var errBudget = errors.New("unpacks to too much")

// decompressors by how what they read starts.
var decompressors = []struct {
	magic string
	open  func(*job, io.Reader) (io.ReadCloser, error)
}{
	{"\x1f\x8b\x08", func(_ *job, r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }},
	{"\xfd7zXZ\x00", (*job).openXZ},
	{"\x28\xb5\x2f\xfd", func(_ *job, r io.Reader) (io.ReadCloser, error) {
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxMember))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}},
	{"BZh", func(_ *job, r io.Reader) (io.ReadCloser, error) { return io.NopCloser(bzip2.NewReader(r)), nil }},
}

const maxDictionary = 128 << 20 // bytes

// openXZ takes a reader that another file was read with, if there is one:
// making the dictionary anew for each of a kernel's thousands of modules takes
// as long as reading some.
func (j *job) openXZ(r io.Reader) (io.ReadCloser, error) {
	if z, ok := j.xz.Get().(*xz.Reader); ok {
		return &pooledXZ{z, &j.xz}, z.Reset(r)
	}
	z, err := xz.NewReader(r, maxDictionary)
	return &pooledXZ{z, &j.xz}, err
}

type pooledXZ struct {
	*xz.Reader
	pool *sync.Pool
}

func (p *pooledXZ) Close() error {
	p.pool.Put(p.Reader)
	return nil
}

// archive unpacks what it knows and searches the members.
func (j *job) archive(name string, data []byte, depth int) (kind, error) {
	inside := func() bool {
		if depth >= maxDepth {
			j.found(name, ruleUnsearched, 0)
		}
		return depth < maxDepth
	}
	for _, d := range decompressors {
		if len(data) < 16 || !bytes.HasPrefix(data, []byte(d.magic)) {
			continue
		}
		if !inside() {
			return more, nil
		}
		return more, j.compressed(name, data, depth, d.open)
	}
	switch {
	case isTar(data), isCPIO(data), bytes.HasPrefix(data, []byte("!<arch>\n")):
		if !inside() {
			return more, nil
		}
		return contents, j.stream(name, bufio.NewReader(bytes.NewReader(data)), depth)
	case bytes.Contains(data[max(0, len(data)-1<<16-22):], []byte("PK\x05\x06")):
		if !inside() {
			return more, nil
		}
		return more, j.zip(name, data, depth)
	case bytes.HasPrefix(data, []byte("MZ")):
		return more, j.efi(name, data, depth)
	}
	return nothing, nil
}

// compressed searches what a compressed file unpacks to. Bytes behind it are
// searched as a file of their own: an initramfs is several archives in a row.
func (j *job) compressed(name string, data []byte, depth int, open func(*job, io.Reader) (io.ReadCloser, error)) error {
	z, err := open(j, bytes.NewReader(data))
	if err != nil {
		return nil // it only starts like one
	}
	defer z.Close()
	r := bufio.NewReaderSize(&metered{r: z, left: &j.budget}, 64<<10)
	head, err := r.Peek(512)
	if err != nil && len(head) == 0 {
		return nil
	}
	if isTar(head) || isCPIO(head) {
		return j.stream(name, r, depth)
	}
	content, err := j.read(r)
	if errors.Is(err, errBudget) {
		j.found(name, ruleUnsearched, 0)
	}
	if depth == 0 && j.Unpacked != nil && module(name) && path.Ext(name) != ".ko" {
		j.handed = true
		if err := j.Unpacked(name, content); err != nil {
			return err
		}
	}
	return j.object(name, content, depth+1)
}

// module reports whether a name is one of a kernel module.
func module(name string) bool {
	switch path.Ext(name) {
	case ".ko":
		return true
	case ".gz", ".xz", ".zst":
		return strings.HasSuffix(strings.TrimSuffix(name, path.Ext(name)), ".ko")
	}
	return false
}

// metered counts what is unpacked.
type metered struct {
	r    io.Reader
	left *int64
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if *m.left -= int64(n); *m.left < 0 {
		return n, errBudget
	}
	return n, err
}

// read returns a member's content, up to the limit; what was read before an
// error is returned with it.
func (j *job) read(r io.Reader) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, maxMember+1))
	if len(content) > maxMember {
		return content[:maxMember], errBudget
	}
	return content, err
}

// stream searches the members of a tar, cpio or ar archive as they come.
func (j *job) stream(name string, r *bufio.Reader, depth int) error {
	next := arMembers(r)
	if head, _ := r.Peek(512); isTar(head) {
		next = tarMembers(r)
	} else if isCPIO(head) {
		next = cpioMembers(r)
	}
	for {
		member, content, err := next()
		if err != nil {
			break // at its end, or where it is damaged and nobody can unpack it
		}
		data, err := j.read(content)
		at := name + "!/" + strings.TrimLeft(path.Clean("/"+member), "/")
		if errors.Is(err, errBudget) {
			j.found(at, ruleUnsearched, 0)
		}
		if err := j.object(at, data, depth+1); err != nil {
			return err
		}
	}
	// What follows the end: nothing, padding, or the next archive.
	for {
		b, err := r.Peek(1)
		if err != nil || b[0] != 0 {
			break
		}
		if _, err := r.Discard(1); err != nil {
			break
		}
	}
	rest, err := j.read(r)
	if errors.Is(err, errBudget) {
		j.found(name, ruleUnsearched, 0)
	}
	if len(rest) == 0 {
		return nil
	}
	if depth >= 4*maxDepth {
		j.found(name, ruleUnsearched, 0)
		return nil
	}
	return j.object(name, rest, depth+1)
}

// members returns one member after the other, then an error.
type members func() (name string, content io.Reader, err error)

func isTar(head []byte) bool { return len(head) >= 512 && string(head[257:262]) == "ustar" }

func tarMembers(r io.Reader) members {
	t := tar.NewReader(r)
	return func() (string, io.Reader, error) {
		h, err := t.Next()
		if err != nil {
			return "", nil, err
		}
		return h.Name, t, nil
	}
}

func isCPIO(head []byte) bool {
	return len(head) >= 110 && (string(head[:6]) == "070701" || string(head[:6]) == "070702")
}

// cpioMembers reads the newc format (cpio(5); Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst).
func cpioMembers(r *bufio.Reader) members {
	left, padding := new(io.LimitedReader), 0
	return func() (string, io.Reader, error) {
		if _, err := io.Copy(io.Discard, left); err != nil {
			return "", nil, err
		}
		if _, err := r.Discard(padding); err != nil {
			return "", nil, err
		}
		var header [110]byte
		if _, err := io.ReadFull(r, header[:]); err != nil {
			return "", nil, err
		}
		size, err := strconv.ParseUint(string(header[54:62]), 16, 32)
		if err != nil || !isCPIO(header[:]) {
			return "", nil, errors.New("not a cpio header")
		}
		length, err := strconv.ParseUint(string(header[94:102]), 16, 32)
		if err != nil || length == 0 || length > 4096 {
			return "", nil, fmt.Errorf("cpio name of %d bytes", length)
		}
		name := make([]byte, length+(4-(110+length)%4)%4)
		if _, err := io.ReadFull(r, name); err != nil {
			return "", nil, err
		}
		name, _, _ = bytes.Cut(name, []byte{0})
		if string(name) == "TRAILER!!!" {
			return "", nil, io.EOF
		}
		*left, padding = io.LimitedReader{R: r, N: int64(size)}, int((4-size%4)%4)
		return string(name), left, nil
	}
}

// arMembers reads the common format of ar(1), in which Debian's packages are.
func arMembers(r *bufio.Reader) members {
	left, skip := new(io.LimitedReader), int64(len("!<arch>\n"))
	return func() (string, io.Reader, error) {
		if _, err := io.Copy(io.Discard, left); err != nil {
			return "", nil, err
		}
		if _, err := r.Discard(int(skip)); err != nil {
			return "", nil, err
		}
		var header [60]byte
		if _, err := io.ReadFull(r, header[:]); err != nil {
			return "", nil, err
		}
		size, err := strconv.ParseInt(strings.TrimSpace(string(header[48:58])), 10, 40)
		if err != nil || size < 0 || string(header[58:]) != "`\n" {
			return "", nil, errors.New("not an ar header")
		}
		*left, skip = io.LimitedReader{R: r, N: size}, size%2
		return strings.TrimRight(strings.TrimSpace(string(header[:16])), "/"), left, nil
	}
}

// zip searches the members of a zip archive, before which there may be a
// program.
func (j *job) zip(name string, data []byte, depth int) error {
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil // it only ends like one
	}
	for _, f := range z.File {
		at := name + "!/" + strings.TrimLeft(path.Clean("/"+f.Name), "/")
		r, err := f.Open()
		if f.Flags&1 != 0 || err != nil {
			j.found(at, ruleUnsearched, 0) // encrypted, or packed in a way that is not known
			if err == nil {
				r.Close()
			}
			continue
		}
		content, err := j.read(&metered{r: r, left: &j.budget})
		r.Close()
		if errors.Is(err, errBudget) {
			j.found(at, ruleUnsearched, 0)
		}
		if err := j.object(at, content, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// efi searches what is packed in a kernel, and in the sections of a UKI.
func (j *job) efi(name string, data []byte, depth int) error {
	if depth >= maxDepth {
		j.found(name, ruleUnsearched, 0)
		return nil
	}
	if kernel, err := vmlinux.Unpack(data); err == nil {
		j.budget -= int64(len(kernel))
		return j.object(name+"!/vmlinux", kernel, depth+1)
	}
	f, err := pe.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil
	}
	for _, s := range f.Sections {
		from, to := int64(s.Offset), int64(s.Offset)+int64(s.Size)
		if s.Name != ".linux" && s.Name != ".initrd" || to > int64(len(data)) {
			continue
		}
		if err := j.object(name+"!/"+s.Name, data[from:to], depth+1); err != nil {
			return err
		}
	}
	return nil
}
