package container

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// A hunt searches for secrets in every form in which a careless program would
// write them down: as they are, backwards, in hexadecimal, in base64.
type hunt struct {
	words   map[uint64][]form // by the eight bytes at a place of the form
	maybe   [1 << 16]bool     // by a part of these eight
	longest int
}

type form struct {
	what string
	data []byte
	at   int // of the eight bytes
}

const (
	shortest = 16 // bytes of a form
	stride   = shortest - 8 + 1
)

func part(word uint64) uint16 { return uint16(word ^ word>>16 ^ word>>32 ^ word>>48) }

func (h *hunt) add(what string, secret []byte) {
	backwards := slices.Clone(secret)
	slices.Reverse(backwards)
	h.form(what, secret)
	h.form(what+", backwards", backwards)
	h.form(what+", hexadecimal", []byte(hex.EncodeToString(secret)))
	h.form(what+", hexadecimal", bytes.ToUpper([]byte(hex.EncodeToString(secret))))
	for skip := range 3 {
		// What stands before and behind it changes the characters at the ends.
		text := base64.StdEncoding.EncodeToString(append(make([]byte, skip), secret...))
		inner := text[(skip*8+5)/6:]
		inner = inner[:len(inner)-4]
		h.form(what+", base64", []byte(inner))
		h.form(what+", base64 for URLs", []byte(strings.NewReplacer("+", "-", "/", "_").Replace(inner)))
	}
}

func (h *hunt) form(what string, data []byte) {
	if len(data) < shortest {
		panic("too short to be searched for: " + what)
	}
	if h.words == nil {
		h.words = make(map[uint64][]form)
	}
	h.longest = max(h.longest, len(data))
	for at := range stride {
		word := binary.LittleEndian.Uint64(data[at:])
		h.words[word] = append(h.words[word], form{what, data, at})
		h.maybe[part(word)] = true
	}
}

// bytes returns what is in the data. Of every form, one of the places in data
// that are a stride apart has eight bytes that are known.
func (h *hunt) bytes(data []byte) (found []string) {
	for at := 0; at+8 <= len(data); at += stride {
		word := binary.LittleEndian.Uint64(data[at:])
		if !h.maybe[part(word)] {
			continue
		}
		for _, f := range h.words[word] {
			if start := at - f.at; start >= 0 && bytes.HasPrefix(data[start:], f.data) {
				found = append(found, f.what)
			}
		}
	}
	return found
}

const maxNested = 4

// stream searches what a reader has, and what that unpacks to.
func (h *hunt) stream(name string, r io.Reader, depth int) (found []string, err error) {
	in := bufio.NewReaderSize(r, 1<<20)
	head, _ := in.Peek(4)
	var unpacked io.Reader
	plain := io.Reader(in)
	packed := bytes.HasPrefix(head, []byte{0x1f, 0x8b, 8}) || bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd})
	if packed && depth < maxNested {
		var raw bytes.Buffer
		plain = io.TeeReader(in, &raw)
		defer func() {
			if head[0] == 0x1f {
				unpacked, err = gzip.NewReader(&raw)
			} else {
				unpacked, err = zstd.NewReader(&raw)
			}
			if err != nil {
				err = nil // only looked like one
				return
			}
			more, fault := h.stream(name+" unpacked", unpacked, depth+1)
			found = append(found, more...)
			if fault != nil {
				err = fmt.Errorf("%s: unpack: %w", name, fault)
			}
		}()
	}
	buffer := make([]byte, 4<<20)
	kept := 0
	for {
		n, err := io.ReadFull(plain, buffer[kept:])
		for _, what := range h.bytes(buffer[:kept+n]) {
			if at := name + ": " + what; !slices.Contains(found, at) {
				found = append(found, at)
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return found, nil
		}
		if err != nil {
			return found, err
		}
		kept = copy(buffer, buffer[kept+n-min(h.longest, kept+n):kept+n])
	}
}

// below searches all files of a directory, and their names.
func (h *hunt) below(dir string) (found []string, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		found = append(found, h.bytes([]byte(d.Name()))...)
		if d.Type() == fs.ModeSymlink {
			target, err := os.Readlink(path)
			found = append(found, h.bytes([]byte(target))...)
			return err
		}
		if !d.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		more, err := h.stream(path, f, 0)
		found = append(found, more...)
		return err
	})
	return found, err
}

// What the search promises: a secret is found in every form, wherever it lies.
func TestSearchFinds(t *testing.T) {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		t.Fatal(err)
	}
	backwards := slices.Clone(secret)
	slices.Reverse(backwards)
	gz := func(data []byte) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		w.Write(data)
		w.Close()
		return b.Bytes()
	}
	zst := func(data []byte) []byte {
		w, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		return w.EncodeAll(data, nil)
	}
	around := func(before int, data []byte) []byte {
		return slices.Concat(bytes.Repeat([]byte("x"), before), data, []byte("and more"))
	}
	h := new(hunt)
	h.add("secret", secret)
	planted := map[string][]byte{
		"backwards": around(1, backwards), "hexadecimal": around(2, []byte(hex.EncodeToString(secret))),
		"HEXADECIMAL":   around(3, []byte(strings.ToUpper(hex.EncodeToString(secret)))),
		"gzip":          gz(around(3, secret)),
		"zstd in gzip":  gz(zst(around(100, []byte(hex.EncodeToString(secret))))),
		"second member": append(gz([]byte("harmless")), gz(secret)...),
		"far in a gzip": gz(around(9<<20, secret)),
	}
	for before := range 20 {
		planted[fmt.Sprintf("plain, %d bytes in", before)] = around(before, secret)
		planted[fmt.Sprintf("base64, %d bytes in", before)] = []byte("key=" + base64.StdEncoding.EncodeToString(around(before, secret)))
		planted[fmt.Sprintf("base64 for URLs, %d bytes in", before)] = []byte("k=" + base64.URLEncoding.EncodeToString(around(before, secret)))
		planted[fmt.Sprintf("over the end of a buffer, %d bytes", before)] = around(4<<20-before, secret)
	}
	for name, data := range planted {
		found, err := h.stream(name, bytes.NewReader(data), 0)
		if err != nil || len(found) == 0 {
			t.Errorf("%s: not found (%v)", name, err)
		}
	}
	for _, near := range [][]byte{secret[:31], around(5, append(slices.Clone(secret[:31]), ^secret[31]))} {
		if found, err := h.stream("near", bytes.NewReader(gz(near)), 0); err != nil || found != nil {
			t.Errorf("found %q (%v) where there is none", found, err)
		}
	}
}
