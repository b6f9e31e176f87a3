package scan

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
)

// stream searches the members of a tar, cpio or ar archive as they come.
func (j *job) stream(name string, r *bufio.Reader, depth int) error {
	next := arMembers(r)
	if head, _ := r.Peek(512); isTar(head) {
		next = tarMembers(r)
	} else if isCPIO(head) {
		next = cpioMembers(r)
	} else if isOldCPIO(head) {
		next = oldCPIOMembers(r)
	}
	for {
		m, err := next()
		if err != nil {
			break // at its end, or where it is damaged and nobody can unpack it
		}
		at := inside(name, m.name)
		j.match(at, []byte(path.Base(m.name)), depth)
		for key, value := range m.beside {
			if err := j.object(at+"#"+key, []byte(value), depth+1); err != nil {
				return err
			}
		}
		if err := j.member(at, m.content, depth); err != nil {
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
	if _, err := r.Peek(1); err != nil {
		return nil
	}
	if depth >= 4*maxDepth {
		j.found(name, ruleUnsearched, 0)
		return nil
	}
	return j.member(name, r, depth)
}

// A member of an archive.
type member struct {
	name    string
	content io.Reader
	beside  map[string]string // the target of a link, extended attributes
}

// members returns one member after the other, then an error.
type members func() (member, error)

// isTar knows a header by its sum, which the format of before POSIX has as well.
func isTar(head []byte) bool {
	if len(head) < 512 || head[0] == 0 {
		return false
	}
	want, err := strconv.ParseUint(strings.Trim(string(head[148:156]), " \x00"), 8, 32)
	if err != nil {
		return false
	}
	sum := uint64(8 * ' ')
	for i, b := range head[:512] {
		if i < 148 || i >= 156 {
			sum += uint64(b)
		}
	}
	return sum == want
}

func tarMembers(r io.Reader) members {
	t := tar.NewReader(r)
	return func() (member, error) {
		h, err := t.Next()
		if err != nil {
			return member{}, err
		}
		m := member{name: h.Name, content: t, beside: make(map[string]string)}
		for key, value := range h.PAXRecords {
			m.beside[strings.TrimPrefix(key, "SCHILY.xattr.")] = value
		}
		if h.Linkname != "" {
			m.beside["target"] = h.Linkname
		}
		return m, nil
	}
}

func isCPIO(head []byte) bool {
	return len(head) >= 110 && (string(head[:6]) == "070701" || string(head[:6]) == "070702")
}

// cpioMembers reads the newc format (cpio(5); Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst).
func cpioMembers(r *bufio.Reader) members {
	left, padding := new(io.LimitedReader), 0
	return func() (member, error) {
		if _, err := io.Copy(io.Discard, left); err != nil {
			return member{}, err
		}
		if _, err := r.Discard(padding); err != nil {
			return member{}, err
		}
		var header [110]byte
		if _, err := io.ReadFull(r, header[:]); err != nil {
			return member{}, err
		}
		size, err := strconv.ParseUint(string(header[54:62]), 16, 32)
		if err != nil || !isCPIO(header[:]) {
			return member{}, errors.New("not a cpio header")
		}
		length, err := strconv.ParseUint(string(header[94:102]), 16, 32)
		if err != nil || length == 0 || length > 4096 {
			return member{}, fmt.Errorf("cpio name of %d bytes", length)
		}
		name := make([]byte, length+(4-(110+length)%4)%4)
		if _, err := io.ReadFull(r, name); err != nil {
			return member{}, err
		}
		name, _, _ = bytes.Cut(name, []byte{0})
		if string(name) == "TRAILER!!!" {
			return member{}, io.EOF
		}
		*left, padding = io.LimitedReader{R: r, N: int64(size)}, int((4-size%4)%4)
		return member{name: string(name), content: left}, nil
	}
}

func isOldCPIO(head []byte) bool { return len(head) >= 76 && string(head[:6]) == "070707" }

// oldCPIOMembers reads the format of POSIX.1 (cpio(5), "Portable ASCII Format").
func oldCPIOMembers(r *bufio.Reader) members {
	left := new(io.LimitedReader)
	return func() (member, error) {
		if _, err := io.Copy(io.Discard, left); err != nil {
			return member{}, err
		}
		var header [76]byte
		if _, err := io.ReadFull(r, header[:]); err != nil {
			return member{}, err
		}
		length, err1 := strconv.ParseUint(string(header[59:65]), 8, 12)
		size, err2 := strconv.ParseUint(string(header[65:76]), 8, 40)
		if err1 != nil || err2 != nil || !isOldCPIO(header[:]) {
			return member{}, errors.New("not a cpio header")
		}
		name := make([]byte, length)
		if _, err := io.ReadFull(r, name); err != nil {
			return member{}, err
		}
		name, _, _ = bytes.Cut(name, []byte{0})
		if string(name) == "TRAILER!!!" {
			return member{}, io.EOF
		}
		*left = io.LimitedReader{R: r, N: int64(size)}
		return member{name: string(name), content: left}, nil
	}
}

// arMembers reads the common format of ar(1), in which Debian's packages are.
func arMembers(r *bufio.Reader) members {
	left, skip := new(io.LimitedReader), int64(len("!<arch>\n"))
	return func() (member, error) {
		if _, err := io.Copy(io.Discard, left); err != nil {
			return member{}, err
		}
		if _, err := r.Discard(int(skip)); err != nil {
			return member{}, err
		}
		var header [60]byte
		if _, err := io.ReadFull(r, header[:]); err != nil {
			return member{}, err
		}
		size, err := strconv.ParseInt(strings.TrimSpace(string(header[48:58])), 10, 40)
		if err != nil || size < 0 || string(header[58:]) != "`\n" {
			return member{}, errors.New("not an ar header")
		}
		*left, skip = io.LimitedReader{R: r, N: size}, size%2
		return member{name: strings.TrimRight(strings.TrimSpace(string(header[:16])), "/"), content: left}, nil
	}
}
