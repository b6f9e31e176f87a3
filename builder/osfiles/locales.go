package osfiles

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	"halogenos.internal/builder/rootfs"
)

// localeDirectory is where glibc has its locales: in an archive, and in directories.
const localeDirectory = "usr/lib/locale"

// locales are the names of the locales that an image has, as locale(1) lists them there.
func locales(t *rootfs.Tree) (names []string, err error) {
	inside, err := t.List(localeDirectory)
	if err != nil {
		return nil, err
	}
	for _, name := range inside {
		if _, err := t.Lstat(path.Join(localeDirectory, name, "LC_IDENTIFICATION")); err == nil {
			names = append(names, name)
		}
	}
	f, err := t.Open(path.Join(localeDirectory, "locale-archive"))
	if errors.Is(err, fs.ErrNotExist) {
		return names, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	archived, err := readLocaleArchive(f)
	if err != nil {
		return nil, fmt.Errorf("/%s/locale-archive: %w", localeDirectory, err)
	}
	return append(names, archived...), nil
}

// glibc's archive of locales begins with a header of 32-bit numbers in the machine's order, which
// says where its hash table of names and their texts are (locale/locarchive.h).
const (
	localeMagic   = 0xde020109
	localeHead    = 8 * 4 // as far as it is read, in bytes
	localeEntry   = 3 * 4
	maxLocales    = 1 << 16
	maxLocaleText = 1 << 20
	maxLocaleName = 255 // of a file that it can be made of; many entries can have one name
)

// readLocaleArchive returns the names in an archive of locales.
func readLocaleArchive(r io.ReaderAt) (names []string, err error) {
	var head [localeHead]byte
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return nil, fmt.Errorf("read its header: %w", err)
	}
	number := func(b []byte, n int) uint32 { return binary.LittleEndian.Uint32(b[4*n:]) }
	if number(head[:], 0) != localeMagic {
		return nil, errors.New("is not an archive of glibc's locales for this kind of processor")
	}
	tableAt, size := number(head[:], 2), number(head[:], 4)
	textAt, length := number(head[:], 5), number(head[:], 6)
	if size > maxLocales || length > maxLocaleText {
		return nil, fmt.Errorf("has a table of %d locales with names of %d bytes, more than %d and %d", size, length, maxLocales, maxLocaleText)
	}
	table, texts := make([]byte, size*localeEntry), make([]byte, length)
	if _, err := r.ReadAt(table, int64(tableAt)); err != nil {
		return nil, fmt.Errorf("read its table: %w", err)
	}
	if _, err := r.ReadAt(texts, int64(textAt)); err != nil {
		return nil, fmt.Errorf("read its names: %w", err)
	}
	for n := range int(size) {
		name, locale := number(table[n*localeEntry:], 1), number(table[n*localeEntry:], 2)
		if locale == 0 { // nothing, or a locale that was removed
			continue
		}
		if name < textAt || name-textAt >= length {
			return nil, fmt.Errorf("its entry %d has a name at byte %d, outside of its names", n, name)
		}
		text, _, _ := bytes.Cut(texts[name-textAt:], []byte{0})
		if len(text) > maxLocaleName {
			return nil, fmt.Errorf("its entry %d has a name of more than %d bytes", n, maxLocaleName)
		}
		names = append(names, string(text))
	}
	return names, nil
}
