package rootfs

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
)

// Fill puts the root file system at a path into the tree: a directory, a tar
// archive, or an image of containers: an OCI layout in a directory or in an
// archive, or what `docker save` writes. Of an image for several architectures
// it takes arch (as in "x86_64").
func (t *Tree) Fill(ctx context.Context, source, arch string) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	switch {
	case info.IsDir() && exists(source, "oci-layout") && exists(source, "index.json"):
		err = t.fillFromLayout(ctx, source, arch)
	case info.IsDir() && exists(source, "manifest.json") && exists(source, "version") && !exists(source, "usr"):
		return fmt.Errorf("%s is a directory of skopeo's transport dir: copy the image to oci:DIR instead", source)
	case info.IsDir():
		err = t.CopyDirectory(ctx, source)
	case info.Mode().IsRegular():
		err = t.fillFromArchive(ctx, source, arch)
	default:
		err = fmt.Errorf("%s is neither a directory nor an archive: give one of these", source)
	}
	if err != nil {
		return err
	}
	if err := t.lookAtTop(); err != nil {
		return fmt.Errorf("root file system %s: %w", source, err)
	}
	return t.resolveACLs()
}

func (t *Tree) fillFromLayout(ctx context.Context, source, arch string) error {
	root, err := os.OpenRoot(source)
	if err != nil {
		return fmt.Errorf("open OCI layout: %w", err)
	}
	defer root.Close()
	return t.unpackOCI(ctx, directory{root}, platform(arch))
}

// v1Layer is a layer's directory in what docker save wrote before version 1.10.
var v1Layer = regexp.MustCompile(`^[0-9a-f]{64}$`)

// lookAtTop refuses what is around a root file system, and is not one by what is at
// its top.
func (t *Tree) lookAtTop() error {
	top, err := t.List(".")
	if err != nil || slices.Contains(top, "usr") {
		return err
	}
	has := func(name string) bool { return slices.Contains(top, name) }
	switch {
	case has("index.json") && has("blobs"):
		return errors.New("is an OCI layout without its file oci-layout: put it back (echo '{\"imageLayoutVersion\":\"1.0.0\"}' >oci-layout), or copy the image again")
	case has("metadata.yaml") && (has("rootfs") || has("rootfs.tar.xz") || has("rootfs.squashfs") || has("templates")):
		return errors.New("is an image of LXC or Incus: give the root file system that is in it, or comes with it (rootfs.tar.xz, rootfs.squashfs, or what is below rootfs/)")
	case slices.ContainsFunc(top, func(name string) bool { return v1Layer.MatchString(name) && t.dirs[name] != nil }) && !has("manifest.json"):
		return errors.New("is an image as docker saved it before version 1.10 (V1), whose layers name no digests: load it and save it again (docker load, docker save)")
	case len(top) == 1 && t.dirs[top[0]] != nil:
		if inside, err := t.List(top[0]); err == nil && (slices.Contains(inside, "usr") || slices.Contains(inside, "etc")) {
			return fmt.Errorf("has everything below %s/: give that directory, or unpack the archive as root and pack it again (tar -C %[1]s -cf FILE .)", top[0])
		}
	}
	return nil
}

func exists(dir, name string) bool {
	_, err := os.Lstat(filepath.Join(dir, name))
	return err == nil
}

// platform is OCI's name of an architecture.
func platform(arch string) string {
	if arch == "x86_64" {
		return "amd64"
	}
	return arch
}

func (t *Tree) fillFromArchive(ctx context.Context, source, arch string) error {
	file, err := os.Open(source)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := t.fillFrom(ctx, file, arch); err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	return nil
}

func (t *Tree) fillFrom(ctx context.Context, file *os.File, arch string) error {
	start := make([]byte, 512)
	if _, err := file.ReadAt(start, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read root file system: %w", err)
	}
	if isTar(start) {
		if done, err := t.fillFromImage(ctx, file, arch); done || err != nil {
			return err
		}
	}
	stream, close, err := decompress(interruptible{ctx, file})
	if err != nil {
		return err
	}
	defer close()
	in := bufio.NewReaderSize(stream, 1<<20)
	if first, _ := in.Peek(512); !isTar(start) && imageFirst(first) {
		return t.fillFromPacked(ctx, in, arch)
	}
	if err := checkForeign(in); err != nil {
		return err
	}
	count := 0
	err = unpackTar(ctx, in, func(e Entry, content io.Reader) error {
		count++
		return t.put(e, content)
	})
	if err == nil && count == 0 {
		return errors.New("the archive is empty: pack a root file system into it (tar -C DIRECTORY -cf FILE .)")
	}
	if err != nil {
		return err
	}
	return readToEnd(ctx, in)
}

// fillFromImage takes an uncompressed archive that is an image of containers,
// and reports whether it is one. If not, the file is at its start again.
func (t *Tree) fillFromImage(ctx context.Context, file *os.File, arch string) (bool, error) {
	a, err := indexArchive(file)
	switch {
	case err != nil:
		return false, err
	case a.has("oci-layout") && a.has("index.json"):
		return true, t.unpackOCI(ctx, a, platform(arch))
	case a.has("manifest.json"):
		images, err := dockerImages(a)
		if err != nil || images != nil {
			return true, errors.Join(err, t.unpackDocker(ctx, a, images, platform(arch)))
		}
	}
	_, err = file.Seek(0, io.SeekStart)
	return false, err
}

// imageFirst reports whether a tar starts with a file that an image of
// containers has and a root file system does not.
func imageFirst(header []byte) bool {
	if !isTar(header) {
		return false
	}
	name, _, _ := bytes.Cut(header[:100], []byte{0})
	return imageFile.Match(bytes.TrimPrefix(name, []byte("./")))
}

var imageFile = regexp.MustCompile(`^(oci-layout$|index\.json$|manifest\.json$|repositories$|blobs/|[0-9a-f]{64}(/|\.json$|\.tar$))`)

// fillFromPacked unpacks a compressed archive of an image, whose files are not
// in the order that they are needed in.
func (t *Tree) fillFromPacked(ctx context.Context, in io.Reader, arch string) (err error) {
	file, err := os.CreateTemp(filepath.Dir(t.dir), ".image-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := os.Remove(file.Name()); err != nil { // it is gone with this program
		return err
	}
	if n, err := io.Copy(file, io.LimitReader(in, maxBytes)); err != nil || n == maxBytes {
		return fmt.Errorf("unpack image, %d bytes: %w", n, cmp.Or(err, io.ErrShortBuffer))
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return t.fillFrom(ctx, file, arch)
}
