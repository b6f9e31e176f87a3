package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz/lzma"

	"halogenos.internal/boot/testkit"
)

// lz4 takes frames one after another, and so must this: the rest would be a root file
// system that is cut off.
func TestFramesOfLZ4(t *testing.T) {
	plain := pack(t, header("file", tar.TypeReg), header("other", tar.TypeReg))
	two := append(packedBy(t, "lz4", plain[:700]), packedBy(t, "lz4", plain[700:])...)
	legacy := append(packedBy(t, "lz4", plain[:700]), packedBy(t, "lz4 -l", plain[700:])...)
	skipped := append(bytes.Clone(two), "\x5f\x2a\x4d\x18\x04\x00\x00\x00note"...)
	for name, archive := range map[string][]byte{"two frames": two, "a legacy one after it": legacy, "one to skip after them": skipped} {
		if tree, err := fill(t, archive); err != nil || names(t, tree) != "file other" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for cut := 1; cut < 12; cut++ {
		if _, err := fill(t, skipped[:len(skipped)-cut]); err == nil || !strings.Contains(err.Error(), "cut off") {
			t.Errorf("without the last %d bytes of what is skipped: %v", cut, err)
		}
	}
}

// packedBy compresses with a tool.
func packedBy(t *testing.T, tool string, plain []byte) []byte {
	t.Helper()
	words := strings.Fields(tool)
	cmd := exec.Command(testkit.Need(t, words[0]), append(words[1:], "-c")...)
	cmd.Stdin = bytes.NewReader(plain)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", tool, err)
	}
	return out
}

// A disk by another name is named, packed or not, as tools make them.
func TestDisksOfOtherTools(t *testing.T) {
	testkit.Need(t, "qemu-img")
	for _, c := range []struct{ format, say string }{{"vmdk", "VMDK"}, {"vdi", "VDI"}, {"vpc", "VHD"}, {"vhdx", "VHDX"}, {"qcow2", "qcow2"}} {
		file := filepath.Join(t.TempDir(), "disk")
		testkit.Run(t, "qemu-img", "create", "-q", "-f", c.format, file, "8M")
		if err := newTree(t).Fill(t.Context(), file, "x86_64"); err == nil || !strings.Contains(err.Error(), "a "+c.say+" disk") {
			t.Errorf("%s: %v", c.format, err)
		}
	}
	disk := make([]byte, 1<<20)
	copy(disk[510:], "\x55\xaa")
	if _, err := fill(t, compressed(t, "gz", disk)); err == nil || !strings.Contains(err.Error(), "but a disk or a file system") {
		t.Errorf("disk.img.gz: %v", err)
	}
}

