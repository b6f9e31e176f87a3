package release

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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

// patched is the files of patches from an older version, as they will be on the server.
type patched struct {
	from                     contract.Version
	table, signature, packed []byte
}

// makePatches makes the patches from older versions, before anything of the release is
// written: an old image may turn out to be one that there are none from.
func (p *publisher) makePatches(ctx context.Context) error {
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
	table, packed, err := patches.Make(ctx, patches.Image{Image: imageOf(was), Content: file}, patches.Image{Image: imageOf(p.build.release), Content: fresh})
	if err != nil {
		return err
	}
	if len(table.Groups) == 0 {
		p.Note("patches from version %s would spare nothing: the two images have no files in common that lie without compression (Modules=plain)", v)
		return nil
	}
	made := patched{from: v, packed: packed}
	if made.table, err = table.Encode(); err != nil {
		return err
	}
	if p.signer != nil {
		if made.signature, err = p.signer.Sign(bytes.NewReader(made.table), p.Now); err != nil {
			return fmt.Errorf("sign %s: %w", patch.TableName(p.build.release.Version, v), err)
		}
	}
	p.patches = append(p.patches, made)
	p.Note("patches from version %s: %.1f MB, in %.1f s", v, float64(len(packed))/1e6, time.Since(start).Seconds())
	return nil
}

func imageOf(r *release.Release) patch.Image {
	return patch.Image{Root: verity.Root(r.RootHash), Blocks: int(r.ImageSize / verity.BlockSize)}
}

// putPatches puts the patches beside the archive. They may come later than that: machines
// take those whose signature fits, and do without meanwhile. The table comes after what it
// lists, and its signature first: cut in between, machines pass over what does not fit.
func (p *publisher) putPatches(context.Context) error {
	to := p.build.release.Version
	for _, made := range p.patches {
		if err := writeFile(p.dir, patch.FileName(to, made.from), made.packed); err != nil {
			return err
		}
		if p.signer != nil {
			if err := writeFile(p.dir, patch.SignatureName(to, made.from), made.signature); err != nil {
				return err
			}
		}
		if err := writeFile(p.dir, patch.TableName(to, made.from), made.table); err != nil {
			return err
		}
	}
	return nil
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

// patchTable reads the table of patches from one image to another, and how many bytes it has.
// The error is fs.ErrNotExist where there is none, and another where it is refused. check is
// given the name of the signature, the table and the signature.
func (p source) patchTable(ctx context.Context, old, fresh *release.Release, check func(name string, text, signature []byte) error) (*patch.Table, int, error) {
	name := patch.TableName(fresh.Version, old.Version)
	text, err := p.server.Get(ctx, name, patch.MaxTable)
	if err != nil {
		return nil, 0, err
	}
	signature, err := p.server.Get(ctx, patch.SignatureName(fresh.Version, old.Version), archive.MaxSignature)
	if err != nil && p.key != nil {
		return nil, 0, fmt.Errorf("%s has no signature that can be read: %v", name, err)
	}
	if err := check(patch.SignatureName(fresh.Version, old.Version), text, signature); err != nil {
		return nil, 0, err
	}
	t, err := patch.ParseTable(text)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", name, err)
	}
	if err := t.Fits(imageOf(old), imageOf(fresh)); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", name, err)
	}
	return t, len(text), nil
}

// made checks a table's signature as one of before.
func (p source) made(name string, text, signature []byte) error {
	if err := madeBy(p.key, p.now)(text, signature); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// signed checks a table's signature as the release's own: each key of the machines that may
// take it must accept it now, and for ever.
func (v *verifier) signed(name string, text, signature []byte) error {
	if len(signature) > 0 {
		if err := v.lasts(name, signature); err != nil {
			return err
		}
	}
	if err := authenticateWith(v.must, v.Now)(text, signature); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// checkPatches reads the patches from all older versions that are known of. Machines update
// without those that are wrong, and fetch more than they need.
func (v *verifier) checkPatches(ctx context.Context, to contract.Version) {
	all, err := v.server.Versions(ctx)
	if err != nil {
		return // what a server offers is told elsewhere
	}
	all = append(all, v.manifest.Steps...)
	for _, w := range v.manifest.Withdrawn {
		all = append(all, w.Version)
	}
	slices.Sort(all)
	for _, from := range slices.Compact(all) {
		if from >= to {
			continue
		}
		blocks, err := v.checkPatchesFrom(ctx, from, to)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, errUnchecked):
			v.Note("WARNING: patches from version %s to %s are %v", from, to, err)
		case err != nil:
			v.fault(fmt.Errorf("patches from version %s to %s: %w: make them again with 'halogen release --patch-from %s'", from, to, err, from))
		default:
			v.Note("patches from version %s to %s are good, for %d blocks", from, to, blocks)
		}
	}
	if _, listed := v.server.(Directory); !listed {
		v.Note("patches to version %s from versions that %s does not name are not looked for over HTTP, which lists no files", to, manifest.FileName)
	}
}

// errUnchecked says that there is nothing to compare patches with.
var errUnchecked = errors.New("not checked")

// checkPatchesFrom compares the file of patches with its table, and returns how many blocks
// they make. The error is fs.ErrNotExist where there is no table, and errUnchecked where the
// old version's archive is missing or cannot be read.
func (v *verifier) checkPatchesFrom(ctx context.Context, from, to contract.Version) (blocks int, err error) {
	p := source{v.server, v.Key, v.Now}
	if _, err := p.server.Get(ctx, patch.TableName(to, from), patch.MaxTable); err != nil {
		return 0, err
	}
	old, _, err := p.index(ctx, from)
	if err != nil {
		return 0, fmt.Errorf("%w: the archive of version %s is missing or cannot be read: %v", errUnchecked, from, err)
	}
	fresh, _, err := p.index(ctx, to)
	if err != nil {
		return 0, err
	}
	t, _, err := p.patchTable(ctx, old.Release, fresh.Release, v.signed)
	if err != nil {
		return 0, err
	}
	name := patch.FileName(to, from)
	f, err := p.server.Open(ctx, name)
	if err != nil {
		return 0, fmt.Errorf("%s: %v", name, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, g := range t.Groups {
		sum := sha256.New()
		if _, err := io.CopyN(sum, f, g.Size); err != nil {
			return 0, fmt.Errorf("%s, %d bytes at byte %d: %v", name, g.Size, g.Offset, err)
		}
		if !bytes.Equal(sum.Sum(nil), g.SHA256[:]) {
			return 0, fmt.Errorf("%s, %d bytes at byte %d: %w", name, g.Size, g.Offset, patch.ErrDamaged)
		}
		for _, e := range g.Extents {
			blocks += e.NewBlocks
		}
	}
	return blocks, nil
}
