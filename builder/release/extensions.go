package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/verity"
)

// extensionsOf is what a UKI says of its release's extensions.
func extensionsOf(image []byte) ([]contract.Extension, error) {
	img, err := uki.Parse(image)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", release.UKIFile, err)
	}
	initrd, _ := img.Section(".initrd")
	list, err := contract.ExtensionsFromInitrd(initrd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", release.UKIFile, err)
	}
	return list, nil
}

// checkExtension compares an extension's file with what the UKI says of it.
func checkExtension(ctx context.Context, e *contract.Extension, file io.ReaderAt) error {
	size, err := e.FileSize()
	if err != nil {
		return err
	}
	image, tree := io.NewSectionReader(file, 0, e.ImageSize), io.NewSectionReader(file, e.ImageSize, size-e.ImageSize)
	if err := verity.Verify(ctx, image, tree, e.VerityParams(), e.Root(), nil); err != nil {
		return fmt.Errorf("%s is not the one that the UKI lists: %w", release.ExtensionFile(e.Name), err)
	}
	return nil
}

// extension is the build of one of the build's extensions: what an archive is made of.
func (b *build) extension(ctx context.Context, e *contract.Extension) (x *build, err error) {
	f, err := os.Open(filepath.Join(b.dir, release.ExtensionFile(e.Name)))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := checkExtension(ctx, e, f); err != nil {
		return nil, err
	}
	sum, err := hashOf(f)
	if err != nil {
		return nil, err
	}
	x = &build{dir: b.dir, contract: b.contract}
	if x.release, err = release.OfExtension(b.contract, e, sum); err != nil {
		return nil, err
	}
	x.text, err = x.release.Encode()
	return x, err
}

// allExtensions are the builds of all, checked.
func (b *build) allExtensions(ctx context.Context) ([]*build, error) {
	var all []*build
	for i := range b.extensions {
		x, err := b.extension(ctx, &b.extensions[i])
		if err != nil {
			return nil, fmt.Errorf("extension %s: %w", b.extensions[i].Name, err)
		}
		all = append(all, x)
	}
	return all, nil
}

// publishedExtension reads the head and the index of an extension on a server, and refuses
// one that is not what the release's UKI lists. It returns how large the archive is as it
// should be.
func (p source) publishedExtension(ctx context.Context, of *published, e *contract.Extension) (head *archive.Head, index *blockindex.Index, err error) {
	f, err := p.server.Open(ctx, manifest.ExtensionArchiveName(of.version, e.Name))
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if head, err = archive.ReadExtensionHead(f, madeBy(p.key, p.now)); err != nil {
		return nil, nil, err
	}
	if err := head.Release.MatchesExtension(of.contract, e); err != nil {
		return nil, nil, err
	}
	index, err = indexBehind(f, head)
	return head, index, err
}

// wholeExtensions refuses a release whose extensions are not all on the server, by the key
// that signed the release: a machine that has one enabled would go without it.
func (p source) wholeExtensions(ctx context.Context, of *published) error {
	for i := range of.extensions {
		e := &of.extensions[i]
		head, _, err := p.publishedExtension(ctx, of, e)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: put it there, or back from a copy", err)
		}
		if err == nil && p.key != nil {
			err = sameSigner(head.Signature, of.signature)
		}
		if err != nil {
			return fmt.Errorf("extension %s of release %s: %w", e.Name, of.version, err)
		}
	}
	return nil
}

// sameSigner refuses an extension that another key has signed than the release, which
// machines may not know.
func sameSigner(signature, of []byte) error {
	by, err := pgp.Issuer(signature)
	if err != nil {
		return err
	}
	if want, err := pgp.Issuer(of); err != nil || by != want {
		return errors.Join(fmt.Errorf("is signed by the key %s, and the release by %s: publish both with one", by, want), err)
	}
	return nil
}

// writeExtensions puts the archives of the extensions beside the release's.
func (p *publisher) writeExtensions(ctx context.Context, dir string) error {
	for _, x := range p.extensions {
		name := filepath.Base(manifest.ExtensionArchiveName(x.release.Version, x.release.Extension))
		if _, err := p.writeArchive(ctx, dir, name, x); err != nil {
			return fmt.Errorf("extension %s: %w", x.release.Extension, err)
		}
	}
	return nil
}

// reuseExtensions refuses a release that is on the server with other extensions, or without.
func (p *publisher) reuseExtensions(ctx context.Context, have *published) error {
	from := source{Directory(p.dir), p.site.key, p.Now}
	if err := from.wholeExtensions(ctx, have); err != nil {
		return err
	}
	for i, x := range p.extensions {
		head, _, err := from.publishedExtension(ctx, have, &p.build.extensions[i])
		if err != nil {
			return err
		}
		text, err := head.Release.Build().Encode()
		if err != nil {
			return err
		}
		if !bytes.Equal(text, x.text) {
			return fmt.Errorf("extension %s of release %s is on the server already, with other content: a version is never published twice", x.release.Extension, have.version)
		}
	}
	return nil
}

