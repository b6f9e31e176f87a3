package release

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
)

// Manage says on what server's directory something is done. A key is needed only
// where the manifest is signed.
type Manage struct {
	Directory Directory // of the image
	Key       KeyFile
	Now       time.Time
	Note      func(format string, args ...any)
}

// change opens the directory for one publisher alone, has do change the manifest,
// and puts it in place: all of it happens or nothing.
func (o Manage) change(ctx context.Context, do func(s *site, m *manifest.Manifest) error) (err error) {
	dir := string(o.Directory)
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	s, err := openSite(dir, nil, o.Now, o.Note)
	if err != nil {
		return err
	}
	if s.manifest == nil {
		return fmt.Errorf("%s has no %s: nothing was published there", dir, manifest.FileName)
	}
	m := *s.manifest
	if err := do(s, &m); err != nil {
		return err
	}
	signer, err := o.signer(ctx, s)
	if err != nil {
		return err
	}
	if signer != nil {
		defer signer.Close()
	}
	overtaken(&m, o.Note)
	return s.write(&m, signer, s.signed)
}

// signer loads the key for a manifest that is signed.
func (o Manage) signer(ctx context.Context, s *site) (*Signer, error) {
	if !s.signed {
		return nil, nil
	}
	if !o.Key.named() {
		return nil, errors.New("the manifest is signed: name the key (--key or --gpg)")
	}
	all, err := s.named(ctx)
	if err != nil {
		o.Note("WARNING: %v", err) // withdrawing it is what this may be for
		all = map[contract.Version]*published{}
	}
	s.withdrawn(ctx, all)
	must, _, err := asked(slices.Collect(maps.Values(all)), s.key, o.Now)
	if err != nil {
		return nil, err
	}
	return LoadSigner(o.Key, s.key, o.Now, must...)
}

// Promote makes a channel name a release that is on the server already.
func Promote(ctx context.Context, o Manage, v contract.Version, c manifest.Channel, share Rollout) error {
	if err := share.check(); err != nil {
		return err
	}
	return o.change(ctx, func(s *site, m *manifest.Manifest) error {
		want, err := readPublished(ctx, o.Directory, v, s.key, o.Now)
		if err != nil {
			return fmt.Errorf("release %s: %w: 'halogen release list' shows what is there", v, err)
		}
		named, err := s.named(ctx)
		if err == nil {
			named, err = s.onTheWay(ctx, named, v)
		}
		if err != nil {
			return err
		}
		s.withdrawn(ctx, named)
		must, _, err := asked(olderThan(named, v), s.key, s.now)
		if err != nil {
			return err
		}
		if err := s.takeable(want, must...); err != nil {
			return err
		}
		if err := s.whole(ctx, want); err != nil {
			return err
		}
		offerAgain(m, v, s.note)
		for _, w := range m.Withdrawn {
			if w.Version > v && reaches(w.Channel, c) {
				s.note("WARNING: machines that took release %s, which was withdrawn from %s, keep it: %s is not newer", w.Version, w.Channel, v)
			}
		}
		if old := m.Entry(c); old.Version > v {
			return fmt.Errorf("%s names %s, which is newer than %s, and machines never go back: publish a newer release, or 'halogen release withdraw %s' so that no more machines take it", c, old.Version, v, old.Version)
		}
		if err := stepFor(m, want.release); err != nil {
			return err
		}
		for _, old := range olderThan(named, v) {
			if err := release.Follows(old.contract, want.contract); err != nil {
				return fmt.Errorf("machines with release %s would refuse %s: %w", old.version, v, err)
			}
			if err := fits(want.release, want.able, old.release, old.able); err != nil {
				return fmt.Errorf("machines with release %s could not take %s: %w", old.version, v, err)
			}
		}
		return m.Set(c, manifest.Entry{Version: v, Limited: share.Limited, Percent: share.Percent})
	})
}

// olderThan returns the releases that are older than a version.
func olderThan(all map[contract.Version]*published, v contract.Version) []*published {
	var older []*published
	for _, v := range slices.DeleteFunc(slices.Sorted(maps.Keys(all)), func(other contract.Version) bool { return other >= v }) {
		older = append(older, all[v])
	}
	return older
}

// whole refuses a release whose extensions are not all there.
func (s *site) whole(ctx context.Context, p *published) error {
	return source{Directory(s.dir), s.key, s.now}.wholeExtensions(ctx, p)
}

// takeable refuses a release that machines would not take now, though its signature
// was good once: by the key as it is known, and by older copies of it that machines
// have pinned.
func (s *site) takeable(p *published, must ...*pgp.Key) error {
	if s.key == nil {
		return nil
	}
	by, err := pgp.Issuer(p.signature)
	if err != nil {
		return err
	}
	for i, k := range append([]*pgp.Key{s.key}, must...) {
		good, err := k.SigningKeys(s.now)
		if err != nil {
			return err
		}
		if _, ok := good[by]; ok {
			continue
		}
		if i == 0 {
			return fmt.Errorf("release %s is signed by the key %s, which has expired or was revoked since: no machine takes it. Build and publish a newer one", p.version, by)
		}
		return fmt.Errorf("release %s is signed by the key %s, which machines of the releases of before do not know yet%s", p.version, by, wanted(must[i-1:], s.now))
	}
	return nil
}

