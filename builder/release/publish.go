// Package release publishes what halogen build made on a static web server's
// folder, and checks such a server as a machine would.
//
// It refuses to publish anything that a machine would refuse: a build whose
// parts do not belong together, another key than the one the image has pinned
// and the server shows, a version that is not newer, a lower epoch. Until the
// manifest is replaced, which comes last, machines see the server as it was.
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
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
)

// defaultKeyName is the release key's file name on a new server.
const defaultKeyName = "release-key.pgp"

// Options say what to publish, and how.
type Options struct {
	Build   string // folder that halogen build filled
	Server  string // root of the server, made when missing
	Channel manifest.Channel
	// Key signs. Without a path, the release is not signed, which only an
	// image that has pinned no key allows.
	Key KeyFile
	// Percent of the machines take the release; the zero Rollout is all.
	Rollout Rollout
	// SignManifest signs the manifest too and numbers it. It stays so for
	// later releases.
	SignManifest bool
	// Lifetime is how long machines may believe the manifest; negative stands
	// for ever. 0 is the same, where no manifest with an end was published.
	Lifetime time.Duration
	// Previous, if not empty, is the folder of a build that this one follows,
	// for a server's folder that starts empty.
	Previous string
	Now      time.Time
	// Note is told what happens.
	Note func(format string, args ...any)
}

// Rollout is the share of machines that takes a release.
type Rollout struct {
	Limited bool
	Percent int // 0 to 100
}

// A Result says what was published.
type Result struct {
	Version contract.Version
	Folder  string // of the image
	Archive string // path
	Size    int64  // bytes of the archive
	New     bool   // false: the release was there, and a channel moved to it
	// Delta is what machines with the version before fetch; nil: there is none.
	Delta *Delta
}

// publisher is a publication under way.
type publisher struct {
	Options
	build  *build
	dir    string // <server>/<arch>/<image-id>
	signer *Signer
	old    *manifest.Manifest // nil: the server has none
	result *Result
}

// Publish writes a release to the server's folder and makes a channel name it.
func Publish(ctx context.Context, o Options) (r *Result, err error) {
	if _, err := manifest.ParseChannel(string(o.Channel)); err != nil {
		return nil, err
	}
	if r := o.Rollout; r.Percent < 0 || r.Percent > 100 {
		return nil, fmt.Errorf("rollout to %d percent of the machines, want 0 to 100", r.Percent)
	}
	b, err := loadBuild(o.Build)
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", o.Build, err)
	}
	p := &publisher{Options: o, build: b, dir: filepath.Join(o.Server, b.release.Arch, b.release.ImageID)}
	p.result = &Result{Version: b.release.Version, Folder: p.dir, Archive: filepath.Join(p.dir, manifest.ArchiveName(b.release.Version))}
	if err := p.loadKey(); err != nil {
		return nil, err
	}
	if p.signer != nil {
		defer p.signer.Close()
	}
	if err := makeFolders(p.dir); err != nil {
		return nil, fmt.Errorf("make the image's folder: %w", err)
	}
	unlock, err := lock(p.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	// Whatever can be refused is refused before anything is written.
	for _, step := range []func(context.Context) error{p.follow, p.readServer, p.compare, p.hash, p.writeRelease, p.writeKey, p.writeManifest} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	p.result.Delta = noteDelta(ctx, source{Folder(p.dir), p.key(), p.Now}, b.release.Version, p.Note)
	return p.result, nil
}

// loadKey opens the signing key, if the image wants one.
func (p *publisher) loadKey() error {
	pinned := p.build.contract.ReleaseKey
	switch {
	case len(pinned) == 0 && p.Key.named():
		return errors.New("the image has pinned no release key (ReleaseKey=none), so that no machine would check a signature: build it with the key")
	case len(pinned) == 0:
		p.Note("WARNING: %s is published unsigned: whoever can write to the server can replace it", p.build.release.ImageID)
		return nil
	case !p.Key.named():
		return errors.New("the image has pinned a release key, so that machines take only what it signed: name the key")
	}
	key, err := pgp.ParseKey(pinned)
	if err != nil {
		return fmt.Errorf("the image's pinned release key: %w", err)
	}
	p.signer, err = LoadSigner(p.Key, key, p.Now)
	return err
}

// follow compares with the build that this one follows.
func (p *publisher) follow(context.Context) error {
	if p.Previous == "" {
		return nil
	}
	b, err := loadBuild(p.Previous)
	if err != nil {
		return fmt.Errorf("previous build %s: %w", p.Previous, err)
	}
	was, is := b.release, p.build.release
	switch {
	case was.ImageID != is.ImageID || was.Arch != is.Arch:
		return fmt.Errorf("the previous build is %s for %s, this one %s for %s", was.ImageID, was.Arch, is.ImageID, is.Arch)
	case was.Version >= is.Version:
		return fmt.Errorf("version %s is not newer than %s, the previous build's", is.Version, was.Version)
	case was.Epoch > is.Epoch:
		return fmt.Errorf("epoch %d is lower than %d, the previous build's", is.Epoch, was.Epoch)
	}
	if err := pgp.SamePinned(b.contract.ReleaseKey, p.build.contract.ReleaseKey); err != nil {
		return fmt.Errorf("the previous build and this one: %w: its machines would refuse this one", err)
	}
	return nil
}

