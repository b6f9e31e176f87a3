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

// Offered returns the release that a server offers to a new machine on a channel, and
// the key that was named, with what the server's copy says besides: a later expiry
// date, a new subkey. The manifest is believed no more than a machine would believe
// it that has seen none before. Without a key only an unsigned server's is.
func Offered(ctx context.Context, s Server, c manifest.Channel, key *pgp.Key, now time.Time) (contract.Version, *pgp.Key, error) {
	v := &verifier{VerifyOptions: VerifyOptions{Key: key, Now: now, Note: func(string, ...any) {}}, server: s}
	if err := v.readManifest(ctx); err != nil {
		return 0, nil, err
	}
	switch {
	case v.expired():
		return 0, nil, fmt.Errorf("%s expired on %s UTC, and it is %s UTC here: set this machine's clock if it is wrong (date), or else tell the distributor, since somebody may be hiding a newer one", manifest.FileName, v.manifest.Expires.Format(time.DateTime), now.UTC().Format(time.DateTime))
	case key == nil && v.manifest.PubKey != "":
		return 0, nil, errors.New("the releases there are signed: name the key that their distributor publishes (--key)")
	}
	if _, err := v.readKey(ctx); err != nil {
		return 0, nil, err
	}
	v.fault(v.checkManifestSignature(ctx, nil))
	if err := errors.Join(v.faults...); err != nil {
		return 0, nil, err
	}
	e, _, err := v.manifest.Resolve(c)
	return e.Version, v.Key, err
}
