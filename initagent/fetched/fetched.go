// Package fetched reads what the fetcher has left of a release, for the steps that put
// it to use: staging, and the exchange of the boot manager.
//
// It refuses to believe the fetcher, or where the files lie: the running system could
// have changed them, so that they count only with the release's signature.
package fetched

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/statefiles"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
)

// Directory is where the fetcher leaves releases: a directory for each version.
const Directory = rootpart.Shared + "/" + statefiles.FetchDirectory

// A Refusal is a release that is not staged, today or later. Any other error is
// of the machine, and the release is looked at again at the next boot.
type Refusal struct{ error }

// Unwrap returns what it refuses for.
func (r Refusal) Unwrap() error { return r.error }

// Refused makes an error a Refusal.
func Refused(err error) error { return Refusal{err} }

// Refuse is Refused of a new error.
func Refuse(format string, args ...any) error { return Refusal{fmt.Errorf(format, args...)} }

// releaseFile reads a file of a fetched release. One that is missing or unfit is
// the release's fault.
func releaseFile(h *host.Host, v contract.Version, name string, limit int64) ([]byte, error) {
	b, err := h.Store.Read(path.Join(Directory, v.String(), name), limit)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, hw.ErrUnfit):
		return nil, Refuse("%s of version %s: %w", name, v, err)
	case err != nil:
		return nil, fmt.Errorf("%s of version %s: %w", name, v, err)
	}
	return b, nil
}

// Release reads the description of a release and checks who signed it.
func Release(h *host.Host, v contract.Version) (*release.Release, error) {
	text, err := releaseFile(h, v, release.FileName, release.MaxSize)
	if err != nil {
		return nil, err
	}
	if len(h.Contract.ReleaseKey) > 0 {
		signature, err := releaseFile(h, v, release.FileName+".pgp", pgp.MaxSignature)
		if err != nil {
			return nil, err
		}
		key, err := releaseKey(h, v)
		if err != nil {
			return nil, err
		}
		if err := checkSignature(h, key, text, signature); err != nil {
			return nil, Refuse("%s: %w", release.FileName, err)
		}
	}
	r, err := release.Parse(text)
	if err != nil {
		return nil, Refusal{err}
	}
	return r, nil
}

// releaseKey returns the pinned key with what the fetcher has learned of it: later
// expiry dates, new subkeys, revocations. Anyone who has put the file there, only what
// the pinned primary key itself has signed counts. Without it, or where it is
// damaged, the pinned key stands alone.
func releaseKey(h *host.Host, v contract.Version) (*pgp.Key, error) {
	key, err := pgp.ParseKey(h.Contract.ReleaseKey)
	if err != nil {
		return nil, err
	}
	text, err := h.Store.Read(path.Join(Directory, v.String(), release.KeyFile), pgp.MaxKey)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, hw.ErrUnfit) {
		return key, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s of version %s: %w", release.KeyFile, v, err)
	}
	known, err := pgp.ParseKey(text)
	if err == nil {
		known, err = key.Merge(known)
	}
	if err != nil {
		return key, nil
	}
	return known, nil
}

// clockRange is how far ahead of the running image's date a clock is believed.
const clockRange = 20 * 365 * 24 * time.Hour

// checkSignature checks that the pinned key has signed.
//
// A machine's clock may be in 1970 or in 2100. It is believed from the date of the
// running image on, for clockRange; any other counts as that date. And a signature
// from the future is judged at the time it was made: that the clock is behind is
// the likelier reason, and a key that signs ahead of time gains nothing. A key that
// has expired by such a clock signs nothing any more: the release is refused.
func checkSignature(h *host.Host, key *pgp.Key, text, signature []byte) error {
	built := h.Contract.Date()
	now := h.Now()
	if now.Before(built) || now.After(built.Add(clockRange)) {
		now = built
	}
	made, err := pgp.Created(signature)
	if err != nil {
		return err
	}
	if made.After(now) && made.Before(built.Add(clockRange)) {
		now = made
	}
	if err := key.Verify(bytes.NewReader(text), signature, now); err != nil {
		return fmt.Errorf("judged as of %s: %w", now.UTC().Format(time.DateOnly), err)
	}
	return nil
}

// File reads an EFI file of the release and compares its hashes.
func File(h *host.Host, r *release.Release, f release.File) ([]byte, error) {
	if f.Size > enroll.MaxEFIFile {
		return nil, Refuse("%s has %d bytes, at most %d fit", f.Name, f.Size, enroll.MaxEFIFile)
	}
	b, err := releaseFile(h, r.Version, f.Name, f.Size)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(b); !bytes.Equal(sum[:], f.SHA256) {
		return nil, Refuse("%s has SHA-256 %x, want %x", f.Name, sum, []byte(f.SHA256))
	}
	digest, err := authenticode.Digest(b)
	if err != nil {
		return nil, Refuse("%s: %w", f.Name, err)
	}
	if !bytes.Equal(digest[:], f.Authenticode) {
		return nil, Refuse("%s has the image hash %x, want %x", f.Name, digest, []byte(f.Authenticode))
	}
	return b, nil
}

// Sign has this machine's own key sign an image, where there is one, and makes
// sure that the firmware will start it.
func Sign(h *host.Host, image []byte) ([]byte, error) {
	if h.Secret == nil {
		return nil, host.ErrNoSecret
	}
	keys, err := h.StoredKeys(h.Secret)
	if err != nil {
		return nil, err
	}
	if keys != nil {
		defer keys.Wipe()
		if image, err = dbSigner(keys).Sign(image); err != nil {
			return nil, Refusal{err}
		}
	}
	if !rootpart.Enforces(h.FirmwareKeys) {
		return image, nil
	}
	if err := h.Starts(image); err != nil {
		return nil, Refuse("the firmware would not start it: %w", err)
	}
	return image, nil
}

// dbSigner signs what this machine starts. The date is fixed, so that the same
// image is signed to the same bytes.
func dbSigner(keys *secureboot.KeySet) enroll.DBSigner {
	return enroll.DBSigner{Pair: keys.DB, Time: keys.DB.Certificate.NotBefore}
}
