package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/release"
)

// repack writes a tar as stored members of at most MaxMember bytes that start
// again at every cut.
func repack(plain []byte, cuts ...int) []byte {
	var out []byte
	start := 0
	for _, end := range append(cuts[:len(cuts):len(cuts)], len(plain)) {
		end = min(end, len(plain))
		for ; start < end; start += min(MaxMember, end-start) {
			out = storedMember(out, plain[start:start+min(MaxMember, end-start)])
		}
	}
	return out
}

// stored returns the tar of the sample's archive as it is when nothing is
// compressed, and where its members start again. s.text is what describes it.
func (s *sample) stored(t testing.TB, signature []byte) (plain []byte, cuts []int) {
	t.Helper()
	s.write(t, signature, Options{})
	for i, f := range s.release.Files {
		s.release.Files[i].Packed = int64(len(storedMembers(nil, s.contents[f.Name])))
	}
	var err error
	if s.text, err = s.release.Encode(); err != nil {
		t.Fatal(err)
	}
	plain = tarFile(nil, release.FileName, s.text, s.release.SourceDate)
	if len(signature) > 0 {
		plain = tarFile(plain, SignatureFile, signature, s.release.SourceDate)
	}
	for _, f := range s.release.Files {
		cuts = append(cuts, len(plain)+block, len(plain)+block+int(f.Size))
		plain = tarFile(plain, f.Name, s.contents[f.Name], s.release.SourceDate)
	}
	return append(plain, make([]byte, trailer)...), cuts
}

// headSize is where the first file's content starts in the tar.
func headSize(s *sample, signature []byte) int {
	n := len(s.text) + int(padding(int64(len(s.text)))) + 2*block
	if len(signature) > 0 {
		n += len(signature) + int(padding(int64(len(signature)))) + block
	}
	return n
}

func refused(t *testing.T, name string, packed []byte, want string) {
	t.Helper()
	if _, err := unpack(t.Context(), bytes.NewReader(packed), trust); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %v, want %q", name, err, want)
	}
}

