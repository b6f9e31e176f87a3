package rootfs

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

// noEnd takes the end mark of a tar away.
func noEnd(archive []byte) []byte { return bytes.TrimSuffix(archive, make([]byte, 1024)) }

// What umoci, skopeo and containerd write or take. FAULTS 112 (B4)
func TestOCIArchivesOfOtherTools(t *testing.T) {
	reg, dir, sym := byte(tar.TypeReg), byte(tar.TypeDir), byte(tar.TypeSymlink)
	base := pack(t, header("usr/file", reg), header("test", dir), header("test/test", reg), header("a", dir), header("a/a", reg))
	for _, c := range []struct {
		name   string
		layers [][]byte
		want   string
	}{
		{"whiteout of a directory, then of what was in it", [][]byte{base, pack(t, header(".wh.test", reg), header("test/.wh.test", reg))}, "a/a usr/file"},
		{"file below a lower layer's link", [][]byte{pack(t, header("usr/lib/old", reg), header("lib", sym, linkTo("usr/lib"))), pack(t, header("/lib/new", reg), header("lib/.wh.old", reg))}, "lib usr/lib/new"},
		{"opaque below a lower layer's link", [][]byte{pack(t, header("usr/lib/old", reg), header("lib", sym, linkTo("/usr/lib"))), pack(t, header("./lib/.wh..wh..opq", reg), header("lib/new", reg))}, "lib usr/lib/new"},
		{"hard link below a lower layer's link", [][]byte{pack(t, header("usr/lib/old", reg), header("lib", sym, linkTo("usr/lib"))), pack(t, header("lib/new", tar.TypeLink, linkTo("/lib/old")))}, "lib usr/lib/new usr/lib/old"},
		{"whiteout below what is a link now", [][]byte{base, pack(t, header("a", sym, linkTo("b")), header("b", dir), header("a/.wh.a", reg))}, "a test/test usr/file"},
		{"whiteout in a directory that is gone", [][]byte{base, pack(t, header(".wh.test", reg)), pack(t, header("test/sub/.wh.x", reg), header("test", dir), header("test/new", reg))}, "a/a test/new usr/file"},
		{"whiteout through a link that leads out", [][]byte{base, pack(t, header("etc", sym, linkTo("/etc"))), pack(t, header("etc/.wh.passwd", reg))}, "a/a etc test/test usr/file"},
		{"opaque in a directory that never was", [][]byte{base, pack(t, header("new/.wh..wh..opq", reg))}, "a/a test/test usr/file"},
		{"what AUFS keeps of its own", [][]byte{base, pack(t, header(".wh..wh.plnk", dir), header(".wh..wh.plnk/12.34", reg), header(".wh..wh.aufs", reg))}, "a/a test/test usr/file"},
		{"layer without a file", [][]byte{base, make([]byte, 1024)}, "a/a test/test usr/file"},
		{"layer without a byte", [][]byte{base, nil}, "a/a test/test usr/file"},
		{"compressed layer without a file", [][]byte{base, compressed(t, "gz", make([]byte, 1024))}, "a/a test/test usr/file"},
		{"layer without an end mark", [][]byte{base, noEnd(pack(t, header("extra", reg)))}, "a/a extra test/test usr/file"},
		{"the same, compressed", [][]byte{base, compressed(t, "zst", noEnd(pack(t, header("extra", reg))))}, "a/a extra test/test usr/file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := image{}
			i.index(t, i.manifest(t, c.layers...))
			tree := newTree(t)
			if err := tree.Fill(t.Context(), i.directory(t), "x86_64"); err != nil {
				t.Fatal(err)
			}
			if have := names(t, tree); have != c.want {
				t.Errorf("the tree has %s, want %s", have, c.want)
			}
		})
	}
	// What is not a layer must still be whole.
	if _, err := fill(t, noEnd(base)); err == nil || !strings.Contains(err.Error(), "no end mark") {
		t.Errorf("a root file system without an end mark: error %v", err)
	}
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Error(err)
	}
}

func annotated(d map[string]any, key, value string) map[string]any {
	out := map[string]any{"annotations": map[string]string{key: value}}
	for k, v := range d {
		out[k] = v
	}
	return out
}

