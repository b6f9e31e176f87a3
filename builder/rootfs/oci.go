package rootfs

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Limits of an image's description (OCI Image Format Specification 1.1).
const (
	maxDocument = 4 << 20 // bytes of an index or a manifest
	maxLayers   = 1024
	maxNesting  = 4 // indexes that name an index
)

// blobs is where the files of an OCI image layout lie.
type blobs interface {
	// open returns a file of the layout and its size in bytes.
	open(name string) (io.ReadCloser, int64, error)
}

// directory is a layout in a directory.
type directory struct{ root *os.Root }

func (f directory) open(name string) (io.ReadCloser, int64, error) {
	file, err := f.root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return file, info.Size(), nil
}

// archive is a layout in an uncompressed tar, read where it lies.
type archive struct {
	file  *os.File
	files map[string]extent
	links map[string]string // where a link of either kind leads
}

type extent struct{ offset, size int64 }

func (a archive) open(name string) (io.ReadCloser, int64, error) {
	e, ok := a.files[name]
	for n := 0; !ok && a.links[name] != "" && n < maxLinks; n++ {
		name = a.links[name]
		e, ok = a.files[name]
	}
	if !ok {
		return nil, 0, fmt.Errorf("%s is not in the archive", name)
	}
	return io.NopCloser(io.NewSectionReader(a.file, e.offset, e.size)), e.size, nil
}

// indexArchive finds the regular files of an uncompressed tar. The tar reader
// reads no further than the header it returns, so the file's position is
// where the content starts.
func indexArchive(file *os.File) (archive, error) {
	a := archive{file: file, files: make(map[string]extent), links: make(map[string]string)}
	in := tar.NewReader(file)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			return a, fmt.Errorf("read tar archive: %w", err)
		}
		offset, err := file.Seek(0, io.SeekCurrent)
		if err != nil {
			return a, err
		}
		name := path.Clean(h.Name)
		switch {
		case len(a.files) == maxEntries:
			return a, fmt.Errorf("the archive has more than %d files", maxEntries)
		case h.Typeflag == tar.TypeReg:
			a.files[name] = extent{offset, h.Size}
		case h.Typeflag == tar.TypeSymlink: // `docker save` has a layer that comes twice once
			a.links[name] = path.Join(path.Dir(name), h.Linkname)
		case h.Typeflag == tar.TypeLink:
			a.links[name] = path.Clean(h.Linkname)
		}
	}
}

func (a archive) has(name string) bool {
	_, ok := a.files[name]
	return ok
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
	Platform  *struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
		Variant      string `json:"variant"`
	} `json:"platform"`
	ArtifactType string            `json:"artifactType"`
	Annotations  map[string]string `json:"annotations"`
}

// Annotations of descriptors: the tag of an image, and what says that something
// is about an image and is none itself.
const (
	annotationTag       = "org.opencontainers.image.ref.name"
	annotationReference = "vnd.docker.reference.type"
)

// document is an index or a manifest: the fields that either has.
type document struct {
	Manifests []descriptor `json:"manifests"`
	Layers    []descriptor `json:"layers"`
	Config    descriptor   `json:"config"`
	// ArtifactType says that it is not an image (OCI Image Format 1.1).
	ArtifactType string `json:"artifactType"`
}

// artifact reports whether a manifest is about an image and none itself, such as a
// signature or a bill of materials: from 1.1 on it may say so, before that its
// configuration is of another kind.
func (m *document) artifact() bool {
	switch {
	case len(m.Layers) == 0 && m.Config.MediaType == "":
		return false // an index
	case m.ArtifactType != "":
		return true
	case m.Config.MediaType != "" && m.Config.MediaType != "application/vnd.oci.image.config.v1+json" && m.Config.MediaType != "application/vnd.docker.container.image.v1+json":
		return true
	}
	isTar := func(d descriptor) bool { return strings.Contains(d.MediaType, ".tar") }
	return len(m.Layers) > 0 && !slices.ContainsFunc(m.Layers, isTar)
}

