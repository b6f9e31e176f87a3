package release

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"halogenos.internal/boot/bootreport"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/uki"
	"halogenos.internal/builder/files"
)

// ExpectBuild returns what a machine's report is compared with that runs a build. Nobody
// has signed it: it is the caller's own.
func ExpectBuild(dir string) (bootreport.Want, error) {
	b, err := loadBuild(dir)
	if err != nil {
		return bootreport.Want{}, badBuild(dir, err)
	}
	f, _ := b.release.File(release.UKIFile)
	image, err := files.Read(filepath.Join(dir, f.Name), f.Size)
	if err != nil {
		return bootreport.Want{}, err
	}
	return expect(b.release, b.contract, image)
}

func expect(r *release.Release, c *contract.Contract, image []byte) (bootreport.Want, error) {
	img, err := uki.Parse(image)
	if err != nil {
		return bootreport.Want{}, err
	}
	return bootreport.Want{Release: r, Contract: c, UKI: img}, nil
}

// ExpectOptions say which release of a server a machine should run.
type ExpectOptions struct {
	Channel manifest.Channel
	Version contract.Version // 0 for the one that the channel names
	Key     *pgp.Key         // as machines have pinned it; nil believes the server's own
	Now     time.Time
	Note    func(format string, args ...any)
}

// ExpectPublished returns what a machine's report is compared with that runs a release of
// a server. Of the archive it reads the description and the UKI.
func ExpectPublished(ctx context.Context, s Server, o ExpectOptions) (bootreport.Want, error) {
	v := &verifier{VerifyOptions: VerifyOptions{Key: o.Key, Now: o.Now, Note: o.Note}, server: s}
	if err := v.readManifest(ctx); err != nil {
		return bootreport.Want{}, err
	}
	if v.expired() && o.Version == 0 {
		return bootreport.Want{}, fmt.Errorf("%s expired on %s UTC, so that which release is today's is not known: name one (--version), or tell the distributor", manifest.FileName, v.manifest.Expires.Format(time.DateTime))
	}
	if _, err := v.readKey(ctx); err != nil {
		return bootreport.Want{}, err
	}
	v.fault(v.checkManifestSignature(ctx, nil))
	v.fault(belongsHere(v.manifest, s))
	if v.manifest.Sequence == 0 && o.Key != nil && o.Version == 0 {
		v.fault(fmt.Errorf("%s is not signed, so that anyone who controls the server says which release is today's, and may name an old one: name one (--version), or sign it ('halogen release --sign-manifest')", manifest.FileName))
	}
	if err := errors.Join(v.faults...); err != nil {
		return bootreport.Want{}, err
	}
	version := o.Version
	if version == 0 {
		e, _, err := v.manifest.Resolve(o.Channel)
		if err != nil {
			return bootreport.Want{}, err
		}
		version = e.Version
	}
	p, image, err := readPublishedUKI(ctx, s, version, v.Key, o.Now)
	if errors.Is(err, fs.ErrNotExist) {
		return bootreport.Want{}, fmt.Errorf("release %s is not on the server: %w", version, err)
	}
	if err != nil {
		return bootreport.Want{}, fmt.Errorf("release %s: %w", version, err)
	}
	return expect(p.release, p.contract, image)
}