// Half of a small compressed archive is said to be that.
func TestCutCompressedArchive(t *testing.T) {
	plain := pack(t, header("file", tar.TypeReg), header("other", tar.TypeReg))
	for _, kind := range []string{"gz", "xz", "zst"} {
		packed := compressed(t, kind, plain)
		if _, err := fill(t, packed[:len(packed)*2/3]); err == nil || !strings.Contains(err.Error(), "cut off") {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// Nor does what a tool wrote pass without its last bytes, or with others after them.
func TestEndOfCompression(t *testing.T) {
	small, second := pack(t, header("file", tar.TypeReg)), pack(t, header("lost", tar.TypeReg))
	for _, tool := range []string{"gzip", "bzip2", "xz", "zstd", "lz4", "lz4 --no-frame-crc", "xz --format=lzma", "lzma of a known size"} {
		packed := func(plain []byte) []byte {
			if tool == "lzma of a known size" { // as the LZMA SDK writes it, without an end mark
				return lzmaOfSize(t, plain)
			}
			return packedBy(t, tool, plain)
		}
		for _, plain := range [][]byte{small, padded(small, 4<<20)} {
			whole := packed(plain)
			if tree, err := fill(t, whole); err != nil || names(t, tree) != "file" {
				t.Fatalf("%s of %d bytes: %v", tool, len(plain), err)
			}
			for cut := 1; cut <= 9; cut++ {
				if _, err := fill(t, whole[:len(whole)-cut]); err == nil || !strings.Contains(err.Error(), "make or copy it again") {
					t.Errorf("%s of %d bytes, without the last %d: %v", tool, len(plain), cut, err)
				}
			}
			for name, rest := range map[string][]byte{"another archive": packed(second), "garbage": []byte("garbage")} {
				if tree, err := fill(t, append(bytes.Clone(whole), rest...)); err == nil {
					t.Errorf("%s of %d bytes, and %s: taken for %s", tool, len(plain), name, names(t, tree))
				}
			}
		}
	}
}

func lzmaOfSize(t *testing.T, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := lzma.WriterConfig{SizeInHeader: true, Size: int64(len(plain))}.NewWriter(&out)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// What is around a root file system, or is the image of another tool, is named.
func TestTopsThatAreNone(t *testing.T) {
	dir, reg := byte(tar.TypeDir), byte(tar.TypeReg)
	layer := strings.Repeat("0f", 32)
	for say, archive := range map[string][]byte{
		"below root.x86_64/":  pack(t, header("root.x86_64", dir), header("root.x86_64/usr/lib/os-release", reg)),
		"LXC or Incus":        pack(t, header("metadata.yaml", reg), header("rootfs", dir), header("rootfs/usr/file", reg)),
		"rootfs.tar.xz":       pack(t, header("metadata.yaml", reg), header("rootfs.tar.xz", reg)),
		"before version 1.10": pack(t, header(layer, dir), header(layer+"/VERSION", reg), header(layer+"/layer.tar", reg), header("repositories", reg)),
		"its file oci-layout": pack(t, header("index.json", reg), header("blobs/sha256/"+layer, reg)),
	} {
		file := filepath.Join(t.TempDir(), "root.tar")
		if err := os.WriteFile(file, archive, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := newTree(t).Fill(t.Context(), file, "x86_64"); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%v, want %q", err, say)
		}
	}
}

// Digests of another kind have a way out.
func TestOtherDigests(t *testing.T) {
	i := image{}
	d := i.manifest(t, pack(t, header("usr/file", tar.TypeReg)))
	d["digest"] = "sha512:" + strings.Repeat("ab", 64)
	i.index(t, d)
	if err := newTree(t).Fill(t.Context(), i.directory(t), "x86_64"); err == nil || !strings.Contains(err.Error(), "make the image with SHA-256 digests") {
		t.Errorf("error %v", err)
	}
}

// What cosign, notation and ORAS put beside an image before there was artifactType.
func TestArtifactsBesideAnImage(t *testing.T) {
	base := pack(t, header("usr/file", tar.TypeReg))
	i := image{}
	signature := i.add([]byte("payload"))
	signature["mediaType"] = "application/vnd.dev.cosign.simplesigning.v1+json"
	ofImage := map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": i.add([]byte("{}"))["digest"], "size": 2}
	chart := map[string]any{"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": ofImage["digest"], "size": 2}
	tarred := i.add([]byte("chart"))
	tarred["mediaType"] = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
	i.index(t, i.manifest(t, base),
		i.addJSON(t, map[string]any{"schemaVersion": 2, "config": ofImage, "layers": []any{signature}}),
		i.addJSON(t, map[string]any{"schemaVersion": 2, "config": chart, "layers": []any{tarred}}))
	tree := newTree(t)
	if err := tree.Fill(t.Context(), i.directory(t), "x86_64"); err != nil || names(t, tree) != "usr/file" {
		t.Errorf("error %v", err)
	}
}

// A checksum is compared, though it comes after all that tar reads.
func TestChecksumOfCompression(t *testing.T) {
	small := pack(t, header("file", tar.TypeReg), header("other", tar.TypeReg))
	large := padded(small, 4<<20)
	for _, kind := range []string{"gz", "xz", "zst", "lz4"} {
		for _, plain := range [][]byte{small, large} {
			packed := compressed(t, kind, plain)
			if _, err := fill(t, packed); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
			at := map[string]int{"gz": 8, "xz": 60, "zst": 1, "lz4": 1}[kind] // bytes from the end
			packed[len(packed)-at] ^= 1
			if _, err := fill(t, packed); err == nil || !strings.Contains(err.Error(), "make or copy it again") {
				t.Errorf("%s of %d bytes with another checksum: %v", kind, len(plain), err)
			}
		}
	}
	for _, plain := range [][]byte{small, large} {
		var stored bytes.Buffer
		w, err := gzip.NewWriterLevel(&stored, gzip.NoCompression)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		packed := stored.Bytes()
		packed[bytes.LastIndex(packed, []byte("other"))] ^= 1 // the content: the name is before it
		if _, err := fill(t, packed); err == nil || !strings.Contains(err.Error(), "the archive is damaged") {
			t.Errorf("a flipped bit in a file of %d bytes: %v", len(plain), err)
		}
	}
}

// padded fills an archive up with zeros after its end mark.
func padded(archive []byte, size int) []byte {
	return append(bytes.Clone(archive), make([]byte, size-len(archive))...)
}

// What follows the end mark is zeros, as many as a tape's block has.
func TestAfterTheEndMark(t *testing.T) {
	one, two := pack(t, header("file", tar.TypeReg)), pack(t, header("lost", tar.TypeReg))
	for _, kind := range []string{"", "gz"} {
		packed := func(plain []byte) []byte {
			if kind == "" {
				return plain
			}
			return compressed(t, kind, plain)
		}
		for name, archive := range map[string][]byte{
			"as it is": packed(one), "filled up to 10 KB": packed(padded(one, 10240)), "and to 4 MB": packed(padded(one, 4<<20)),
			"filled up when packed": append(packed(one), make([]byte, 777)...),
		} {
			if tree, err := fill(t, archive); err != nil || names(t, tree) != "file" {
				t.Errorf("%s %s: %v", name, kind, err)
			}
		}
		for name, archive := range map[string][]byte{
			"two archives": append(packed(one), packed(two)...), "two, the first of them filled up": append(packed(padded(one, 1<<20)), packed(two)...),
		} {
			if _, err := fill(t, archive); err == nil || !strings.Contains(err.Error(), "tar --concatenate") {
				t.Errorf("%s %s: %v", name, kind, err)
			}
		}
	}
}

// Zeros that a file ends with are not the end mark of an archive that was cut there.
func TestCutAfterZeros(t *testing.T) {
	for _, size := range []int64{512, 1024, 1500} {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		h := header("zeros", tar.TypeReg)
		h.Size = size
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		cut := bytes.Clone(out.Bytes())
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := fill(t, out.Bytes()); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		if _, err := fill(t, cut); err == nil || !strings.Contains(err.Error(), "no end mark") {
			t.Errorf("%d bytes, cut: %v", size, err)
		}
	}
}

// Nor are those that GNU tar writes after a long name, where it was cut before the file
// of that name.
func TestCutAfterLongName(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"first", "long", "last"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, size := range []int{300, 511, 512, 1024} {
		long := strings.Repeat("d/", size/2-2) + strings.Repeat("f", 4+size%2)
		whole, err := exec.Command(testkit.Need(t, "tar"), "--format=gnu", "--transform=s,^long$,"+long+",", "-C", dir, "-cf", "-", "first", "long", "last").Output()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fill(t, whole); err != nil {
			t.Errorf("a name of %d bytes: %v", size, err)
		}
		header := bytes.Index(whole, []byte("././@LongLink"))
		cut := whole[:header+512+(size/512+1)*512] // with the NUL after the name
		if _, err := fill(t, cut); header < 0 || err == nil || !strings.Contains(err.Error(), "no end mark") {
			t.Errorf("cut after a name of %d bytes: %v", size, err)
		}
	}
}

// What fills up the last block of a file need not be zeros.
func TestPaddingOfFiles(t *testing.T) {
	archive := pack(t, header("file", tar.TypeReg), header("last", tar.TypeReg))
	for i := len(archive) - 1024 - 512 + len("last"); i < len(archive)-1024; i++ {
		archive[i] = 'x'
	}
	if tree, err := fill(t, archive); err != nil || names(t, tree) != "file last" {
		t.Errorf("error %v", err)
	}
}

// Zeros after an archive, as truncate makes them, have an end, and so has a build that
// is cancelled meanwhile.
func TestManyZerosAfterAnArchive(t *testing.T) {
	plain := pack(t, header("file", tar.TypeReg))
	larger := func(kind string, size int64) string {
		file := filepath.Join(t.TempDir(), "root.tar")
		packed := plain
		if kind != "" {
			packed = compressed(t, kind, plain)
		}
		if err := errors.Join(os.WriteFile(file, packed, 0o644), os.Truncate(file, size)); err != nil {
			t.Fatal(err)
		}
		return file
	}
	if err := newTree(t).Fill(t.Context(), larger("gz", maxPadding+4<<20), "x86_64"); err == nil || !strings.Contains(err.Error(), "bytes of zeros follow") {
		t.Errorf("more than a GiB after gzip: %v", err)
	}
	for _, kind := range []string{"", "gz", "xz"} {
		if err := newTree(t).Fill(&cancelled{Context: t.Context(), after: 30}, larger(kind, 256<<20), "x86_64"); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled while zeros are read after %q: %v", kind, err)
		}
	}
}

// cancelled is cancelled after it was asked so often.
type cancelled struct {
	context.Context
	after int
}

func (c *cancelled) Err() error {
	if c.after--; c.after < 0 {
		return context.Canceled
	}
	return nil
}

// A global header that changes files is refused, as none is applied; git's is not.
func TestGlobalHeader(t *testing.T) {
	global := func(key, value string) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{key: value}}
	}
	if tree, err := fill(t, pack(t, global("comment", strings.Repeat("0f", 20)), global("GNU.volume.label", "x"), header("file", tar.TypeReg))); err != nil || names(t, tree) != "file" {
		t.Errorf("a comment: %v", err)
	}
	for key, value := range map[string]string{"uid": "7", "mtime": "1", "SCHILY.xattr.user.x": "y"} {
		if _, err := fill(t, pack(t, global(key, value), header("file", tar.TypeReg))); err == nil || !strings.Contains(err.Error(), `"`+key+`"`) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// What asks for more memory than there may be is refused, and what takes less helps.
func TestLargeDictionary(t *testing.T) {
	plain := pack(t, header("file", tar.TypeReg))
	packed := compressed(t, "xz", plain)
	// The first block's header (.xz File Format 1.2, section 3.1): its size, and at its end
	// a CRC; the dictionary's size is a byte after the filter's ID and the size of its options.
	block := packed[12:]
	block = block[:(int(block[0])+1)*4]
	at := bytes.Index(block, []byte{0x21, 1}) + 2
	for size, say := range map[byte]string{30: "", 32: "`xz -9`", 40: "`xz -9`"} { // 128 MiB, 256 MiB, 4 GiB
		block[at] = size
		binary.LittleEndian.PutUint32(block[len(block)-4:], crc32.ChecksumIEEE(block[:len(block)-4]))
		if _, err := fill(t, packed); say == "" && err != nil || say != "" && (err == nil || !strings.Contains(err.Error(), say)) {
			t.Errorf("a dictionary of size %d: %v", size, err)
		}
	}
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithWindowSize(256<<20))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(padded(plain, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil { // of a frame that ends at once the window is its size
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := fill(t, out.Bytes()); err == nil || !strings.Contains(err.Error(), "zstd --long=27") {
		t.Errorf("a window of 256 MiB: %v", err)
	}
}
