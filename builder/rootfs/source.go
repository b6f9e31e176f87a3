package rootfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
)

// Fill puts the root file system at a path into the tree: a directory, a tar
// archive, or an OCI image as a layout in a directory or in a tar archive. Of
// an OCI image for several architectures it takes arch (as in "x86_64").
func (t *Tree) Fill(ctx context.Context, source, arch string) error {
	info, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	switch {
	case info.IsDir() && exists(source, "oci-layout") && exists(source, "index.json"):
		root, err := os.OpenRoot(source)
		if err != nil {
			return fmt.Errorf("open OCI layout: %w", err)
		}
		defer root.Close()
		return t.unpackOCI(ctx, folder{root}, platform(arch))
	case info.IsDir():
		return t.CopyDirectory(ctx, source)
	case info.Mode().IsRegular():
		return t.fillFromArchive(ctx, source, arch)
	}
	return fmt.Errorf("root file system %s is neither a directory nor an archive", source)
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
		return fmt.Errorf("root file system: %w", err)
	}
	defer file.Close()
	plain, err := isTar(file)
	if err != nil {
		return err
	}
	if plain {
		a, err := indexArchive(file)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", source, err)
		case a.has("oci-layout") && a.has("index.json"):
			return t.unpackOCI(ctx, a, platform(arch))
		case a.has("manifest.json") && a.has("repositories"):
			return fmt.Errorf("%s is a Docker archive: save it as an OCI archive", source)
		}
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	stream, close, err := decompress(file)
	if err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	defer close()
	err = t.unpackTar(ctx, stream, func(e Entry, content io.Reader) error {
		if path.Clean(e.Name) == "oci-layout" {
			return errOCI
		}
		return t.Put(e, content)
	})
	if errors.Is(err, errOCI) {
		return fmt.Errorf("%s is a compressed OCI archive: decompress it first, its layers are compressed already", source)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	return nil
}

// isTar reports whether a file is an uncompressed tar (POSIX.1-1988 and later
// have a magic in the first header) and leaves the file at its start.
func isTar(file *os.File) (bool, error) {
	var header [512]byte
	n, err := io.ReadFull(file, header[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("read root file system: %w", err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	return n == len(header) && bytes.HasPrefix(header[257:], []byte("ustar")), nil
}
