package release

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	description "halogenos.internal/boot/release"
)

// readManifest reads a server's manifest.
func readManifest(ctx context.Context, s Server) (text []byte, m *manifest.Manifest, err error) {
	text, err = s.Get(ctx, manifest.FileName, manifest.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%w: name the image's directory, ROOT/<arch>/<image-id>, and publish there first", err)
	}
	if err != nil {
		return nil, nil, err
	}
	m, err = manifest.Parse(text)
	return text, m, err
}

func (v *verifier) expired() bool {
	e := v.manifest.Expires
	return !e.IsZero() && !v.Now.Before(e)
}

// An Offer is what a server's manifest has for a new machine.
type Offer struct {
	Version contract.Version
	// Image is whose releases the manifest lists (manifest.ImageName), empty where
	// it does not say.
	Image string
	// Key is the one that was named, with what the server's copy says besides: a
	// later expiry date, a new subkey.
	Key *pgp.Key
}

// Is refuses a release that is not the one offered. Its archive bears the name that the
// server gives it, and anyone who serves it can give that name to an older one.
func (o Offer) Is(r *description.Release) error {
	switch {
	case r.Version != o.Version:
		return fmt.Errorf("%s offers release %s, and the archive of that name has release %s: somebody has put it there. Tell the distributor", manifest.FileName, o.Version, r.Version)
	case o.Image != "" && o.Image != manifest.ImageName(r.Arch, r.ImageID):
		return fmt.Errorf("%s lists the releases of %s, and the archive beside it has one of %s: somebody has put it in the wrong place. Tell the distributor", manifest.FileName, o.Image, manifest.ImageName(r.Arch, r.ImageID))
	}
	return nil
}

// Offered returns what a server offers to a new machine on a channel. The manifest is
// believed no more than a machine would believe it that has seen none before. Without a
// key only an unsigned server's is.
func Offered(ctx context.Context, s Server, c manifest.Channel, key *pgp.Key, now time.Time) (Offer, error) {
	v := &verifier{VerifyOptions: VerifyOptions{Key: key, Now: now, Note: func(string, ...any) {}}, server: s}
	if err := v.readManifest(ctx); err != nil {
		return Offer{}, err
	}
	switch {
	case v.expired():
		return Offer{}, fmt.Errorf("%s expired on %s UTC, and it is %s UTC here: set this machine's clock if it is wrong (date), or else tell the distributor, since somebody may be hiding a newer one", manifest.FileName, v.manifest.Expires.Format(time.DateTime), now.UTC().Format(time.DateTime))
	case key == nil && v.manifest.PubKey != "":
		return Offer{}, errors.New("the releases there are signed: name the key that their distributor publishes (--key)")
	}
	if _, err := v.readKey(ctx); err != nil {
		return Offer{}, err
	}
	v.fault(v.checkManifestSignature(ctx, nil))
	if err := errors.Join(v.faults...); err != nil {
		return Offer{}, err
	}
	e, err := offered(v.manifest, c)
	return Offer{Version: e.Version, Image: v.manifest.Image, Key: v.Key}, err
}

// offered is the newest release that a new machine may get: one that a rollout has
// stopped goes to no machine, since trials of it have failed. Any other share is for
// machines that have a release to stay with.
func offered(m *manifest.Manifest, c manifest.Channel) (manifest.Entry, error) {
	all, err := m.Offers(c)
	if err != nil {
		return manifest.Entry{}, err
	}
	for _, o := range all {
		if e := o.Entry; !e.Limited || e.Percent > 0 {
			return e, nil
		}
	}
	return manifest.Entry{}, fmt.Errorf("release %s is for no machine: its rollout was stopped, and %s names no other for %s. Tell the distributor, who takes it back with 'halogen release withdraw' or publishes the next", all[0].Entry.Version, manifest.FileName, c)
}