// Any tar but ours is refused. FAULTS 24, 25, 26, 29, 30
func TestOtherTars(t *testing.T) {
	s := newSample(t, 8192)
	plain, cuts := s.stored(t, nil)
	regular := func(name string, content []byte) (*tar.Header, []byte) {
		return &tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(s.release.SourceDate, 0), Format: tar.FormatUSTAR}, content
	}
	type entry struct {
		header  *tar.Header
		content []byte
	}
	of := func(h *tar.Header, content []byte) entry { return entry{h, content} }
	build := func(change func([]entry) []entry) []byte {
		entries := []entry{of(regular(release.FileName, s.text))}
		for _, f := range s.release.Files {
			entries = append(entries, of(regular(f.Name, s.contents[f.Name])))
		}
		entries = change(entries)
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		for _, e := range entries {
			if err := w.WriteHeader(e.header); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(e.content); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return repack(out.Bytes(), cuts...)
	}
	// The standard library writes the very same headers.
	if _, err := unpack(t.Context(), bytes.NewReader(build(func(e []entry) []entry { return e })), trust); err != nil {
		t.Fatal(err)
	}
	const place = "where it belongs"
	edit := func(i int, change func(h *tar.Header)) func([]entry) []entry {
		return func(e []entry) []entry {
			change(e[i].header)
			if e[i].header.Size == 0 {
				e[i].content = nil
			}
			return e
		}
	}
	link := func(kind byte) func(h *tar.Header) {
		return func(h *tar.Header) { h.Typeflag, h.Linkname, h.Size = kind, "/etc/passwd", 0 }
	}
	for name, change := range map[string]func([]entry) []entry{
		"parent directory":   edit(1, func(h *tar.Header) { h.Name = "../uki.efi" }),
		"absolute":           edit(1, func(h *tar.Header) { h.Name = "/uki.efi" }),
		"dot":                edit(0, func(h *tar.Header) { h.Name = "./release.json" }),
		"backslash":          edit(1, func(h *tar.Header) { h.Name = "..\\uki.efi" }),
		"directory in front": edit(4, func(h *tar.Header) { h.Name = "x/system.erofs" }),
		"symbolic link":      edit(1, link(tar.TypeSymlink)),
		"hard link":          edit(4, link(tar.TypeLink)),
		"device":             edit(1, func(h *tar.Header) { h.Typeflag, h.Size, h.Devmajor = tar.TypeBlock, 0, 8 }),
		"fifo":               edit(1, func(h *tar.Header) { h.Typeflag, h.Size = tar.TypeFifo, 0 }),
		"directory":          edit(0, func(h *tar.Header) { h.Typeflag, h.Name, h.Size = tar.TypeDir, "release.json/", 0 }),
		"setuid":             edit(1, func(h *tar.Header) { h.Mode = 0o4755 }),
		"owner":              edit(1, func(h *tar.Header) { h.Uid = 1000 }),
		"owner's name":       edit(1, func(h *tar.Header) { h.Uname = "root" }),
		"date":               edit(1, func(h *tar.Header) { h.ModTime = h.ModTime.Add(time.Second) }),
		"date of all":        edit(0, func(h *tar.Header) { h.ModTime = h.ModTime.Add(time.Second) }),
		"xattr": edit(1, func(h *tar.Header) {
			h.Format, h.PAXRecords = tar.FormatPAX, map[string]string{"SCHILY.xattr.security.capability": "x"}
		}),
		"sparse by pax": edit(1, func(h *tar.Header) {
			h.Format, h.PAXRecords = tar.FormatPAX, map[string]string{"comment": "x"}
		}),
		"long name": edit(1, func(h *tar.Header) { h.Format, h.Name = tar.FormatGNU, strings.Repeat("a/", 100)+"uki.efi" }),
		"pax global": func(e []entry) []entry {
			return append([]entry{{&tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": "x"}}, nil}}, e...)
		},
		"the same name twice": func(e []entry) []entry { return []entry{e[0], e[1], e[1], e[2], e[3], e[4]} },
		"release.json twice":  func(e []entry) []entry { return []entry{e[0], e[0], e[1], e[2], e[3], e[4]} },
		"another order":       func(e []entry) []entry { return []entry{e[0], e[2], e[1], e[3], e[4]} },
		"one missing":         func(e []entry) []entry { return []entry{e[0], e[1], e[3], e[4]} },
		"no release.json":     func(e []entry) []entry { return e[1:] },
		"another first":       func(e []entry) []entry { return []entry{e[1], e[0], e[2], e[3], e[4]} },
	} {
		refused(t, name, build(change), place)
	}
	more := build(func(e []entry) []entry { return append(e, of(regular("more", nil))) })
	refused(t, "one more", more, "more")

	sparse := bytes.Clone(plain)
	sparse[headSize(s, nil)-block+156] = 'S'
	refused(t, "GNU sparse", repack(sparse, cuts...), place)
	nul := bytes.Clone(plain)
	copy(nul[headSize(s, nil)-block:], "uki.efi\x00x")
	refused(t, "bytes behind a name's NUL", repack(nul, cuts...), place)
}

// FAULTS 27, 28, 31
func TestOtherGzips(t *testing.T) {
	s := newSample(t, 3<<20)
	plain, cuts := s.stored(t, nil)
	packed := repack(plain, cuts...)
	head := headSize(s, nil)
	firsts := repack(plain[:head])
	member := func(plain []byte, size, length uint32) []byte {
		b := storedMember(nil, plain)
		binary.LittleEndian.PutUint32(b[16:], uint32(int32(binary.LittleEndian.Uint32(b[16:]))+int32(size)))
		binary.LittleEndian.PutUint32(b[20:], length)
		return b
	}
	var ordinary bytes.Buffer
	w := gzip.NewWriter(&ordinary)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	pack, err := newPacker()
	if err != nil {
		t.Fatal(err)
	}
	bomb, err := pack.member(nil, make([]byte, MaxMember))
	if err != nil {
		t.Fatal(err)
	}
	compressedHead, err := pack.member(nil, plain[:head])
	if err != nil {
		t.Fatal(err)
	}
	behind := insert(bomb, len(bomb)-memberTail)
	binary.LittleEndian.PutUint32(behind[16:], uint32(len(behind)-memberHead-memberTail))
	empty := storedMember(nil, nil)
	lies := bytes.Clone(bomb)
	binary.LittleEndian.PutUint32(lies[20:], 4096)
	var tiny []byte
	for _, c := range plain[head : head+10000] {
		tiny = storedMember(tiny, []byte{c})
	}
	// A member between two files that holds nothing, whatever it says.
	content := repack(plain[head : head+100_001])
	nothing, err := appendMember(nil, plain[head+100_001:head+100_001+700], func(out []byte) ([]byte, error) { return append(out, 3, 0), nil })
	if err != nil {
		t.Fatal(err)
	}
	damaged := repack(plain, cuts...)
	damaged[len(firsts)+memberHead+storedHead] ^= 1
	for _, c := range []struct {
		name   string
		packed []byte
		want   string
	}{
		{"nothing", nil, "ends in its head"},
		{"no gzip", []byte(strings.Repeat("x", 100)), "not a gzip member"},
		{"one ordinary member", ordinary.Bytes(), "not a gzip member"},
		{"compressed head", append(bytes.Clone(compressedHead), repack(plain[head:], after(cuts, head)...)...), "must not be compressed"},
		{"head and content in one", repack(plain), "head and its content"},
		{"bomb", append(bytes.Clone(firsts), bytes.Repeat(bomb, 1000)...), "another SHA-256"},
		{"bomb in the head", bytes.Repeat(bomb, 1000), "must not be compressed"},
		{"head in single bytes", func() []byte {
			h := header(release.FileName, release.MaxSize, 0)
			out := storedMembers(nil, h[:])
			return append(out, bytes.Repeat(storedMember(nil, []byte("{")), 200_000)...)
		}(), "head is too large"},
		{"endless head", bytes.Repeat(storedMember(nil, plain[:head-1]), 5000), ""},
		{"too much at once", append(bytes.Clone(firsts), member([]byte("a"), 0, 1<<30)...), "gzip member of 1073741824"},
		{"claims 4 GiB packed", append(bytes.Clone(firsts), member([]byte("a"), 0xfffffff0, 1)...), "packs 1 bytes into"},
		{"empty member", append(append(bytes.Clone(firsts), empty...), repack(plain[head:], after(cuts, head)...)...), "gzip member of 0 bytes"},
		{"empty members first", append(bytes.Repeat(empty, 10000), packed...), "gzip member of 0 bytes"},
		{"empty members last", append(bytes.Clone(packed), bytes.Repeat(empty, 10000)...), "data follows"},
		{"members of a byte", append(append(bytes.Clone(firsts), tiny...), repack(plain[head+10000:], after(cuts, head+10000)...)...), "too many gzip members"},
		{"holds more than it says", append(bytes.Clone(firsts), lies...), "more than it says"},
		{"holds less than it says", append(bytes.Clone(firsts), member([]byte("ab"), 0, 3)...), "unpack gzip member"},
		{"holds nothing", bytes.Join([][]byte{firsts, content, nothing}, nil), "unexpected EOF"},
		{"bytes behind a member's data", append(bytes.Clone(firsts), behind...), "bytes behind its data"},
		{"damaged", damaged, "checksum"},
		{"a byte behind", append(bytes.Clone(packed), 0), "data follows"},
		{"a member behind", append(bytes.Clone(packed), storedMember(nil, make([]byte, 512))...), "data follows"},
		{"twice", append(bytes.Clone(packed), packed...), "data follows"},
		{"more zeros", repack(append(bytes.Clone(plain), make([]byte, 1024)...), cuts...), "more than the"},
		{"other padding", repack(change(plain, head+100_001), cuts...), "padded"},
		{"other padding of release.json", repack(change(plain, block+len(s.text)), cuts...), "padded"},
		{"other end", repack(change(plain, len(plain)-1), cuts...), "more files"},
		{"longer than the tar", repack(append(bytes.Clone(plain), 1), cuts...), "more than the"},
	} {
		refused(t, c.name, c.packed, c.want)
	}
	for i := 0; i < len(packed); i += 1 + len(packed)/300 {
		if _, err := unpack(t.Context(), bytes.NewReader(packed[:i]), trust); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the first %d bytes: %v", i, err)
		}
	}
}

// after returns the cuts behind an offset, from there.
func after(cuts []int, offset int) []int {
	var all []int
	for _, c := range cuts {
		if c > offset {
			all = append(all, c-offset)
		}
	}
	return all
}

// insert puts a zero byte at an offset.
func insert(b []byte, at int) []byte {
	return append(append(bytes.Clone(b[:at]), 0), b[at:]...)
}

func change(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

// FAULTS 5, 12
func TestAuthenticatedFirst(t *testing.T) {
	s := newSample(t, 8192)
	refusal := errors.New("not signed by us")
	// What is not believed is not parsed: this would be no release.json.
	plain, cuts := s.stored(t, []byte("s"))
	copy(plain[block:], "}}}}")
	packed := repack(plain, cuts...)
	if _, err := unpack(t.Context(), bytes.NewReader(packed), func(text, sig []byte) error {
		if !bytes.HasPrefix(text, []byte("}}}}")) || string(sig) != "s" {
			t.Errorf("asked about %q and %q", text, sig)
		}
		return refusal
	}); !errors.Is(err, refusal) {
		t.Errorf("refused: %v", err)
	}
	refused(t, "no JSON", packed, "parse release.json")

	mixed, cuts := s.stored(t, nil)
	mixed[len(mixed)-trailer-8192+5] ^= 1
	refused(t, "another image", repack(mixed, cuts...), "system.erofs has another SHA-256")
}

func TestNextRefused(t *testing.T) {
	s := newSample(t, 8192)
	r, err := Open(t.Context(), bytes.NewReader(s.write(t, nil, Options{})), trust, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, body, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	// All the bytes, and not the end: the hash has not been compared.
	if _, err := io.ReadFull(body, make([]byte, 100_001)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, _, err := r.Next(); err == nil || !strings.Contains(err.Error(), "not read to its end") {
			t.Errorf("the next file: %v", err)
		}
	}
	if _, err := body.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("after a failure: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	s := newSample(f, 8192)
	s.contents[release.UKIFile] = s.contents[release.UKIFile][:700]
	s.describe(f)
	packed := s.write(f, []byte("s"), Options{MemberBlocks: 1})
	f.Add(packed)
	plain, cuts := s.stored(f, []byte("s"))
	f.Add(repack(plain, cuts...))
	f.Fuzz(func(t *testing.T, packed []byte) {
		got, err := unpack(t.Context(), bytes.NewReader(packed), trust)
		if err != nil {
			return
		}
		if len(got) != len(s.release.Files) {
			t.Fatalf("accepted %d files", len(got))
		}
		// What is accepted is what any gzip and tar would unpack.
		r := tar.NewReader(bytes.NewReader(plainTar(t, packed)))
		for {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatalf("accepted what tar refuses: %v", err)
			}
			content, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if want, ok := got[h.Name]; ok && !bytes.Equal(content, want) {
				t.Fatalf("%s differs from what tar unpacks", h.Name)
			}
		}
	})
}