// Withdraw makes every channel that names a release name an older one: to, or the
// newest that is on the server and good, was not withdrawn itself, and is not only on
// trial in a less tried channel; a less tried channel that would then name the same
// as a more tried one names nothing and follows it. Machines that have it keep it
// until a newer one comes, so the manifest says from now on that it was withdrawn. The
// files stay where they are.
func Withdraw(ctx context.Context, o Manage, v, to contract.Version) error {
	return o.change(ctx, func(s *site, m *manifest.Manifest) error {
		var from []manifest.Channel
		for _, c := range manifest.Channels() {
			if m.Entry(c).Version == v {
				from = append(from, c)
			}
		}
		if len(from) == 0 {
			return fmt.Errorf("no channel names release %s: there is nothing to withdraw; 'halogen release list' shows what there is", v)
		}
		older, err := s.older(ctx, m, from[0], v, to)
		if err != nil {
			return err
		}
		offerAgain(m, older, s.note)
		if err := s.recordWithdrawn(ctx, m, v, from); err != nil {
			return err
		}
		for _, c := range from {
			if err := m.Set(c, manifest.Entry{}); err != nil {
				return err
			}
			if c == manifest.Stable && older == 0 {
				return fmt.Errorf("release %s is the only one, and a manifest must name one for stable: publish a newer one, which machines that have %[1]s take as well", v)
			}
			if follows, _, err := m.Resolve(c); older == 0 || err == nil && follows.Version >= older {
				o.Note("%s names nothing of its own any more, and follows the more tried channels", c)
				continue
			}
			if err := m.Set(c, manifest.Entry{Version: older}); err != nil {
				return err
			}
			o.Note("%s names release %s again", c, older)
		}
		withoutStep(m, v, o.Note)
		o.Note("machines that have release %s keep it until a newer one than it comes; its files are there until they are pruned", v)
		return nil
	})
}

