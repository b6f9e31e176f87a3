package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
)

// VerifyOptions say what a server must show.
type VerifyOptions struct {
	// Key is the key that machines have pinned; nil stands for the one that
	// the server shows, which then is only consistent with itself.
	Key *pgp.Key
	Now time.Time
	// Note is told what is being checked and was found good.
	Note func(format string, args ...any)
}

// verifier checks one image's folder.
type verifier struct {
	VerifyOptions
	server   Server
	manifest *manifest.Manifest
	text     []byte // of the manifest
	faults   []error
}

// Verify checks all that a machine would, for every release that the manifest
// names, and returns everything that is wrong.
func Verify(ctx context.Context, server Server, o VerifyOptions) error {
	v := &verifier{VerifyOptions: o, server: server}
	if err := v.readManifest(ctx); err != nil {
		return err
	}
	if err := v.readKey(ctx); err != nil {
		return err
	}
	v.fault(v.checkManifestSignature(ctx))
	if e := v.manifest.Expires; !e.IsZero() && !v.Now.Before(e) {
		v.fault(fmt.Errorf("%s has expired on %s", manifest.FileName, e.Format(time.DateTime)))
	}
	var seen []contract.Version
	for _, c := range manifest.Channels() {
		version := v.manifest.Entry(c).Version
		if version == 0 {
			continue
		}
		v.fault(v.checkLink(c, version))
		if slices.Contains(seen, version) {
			continue
		}
		seen = append(seen, version)
		if err := v.checkRelease(ctx, version); err != nil {
			v.fault(fmt.Errorf("release %s, in %s: %w", version, c, err))
		} else {
			v.Note("release %s, in %s, is good", version, c)
			noteDelta(ctx, source{v.server, v.Key, v.Now}, version, v.Note)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(v.faults...)
}

func (v *verifier) fault(err error) {
	if err != nil {
		v.faults = append(v.faults, err)
	}
}

// file reads a small file.
func (v *verifier) file(ctx context.Context, name string, limit int64) ([]byte, error) {
	f, err := v.server.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	text, err := readAll(f, limit)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return text, nil
}

func (v *verifier) readManifest(ctx context.Context) (err error) {
	if v.text, err = v.file(ctx, manifest.FileName, manifest.MaxSize); err != nil {
		return err
	}
	v.manifest, err = manifest.Parse(v.text)
	return err
}

// readKey reads the server's key and compares it with the one that is wanted.
func (v *verifier) readKey(ctx context.Context) error {
	if v.manifest.PubKey == "" {
		if v.Key != nil {
			return fmt.Errorf("the releases are not signed, want signatures by %s", v.Key.Fingerprint())
		}
		v.Note("WARNING: the releases are not signed")
		return nil
	}
	text, err := v.file(ctx, v.manifest.PubKey, pgp.MaxKey)
	if err != nil {
		return err
	}
	shown, err := pgp.ParseKey(text)
	if err != nil {
		return fmt.Errorf("%s: %w", v.manifest.PubKey, err)
	}
	if v.Key != nil && v.Key.Fingerprint() != shown.Fingerprint() {
		return fmt.Errorf("%s is the key %s, want %s", v.manifest.PubKey, shown.Fingerprint(), v.Key.Fingerprint())
	}
	if v.Key == nil {
		v.Key = shown
		v.Note("WARNING: believing the server's own key, %s: name the pinned one to check it too", shown.Fingerprint())
	}
	v.fault(v.Key.Check(v.Now))
	return nil
}

// checkManifestSignature checks the manifest's signature, where there is one.
func (v *verifier) checkManifestSignature(ctx context.Context) error {
	signature, err := v.file(ctx, manifest.SignatureName, pgp.MaxSignature)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case v.Key == nil:
		return fmt.Errorf("%s is there, and no key to check it", manifest.SignatureName)
	}
	if err := v.Key.Verify(bytes.NewReader(v.text), signature, v.Now); err != nil {
		return fmt.Errorf("%s: %w", manifest.SignatureName, err)
	}
	return nil
}

// checkLink checks the link that leads people to a channel's release.
func (v *verifier) checkLink(c manifest.Channel, version contract.Version) error {
	folder, ok := v.server.(Folder)
	if !ok {
		return nil // over HTTP a link is not told from what it leads to
	}
	target, err := os.Readlink(string(folder) + "/" + string(c))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if target != version.String() {
		return fmt.Errorf("the link %s leads to %s, %s names %s", c, target, manifest.FileName, version)
	}
	return nil
}

// checkRelease reads an archive once, front to back, and checks all of it on
// the way: the signature over the archive, the one inside, every file.
func (v *verifier) checkRelease(ctx context.Context, version contract.Version) (err error) {
	signature, err := v.file(ctx, manifest.ArchiveSignatureName(version), pgp.MaxSignature)
	switch {
	case v.Key == nil && errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case v.Key == nil:
		return errors.New("is signed, and there is no key to check it")
	}
	packed, err := v.server.Open(ctx, manifest.ArchiveName(version))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, packed.Close()) }()
	if v.Key == nil {
		return v.unpack(ctx, packed, version)
	}
	whole, tee := io.Pipe()
	verified := make(chan error, 1)
	go func() {
		err := v.Key.Verify(whole, signature, v.Now)
		// A reason found early must not hold up the rest.
		_, copied := io.Copy(io.Discard, whole)
		verified <- errors.Join(err, copied)
	}()
	err = v.unpack(ctx, io.TeeReader(packed, tee), version)
	tee.CloseWithError(err) // nil: the end of the archive
	if failed := <-verified; err == nil && failed != nil {
		return fmt.Errorf("%s: %w", manifest.ArchiveSignatureName(version), failed)
	}
	return err
}