// readServer reads what the server has already.
func (p *publisher) readServer(context.Context) error {
	text, err := readBounded(filepath.Join(p.dir, manifest.FileName), manifest.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if p.old, err = manifest.Parse(text); err != nil {
		return err
	}
	if !p.old.Expires.IsZero() && p.Lifetime == 0 {
		return fmt.Errorf("the manifest there expires, on %s: say for how long the new one is to hold", p.old.Expires.Format(time.DateTime))
	}
	return p.checkKey()
}

// checkKey refuses another key than the server's.
func (p *publisher) checkKey() error {
	switch {
	case p.old.PubKey == "" && p.signer == nil:
		return nil
	case p.old.PubKey == "":
		return fmt.Errorf("the releases in %s are not signed, and their machines would refuse this one's key", p.dir)
	case p.signer == nil:
		return fmt.Errorf("the releases in %s are signed, and their machines would refuse this one, which is not", p.dir)
	}
	text, err := readBounded(filepath.Join(p.dir, p.old.PubKey), pgp.MaxKey)
	if err != nil {
		return fmt.Errorf("read the server's key: %w", err)
	}
	key, err := pgp.ParseKey(text)
	if err != nil {
		return fmt.Errorf("the server's key: %w", err)
	}
	if have, want := key.Fingerprint(), p.signer.Key().Fingerprint(); have != want {
		return fmt.Errorf("the releases in %s are signed by %s, and their machines would refuse one by %s", p.dir, have, want)
	}
	return nil
}

// compare refuses a release that machines on the channel would not take after
// the ones that they may have.
func (p *publisher) compare(ctx context.Context) error {
	r := p.build.release
	if p.old == nil {
		if p.Channel != manifest.Stable {
			return fmt.Errorf("%s has no stable release yet, and a manifest must name one: publish to stable first", p.dir)
		}
		return nil
	}
	for _, c := range manifest.Channels() {
		e := p.old.Entry(c)
		if e.Version == 0 {
			continue
		}
		if e.Version >= r.Version && !(c == p.Channel && e.Version == r.Version && p.widens(e)) {
			return fmt.Errorf("version %s is not newer than %s, which is in %s", r.Version, e.Version, c)
		}
		previous, err := p.describe(ctx, e.Version)
		if err != nil {
			return fmt.Errorf("release %s, which is in %s: %w", e.Version, c, err)
		}
		if previous.Epoch > r.Epoch {
			return fmt.Errorf("epoch %d is lower than %d of release %s, which is in %s", r.Epoch, previous.Epoch, e.Version, c)
		}
		if c == p.Channel {
			break // less tried channels may be further on
		}
	}
	return nil
}

// widens reports whether publishing the same version again changes its share.
func (p *publisher) widens(e manifest.Entry) bool {
	return e.Limited != p.Rollout.Limited || e.Percent != p.Rollout.Percent
}

// describe returns the description of a release that is on the server, whose
// signature must be good.
func (p *publisher) describe(ctx context.Context, v contract.Version) (*release.Release, error) {
	f, err := os.Open(filepath.Join(p.dir, manifest.ArchiveName(v)))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := archive.Open(ctx, f, authenticateWith(p.key(), p.Now), archive.Options{Workers: 1})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.Release(), belongs(r.Release(), p.build.release.Arch, p.build.release.ImageID, v)
}

func (p *publisher) key() *pgp.Key {
	if p.signer == nil {
		return nil
	}
	return p.signer.Key()
}

// authenticateWith returns the check of release.json's signature by a key; nil
// stands for releases that are not signed.
func authenticateWith(key *pgp.Key, now time.Time) archive.Authenticate {
	return func(description, signature []byte) error {
		switch {
		case key == nil && len(signature) > 0:
			return fmt.Errorf("%s is there, and no key to check it", archive.SignatureFile)
		case key == nil:
			return nil
		case len(signature) == 0:
			return fmt.Errorf("%s is not signed", release.ManifestFile)
		}
		if err := key.Verify(bytes.NewReader(description), signature, now); err != nil {
			return fmt.Errorf("%s: %w", archive.SignatureFile, err)
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

// hash compares the system image with the boot contract's root hash.
func (p *publisher) hash(ctx context.Context) error {
	f, err := os.Open(filepath.Join(p.Build, release.ImageFile))
	if err != nil {
		return err
	}
	defer f.Close()
	return checkImage(ctx, p.build.contract, f)
}

// writeRelease puts archive and signature in place, both in one step: their
// folder is written under another name.
func (p *publisher) writeRelease(ctx context.Context) error {
	v := p.build.release.Version
	switch _, err := os.Lstat(filepath.Join(p.dir, v.String())); {
	case err == nil:
		return p.reuse(ctx)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	work, err := os.MkdirTemp(p.dir, unfinished)
	if err != nil {
		return err
	}
	if err := p.fill(ctx, work); err != nil {
		return errors.Join(err, os.RemoveAll(work))
	}
	if err := place(p.dir, work, v.String()); err != nil {
		return err
	}
	p.result.New = true
	return nil
}

// reuse takes the release that is on the server, if it is this one.
func (p *publisher) reuse(ctx context.Context) error {
	v := p.build.release.Version
	have, err := p.describe(ctx, v)
	if err != nil {
		return fmt.Errorf("release %s is on the server already: %w", v, err)
	}
	text, err := have.Build().Encode()
	if err != nil {
		return err
	}
	if !bytes.Equal(text, p.build.text) {
		return fmt.Errorf("release %s is on the server already, with other content: a version is never published twice", v)
	}
	info, err := os.Stat(p.result.Archive)
	if err != nil {
		return err
	}
	p.result.Size = info.Size()
	p.Note("release %s is on the server already", v)
	return nil
}

// fill writes archive and signature into a folder of their own.
func (p *publisher) fill(ctx context.Context, dir string) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	name := filepath.Base(p.result.Archive)
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	start := time.Now()
	err = p.pack(ctx, f)
	if err == nil {
		p.result.Size, err = f.Seek(0, io.SeekEnd)
		p.Note("packed %s: %.1f s, %.1f MB", name, time.Since(start).Seconds(), float64(p.result.Size)/1e6)
	}
	var signature []byte
	if err == nil && p.signer != nil {
		if _, err = f.Seek(0, io.SeekStart); err == nil {
			signature, err = p.signer.Sign(f, p.Now)
		}
	}
	if err := errors.Join(err, finish(f)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := p.writePapers(dir); err != nil {
		return err
	}
	if p.signer == nil {
		return syncFolder(dir)
	}
	return writeFile(dir, name+".pgp", signature)
}

// pack writes the archive. What is packed lies beside it for a while, in a
// file without a name.
func (p *publisher) pack(ctx context.Context, w *os.File) error {
	spool, err := os.CreateTemp(filepath.Dir(w.Name()), unfinished)
	if err != nil {
		return err
	}
	if err := os.Remove(spool.Name()); err != nil {
		return errors.Join(err, spool.Close())
	}
	sign := func(description []byte) ([]byte, error) {
		if p.signer == nil {
			return nil, nil
		}
		signature, err := p.signer.Sign(bytes.NewReader(description), p.Now)
		if err != nil {
			return nil, fmt.Errorf("sign %s: %w", release.ManifestFile, err)
		}
		return signature, nil
	}
	open := func(file release.File) (io.ReadCloser, error) { return os.Open(filepath.Join(p.Build, file.Name)) }
	_, err = archive.Write(ctx, w, spool, p.build.release, sign, open, archive.Options{})
	return errors.Join(err, spool.Close())
}

// writeKey shows the pinned key; machines compare it with theirs.
func (p *publisher) writeKey(context.Context) error {
	if p.signer == nil {
		return nil
	}
	return writeFile(p.dir, p.keyName(), p.build.contract.ReleaseKey)
}

func (p *publisher) keyName() string {
	if p.old != nil && p.old.PubKey != "" {
		return p.old.PubKey
	}
	return defaultKeyName
}

// writeManifest makes the channel name the release: first its link, for
// people, then the manifest.
func (p *publisher) writeManifest(context.Context) error {
	v := p.build.release.Version
	m := new(manifest.Manifest)
	if p.old != nil {
		*m = *p.old
	}
	if err := m.Set(p.Channel, manifest.Entry{Version: v, Limited: p.Rollout.Limited, Percent: p.Rollout.Percent}); err != nil {
		return err
	}
	if p.signer != nil {
		m.PubKey = p.keyName()
	}
	_, err := os.Lstat(filepath.Join(p.dir, manifest.SignatureName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	sign := p.signer != nil && (p.SignManifest || err == nil)
	if sign || m.Sequence != 0 {
		m.Sequence++
	}
	m.Expires = time.Time{}
	if p.Lifetime > 0 {
		m.Expires = p.Now.Add(p.Lifetime).UTC().Truncate(time.Second)
	}
	text, err := m.Encode()
	if err != nil {
		return err
	}
	if err := writeLink(p.dir, string(p.Channel), v.String()); err != nil {
		return err
	}
	if sign {
		signature, err := p.signer.Sign(bytes.NewReader(text), p.Now)
		if err != nil {
			return fmt.Errorf("sign %s: %w", manifest.FileName, err)
		}
		// Two files cannot change at once. A machine that comes in between
		// sees a signature that does not fit and asks again later.
		if err := writeFile(p.dir, manifest.SignatureName, signature); err != nil {
			return err
		}
	}
	return writeFile(p.dir, manifest.FileName, text)
}
