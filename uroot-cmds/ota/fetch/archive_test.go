package fetch

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"halogenos.internal/boot/release"
	"halogenos.internal/uroot-cmds/ota/otatest"
)

// Archives with more than a release in them: links, devices and names that lead
// elsewhere are not parsed at all. FAULTS 24, 25, 26, 29
func TestArchiveTricks(t *testing.T) {
	w := newWorld(t)
	head := w.new.Archive[:w.new.Head.Size]
	tar := otatest.Unhead(head)
	first := len(tar) - 512 // the first file's header
	for name, c := range map[string]struct {
		at     int
		change func(h []byte)
	}{
		"dot dot":            {0, func(h []byte) { copy(h, "../../etc/passwd\x00") }},
		"absolute":           {0, func(h []byte) { copy(h, "/etc/passwd\x00\x00") }},
		"symbolic link":      {0, func(h []byte) { h[156] = '2'; copy(h[157:], "/etc/passwd") }},
		"first file's name":  {first, func(h []byte) { copy(h, "../uki.efi\x00") }},
		"first file, a link": {first, func(h []byte) { h[156] = '2'; copy(h[157:], "/etc/passwd") }},
		"a hard link":        {first, func(h []byte) { h[156] = '1'; copy(h[157:], "/etc/passwd") }},
		"a device":           {first, func(h []byte) { h[156] = '3' }},
		"a pipe":             {first, func(h []byte) { h[156] = '6' }},
		"a PAX record":       {first, func(h []byte) { h[156] = 'g' }},
		"a sparse file":      {first, func(h []byte) { h[156] = 'S' }},
		"setuid":             {first, func(h []byte) { copy(h[100:], "0004755") }},
		"another size":       {first, func(h []byte) { copy(h[124:], "77777777777") }},
	} {
		t.Run(name, func(t *testing.T) {
			changed := bytes.Clone(tar)
			otatest.ChangeHeader(changed[c.at:][:512], c.change)
			site := otatest.NewSite(w.key)
			site.Publish(w.new, nil)
			var evil []byte
			for rest := changed; len(rest) > 0; {
				n := min(len(rest), 60000)
				evil = append(evil, otatest.Stored(rest[:n])...)
				rest = rest[n:]
			}
			site.Put(otatest.Directory+"2/2.tar.gz", append(evil, w.new.Archive[len(head):]...))
			for _, ranges := range []bool{true, false} {
				newMachine(t, w.old).refused(serve(t, site, ranges).URL, "where it belongs")
			}
		})
	}
}

// Content that is not what was signed, wherever it lies and however it is sent.
// FAULTS 1, 5, 11, 27, 28, 30, 31
func TestContentRefused(t *testing.T) {
	w := newWorld(t)
	other := otatest.Make(t, otatest.Spec{Version: 2, Key: w.key, Image: otatest.Image(imageBlocks+100, 7, 0, 0)})
	image, _ := w.new.Head.Place(release.ImageFile)
	index, _ := w.new.Head.Place(release.IndexFile)
	uki, _ := w.new.Head.Place(release.UKIFile)
	flip := func(at int64) func(b []byte) []byte {
		return func(b []byte) []byte { b[at] ^= 0x10; return b }
	}
	for name, c := range map[string]struct {
		change         func(b []byte) []byte
		ranges, stream string // what is said; "": taken all the same
	}{
		"a bit of the image":     {flip(image.Offset + image.Packed/2), "not what was signed", "gzip member"},
		"a bit of the UKI":       {flip(uki.Offset + 200), "not what was signed", "gzip member"},
		"a bit of the index":     {flip(index.Offset + 200), "not what was signed", "gzip member"},
		"another release's body": {func(b []byte) []byte { return append(b[:w.new.Head.Size], other.Archive[other.Head.Size:]...) }, "not what was signed", "has another SHA-256"},
		"another release's image": {func(b []byte) []byte {
			return append(b[:image.Offset], other.Archive[len(other.Archive)-int(image.Packed)-2000:]...)
		}, "not what was signed", "gzip member"},
		"half of it":        {func(b []byte) []byte { return b[:len(b)/2] }, "run this again later", "unexpected EOF"},
		"all but the end":   {func(b []byte) []byte { return b[:len(b)-20] }, "", "unexpected EOF"},
		"bytes behind it":   {func(b []byte) []byte { return append(b, 0) }, "", "follows the end"},
		"the archive twice": {func(b []byte) []byte { return append(b, b...) }, "", "follows the end"},
		"ten thousand empty members": {func(b []byte) []byte {
			return slices.Insert(b, int(image.Offset), bytes.Repeat(otatest.Stored(nil), 10_000)...)
		}, "not what was signed", "gzip member of 0 bytes"},
		"a bomb": {func(b []byte) []byte {
			copy(b[image.Offset:], otatest.Bomb(t, binary.LittleEndian.Uint32(b[image.Offset+16:]), binary.LittleEndian.Uint32(b[image.Offset+20:])))
			return b
		}, "not what was signed", "more than it says"},
	} {
		t.Run(name, func(t *testing.T) {
			site := otatest.NewSite(w.key)
			site.Publish(w.new, nil)
			site.Put(otatest.Directory+"2/2.tar.gz", c.change(bytes.Clone(w.new.Archive)))
			for ranges, want := range map[bool]string{true: c.ranges, false: c.stream} {
				m := newMachine(t, w.old)
				m.source = nil
				if want != "" {
					m.refused(serve(t, site, ranges).URL, want)
				} else if _, err := m.fetch(t.Context(), serve(t, site, ranges).URL); err != nil {
					t.Error(err)
				}
				// The server is put right, and what had arrived is used.
				if want != "" {
					s := serve(t, w.site, true)
					if _, err := m.fetch(t.Context(), s.URL); err != nil {
						t.Error(err)
					}
				}
				m.has(w.new)
			}
		})
	}
}