// Prune removes old releases, but for keep of the newest, and returns which. What a
// channel names is never removed, nor a step, nor what is newer than what a channel
// names: a machine may be fetching it. dry only tells.
func Prune(ctx context.Context, o Manage, keep int, dry bool) (gone []contract.Version, err error) {
	dir := string(o.Directory)
	if keep < 1 {
		return nil, fmt.Errorf("--keep %d would leave no release: want at least 1", keep)
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	s, err := openSite(dir, nil, o.Now, o.Note)
	if err != nil {
		return nil, err
	}
	if s.manifest == nil {
		return nil, fmt.Errorf("%s has no %s: without it nobody knows which releases are in use", dir, manifest.FileName)
	}
	all, err := o.Directory.Versions(ctx)
	if err != nil {
		return nil, err
	}
	slices.Sort(all)
	least := contract.MaxVersion
	for _, c := range manifest.Channels() {
		if v := s.manifest.Entry(c).Version; v != 0 {
			least = min(least, v)
		}
	}
	for _, v := range all[:max(0, len(all)-keep)] {
		if v >= least {
			break
		}
		if !slices.Contains(s.manifest.Steps, v) {
			gone = append(gone, v)
		}
	}
	if dry {
		return gone, nil
	}
	for i, v := range gone {
		// Cut after the rename, nothing names it, and the next publisher removes it.
		aside := filepath.Join(dir, unfinished+v.String())
		if err := os.Rename(filepath.Join(dir, v.String()), aside); err != nil {
			return gone[:i], err
		}
		if err := errors.Join(syncDirectory(dir), os.RemoveAll(aside)); err != nil {
			return gone[:i], err
		}
	}
	return gone, nil
}

// Refresh renews a manifest without a release: its end, its number and signature,
// and the release key that the server shows.
type Refresh struct {
	// Lifetime is as in Options; 0 keeps the end that there is.
	Lifetime time.Duration
	// Public is a newer copy of the release key; nil: none.
	Public *pgp.Key
	// Sign signs the manifest from now on.
	Sign bool
}

// RefreshManifest does it.
func RefreshManifest(ctx context.Context, o Manage, r Refresh) error {
	return o.change(ctx, func(s *site, m *manifest.Manifest) error {
		if r.Sign && s.key == nil {
			return errors.New("the releases are not signed, so that nothing could check a signature of the manifest")
		}
		if r.Public != nil {
			if err := s.renewKey(r.Public); err != nil {
				return err
			}
		}
		switch {
		case r.Lifetime > 0:
			m.Expires = o.Now.Add(r.Lifetime).UTC().Truncate(time.Second)
		case r.Lifetime < 0:
			m.Expires = time.Time{}
		case !m.Expires.IsZero() && !o.Now.Before(m.Expires):
			return fmt.Errorf("%s expired on %s UTC: say for how long it is to hold from now on", manifest.FileName, m.Expires.Format(time.DateTime))
		}
		if _, err := s.named(ctx); err != nil {
			return err
		}
		var err error
		s.signed, err = s.sign(r.Sign)
		return err
	})
}

// renewKey puts a newer copy of the release key in place. It comes before the
// manifest, which the new key may have signed, and takes nothing away.
func (s *site) renewKey(public *pgp.Key) error {
	if s.key == nil {
		return errors.New("the releases are not signed, and their machines have pinned no key")
	}
	merged, err := s.key.Merge(public)
	if err != nil {
		return fmt.Errorf("machines have pinned another key: %w", err)
	}
	if err := merged.Check(s.now); err != nil {
		return err
	}
	s.key = merged
	if text := merged.Warning(s.now); text != "" {
		s.note("WARNING: %s", text)
	}
	return writeFile(s.dir, s.manifest.PubKey, merged.Bytes())
}

// A Listed is a release on a server.
type Listed struct {
	Version  contract.Version   `json:"version"`
	Channels []manifest.Channel `json:"channels,omitempty"`
	Step     bool               `json:"step,omitempty"`
	Date     time.Time          `json:"date,omitzero"`
	Epoch    uint64             `json:"epoch"`
	Size     int64              `json:"size"` // bytes of the archive
	SignedBy string             `json:"signed_by,omitempty"`
	// Extensions are the names of the release's.
	Extensions []string `json:"extensions,omitempty"`
	Problem    string   `json:"problem,omitempty"`
}

// List returns the releases on a server, the newest first. It changes nothing.
func List(ctx context.Context, s Server, now time.Time) ([]Listed, error) {
	m, key, err := shownKey(ctx, s)
	if err != nil {
		return nil, err
	}
	versions, err := s.Versions(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range manifest.Channels() {
		if v := m.Entry(c).Version; v != 0 && !slices.Contains(versions, v) {
			versions = append(versions, v)
		}
	}
	slices.Sort(versions)
	var all []Listed
	for _, v := range slices.Backward(versions) {
		all = append(all, describe(ctx, s, m, key, v, now))
	}
	return all, nil
}

// shownKey reads a server's manifest, and the release key that it shows: nil for none.
func shownKey(ctx context.Context, s Server) (m *manifest.Manifest, key *pgp.Key, err error) {
	if _, m, err = readManifest(ctx, s); err != nil || m.PubKey == "" {
		return m, nil, err
	}
	text, err := s.Get(ctx, m.PubKey, pgp.MaxKey)
	if err == nil {
		key, err = pgp.ParseKey(text)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the server's key: %w", err)
	}
	return m, key, nil
}

func describe(ctx context.Context, s Server, m *manifest.Manifest, key *pgp.Key, v contract.Version, now time.Time) Listed {
	l := Listed{Version: v, Step: slices.Contains(m.Steps, v)}
	for _, c := range manifest.Channels() {
		if m.Entry(c).Version == v {
			l.Channels = append(l.Channels, c)
		}
	}
	p, err := readPublished(ctx, s, v, key, now)
	if errors.Is(err, fs.ErrNotExist) {
		l.Problem = "its archive is not there"
		return l
	}
	if err != nil {
		l.Problem = err.Error()
		return l
	}
	l.Date, l.Epoch, l.Size, l.SignedBy = time.Unix(p.release.SourceDate, 0).UTC(), p.release.Epoch, p.size, p.signer()
	for _, e := range p.extensions {
		l.Extensions = append(l.Extensions, e.Name)
	}
	err = (&site{key: key, now: now}).takeable(p)
	if err == nil {
		err = source{s, key, now}.wholeExtensions(ctx, p)
	}
	if err != nil {
		l.Problem = err.Error()
	}
	return l
}

// String is the release as a line for people.
func (l Listed) String() string {
	var names []string
	for _, c := range l.Channels {
		names = append(names, string(c))
	}
	if l.Step {
		names = append(names, "step")
	}
	if l.Problem != "" {
		return fmt.Sprintf("%-12s %-20s PROBLEM: %s", l.Version, strings.Join(names, ","), l.Problem)
	}
	extensions := ""
	if len(l.Extensions) > 0 {
		extensions = "  with " + strings.Join(l.Extensions, ", ")
	}
	return fmt.Sprintf("%-12s %-20s %s  epoch %-3d %8.1f MB  %s%s", l.Version, strings.Join(names, ","), l.Date.Format(time.DateOnly), l.Epoch, float64(l.Size)/1e6, l.SignedBy, extensions)
}