// FAULTS 112 (B4)
func TestWhichOCIImage(t *testing.T) {
	layer := func(name string) []byte { return pack(t, header(name, tar.TypeReg)) }
	variant := func(d map[string]any, v string) map[string]any {
		d = platformed(d, "linux", "amd64")
		d["platform"].(map[string]any)["variant"] = v
		return d
	}
	for _, c := range []struct {
		name string
		make func(i image)
		want string
	}{
		{"two tags of one image", func(i image) {
			d := i.manifest(t, layer("one"))
			i.index(t, annotated(d, annotationTag, "1.0"), annotated(d, annotationTag, "latest"))
		}, "one"},
		{"index of an index, with an attestation (buildx, containerd)", func(i image) {
			about := annotated(platformed(i.manifest(t, layer("wrong")), "unknown", "unknown"), annotationReference, "attestation-manifest")
			inner := i.addJSON(t, map[string]any{"manifests": []any{platformed(i.manifest(t, layer("arm")), "linux", "arm64"), platformed(i.manifest(t, layer("amd")), "linux", "amd64"), about}})
			i.index(t, annotated(inner, annotationTag, "latest"))
		}, "amd"},
		{"signature beside the image", func(i image) {
			sig := i.manifest(t, layer("sig"))
			sig["artifactType"] = "application/vnd.dev.cosign.artifact.sig.v1+json"
			i.index(t, i.manifest(t, layer("image")), sig)
		}, "image"},
		{"variants", func(i image) {
			i.index(t, variant(i.manifest(t, layer("v3")), "v3"), variant(i.manifest(t, layer("all")), ""))
		}, "all"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := image{}
			c.make(i)
			for _, packed := range [][]byte{i.tar(t), compressed(t, "gz", i.tar(t))} {
				tree, err := fill(t, packed)
				if err != nil {
					t.Fatal(err)
				}
				if have := names(t, tree); have != c.want {
					t.Errorf("the tree has %s, want %s", have, c.want)
				}
			}
		})
	}
	i := image{}
	i.index(t, annotated(i.manifest(t, layer("a")), annotationTag, "1.0"), annotated(i.manifest(t, layer("b")), annotationTag, "2.0"))
	if _, err := fill(t, i.tar(t)); err == nil || !strings.Contains(err.Error(), `"1.0" "2.0"`) || !strings.Contains(err.Error(), "skopeo copy") {
		t.Errorf("two images: error %v", err)
	}
}

