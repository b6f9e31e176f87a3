package rootfs

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// image is an OCI image layout under construction.
type image map[string][]byte

func (i image) add(content []byte) map[string]any {
	digest := fmt.Sprintf("%x", sha256.Sum256(content))
	i["blobs/sha256/"+digest] = content
	return map[string]any{"digest": "sha256:" + digest, "size": len(content)}
}

func (i image) addJSON(t testing.TB, v any) map[string]any {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return i.add(text)
}

// manifest adds an image of these layers.
func (i image) manifest(t testing.TB, layers ...[]byte) map[string]any {
	t.Helper()
	var list []any
	for _, layer := range layers {
		d := i.add(layer)
		d["mediaType"] = "application/vnd.oci.image.layer.v1.tar"
		list = append(list, d)
	}
	return i.addJSON(t, map[string]any{"schemaVersion": 2, "layers": list})
}

func (i image) index(t testing.TB, manifests ...any) {
	t.Helper()
	text, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": manifests})
	if err != nil {
		t.Fatal(err)
	}
	i["index.json"], i["oci-layout"] = text, []byte(`{"imageLayoutVersion":"1.0.0"}`)
}

func platformed(d map[string]any, os, arch string) map[string]any {
	d = maps.Clone(d)
	d["platform"] = map[string]any{"os": os, "architecture": arch}
	return d
}

