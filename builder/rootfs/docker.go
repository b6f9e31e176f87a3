package rootfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// dockerImage is an image of what `docker save`, `podman save` and skopeo's
// docker-archive write: manifest.json has a list of them (Docker Image
// Specification 1.2, "Combined Image JSON + Filesystem Changeset Format").
type dockerImage struct {
	Config   string   `json:"Config"`
	RepoTags []string `json:"RepoTags"`
	Layers   []string `json:"Layers"`
}

// dockerImages returns the images of an archive; none where its manifest.json
// is something else.
func dockerImages(b blobs) ([]dockerImage, error) {
	text, err := readSmall(b, "manifest.json")
	if err != nil {
		return nil, err
	}
	var images []dockerImage
	if json.Unmarshal(text, &images) != nil {
		return nil, nil // a file of a root file system
	}
	images = slices.DeleteFunc(images, func(i dockerImage) bool { return i.Config == "" && len(i.Layers) == 0 })
	return images, nil
}

func readSmall(b blobs, name string) ([]byte, error) {
	r, size, err := b.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > maxDocument {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", name, size, maxDocument)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return text, nil
}

// unpackDocker applies the layers of the one image for the architecture.
func (t *Tree) unpackDocker(ctx context.Context, b blobs, images []dockerImage, arch string) error {
	var fit []dockerImage
	var diffs []string
	var others []string
	for _, image := range images {
		text, err := readSmall(b, path.Clean(image.Config))
		if err != nil {
			return fmt.Errorf("docker archive: configuration of %q: %w", image.RepoTags, err)
		}
		var c struct {
			Architecture string `json:"architecture"`
			OS           string `json:"os"`
			RootFS       struct {
				DiffIDs []string `json:"diff_ids"`
			} `json:"rootfs"`
		}
		if err := json.Unmarshal(text, &c); err != nil {
			return fmt.Errorf("docker archive: configuration of %q: %w", image.RepoTags, err)
		}
		if c.OS != "linux" || c.Architecture != arch {
			others = append(others, c.OS+"/"+c.Architecture)
			continue
		}
		if !slices.ContainsFunc(fit, func(have dockerImage) bool { return have.Config == image.Config }) {
			fit, diffs = append(fit, image), c.RootFS.DiffIDs
		}
	}
	switch {
	case len(fit) == 0:
		return fmt.Errorf("docker archive has no image for linux/%s, only %q", arch, others)
	case len(fit) > 1:
		var tags []string
		for _, image := range fit {
			tags = append(tags, strings.Join(image.RepoTags, "="))
		}
		return fmt.Errorf("docker archive has %d images, %q: save the one that is meant", len(fit), tags)
	case len(fit[0].Layers) == 0 || len(fit[0].Layers) > maxLayers:
		return fmt.Errorf("docker archive: image with %d layers, want 1 to %d", len(fit[0].Layers), maxLayers)
	case len(fit[0].Layers) != len(diffs):
		return fmt.Errorf("docker archive has %d layers, and the image's configuration names %d", len(fit[0].Layers), len(diffs))
	}
	for i, name := range fit[0].Layers {
		if err := t.unpackDiff(ctx, b, path.Clean(name), diffs[i]); err != nil {
			return fmt.Errorf("layer %d of %d: %w", i+1, len(diffs), err)
		}
	}
	return nil
}

// unpackDiff applies a layer and checks the digest of what it is unpacked.
func (t *Tree) unpackDiff(ctx context.Context, b blobs, name, want string) error {
	blob, _, err := b.open(name)
	if err != nil {
		return err
	}
	defer blob.Close()
	plain, close, err := decompress(interruptible{ctx, blob})
	if err != nil {
		return err
	}
	defer close()
	hash := sha256.New()
	in := io.TeeReader(plain, hash)
	if err := t.applyLayer(ctx, in); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return fmt.Errorf("read to its end: %w", err)
	}
	if sum := "sha256:" + hex.EncodeToString(hash.Sum(nil)); sum != want {
		return fmt.Errorf("%s has the digest %s, want %s", name, sum, want)
	}
	return nil
}

// applyLayer applies the tar of a layer. That it is whole, its digest tells:
// some tools write no end mark, and a layer without a change has no files.
func (t *Tree) applyLayer(ctx context.Context, plain io.Reader) error {
	l := layer{tree: t, own: make(map[string]bool)}
	if err := unpackTar(ctx, plain, l.put); err != nil && !errors.Is(err, errCutOff) {
		return err
	}
	return nil
}
