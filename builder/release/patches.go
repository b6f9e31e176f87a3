package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/patch"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/verity"
	"halogenos.internal/builder/patches"
)

// patchable refuses versions that there can be no patches from.
func (p *publisher) patchable(context.Context) error {
	for _, v := range p.PatchFrom {
		if v >= p.build.release.Version {
			return fmt.Errorf("patches from version %s to %s: machines take nothing older", v, p.build.release.Version)
		}
		if _, err := os.Stat(filepath.Join(p.dir, manifest.ArchiveName(v))); err != nil {
			return fmt.Errorf("patches from version %s: its archive must be on the server: %w", v, err)
		}
	}
	return nil
}

// writePatches makes the patches from older versions and puts them beside the archive. They
// may come later than that: machines take those whose signature fits, and do without
// meanwhile. The table comes after what it lists, and its signature first: cut in between,
// machines pass over what does not fit.
func (p *publisher) writePatches(ctx context.Context) error {
	for _, v := range p.PatchFrom {
		if err := p.patchFrom(ctx, v); err != nil {
			return fmt.Errorf("patches from version %s: %w", v, err)
		}
	}
	return nil
}

func (p *publisher) patchFrom(ctx context.Context, v contract.Version) (err error) {
	start := time.Now()
	file, err := os.CreateTemp(p.dir, unfinished)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	source := source{Directory(p.dir), p.site.key, p.Now}
	was, err := source.image(ctx, v, file)
	if err != nil {
		return err
	}
	fresh, err := os.Open(filepath.Join(p.Build, release.ImageFile))
	if err != nil {
		return err
	}
	defer fresh.Close()
	table, packed, err := patches.Make(ctx, imageOf(was, file), imageOf(p.build.release, fresh))
	if err != nil {
		return err
	}
	if len(table.Groups) == 0 {
		p.Note("patches from version %s would spare nothing: the two images have no files in common that lie without compression (Modules=plain)", v)
		return nil
	}
	if err := p.putPatches(v, table, packed); err != nil {
		return err
	}
	p.Note("patches from version %s: %.1f MB, in %.1f s", v, float64(len(packed))/1e6, time.Since(start).Seconds())
	return nil
}

func imageOf(r *release.Release, content io.ReaderAt) patches.Image {
	return patches.Image{Content: content, Root: verity.Root(r.RootHash), Blocks: int(r.ImageSize / verity.BlockSize)}
}

// putPatches writes the files.
func (p *publisher) putPatches(from contract.Version, table *patch.Table, packed []byte) error {
	text, err := table.Encode()
	if err != nil {
		return err
	}
	to := p.build.release.Version
	if err := writeFile(p.dir, patch.FileName(to, from), packed); err != nil {
		return err
	}
	if p.signer != nil {
		signature, err := p.signer.Sign(bytes.NewReader(text), p.Now)
		if err != nil {
			return fmt.Errorf("sign %s: %w", patch.TableName(to, from), err)
		}
		if err := writeFile(p.dir, patch.SignatureName(to, from), signature); err != nil {
			return err
		}
	}
	return writeFile(p.dir, patch.TableName(to, from), text)
}

// image unpacks a release's system image, and compares it with the description.
func (p source) image(ctx context.Context, v contract.Version, to io.Writer) (r *release.Release, err error) {
	f, err := p.server.Open(ctx, manifest.ArchiveName(v))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	a, err := archive.Open(ctx, f, madeBy(p.key, p.now), archive.Options{})
	if err != nil {
		return nil, err
	}
	defer a.Close()
	arch, imageID := p.server.Place()
	if err := belongs(a.Release(), arch, imageID, v); err != nil {
		return nil, err
	}
	for {
		file, content, err := a.Next()
		if err != nil {
			return nil, err // the image comes last, and is always there
		}
		if file.Name != release.ImageFile {
			if _, err := io.Copy(io.Discard, content); err != nil {
				return nil, err
			}
			continue
		}
		_, err = io.Copy(to, content)
		return a.Release(), err
	}
}

// patchTable reads the table of patches between two releases on a server; nil where there
// is none that machines take.
func (p source) patchTable(ctx context.Context, from, to contract.Version) *patch.Table {
	text, err := p.server.Get(ctx, patch.TableName(to, from), patch.MaxTable)
	if err != nil {
		return nil
	}
	signature, err := p.server.Get(ctx, patch.SignatureName(to, from), archive.MaxSignature)
	if err != nil && p.key != nil {
		return nil
	}
	if err := madeBy(p.key, p.now)(text, signature); err != nil {
		return nil
	}
	t, err := patch.ParseTable(text)
	if err != nil {
		return nil
	}
	return t
}
