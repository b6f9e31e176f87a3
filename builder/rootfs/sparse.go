package rootfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/block"
)

const (
	granule = 256 << 10 // bytes; zeros of a whole one become a hole
	// leastHoles is how many bytes of holes make a file sparse. Fewer cost less
	// than what it takes to say where they are.
	leastHoles = 16 << 20
	// MaxHoles bounds the holes of a tree in bytes. mkfs.erofs reads every block of
	// a hole: 40 GB of them kept it busy for ten minutes.
	MaxHoles = 32 << 30
)

// CheckHoles refuses so many bytes of holes.
func CheckHoles(n int64) error {
	if n <= MaxHoles {
		return nil
	}
	return fmt.Errorf("it has holes of more than %d GB, over which mkfs.erofs would take many minutes: empty it (truncate -s 0 FILE), or leave it out of the root file system (tar --exclude=FILE)", int64(MaxHoles)>>30)
}

// Holes returns how many bytes of the tree's files are holes, and the file that has the
// most of them; no name where there are none.
func (t *Tree) Holes() (all int64, largest string, most int64, err error) {
	err = t.eachFile(func(name string, size, stored int64) error {
		if size-stored < leastHoles {
			return nil
		}
		// Fewer blocks than bytes may also be a file system that compresses.
		hole, err := holesOf(filepath.Join(t.dir, name), size)
		if err != nil {
			return err
		}
		if all += hole; hole > most {
			largest, most = name, hole
		}
		return nil
	})
	return all, largest, most, err
}

// holesOf returns how many bytes of a file are holes.
func holesOf(file string, size int64) (all int64, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for at := int64(0); at < size; {
		skip, err := hole(f, at, size)
		if err != nil {
			return 0, err
		}
		all += skip
		if at += skip; at == size {
			break
		}
		end, err := f.Seek(at, unix.SEEK_HOLE)
		if err != nil {
			return all, nil // a file system that does not tell
		}
		at = min(max(end, at+granule), size)
	}
	return all, nil
}

// copyContent copies up to size bytes and returns how many it read and how
// many of these it wrote. Zeros become holes, wherever they come from: a few
// bytes of a sparse archive cannot fill the disk, and the same content is
// sparse or not whether it comes from a directory or an archive. It writes no
// more than room bytes.
func copyContent(f *os.File, content io.Reader, size, room int64) (read, written int64, err error) {
	limited := io.LimitReader(content, size)
	source, _ := content.(*os.File)
	if source != nil && size < min(leastHoles, room) {
		read, err = io.Copy(f, limited) // by the kernel, which can share the blocks
		return read, read, err
	}
	buf := make([]byte, min(size, granule))
	for read < size {
		if source != nil {
			skip, err := hole(source, read, size)
			if err != nil {
				return read, written, err
			}
			if skip > 0 {
				read += skip
				limited = io.LimitReader(content, size-read)
				if err := CheckHoles(read - written); err != nil {
					return read, written, err
				}
				continue
			}
		}
		n, err := io.ReadFull(limited, buf)
		if n > 0 && !block.IsZero(buf[:n]) {
			if int64(n) > room-written {
				return read, written, fmt.Errorf("the tree has more than %d bytes", int64(maxBytes))
			}
			if _, err := f.WriteAt(buf[:n], read); err != nil {
				return read, written, err
			}
			written += int64(n)
		}
		read += int64(n)
		if err := CheckHoles(read - written); err != nil {
			return read, written, err
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return read, written, err
		}
	}
	return read, written, f.Truncate(read)
}

// hole returns how many bytes of whole granules at the file's position are a
// hole, and puts the position behind them.
func hole(f *os.File, at, size int64) (int64, error) {
	data, err := f.Seek(at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // none to the end
		data = size
	case err != nil: // a file system that does not tell
		data = at
	}
	to := min(data, size)
	if to < size {
		to -= (to - at) % granule
	}
	_, err = f.Seek(to, io.SeekStart)
	return to - at, err
}
