package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/blockindex"
	description "halogenos.internal/boot/release"
	reader "halogenos.internal/uroot-cmds/ota/server"
)

// An index that lies, in an archive that is whole otherwise. FAULTS 9, 30
func TestVerifyFindsFalseIndex(t *testing.T) {
	w := newWorld(t)
	o := w.options(w.build(1, "", ""), "")
	good := mustRead(t, w.publish(o).Archive)
	file := filepath.Join(o.Server, "x86_64", "test-os", "1", "1.tar.gz")
	const start = 16 // of the members' sizes
	le := binary.LittleEndian
	for name, c := range map[string]struct {
		change func(index []byte, last int) // last is where the last member's size lies
		want   string
	}{
		"another hash of the system image": {func(b []byte, _ int) { b[len(b)-1] ^= 1 }, "system.erofs: block"},
		"another hash of the UKI":          {func(b []byte, last int) { b[last+2] ^= 1 }, "uki.efi: block 0"},
		"other sizes": {func(b []byte, last int) {
			le.PutUint16(b[last:], le.Uint16(b[last:])+1)
			le.PutUint16(b[last-2:], le.Uint16(b[last-2:])-1)
		}, "system.erofs: no gzip member"},
		"a byte of another file's": {func(b []byte, last int) {
			le.PutUint16(b[start:], le.Uint16(b[start:])+1)
			le.PutUint16(b[last:], le.Uint16(b[last:])-1)
		}, "uki.efi: members of"},
		"sizes that do not add up":  {func(b []byte, last int) { le.PutUint16(b[last:], le.Uint16(b[last:])+1) }, "in all, want"},
		"larger members":            {func(b []byte, _ int) { b[8] = 15 }, "bytes, want"},
		"nothing, as a control":     {func([]byte, int) {}, ""},
		"another kind of the index": {func(b []byte, _ int) { b[0] ^= 1 }, "does not start as one"},
	} {
		packed := changeIndex(t, bytes.Clone(good), c.change)
		if err := os.WriteFile(file, packed, 0o644); err != nil {
			t.Fatal(err)
		}
		err := w.verify(o)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// changeIndex changes the index of an archive, and release.json with it. Both
// lie there as they are, in one gzip member each.
func changeIndex(t *testing.T, packed []byte, change func(index []byte, last int)) []byte {
	t.Helper()
	head, err := archive.ReadHead(bytes.NewReader(packed), func(_, _ []byte) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	f, _ := head.Release.File(description.IndexFile)
	place, _ := head.Place(description.IndexFile)
	if f.Size > 65535 {
		t.Fatalf("an index of %d bytes does not lie in one piece", f.Size)
	}
	index := packed[place.Offset+place.Packed-8-f.Size:][:f.Size]
	blocks := 0
	for _, b := range head.Release.Build().Files {
		blocks += blockindex.Blocks(b.Size)
	}
	change(index, len(index)-blocks*blockindex.HashSize-2)
	binary.LittleEndian.PutUint32(packed[place.Offset+place.Packed-8:], crc32.ChecksumIEEE(index))

	sum := sha256.Sum256(index)
	first := packed[24+5 : head.Size-8]
	copy(first, bytes.Replace(first, fmt.Appendf(nil, "%x", []byte(f.SHA256)), []byte(hex.EncodeToString(sum[:])), 1))
	binary.LittleEndian.PutUint32(packed[head.Size-8:], crc32.ChecksumIEEE(first))
	return packed
}

// What machines with the version before fetch is said, and right.
func TestDelta(t *testing.T) {
	w := newWorld(t)
	first := w.options(w.build(1, "", ""), "")
	if r := w.publish(first); r.Delta != nil {
		t.Errorf("the first release follows %+v", r.Delta)
	}
	second := w.options(w.build(2, "", ""), "")
	var said []string
	note := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	second.Note = note
	r := w.publish(second)
	changed, blocks := 0, 0
	for _, name := range []string{"uki.efi", "bootx64.efi", "system.erofs"} {
		have := map[string]bool{string(make([]byte, blockindex.BlockSize)): true}
		for old := mustRead(t, filepath.Join(first.Build, name)); len(old) >= blockindex.BlockSize; old = old[blockindex.BlockSize:] {
			have[string(old[:blockindex.BlockSize])] = true
		}
		is := mustRead(t, filepath.Join(second.Build, name))
		for len(is) > 0 {
			b := make([]byte, blockindex.BlockSize)
			is = is[copy(b, is):]
			blocks++
			if !have[string(b)] {
				changed++
			}
		}
	}
	d := r.Delta
	if d == nil || d.From != 1 || d.Blocks != blocks || d.Changed != changed || d.Changed == 0 || d.Changed == d.Blocks {
		t.Fatalf("delta %+v, want %d of %d blocks", d, changed, blocks)
	}
	if d.Archive != r.Size || d.Bytes <= 0 || d.Bytes >= d.Archive || d.Requests < 3 {
		t.Errorf("delta %+v of %d bytes", d, r.Size)
	}
	files := httptest.NewServer(http.FileServer(http.Dir(second.Server)))
	defer files.Close()
	web, err := NewWeb(files.URL+"/x86_64/test-os", reader.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []Server{Directory(r.Directory), web} {
		said = nil
		if err := Verify(t.Context(), server, VerifyOptions{Now: now, Note: note}); err != nil {
			t.Error(err)
		}
		// Over HTTP only the manifest tells which versions there are.
		_, local := server.(Directory)
		if got := strings.Contains(strings.Join(said, "\n"), d.String()); got != local {
			t.Errorf("%s: says %q", server, said)
		}
	}
	// A server with an archive that cannot be read is not a reason to fail.
	if err := os.WriteFile(filepath.Join(r.Directory, "1", "1.tar.gz"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	said = nil
	if err := Verify(t.Context(), Directory(r.Directory), VerifyOptions{Now: now, Note: note}); err != nil || !strings.Contains(strings.Join(said, "\n"), "cannot tell how much") {
		t.Errorf("%v, says %q", err, said)
	}
}
