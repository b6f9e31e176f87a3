// Odd reads a tar archive of a root file system, and writes it as ostree lays a tree
// out: /home leads to /var/home, and each machine makes its /etc of /usr/etc. It adds
// files with all that a file can have, and more names of one file than most file
// systems let it have. That needs no rights as changing a tree on a disk would.
package main

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// names is one more than fits in 16 bits, and more than ext4 gives one file.
const names = 65537

const (
	dir = "./usr/share/odd/"
	// program may read everything, as a file with a capability.
	program = "./usr/bin/musl-cat"
	// capability is CAP_DAC_READ_SEARCH, permitted and effective, as linux/capability.h
	// has it (VFS_CAP_REVISION_2).
	capability = "\x01\x00\x00\x02\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
)

func main() {
	out := bufio.NewWriterSize(os.Stdout, 1<<20)
	w := tar.NewWriter(out)
	err := copyTree(w, tar.NewReader(bufio.NewReaderSize(os.Stdin, 1<<20)))
	if err = errors.Join(err, add(w)); err == nil {
		err = errors.Join(w.Close(), out.Flush())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "odd:", err)
		os.Exit(1)
	}
}

// copyTree copies a tree and moves what ostree has elsewhere.
func copyTree(w *tar.Writer, r *tar.Reader) error {
	found := false
	for {
		h, err := r.Next()
		if err == io.EOF && found {
			return nil
		} else if err == io.EOF {
			return fmt.Errorf("there is no %s", program)
		} else if err != nil {
			return err
		}
		h.Format = tar.FormatPAX
		h.Name = moved(h.Name)
		switch {
		case h.Typeflag == tar.TypeLink:
			h.Linkname = moved(h.Linkname)
		case h.Name == "./home/":
			*h = tar.Header{Name: "./home", Typeflag: tar.TypeSymlink, Linkname: "var/home", Mode: 0o777, ModTime: h.ModTime}
		case h.Name == program:
			found = true
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": capability}
		}
		if err := w.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
	}
}

func moved(name string) string {
	if rest, inside := strings.CutPrefix(name, "./etc/"); inside {
		return "./usr/etc/" + rest
	}
	return name
}

// add adds the odd files.
func add(w *tar.Writer) error {
	pax := func(key, value string) map[string]string { return map[string]string{key: value} }
	headers := []tar.Header{
		{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: dir + "links/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: dir + "owner", Uid: 4_000_000_000, Gid: 3_000_000_000},
		{Name: dir + "old", ModTime: time.Date(1960, 1, 2, 3, 4, 5, 0, time.UTC)},
		{Name: dir + "new", ModTime: time.Date(2040, 1, 2, 3, 4, 5, 0, time.UTC)},
		{Name: dir + "not-\xff\xfe-utf8"},
		{Name: dir + strings.Repeat("n", 254)}, // mkfs.erofs of Debian 12 does not take 255
		{Name: dir + "list", Mode: 0o600, PAXRecords: pax("SCHILY.acl.access", "user::rw-\nuser:65534:r--\ngroup::---\nmask::r--\nother::---\n")},
		{Name: dir + "label", PAXRecords: pax("RHT.security.selinux", "system_u:object_r:usr_t:s0")},
		{Name: dir + "links/0"},
	}
	for i := 1; i < names; i++ {
		headers = append(headers, tar.Header{Name: fmt.Sprint(dir, "links/", i), Typeflag: tar.TypeLink, Linkname: dir + "links/0"})
	}
	for _, h := range headers {
		content := ""
		if h.Typeflag == 0 {
			h.Typeflag, content = tar.TypeReg, "odd\n"
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_000_000_000, 0)
		}
		h.Format, h.Size = tar.FormatPAX, int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			return err
		}
	}
	return nil
}