// noteChanged says what becomes of machines with an older release that have an extension enabled:
// where this release has none of that name any more, and where it calls it essential, which that
// one did not. older are the releases before, the oldest first; each extension is said once, for
// the newest of them.
func noteChanged(older []*published, is []contract.Extension, note func(string, ...any)) {
	said := make(map[string]bool)
	for _, old := range slices.Backward(older) {
		for _, had := range old.extensions {
			at := slices.IndexFunc(is, func(e contract.Extension) bool { return e.Name == had.Name })
			switch {
			case said[had.Name]:
			case at < 0:
				note("WARNING: release %s has the extension %s, and this one has none of that name: machines that have it enabled start without it", old.version, had.Name)
			case is[at].Essential && !had.Essential:
				note("extension %s is essential from now on, and was not in release %s: machines that have it enabled take this release with it alone, and do not start it without", had.Name, old.version)
			}
			said[had.Name] = true
		}
	}
}

// noteExtensions says what machines with the extensions of the version before fetch of
// those of a release.
func (p source) noteExtensions(ctx context.Context, from, to contract.Version, note func(string, ...any)) error {
	is, err := readPublished(ctx, p.server, to, p.key, p.now)
	if err != nil || len(is.extensions) == 0 {
		return err
	}
	was, err := readPublished(ctx, p.server, from, p.key, p.now)
	if err != nil {
		return err
	}
	for i := range is.extensions {
		e := &is.extensions[i]
		old := slices.IndexFunc(was.extensions, func(o contract.Extension) bool { return o.Name == e.Name })
		if old < 0 {
			continue
		}
		d, err := p.extensionDelta(ctx, was, &was.extensions[old], is, e)
		if err != nil {
			return fmt.Errorf("extension %s: %w", e.Name, err)
		}
		note("extension %s %s", e.Name, d)
	}
	return nil
}

func (p source) extensionDelta(ctx context.Context, was *published, had *contract.Extension, is *published, e *contract.Extension) (*Delta, error) {
	_, old, err := p.publishedExtension(ctx, was, had)
	if err != nil {
		return nil, err
	}
	head, index, err := p.publishedExtension(ctx, is, e)
	if err != nil {
		return nil, err
	}
	d := &Delta{From: was.version, Archive: head.ArchiveSize(), Bytes: head.Size, Requests: 2}
	if place, ok := head.Place(release.IndexFile); ok {
		d.Bytes += place.Packed
	}
	name := release.ExtensionFile(e.Name)
	f, ok := index.File(name)
	has, had2 := old.File(name)
	if !ok || !had2 {
		return nil, fmt.Errorf("%s does not have %s", release.IndexFile, name)
	}
	return d, d.add(f, []*blockindex.File{has}, e.Salt, nil)
}

// checkExtensions checks the extensions of a release as machines do that have them enabled.
func (v *verifier) checkExtensions(ctx context.Context, version contract.Version) {
	for i := range v.extensions {
		e := &v.extensions[i]
		err := v.checkSigned(ctx, manifest.ExtensionArchiveName(version, e.Name), func(packed io.Reader) error { return v.unpackExtension(ctx, packed, e) })
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: upload it", err)
		}
		if err != nil {
			v.fault(fmt.Errorf("extension %s of release %s: %w", e.Name, version, err))
			continue
		}
		v.Note("extension %s of release %s is good", e.Name, version)
	}
}

// unpackExtension checks what is in the archive of an extension.
func (v *verifier) unpackExtension(ctx context.Context, packed io.Reader, e *contract.Extension) error {
	members := new(members)
	r, err := archive.Open(ctx, packed, authenticateWith(v.must, v.Now), archive.Options{Members: members.add, Extension: true})
	if err != nil {
		return err
	}
	defer r.Close()
	members.next = r.Head().Size
	if err := r.Release().MatchesExtension(v.contract, e); err != nil {
		return err
	}
	files := indexed{salt: e.Salt}
	for {
		f, content, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files.checkMembers(members)
		}
		if err == nil && f.Name == release.IndexFile {
			err = files.read(r.Head(), content)
		} else if err == nil {
			err = spooled(content, func(file *os.File) error {
				return errors.Join(checkExtension(ctx, e, file), files.check(f.Name, file))
			})
		}
		if err != nil {
			return err
		}
	}
}

// archiveExtensions makes the archives of the extensions for somebody who signs by hand.
func (b *build) archiveExtensions(ctx context.Context, o ArchiveOptions) ([]ArchiveResult, error) {
	all, err := b.allExtensions(ctx)
	if err != nil {
		return nil, err
	}
	var made []ArchiveResult
	for _, x := range all {
		name := x.release.Extension
		r, err := x.archive(ctx, o.Out, filepath.Base(manifest.ExtensionArchiveName(x.release.Version, name)), name+"."+release.FileName, o.Now)
		if err != nil {
			return nil, fmt.Errorf("extension %s: %w", name, err)
		}
		r.Extension = name
		made = append(made, *r)
	}
	return made, nil
}

// noteDeltas says what machines with the version before fetch of a release's extensions.
func noteDeltas(ctx context.Context, p source, d *Delta, v contract.Version, note func(string, ...any)) {
	if d == nil {
		return
	}
	if err := p.noteExtensions(ctx, d.From, v, note); err != nil {
		note("cannot tell how much machines fetch of the extensions: %v", err)
	}
}