// withoutArtifacts leaves out what is not an image, where an index names several things.
func withoutArtifacts(b blobs, list []descriptor) []descriptor {
	if len(list) < 2 {
		return list
	}
	images := slices.DeleteFunc(slices.Clone(list), func(d descriptor) bool {
		doc, err := readDocument(b, d)
		return err == nil && doc.artifact() // what cannot be read is told when it is chosen
	})
	if len(images) == 0 {
		return list
	}
	return images
}

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// openBlob returns the content of a descriptor and a hash of what is read.
func openBlob(b blobs, d descriptor) (io.ReadCloser, error) {
	if !digestForm.MatchString(d.Digest) {
		return nil, fmt.Errorf("OCI digest %.40q is not a SHA-256: make the image with SHA-256 digests, which is what tools do unless they are told otherwise, or unpack it as root and give the directory", d.Digest)
	}
	r, size, err := b.open("blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:"))
	if err != nil {
		return nil, fmt.Errorf("open OCI blob: %w", err)
	}
	if size != d.Size {
		return nil, errors.Join(fmt.Errorf("OCI blob %s has %d bytes, want %d", d.Digest, size, d.Size), r.Close())
	}
	return r, nil
}

// readDocument reads a small blob and checks its digest.
func readDocument(b blobs, d descriptor) (*document, error) {
	if d.Size > maxDocument {
		return nil, fmt.Errorf("OCI manifest %s has %d bytes, more than %d", d.Digest, d.Size, maxDocument)
	}
	r, err := openBlob(b, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read OCI manifest: %w", err)
	}
	if sum := sha256.Sum256(text); "sha256:"+hex.EncodeToString(sum[:]) != d.Digest {
		return nil, fmt.Errorf("OCI manifest %s has the digest sha256:%x", d.Digest, sum)
	}
	return parseDocument(text)
}

func parseDocument(text []byte) (*document, error) {
	doc := new(document)
	if err := json.Unmarshal(text, doc); err != nil {
		return nil, fmt.Errorf("parse OCI manifest: %w", err)
	}
	if len(doc.Layers) > maxLayers {
		return nil, fmt.Errorf("OCI image has %d layers, more than %d", len(doc.Layers), maxLayers)
	}
	return doc, nil
}

// findManifest returns the one image of the layout for an architecture, by
// Go's name of it as OCI uses.
func findManifest(b blobs, arch string) (*document, error) {
	r, size, err := b.open("index.json")
	if err != nil {
		return nil, fmt.Errorf("open OCI index: %w", err)
	}
	defer r.Close()
	if size > maxDocument {
		return nil, fmt.Errorf("OCI index has %d bytes, more than %d", size, maxDocument)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read OCI index: %w", err)
	}
	doc, err := parseDocument(text)
	if err != nil {
		return nil, err
	}
	for range maxNesting {
		d, err := choose(withoutArtifacts(b, doc.Manifests), arch)
		if err != nil {
			return nil, err
		}
		if doc, err = readDocument(b, d); err != nil {
			return nil, err
		}
		if len(doc.Layers) > 0 {
			return doc, nil
		}
	}
	return nil, errors.New("OCI image has no layers")
}

// choose takes the one manifest for linux on arch. A manifest that names no
// platform fits any; others (such as attestations) name one that is not ours.
// An image with several tags is one image.
func choose(list []descriptor, arch string) (descriptor, error) {
	var fit []descriptor
	var names, tags []string
	for _, d := range list {
		switch {
		case d.ArtifactType != "" || d.Annotations[annotationReference] != "":
		case d.Platform != nil && (d.Platform.OS != "linux" || d.Platform.Architecture != arch):
			names = append(names, d.Platform.OS+"/"+d.Platform.Architecture)
		case !slices.ContainsFunc(fit, func(have descriptor) bool { return have.Digest == d.Digest }):
			fit = append(fit, d)
			tags = append(tags, cmp.Or(d.Annotations[annotationTag], d.Digest))
		}
	}
	if len(fit) > 1 {
		// Of the variants of an architecture (such as amd64's v3) only the one
		// without a name runs on every machine.
		plain := slices.DeleteFunc(slices.Clone(fit), func(d descriptor) bool { return d.Platform == nil || d.Platform.Variant != "" })
		if len(plain) == 1 && !slices.ContainsFunc(fit, func(d descriptor) bool { return d.Platform == nil }) {
			return plain[0], nil
		}
	}
	switch len(fit) {
	case 1:
		return fit[0], nil
	case 0:
		return descriptor{}, fmt.Errorf("OCI index has no image for linux/%s, only %q", arch, names)
	}
	return descriptor{}, fmt.Errorf("OCI index has %d images for linux/%s, %q: copy the one that is meant, as with `skopeo copy oci-archive:FILE:TAG oci-archive:NEW`", len(fit), arch, tags)
}

