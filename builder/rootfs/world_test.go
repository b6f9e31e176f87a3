package rootfs

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"halogenos.internal/boot/testkit"
)

// lz4 takes frames one after another, and so must this: the rest would be a root file
// system that is cut off.
func TestFramesOfLZ4(t *testing.T) {
	testkit.Need(t, "lz4")
	plain := pack(t, header("file", tar.TypeReg), header("other", tar.TypeReg))
	half := func(content []byte) []byte {
		cmd := exec.Command("lz4", "-c")
		cmd.Stdin = bytes.NewReader(content)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if tree, err := fill(t, append(half(plain[:700]), half(plain[700:])...)); err != nil || names(t, tree) != "file other" {
		t.Errorf("two frames: %v", err)
	}
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
	if err := newTree(t).Fill(t.Context(), i.folder(t), "x86_64"); err == nil || !strings.Contains(err.Error(), "make the image with SHA-256 digests") {
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
	if err := tree.Fill(t.Context(), i.folder(t), "x86_64"); err != nil || names(t, tree) != "usr/file" {
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
