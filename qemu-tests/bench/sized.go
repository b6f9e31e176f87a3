package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"halogenos.internal/qemu-tests/bench/measure"
)

// A sizedImage is what the growths over the image's size are measured with: a
// Debian and a file that makes it as large as it shall be, not compressed.
type sizedImage struct {
	tree, config, build string
}

// sized makes an image of about that size, once.
func (b *bench) sized(ctx context.Context, at string, size int64) (sizedImage, error) {
	name := fileName(at)
	s := sizedImage{filepath.Join(b.work, "tree-"+name), filepath.Join(b.work, "sized.conf"), filepath.Join(b.work, "build-"+name)}
	if _, err := os.Stat(s.build); err == nil {
		return s, nil
	}
	if _, err := measure.Command("cp", "-a", b.rootfs, s.tree)(ctx); err != nil {
		return s, err
	}
	have, err := treeBytes(s.tree)
	if err != nil {
		return s, err
	}
	if size > have {
		if err := b.ballast(filepath.Join(s.tree, "usr/share/ballast"), size-have); err != nil {
			return s, err
		}
	}
	if err := sizedConfig(s.config); err != nil {
		return s, err
	}
	_, err = b.build(s.tree, s.config, "2", s.build)(ctx)
	return s, err
}

// sizedConfig writes the configuration of a development image with room for
// the largest.
func sizedConfig(path string) error {
	text, err := os.ReadFile("uki.conf")
	if err != nil {
		return err
	}
	for key, value := range map[string]string{"SlotSize": "5G", "Compression": "none", "ReleaseKey": "none"} {
		text = regexp.MustCompile(`(?m)^`+key+`=.*`).ReplaceAll(text, []byte(key+"="+value))
	}
	return os.WriteFile(path, text, 0o644)
}

// treeBytes is the size of a tree's files.
func treeBytes(tree string) (int64, error) {
	var total int64
	err := filepath.WalkDir(tree, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}

// ballast makes a file out of Debian's libraries, again and again, so that it
// compresses as they do.
func (b *bench) ballast(path string, size int64) error {
	libraries, err := filepath.Glob(filepath.Join(b.rootfs, "usr/lib/x86_64-linux-gnu/*.so.*"))
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	for err == nil && size > 0 {
		before := size
		for _, l := range libraries {
			if err != nil || strings.Contains(l, "gnutls") { // it has keys in it, for its own tests
				continue
			}
			var n int64
			n, err = appendFile(f, l, size)
			size -= n
		}
		if err == nil && size == before {
			err = errors.New("the root file system has no libraries")
		}
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// appendFile copies at most so many bytes of a file.
func appendFile(w io.Writer, path string, most int64) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return io.Copy(w, io.LimitReader(f, most))
}
