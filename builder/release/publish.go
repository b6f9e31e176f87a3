// Package release publishes what halogen build made on a static web server's
// directory, and checks such a server as a machine would.
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

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/secureboot"
)

// defaultKeyName is the release key's file name on a new server.
const defaultKeyName = "release-key.pgp"

// Options say what to publish, and how.
type Options struct {
	Build   string // directory that halogen build filled
	Server  string // root of the server, made when missing
	Channel manifest.Channel
	// Key signs. Without a path, the release is not signed, which only an
	// image that has pinned no key allows.
	Key KeyFile
	// Percent of the machines take the release; the zero Rollout is all.
	Rollout Rollout
	// KeepRollout keeps the share that the release has, where the channel names it already:
	// its notes or its patches are published, and it goes to no more machines for that.
	KeepRollout bool
	// SignManifest signs the manifest too and numbers it. It stays so for
	// later releases.
	SignManifest bool
	// Lifetime is how long machines may believe the manifest; negative stands
	// for ever. 0 is the same, where no manifest with an end was published.
	Lifetime time.Duration
	// Previous, if not empty, is the directory of a build that this one follows,
	// for a server's directory that starts empty.
	Previous string
	// Notes, if not empty, is a file that says what the release brings: XML or Markdown.
	Notes string
	// Revocations are entries for dbx that the release brings to machines.
	Revocations secureboot.Database
	// PatchFrom are older versions on the server from which machines get patches.
	PatchFrom []contract.Version
	Now       time.Time
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
	Version   contract.Version
	Directory string // of the image
	Archive   string // path
	Size      int64  // bytes of the archive
	New       bool   // false: the release was there, and a channel moved to it
	// Delta is what machines with the version before fetch; nil: there is none.
	Delta *Delta
}

// publisher is a publication under way.
type publisher struct {
	Options
	build  *build
	dir    string   // <server>/<arch>/<image-id>
	pinned *pgp.Key // by the build; nil: none
	site   *site
	before map[contract.Version]*published // that machines may have
	follow *build                          // the previous build; nil: none was named
	signer *Signer
	sign   bool // the manifest
	notes  []byte
	result *Result
	// extensions are the builds of the release's, in the UKI's order.
	extensions []*build
	// patches are made before anything is written.
	patches []patched
}