// unpack checks what is in an archive.
func (v *verifier) unpack(ctx context.Context, packed io.Reader, version contract.Version) error {
	members := new(members)
	r, err := archive.Open(ctx, packed, authenticateWith(v.Key, v.Now), archive.Options{Members: members.add})
	if err != nil {
		return err
	}
	defer r.Close()
	members.next = r.Head().Size
	d := r.Release()
	arch, imageID := v.server.Place()
	if err := belongs(d, arch, imageID, version); err != nil {
		return err
	}
	var c *contract.Contract
	files := indexed{salt: d.Salt}
	for {
		f, content, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files.checkMembers(members)
		}
		if err != nil {
			return err
		}
		switch f.Name {
		case release.ImageFile:
			err = unpackImage(ctx, c, files, content)
		case release.IndexFile:
			err = files.read(r.Head(), content)
		default:
			c, err = v.unpackEFI(d, f, content, c, &files)
		}
		if err != nil {
			return err
		}
	}
}

// unpackEFI checks an EFI file; the UKI gives the boot contract.
func (v *verifier) unpackEFI(d *release.Release, f release.File, content io.Reader, c *contract.Contract, files *indexed) (*contract.Contract, error) {
	image, err := io.ReadAll(content) // as long as the signed description says
	if err != nil {
		return nil, err
	}
	files.contents = append(files.contents, image)
	if err := checkEFI(f, image); err != nil || f.Name != release.UKIFile {
		return c, err
	}
	if c, err = checkUKI(d, image); err != nil {
		return nil, err
	}
	return c, v.checkPinned(c)
}

// checkPinned refuses a release after which machines would want another key.
func (v *verifier) checkPinned(c *contract.Contract) error {
	if v.Key == nil && len(c.ReleaseKey) == 0 {
		return nil
	}
	if v.Key == nil || len(c.ReleaseKey) == 0 {
		return errors.New("only one of the server and the boot contract has a release key")
	}
	pinned, err := pgp.ParseKey(c.ReleaseKey)
	if err != nil {
		return fmt.Errorf("the boot contract's release key: %w", err)
	}
	if pinned.Fingerprint() != v.Key.Fingerprint() {
		return fmt.Errorf("the boot contract has pinned the key %s, want %s", pinned.Fingerprint(), v.Key.Fingerprint())
	}
	return nil
}

// unpackImage checks the root hash and the blocks of the system image. The tree's blocks are
// read by several goroutines, so that the image is kept until then.
func unpackImage(ctx context.Context, c *contract.Contract, files indexed, content io.Reader) (err error) {
	f, err := os.CreateTemp("", "halogen-verify-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	if err := checkImage(ctx, c, f); err != nil {
		return err
	}
	return files.check(release.ImageFile, f)
}
