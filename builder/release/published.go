package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
)

// A published is a release that lies on a server.
type published struct {
	version   contract.Version
	release   *release.Release
	contract  *contract.Contract
	able      contract.Abilities
	signature []byte // over release.json; empty: there is none
	size      int64  // bytes of the archive
	// extensions are those that the UKI lists.
	extensions []contract.Extension
}

// errUnsigned says that a release that should be signed is not.
var errUnsigned = fmt.Errorf("%s is not signed", release.FileName)

// readPublished reads a release's description and its UKI. Its signature is judged
// at the time it was made: a key that has expired since did sign it.
func readPublished(ctx context.Context, s Server, v contract.Version, key *pgp.Key, now time.Time) (*published, error) {
	p, _, err := readPublishedUKI(ctx, s, v, key, now)
	return p, err
}

// readPublishedUKI is readPublished for somebody who wants the UKI, too.
func readPublishedUKI(ctx context.Context, s Server, v contract.Version, key *pgp.Key, now time.Time) (p *published, image []byte, err error) {
	f, err := s.Open(ctx, manifest.ArchiveName(v))
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	p = &published{version: v}
	authenticate := func(description, signature []byte) error {
		p.signature = signature
		return madeBy(key, now)(description, signature)
	}
	r, err := archive.Open(ctx, f, authenticate, archive.Options{Workers: 1})
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	p.release, p.size = r.Release(), r.Head().ArchiveSize()
	arch, imageID := s.Place()
	if err := belongs(p.release, arch, imageID, v); err != nil {
		return nil, nil, err
	}
	file, content, err := r.Next()
	if err != nil {
		return nil, nil, err
	}
	if file.Name != release.UKIFile {
		return nil, nil, fmt.Errorf("%s comes first, want %s", file.Name, release.UKIFile)
	}
	image, err = io.ReadAll(content) // as long as the signed description says
	if err != nil {
		return nil, nil, err
	}
	if err := checkEFI(file, image); err != nil {
		return nil, nil, err
	}
	if p.contract, err = checkUKI(p.release, image); err != nil {
		return p, image, err
	}
	p.able = abilities(image)
	p.extensions, err = extensionsOf(image)
	return p, image, err
}

// signer is whose key the release says that it is signed by.
func (p *published) signer() string {
	if len(p.signature) == 0 {
		return "not signed"
	}
	by, err := pgp.Issuer(p.signature)
	if err != nil {
		return err.Error()
	}
	return by.String()
}

// authenticateWith returns the check of release.json's signature by keys, each of
// which must accept it now as a machine does. None stands for releases that are not
// signed.
func authenticateWith(keys []*pgp.Key, now time.Time) archive.Authenticate {
	return authenticateBy(keys, func(k *pgp.Key, m io.Reader, signature []byte) error { return k.Verify(m, signature, now) })
}

// madeBy is authenticateWith for a release of before.
func madeBy(key *pgp.Key, now time.Time) archive.Authenticate {
	var keys []*pgp.Key
	if key != nil {
		keys = append(keys, key)
	}
	return authenticateBy(keys, func(k *pgp.Key, m io.Reader, signature []byte) error { return k.VerifyMade(m, signature, now) })
}

func authenticateBy(keys []*pgp.Key, verify func(k *pgp.Key, m io.Reader, signature []byte) error) archive.Authenticate {
	return func(description, signature []byte) error {
		switch {
		case len(keys) == 0 && len(signature) > 0:
			return fmt.Errorf("%s is there, and no key to check it", archive.SignatureFile)
		case len(keys) == 0:
			return nil
		case len(signature) == 0:
			return errUnsigned
		}
		for _, k := range keys {
			if err := verify(k, bytes.NewReader(description), signature); err != nil {
				return fmt.Errorf("%s: %w", archive.SignatureFile, err)
			}
		}
		return nil
	}
}

// belongs refuses a release that lies in another's place.
func belongs(r *release.Release, arch, imageID string, v contract.Version) error {
	if r.Arch != arch || r.ImageID != imageID || r.Version != v {
		return fmt.Errorf("is %s %s for %s, in the place of %s %s for %s", r.ImageID, r.Version, r.Arch, imageID, v, arch)
	}
	return nil
}

// asked returns the certificates, as releases of before have pinned them, that must
// accept a signature of now: those by which any key of today's could be accepted.
// lost are the releases whose certificates accept none: their machines learn of the
// renewed key from the server, unless they are of a time when machines did not.
func asked(before []*published, key *pgp.Key, now time.Time) (must []*pgp.Key, lost []contract.Version, err error) {
	if key == nil {
		return nil, nil, nil
	}
	good, err := key.SigningKeys(now)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s", err, key.Cure(err))
	}
	for _, p := range before {
		pinned, err := pgp.ParseKey(p.contract.ReleaseKey)
		if err != nil {
			return nil, nil, fmt.Errorf("release %s: its pinned release key: %w", p.version, err)
		}
		usable, err := pinned.SigningKeys(now)
		for f := range usable {
			if _, ok := good[f]; !ok {
				delete(usable, f) // revoked since
			}
		}
		if err != nil || len(usable) == 0 {
			lost = append(lost, p.version)
			continue
		}
		must = append(must, pinned)
	}
	return must, lost, nil
}