// dockerArchive is what `docker save` of before version 25 writes: each layer
// in a directory of its own, the second one a link to the first where they are
// the same.
func dockerArchive(t *testing.T, repositories bool, change func(list []map[string]any, diffs []string), layers ...[]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(h *tar.Header, content []byte) {
		h.Size, h.Mode = int64(len(content)), 0o644
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	marshal := func(v any) []byte {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	var diffs, places []string
	seen := make(map[string]string)
	for n, layer := range layers {
		sum := fmt.Sprintf("%x", sha256.Sum256(layer))
		place := fmt.Sprintf("%064x/layer.tar", n)
		if first, ok := seen[sum]; ok {
			add(&tar.Header{Name: place, Typeflag: tar.TypeSymlink, Linkname: "../" + first}, nil)
		} else {
			add(&tar.Header{Name: place, Typeflag: tar.TypeReg}, layer)
			seen[sum] = place
		}
		diffs, places = append(diffs, "sha256:"+sum), append(places, place)
	}
	list := []map[string]any{{"Config": "config.json", "RepoTags": []string{"test:1"}, "Layers": places}}
	if change != nil {
		change(list, diffs)
	}
	add(&tar.Header{Name: "config.json", Typeflag: tar.TypeReg}, marshal(map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}}))
	add(&tar.Header{Name: "manifest.json", Typeflag: tar.TypeReg}, marshal(list))
	if repositories {
		add(&tar.Header{Name: "repositories", Typeflag: tar.TypeReg}, []byte("{}"))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// FAULTS 112 (B4)
func TestDockerArchives(t *testing.T) {
	one, two := pack(t, header("one", tar.TypeReg)), pack(t, header("two", tar.TypeReg), header(".wh.one", tar.TypeReg))
	for _, repositories := range []bool{true, false} { // skopeo and podman write none
		archive := dockerArchive(t, repositories, nil, one, two, one)
		for name, content := range map[string][]byte{"as it is": archive, "compressed": compressed(t, "gz", archive), "compressed with zstd": compressed(t, "zst", archive)} {
			tree, err := fill(t, content)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if have := names(t, tree); have != "one two" {
				t.Errorf("%s: the tree has %s", name, have)
			}
		}
	}
	for say, change := range map[string]func([]map[string]any, []string){
		"has the digest":      func(_ []map[string]any, diffs []string) { diffs[1] = "sha256:" + strings.Repeat("0", 64) },
		"is not in the":       func(list []map[string]any, _ []string) { list[0]["Layers"] = []string{"a", "../../etc/passwd"} },
		"names 2":             func(list []map[string]any, _ []string) { list[0]["Layers"] = []string{"a"} },
		"0 layers":            func(list []map[string]any, _ []string) { list[0]["Layers"] = nil },
		"nowhere.json is not": func(list []map[string]any, _ []string) { list[0]["Config"] = "nowhere.json" },
	} {
		if _, err := fill(t, dockerArchive(t, true, change, one, two)); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("error %v, want one that says %q", err, say)
		}
	}
	// A root file system may have a file of that name.
	if tree, err := fill(t, pack(t, header("manifest.json", tar.TypeReg), header("usr/file", tar.TypeReg))); err != nil || names(t, tree) != "manifest.json usr/file" {
		t.Errorf("a root file system with a manifest.json: %v", err)
	}
	// Nor is its own link a way out.
	loop := dockerArchive(t, false, func(list []map[string]any, _ []string) { list[0]["Layers"] = []string{"loop", "loop"} }, one, two)
	if _, err := fill(t, loop); err == nil {
		t.Error("a layer that is not there was taken")
	}
}

// FAULTS 112 (B4)
func TestSkopeoDirectory(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"manifest.json", "version"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := newTree(t).Fill(t.Context(), dir, "x86_64"); err == nil || !strings.Contains(err.Error(), "oci:DIR") {
		t.Errorf("error %v", err)
	}
}

// FAULTS 112 (B12)
func TestCompressions(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(plain, pack(t, header("file", tar.TypeReg)), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tool := range []string{"gzip", "bzip2", "xz", "zstd", "xz --format=lzma", "lz4", "lz4 -l"} {
		words := strings.Fields(tool)
		cmd := exec.Command(testkit.Need(t, words[0]), append(words[1:], "-c", plain)...)
		packed, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", tool, err)
		}
		if tree, err := fill(t, packed); err != nil || names(t, tree) != "file" {
			t.Errorf("%s: %v", tool, err)
		}
	}
}

// FAULTS 112 (B12)
func TestSourcesOfOtherKinds(t *testing.T) {
	at := func(offset int, magic string) []byte {
		b := make([]byte, 40_000)
		copy(b[offset:], magic)
		return b
	}
	for say, content := range map[string][]byte{
		"compress (.tar.Z): give":       at(0, "\x1f\x9d\x90"),
		"lzip":                          at(0, "LZIP\x01"),
		"zip archive":                   at(0, "PK\x03\x04"),
		"cpio":                          at(0, "070701"),
		"RPM":                           at(0, "\xed\xab\xee\xdb"),
		"Debian package":                at(0, "!<arch>\ndebian-binary"),
		"squashfs":                      at(0, "hsqs"),
		"qcow2":                         at(0, "QFI\xfb"),
		"VMDK":                          at(0, "KDMV\x01"),
		"description of a VMDK":         at(0, "# Disk DescriptorFile\n"),
		"VDI":                           append([]byte("<<< Oracle VM VirtualBox Disk Image >>>\n"), at(24, "\x7f\x10\xda\xbe")...),
		"a VHD disk":                    at(0, "conectix"),
		"VHDX":                          at(0, "vhdxfile"),
		"XFS":                           at(0, "XFSB"),
		"btrfs":                         append(make([]byte, 65536), at(64, "_BHRfS_M")...),
		"EROFS":                         at(1024, "\xe2\xe1\xf5\xe0"),
		"ext4":                          at(1080, "\x53\xef"),
		"ISO":                           at(32769, "CD001"),
		"a disk or a file system":       at(510, "\x55\xaa"),
		"want tar, plain or compressed": []byte(strings.Repeat("no archive at all", 100)),
		"the archive is empty":          make([]byte, 10240),
		"goes on from another volu":     pack(t, header("file", 'M')),
	} {
		if _, err := fill(t, content); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("error %v, want one that says %q", err, say)
		}
	}
}
