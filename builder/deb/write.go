package main

import (
	"archive/tar"
	"bytes"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/klauspost/compress/zstd"
)

// A linkFS is a tree of files with symbolic links, which it does not follow.
type linkFS = fs.ReadLinkFS

// write makes the package (deb(5), format 2.0). dpkg reads zstd from Debian 12 on.
func write(w io.Writer, root linkFS, c control, date time.Time) error {
	data, sums, kib, err := pack(root, date)
	if err != nil {
		return err
	}
	text, err := c.text(kib)
	if err != nil {
		return err
	}
	meta, err := archive(func(t *tar.Writer) error {
		return errors.Join(addDirectory(t, ".", date), addFile(t, "control", 0o644, text, date), addFile(t, "md5sums", 0o644, sums, date))
	})
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, "!<arch>\n"); err != nil {
		return err
	}
	for _, m := range []struct {
		name    string
		content []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar.zst", meta}, {"data.tar.zst", data}} {
		if err := member(w, m.name, m.content, date); err != nil {
			return err
		}
	}
	return nil
}

// member writes one file of an ar archive: a header of sixty columns, and the content,
// which ends on an even byte.
func member(w io.Writer, name string, content []byte, date time.Time) error {
	_, err := fmt.Fprintf(w, "%-16s%-12d%-6d%-6d%-8o%-10d`\n%s", name, date.Unix(), 0, 0, 0o100644, len(content), content)
	if err == nil && len(content)%2 == 1 {
		_, err = io.WriteString(w, "\n")
	}
	return err
}

// pack makes the archive of the files, the list of their MD5 digests (to find damage,
// not attacks), and their size in KiB.
func pack(root linkFS, date time.Time) (data, sums []byte, kib int64, err error) {
	var list bytes.Buffer
	data, err = archive(func(t *tar.Writer) error {
		return fs.WalkDir(root, ".", func(name string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			switch {
			case e.IsDir():
				kib++
				return addDirectory(t, name, date)
			case e.Type() == fs.ModeSymlink:
				kib++
				return addLink(t, root, name, date)
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			if !info.Mode().IsRegular() {
				return fmt.Errorf("%s is neither a file, a directory nor a link", name)
			}
			content, err := fs.ReadFile(root, name)
			if err != nil {
				return err
			}
			kib += (int64(len(content)) + 1023) / 1024
			fmt.Fprintf(&list, "%x  %s\n", md5.Sum(content), name)
			return addFile(t, name, mode(info), content, date)
		})
	})
	return data, list.Bytes(), kib, err
}

// mode is that of a program or that of a file: what the umask of the one who installed it
// has taken away comes back, and special bits are not carried on.
func mode(info fs.FileInfo) int64 {
	if info.Mode()&0o111 != 0 {
		return 0o755
	}
	return 0o644
}

// archive makes a compressed tar archive.
func archive(fill func(*tar.Writer) error) ([]byte, error) {
	var out bytes.Buffer
	// One goroutine, so that the bytes do not depend on the machine.
	z, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	t := tar.NewWriter(z)
	err = errors.Join(fill(t), t.Close(), z.Close())
	return out.Bytes(), err
}

func add(t *tar.Writer, h tar.Header, date time.Time, content []byte) error {
	h.ModTime, h.Uname, h.Gname, h.Format, h.Size = date, "root", "root", tar.FormatGNU, int64(len(content))
	if err := t.WriteHeader(&h); err != nil {
		return err
	}
	_, err := t.Write(content)
	return err
}

func addDirectory(t *tar.Writer, name string, date time.Time) error {
	return add(t, tar.Header{Typeflag: tar.TypeDir, Name: "./" + trimDot(name), Mode: 0o755}, date, nil)
}

func trimDot(name string) string {
	if name == "." {
		return ""
	}
	return name + "/"
}

func addFile(t *tar.Writer, name string, mode int64, content []byte, date time.Time) error {
	return add(t, tar.Header{Typeflag: tar.TypeReg, Name: "./" + name, Mode: mode}, date, content)
}

func addLink(t *tar.Writer, root linkFS, name string, date time.Time) error {
	target, err := root.ReadLink(name)
	if err != nil {
		return err
	}
	return add(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "./" + name, Linkname: target, Mode: 0o777}, date, nil)
}