// Publish writes a release to the server's directory and makes a channel name it.
func Publish(ctx context.Context, o Options) (r *Result, err error) {
	if _, err := manifest.ParseChannel(string(o.Channel)); err != nil {
		return nil, err
	}
	if err := o.Rollout.check(); err != nil {
		return nil, err
	}
	b, err := loadBuild(o.Build)
	if err != nil {
		return nil, badBuild(o.Build, err)
	}
	if err := b.revoke(o.Revocations); err != nil {
		return nil, err
	}
	p := &publisher{Options: o, build: b, dir: filepath.Join(o.Server, b.release.Arch, b.release.ImageID)}
	p.result = &Result{Version: b.release.Version, Directory: p.dir, Archive: filepath.Join(p.dir, manifest.ArchiveName(b.release.Version))}
	if err := errors.Join(p.readNotes(), p.readPinned()); err != nil {
		return nil, err
	}
	if err := makeDirectories(p.dir); err != nil {
		return nil, fmt.Errorf("make the image's directory: %w", err)
	}
	unlock, err := lock(p.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	defer func() {
		if p.signer != nil {
			p.signer.Close()
		}
	}()
	// Whatever can be refused is refused before anything is written.
	for _, step := range []func(context.Context) error{p.readPrevious, p.readServer, p.compare, p.patchable, p.loadSigner, p.hash, p.makePatches, p.writeRelease, p.putPatches, p.writeKey, p.writeManifest} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	from := source{Directory(p.dir), p.site.key, p.Now}
	p.result.Delta = noteDelta(ctx, from, b.release.Version, p.Note)
	noteDeltas(ctx, from, p.result.Delta, b.release.Version, p.Note)
	return p.result, nil
}

func (r Rollout) check() error {
	if r.Percent < 0 || r.Percent > 100 {
		return fmt.Errorf("rollout to %d percent of the machines, want 0 to 100", r.Percent)
	}
	return nil
}

// readPinned reads the key that the image has pinned, and compares it with what
// there is to sign with.
func (p *publisher) readPinned() error {
	pinned := p.build.contract.ReleaseKey
	switch {
	case len(pinned) == 0 && p.Key.named():
		return errors.New("the image has pinned no release key (ReleaseKey=none), so that no machine would check a signature: build it with the key")
	case len(pinned) == 0:
		p.Note("WARNING: %s is published unsigned: anyone who can write to the server can replace it", p.build.release.ImageID)
		return nil
	case !p.Key.named():
		return errors.New("the image has pinned a release key, so that machines take only what it signed: name the key")
	}
	key, err := pgp.ParseKey(pinned)
	if err != nil {
		return fmt.Errorf("the image's pinned release key: %w", err)
	}
	p.pinned = key
	if text := key.Warning(p.Now); text != "" {
		p.Note("WARNING: %s", text)
	}
	return nil
}

// readPrevious compares with the build that this one follows.
func (p *publisher) readPrevious(context.Context) error {
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
	}
	if err := release.Follows(b.contract, p.build.contract); err != nil {
		return fmt.Errorf("machines with the previous build would refuse this one: %w", err)
	}
	if err := p.build.readBy(b.able); err != nil {
		return fmt.Errorf("machines with the previous build would refuse this one: %w", err)
	}
	if err := fits(p.build.release, p.build.able, b.release, b.able); err != nil {
		return fmt.Errorf("machines with the previous build could not take this one: %w", err)
	}
	p.follow = b
	return nil
}

// readServer reads what the server has already.
func (p *publisher) readServer(ctx context.Context) (err error) {
	if p.site, err = openSite(p.dir, p.pinned, p.Now, p.Note); err != nil {
		return err
	}
	m := p.site.manifest
	if m == nil {
		p.sign = p.pinned != nil && p.SignManifest
		return nil
	}
	if m.PubKey != "" && p.pinned == nil {
		return fmt.Errorf("the releases in %s are signed, and their machines would refuse this one, which is not", p.dir)
	}
	if !m.Expires.IsZero() && p.Lifetime == 0 {
		return fmt.Errorf("the manifest there expires, on %s: say for how long the new one is to hold", m.Expires.Format(time.DateTime))
	}
	if p.sign, err = p.site.sign(p.SignManifest); err != nil {
		return err
	}
	p.before, err = p.site.named(ctx)
	if err != nil && p.follow != nil {
		p.Note("WARNING: %v. Going by the previous build that was named", err)
		p.before, err = map[contract.Version]*published{}, nil
	}
	if err == nil {
		p.site.withdrawn(ctx, p.before)
	}
	if err == nil && p.before != nil {
		p.before, err = p.site.onTheWay(ctx, p.before, p.build.release.Version)
	}
	return err
}

