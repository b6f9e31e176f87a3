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
	"time"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/builder/files"
)

// ArchiveOptions say of what an archive is made for somebody who signs and publishes
// by hand.
type ArchiveOptions struct {
	Build string // that halogen build filled
	Out   string // directory of the release, made when missing: <n> on the server
	Now   time.Time
	// Revocations are entries for dbx that the release brings to machines.
	Revocations secureboot.Database
}

// An ArchiveResult says what is there now, and what is still to be done.
type ArchiveResult struct {
	Archive     string `json:"archive"`
	Description string `json:"description"` // release.json, to be signed
	Signed      bool   `json:"signed"`      // release.json's signature is in the archive
	// Extension is the name of the extension whose archive it is; empty for the release's.
	Extension string `json:"extension,omitempty"`
	// Extensions are those of the release, each with an archive of its own.
	Extensions []ArchiveResult `json:"extensions,omitempty"`
}

// Archive writes a build's archive and, beside it, the release.json that is in it.
// Where release.json.pgp is there too, made by gpg or whatever else, it is checked
// with the key that the image has pinned and put into the archive. The archive is the
// same each time, so the signature made for the first one fits the second.
func Archive(ctx context.Context, o ArchiveOptions) (*ArchiveResult, error) {
	b, err := loadBuild(o.Build)
	if err != nil {
		return nil, badBuild(o.Build, err)
	}
	if err := b.revoke(o.Revocations); err != nil {
		return nil, err
	}
	if err := makeDirectories(o.Out); err != nil {
		return nil, err
	}
	r, err := b.archive(ctx, o.Out, filepath.Base(manifest.ArchiveName(b.release.Version)), release.FileName, o.Now)
	if err != nil {
		return nil, err
	}
	r.Extensions, err = b.archiveExtensions(ctx, o)
	return r, err
}

// archive writes the archive of a release or of an extension, with the signature that lies
// beside its description.
func (b *build) archive(ctx context.Context, out, name, describedBy string, now time.Time) (*ArchiveResult, error) {
	signature, err := files.Read(filepath.Join(out, describedBy+".pgp"), pgp.MaxSignature)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	r := &ArchiveResult{Archive: filepath.Join(out, name), Description: filepath.Join(out, describedBy), Signed: len(signature) > 0}
	if r.Signed && len(b.contract.ReleaseKey) == 0 {
		return nil, errors.New("the image has pinned no release key (ReleaseKey=none), so that no machine would check a signature")
	}
	sign := func(description []byte) ([]byte, error) {
		if err := writeFile(out, describedBy, description); err != nil || !r.Signed {
			return nil, err
		}
		return b.binary(description, signature, describedBy, now)
	}
	f, err := os.CreateTemp(out, unfinished)
	if err != nil {
		return nil, err
	}
	err = b.pack(ctx, f, sign)
	if err := errors.Join(err, finish(f)); err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(f.Name()))
	}
	return r, place(out, f.Name(), name)
}

// binary checks a signature that somebody has made over the description.
func (b *build) binary(description, signature []byte, name string, now time.Time) ([]byte, error) {
	key, err := pgp.ParseKey(b.contract.ReleaseKey)
	if err != nil {
		return nil, fmt.Errorf("the image's pinned release key: %w", err)
	}
	if err := lasts(signature); err != nil {
		return nil, fmt.Errorf("%s.pgp: %w", name, err)
	}
	if err := key.Verify(bytes.NewReader(description), signature, now); err != nil {
		return nil, fmt.Errorf("%s.pgp: %w. It must be over the %[1]s beside it, by the key %[3]s: gpg --local-user %[3]s --detach-sign %[1]s", name, err, key.Fingerprint())
	}
	return signature, nil
}

// pack writes the build's archive. What is packed lies beside it for a while, in a
// file without a name.
func (b *build) pack(ctx context.Context, w *os.File, sign func([]byte) ([]byte, error)) error {
	spool, err := os.CreateTemp(filepath.Dir(w.Name()), unfinished)
	if err != nil {
		return err
	}
	if err := os.Remove(spool.Name()); err != nil {
		return errors.Join(err, spool.Close())
	}
	open := func(file release.File) (io.ReadCloser, error) { return os.Open(filepath.Join(b.dir, file.Name)) }
	_, err = archive.Write(ctx, w, spool, archive.Input{Build: b.release, Sign: sign, Open: open}, archive.Options{})
	return errors.Join(err, spool.Close())
}