// directory writes the layout to a directory, archive to a tar file.
func (i image) directory(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range i {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func (i image) tar(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range slices.Sorted(maps.Keys(i)) {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(i[name])), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(i[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// names lists the files of a tree that are not directories.
func names(t testing.TB, tree *Tree) string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(tree.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, strings.TrimPrefix(path, tree.Dir()+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(list, " ")
}

// layers covers every kind of whiteout, before and behind what takes its place.
func layers(t *testing.T) [][]byte {
	reg, dir := byte(tar.TypeReg), byte(tar.TypeDir)
	return [][]byte{
		compressed(t, "gz", pack(t, header("a/one", reg), header("a/two", reg), header("b/one", reg), header("b/sub/two", reg), header("c", reg), header("d/x", reg), header("e/f/g", reg))),
		compressed(t, "zst", pack(t,
			header("a/.wh.one", reg),
			header("b/new", reg), header("b/sub", dir), header("b/sub/mine", reg), header("b/.wh..wh..opq", reg),
			header(".wh.d", reg), header("d", reg),
			header("e", dir), header("e/h", reg), header(".wh.e", reg))),
		pack(t, header("c", dir), header("c/inside", reg), header(".wh.nothing", reg)),
	}
}

const layersResult = "a/two b/new b/sub/mine c/inside d e/h"

func TestOCILayers(t *testing.T) {
	i := image{}
	i.index(t, i.manifest(t, layers(t)...))
	archive := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(archive, i.tar(t), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{i.directory(t), archive} {
		tree := newTree(t)
		if err := tree.Fill(t.Context(), source, "x86_64"); err != nil {
			t.Fatal(err)
		}
		if have := names(t, tree); have != layersResult {
			t.Errorf("%s:\nhave %s\nwant %s", source, have, layersResult)
		}
	}
}

// What podman appends to a layer of zstd:chunked is a frame that decoders skip; it
// belongs to the digest, too.
func TestOCIChunked(t *testing.T) {
	toc := make([]byte, 12<<20)
	if _, err := rand.Read(toc); err != nil {
		t.Fatal(err)
	}
	layer := compressed(t, "zst", pack(t, header("usr/a", tar.TypeReg)))
	layer = binary.LittleEndian.AppendUint32(layer, 0x184d2a50) // RFC 8878, section 3.1.2
	layer = append(binary.LittleEndian.AppendUint32(layer, uint32(len(toc))), toc...)
	i := image{}
	i.index(t, i.manifest(t, layer))
	for range 3 {
		if err := newTree(t).Fill(t.Context(), i.directory(t), "x86_64"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOCIPlatforms(t *testing.T) {
	i := image{}
	ours := i.manifest(t, pack(t, header("ours", tar.TypeReg)))
	other := i.manifest(t, pack(t, header("other", tar.TypeReg)))
	inner := i.addJSON(t, map[string]any{"manifests": []any{
		platformed(other, "linux", "arm64"), platformed(ours, "linux", "amd64"), platformed(other, "unknown", "unknown"),
	}})
	i.index(t, inner)
	tree := newTree(t)
	if err := tree.Fill(t.Context(), i.directory(t), "x86_64"); err != nil {
		t.Fatal(err)
	}
	if have := names(t, tree); have != "ours" {
		t.Errorf("have %s", have)
	}
	for name, manifests := range map[string][]any{
		"no image for linux/amd64": {platformed(ours, "linux", "arm64")},
		"2 images":                 {ours, other},
	} {
		i.index(t, manifests...)
		if err := newTree(t).Fill(t.Context(), i.directory(t), "x86_64"); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want %q", err, name)
		}
	}
}

// FAULTS 11, 24, 25
func TestHostileOCI(t *testing.T) {
	layer := append(pack(t, header("file", tar.TypeReg)), make([]byte, 8192)...)
	flipped := bytes.Clone(layer)
	flipped[len(flipped)-1] ^= 1 // behind the end of the tar
	reg := byte(tar.TypeReg)
	for _, c := range []struct {
		name string
		make func(i image)
		say  string
	}{
		{"layer that changed", func(i image) {
			i.index(t, i.manifest(t, layer))
			i["blobs/sha256/"+fmt.Sprintf("%x", sha256.Sum256(layer))] = flipped
		}, "digest"},
		{"layer that got shorter", func(i image) {
			i.index(t, i.manifest(t, layer))
			i["blobs/sha256/"+fmt.Sprintf("%x", sha256.Sum256(layer))] = layer[:512]
		}, "bytes, want"},
		{"manifest that changed", func(i image) {
			d := i.manifest(t, layer)
			name := "blobs/sha256/" + strings.TrimPrefix(d["digest"].(string), "sha256:")
			i[name] = bytes.Replace(i[name], []byte("2"), []byte("3"), 1)
			i.index(t, d)
		}, "digest"},
		{"digest that is a path", func(i image) {
			i.index(t, map[string]any{"digest": "sha256:../../../etc/passwd", "size": 1})
		}, "not a SHA-256"},
		{"other digest", func(i image) { i.index(t, map[string]any{"digest": "sha512:00", "size": 1}) }, "not a SHA-256"},
		{"blob that is not there", func(i image) {
			i.index(t, map[string]any{"digest": "sha256:" + strings.Repeat("0", 64), "size": 1})
		}, "open OCI blob"},
		{"manifest that claims to be large", func(i image) {
			i.index(t, map[string]any{"digest": "sha256:" + strings.Repeat("0", 64), "size": 1 << 40})
		}, "more than"},
		{"index of indexes", func(i image) {
			d := i.addJSON(t, map[string]any{"manifests": []any{}})
			for range maxNesting + 1 {
				d = i.addJSON(t, map[string]any{"manifests": []any{d}})
			}
			i.index(t, d)
		}, "no layers"},
		{"index that is not JSON", func(i image) { i.index(t); i["index.json"] = []byte("{") }, "parse"},
		{"encrypted layer", func(i image) {
			d := i.add(layer)
			d["mediaType"] = "application/vnd.oci.image.layer.v1.tar+encrypted"
			i.index(t, i.addJSON(t, map[string]any{"layers": []any{d}}))
		}, "media type"},
		{"too many layers", func(i image) {
			i.index(t, i.addJSON(t, map[string]any{"layers": make([]any, maxLayers+1)}))
		}, "layers, more than"},
		{"whiteout that leads out", func(i image) { i.index(t, i.manifest(t, pack(t, header("a/.wh...", reg)))) }, "whiteout"},
		{"whiteout of the top", func(i image) { i.index(t, i.manifest(t, pack(t, header(".wh..", reg)))) }, "whiteout"},
		{"layer that leads out", func(i image) { i.index(t, i.manifest(t, pack(t, header("../a", reg)))) }, "leads out"},
		{"links in a ring", func(i image) {
			i.index(t, i.manifest(t, pack(t, header("a", tar.TypeSymlink, linkTo("a"))), pack(t, header("a/file", reg))))
		}, "symbolic links"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := image{}
			c.make(i)
			err := newTree(t).Fill(t.Context(), i.directory(t), "x86_64")
			if err == nil || !strings.Contains(err.Error(), c.say) {
				t.Errorf("error %v, want one that says %q", err, c.say)
			}
		})
	}
}

func FuzzOCIDocument(f *testing.F) {
	f.Add([]byte(`{"manifests":[{"digest":"sha256:00","size":-1,"platform":{"os":"linux","architecture":"amd64"}}]}`))
	f.Add([]byte(`{"layers":[null]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		doc, err := parseDocument(text)
		if err != nil {
			return
		}
		if len(doc.Layers) > maxLayers {
			t.Errorf("%d layers", len(doc.Layers))
		}
		if d, err := choose(doc.Manifests, "amd64"); err == nil && d.Platform != nil && d.Platform.Architecture != "amd64" {
			t.Errorf("chose %+v", d)
		}
	})
}