// compare refuses a release that machines would not take after the ones that they
// may have.
func (p *publisher) compare(context.Context) error {
	m, v := p.site.manifest, p.build.release.Version
	if m == nil {
		if p.Channel != manifest.Stable {
			return fmt.Errorf("%s has no stable release yet, and a manifest must name one: publish to stable first", p.dir)
		}
		return nil
	}
	if e := m.Entry(p.Channel); p.KeepRollout && e.Version == v {
		p.Rollout = Rollout{Limited: e.Limited, Percent: e.Percent}
	}
	for _, c := range manifest.Channels() {
		e := m.Entry(c)
		if _, taken := p.before[e.Version]; e.Version >= v && taken && !(c == p.Channel && e.Version == v && (p.widens(e) || p.notes != nil || len(p.PatchFrom) > 0)) {
			if c == p.Channel && e.Version == v {
				return fmt.Errorf("version %s is not newer than %[1]s, which is in %s: build it with a greater --version, or change its share, with --rollout", v, c)
			}
			return fmt.Errorf("version %s is not newer than %s, which is in %s: build it with a greater --version", v, e.Version, c)
		}
		if c == p.Channel {
			break // less tried channels may be further on
		}
	}
	if err := afterWithdrawn(m, v, p.Channel); err != nil {
		return err
	}
	if err := stepFor(m, p.build.release); err != nil {
		return err
	}
	older := olderThan(p.before, v)
	noteChanged(older, p.build.extensions, p.Note)
	for _, old := range older {
		if err := release.Follows(old.contract, p.build.contract); err != nil {
			return fmt.Errorf("machines with release %s would refuse this one: %w", old.version, err)
		}
		if err := p.build.readBy(old.able); err != nil {
			return fmt.Errorf("machines with release %s would refuse this one: %w", old.version, err)
		}
		if err := fits(p.build.release, p.build.able, old.release, old.able); err != nil {
			return fmt.Errorf("machines with release %s could not take this one: %w", old.version, err)
		}
		p.build.warnOf(old, p.Note)
	}
	return nil
}

// widens reports whether publishing the same version again changes its share.
func (p *publisher) widens(e manifest.Entry) bool {
	return e.Limited != p.Rollout.Limited || e.Percent != p.Rollout.Percent
}

// loadSigner finds the key that signs: one whose signatures the machines of all
// releases of before take by the certificates that they have pinned, which do not
// know of a subkey that is newer.
func (p *publisher) loadSigner(context.Context) error {
	if p.pinned == nil {
		return nil
	}
	before := olderThan(p.before, p.build.release.Version)
	if p.follow != nil {
		before = append(before, &published{version: p.follow.release.Version, contract: p.follow.contract})
	}
	must, lost, err := asked(before, p.site.key, p.Now)
	if err != nil {
		return err
	}
	for _, v := range lost {
		p.Note("WARNING: no key that machines with release %s have pinned can sign any more. They learn of its renewal from the server, unless release %[1]s is of a time when they did not: those must be installed again", v)
	}
	p.signer, err = LoadSigner(p.Key, p.site.key, p.Now, must...)
	return err
}

// hash compares the system image with the boot contract's root hash, and the extensions
// with what the UKI lists.
func (p *publisher) hash(ctx context.Context) error {
	f, err := os.Open(filepath.Join(p.Build, release.ImageFile))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := checkImage(ctx, p.build.contract, f); err != nil {
		return err
	}
	p.extensions, err = p.build.allExtensions(ctx)
	return err
}

// writeRelease puts archive and signature in place, both in one step: their
// directory is written under another name.
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

// reuse takes the release that is on the server, if it is this one. What no machine
// can have taken, such as a signature forgotten by hand, makes room.
func (p *publisher) reuse(ctx context.Context) error {
	v := p.build.release.Version
	have, err := readPublished(ctx, Directory(p.dir), v, p.site.key, p.Now)
	if p.site.noneTakes(v, err) || errors.Is(err, fs.ErrNotExist) {
		p.Note("release %s is on the server already, and is one that no machine takes (%v): replacing it", v, err)
		return p.replace(ctx, v)
	}
	if err != nil {
		return fmt.Errorf("release %s is on the server already: %w: if nobody has it, remove %s", v, err, filepath.Join(p.dir, v.String()))
	}
	if p.signer != nil {
		if err := p.site.takeable(have, p.signer.must...); err != nil {
			return err
		}
	}
	text, err := have.release.Build().Encode()
	if err != nil {
		return err
	}
	if !bytes.Equal(text, p.build.text) {
		return fmt.Errorf("release %s is on the server already, with other content: a version is never published twice", v)
	}
	if err := p.reuseExtensions(ctx, have); err != nil {
		return err
	}
	info, err := os.Stat(p.result.Archive)
	if err != nil {
		return err
	}
	p.result.Size = info.Size()
	p.Note("release %s is on the server already", v)
	return p.writeNotes(filepath.Join(p.dir, v.String()))
}

