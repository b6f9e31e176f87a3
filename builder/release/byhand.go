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
	signature, err := files.Read(filepath.Join(o.Out, archive.SignatureFile), pgp.MaxSignature)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	name := filepath.Base(manifest.ArchiveName(b.release.Version))
	r := &ArchiveResult{Archive: filepath.Join(o.Out, name), Description: filepath.Join(o.Out, release.FileName), Signed: len(signature) > 0}
	if r.Signed && len(b.contract.ReleaseKey) == 0 {
		return nil, errors.New("the image has pinned no release key (ReleaseKey=none), so that no machine would check a signature")
	}
	sign := func(description []byte) ([]byte, error) {
		if err := writeFile(o.Out, release.FileName, description); err != nil || !r.Signed {
			return nil, err
		}
		return b.binary(description, signature, o.Now)
	}
	f, err := os.CreateTemp(o.Out, unfinished)
	if err != nil {
		return nil, err
	}
	err = b.pack(ctx, f, sign)
	if err := errors.Join(err, finish(f)); err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(f.Name()))
	}
	return r, place(o.Out, f.Name(), name)
}

// binary checks a signature that somebody has made over the description.
func (b *build) binary(description, signature []byte, now time.Time) ([]byte, error) {
	key, err := pgp.ParseKey(b.contract.ReleaseKey)
	if err != nil {
		return nil, fmt.Errorf("the image's pinned release key: %w", err)
	}
	if err := lasts(signature); err != nil {
		return nil, fmt.Errorf("%s: %w", archive.SignatureFile, err)
	}
	if err := key.Verify(bytes.NewReader(description), signature, now); err != nil {
		return nil, fmt.Errorf("%s: %w. It must be over the %s beside it, by the key %s: gpg --local-user %[4]s --detach-sign %[3]s", archive.SignatureFile, err, release.FileName, key.Fingerprint())
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