// unpackOCI applies the layers of an image from the lowest to the highest.
func (t *Tree) unpackOCI(ctx context.Context, b blobs, arch string) error {
	manifest, err := findManifest(b, arch)
	if err != nil {
		return err
	}
	for i, d := range manifest.Layers {
		if err := t.unpackLayer(ctx, b, d); err != nil {
			return fmt.Errorf("OCI layer %d of %d: %w", i+1, len(manifest.Layers), err)
		}
	}
	return nil
}

func (t *Tree) unpackLayer(ctx context.Context, b blobs, d descriptor) error {
	if !strings.Contains(d.MediaType, ".tar") || strings.Contains(d.MediaType, "encrypted") {
		return fmt.Errorf("media type %q is not a tar archive", d.MediaType)
	}
	blob, err := openBlob(b, d)
	if err != nil {
		return err
	}
	defer blob.Close()
	hash := sha256.New()
	in := io.TeeReader(interruptible{ctx, blob}, hash)
	plain, close, err := decompress(in)
	if err != nil {
		return err
	}
	defer close()
	if err := t.applyLayer(ctx, plain); err != nil {
		return err
	}
	close() // the decoder of zstd reads ahead beside this
	// What follows the end of the tar belongs to the digest too.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return fmt.Errorf("read to its end: %w", err)
	}
	if sum := "sha256:" + hex.EncodeToString(hash.Sum(nil)); sum != d.Digest {
		return fmt.Errorf("has the digest %s, want %s", sum, d.Digest)
	}
	return nil
}

// layer is one layer while it is applied.
type layer struct {
	tree *Tree
	own  map[string]bool // what this layer brought, with the directories above
}

const (
	whiteout = ".wh."         // prefix: the file of that name below is gone
	opaque   = ".wh..wh..opq" // the directory's content below is gone
	ofAUFS   = ".wh..wh."     // prefix: that file system's own
)

// put adds a file, or takes away what a whiteout names. A whiteout is about
// the layers below, wherever in its layer it comes.
func (l *layer) put(e Entry, content io.Reader) error {
	// A layer may be in the form that overlayfs keeps it in, too.
	hides, deleted := e.overlaid()
	name, err := l.tree.inside(e.Name)
	if errors.Is(err, errLinks) && (deleted || strings.HasPrefix(path.Base(e.Name), whiteout)) {
		return nil // nothing can be there
	}
	if err != nil {
		return err
	}
	e.Name = name
	dir, base := path.Dir(name), path.Base(name)
	if strings.Contains(dir, ofAUFS) {
		return nil
	}
	switch {
	case base == opaque:
		return l.hideChildren(dir)
	case strings.HasPrefix(base, ofAUFS):
		return nil
	case strings.HasPrefix(base, whiteout):
		hidden, err := cleanName(strings.TrimPrefix(base, whiteout))
		if err != nil || hidden == "." {
			return fmt.Errorf("whiteout %q names no file", name)
		}
		if l.tree.dirs[dir] == nil {
			return nil // what is in a directory that is gone is gone
		}
		return l.hide(path.Join(dir, hidden))
	case deleted && l.tree.dirs[dir] == nil:
		return nil
	case deleted:
		return l.hide(name)
	case hides:
		if err := l.hideChildren(name); err != nil {
			return err
		}
	}
	for at := name; at != "." && !l.own[at]; at = path.Dir(at) {
		l.own[at] = true
	}
	return l.tree.put(e, content)
}

func (l *layer) hide(name string) error {
	if !l.own[name] {
		return l.tree.Remove(name)
	}
	if l.tree.dirs[name] == nil {
		return nil
	}
	return l.hideChildren(name)
}

func (l *layer) hideChildren(dir string) error {
	if l.tree.dirs[dir] == nil {
		return nil
	}
	names, err := l.tree.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := l.hide(path.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