// replace writes the release in the place of what has its name, which comes back
// where that fails. A power cut between the two leaves it under a name that the next
// publisher removes (lock), and nothing in its place: no machine would have taken it.
func (p *publisher) replace(ctx context.Context, v contract.Version) error {
	place, old := filepath.Join(p.dir, v.String()), filepath.Join(p.dir, unfinished+v.String())
	if err := os.Rename(place, old); err != nil {
		return err
	}
	if err := p.writeRelease(ctx); err != nil {
		return errors.Join(err, os.Rename(old, place))
	}
	return os.RemoveAll(old)
}

// fill writes archives and signatures into a directory of their own.
func (p *publisher) fill(ctx context.Context, dir string) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	var err error
	if p.result.Size, err = p.writeArchive(ctx, dir, filepath.Base(p.result.Archive), p.build); err != nil {
		return err
	}
	return errors.Join(p.writeExtensions(ctx, dir), p.writePapers(dir), p.writeNotes(dir), syncDirectory(dir))
}

// writeArchive writes an archive and the signature over it, and returns the archive's size
// in bytes.
func (p *publisher) writeArchive(ctx context.Context, dir, name string, b *build) (size int64, err error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	err = p.pack(ctx, f, b)
	if err == nil {
		size, err = f.Seek(0, io.SeekEnd)
		p.Note("packed %s: %.1f s, %.1f MB", name, time.Since(start).Seconds(), float64(size)/1e6)
	}
	var signature []byte
	if err == nil && p.signer != nil {
		if _, err = f.Seek(0, io.SeekStart); err == nil {
			signature, err = p.signer.Sign(f, p.Now)
		}
	}
	if err := errors.Join(err, finish(f)); err != nil {
		return 0, fmt.Errorf("write %s: %w", name, err)
	}
	if p.signer == nil {
		return size, nil
	}
	return size, writeFile(dir, name+".pgp", signature)
}

// pack writes the archive of the build or of one of its extensions, signed.
func (p *publisher) pack(ctx context.Context, w *os.File, b *build) error {
	return b.pack(ctx, w, func(description []byte) ([]byte, error) {
		if p.signer == nil {
			return nil, nil
		}
		signature, err := p.signer.Sign(bytes.NewReader(description), p.Now)
		if err != nil {
			return nil, fmt.Errorf("sign %s: %w", release.FileName, err)
		}
		return signature, nil
	})
}

// writeKey shows the pinned key with all that is known of it; machines compare it
// with theirs, and learn from it.
func (p *publisher) writeKey(context.Context) error {
	if p.signer == nil {
		return nil
	}
	return writeFile(p.dir, p.keyName(), p.site.key.Bytes())
}

func (p *publisher) keyName() string {
	if m := p.site.manifest; m != nil && m.PubKey != "" {
		return m.PubKey
	}
	return defaultKeyName
}

// writeManifest makes the channel name the release.
func (p *publisher) writeManifest(context.Context) error {
	m := new(manifest.Manifest)
	if p.site.manifest != nil {
		*m = *p.site.manifest
	}
	if err := m.Set(p.Channel, manifest.Entry{Version: p.build.release.Version, Limited: p.Rollout.Limited, Percent: p.Rollout.Percent}); err != nil {
		return err
	}
	if p.signer != nil {
		m.PubKey = p.keyName()
	}
	m.Expires = time.Time{}
	if p.Lifetime > 0 {
		m.Expires = p.Now.Add(p.Lifetime).UTC().Truncate(time.Second)
	}
	overtaken(m, p.Note)
	if p.signer != nil && !p.sign {
		p.Note("%s is not signed, as before: machines that have seen it signed refuse it. --sign-manifest signs it from now on", manifest.FileName)
	}
	return p.site.write(m, p.signer, p.sign)
}
