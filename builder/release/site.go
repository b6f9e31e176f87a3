package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/builder/files"
)

// A site is an image's directory on a server that is being changed, as it was
// found.
type site struct {
	dir      string
	now      time.Time
	note     func(string, ...any)
	manifest *manifest.Manifest // nil: there is none
	signed   bool               // the manifest is
	key      *pgp.Key           // nil: the releases are not signed
}

// openSite reads what the directory has. known is the release key as the caller
// has it; nil stands for the one that the server shows. A manifest that somebody
// has changed since it was signed is refused, whatever would be done with it: what
// it says would be signed again.
func openSite(dir string, known *pgp.Key, now time.Time, note func(string, ...any)) (*site, error) {
	s := &site{dir: dir, now: now, note: note, key: known}
	if err := s.finishCut(); err != nil {
		return nil, err
	}
	text, err := files.Read(filepath.Join(dir, manifest.FileName), manifest.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return s, s.checkEmpty()
	}
	if err != nil {
		return nil, err
	}
	if s.manifest, err = manifest.Parse(text); err != nil {
		return nil, err
	}
	if err := belongsHere(s.manifest, Directory(dir)); err != nil {
		return nil, err
	}
	if err := s.readKey(); err != nil {
		return nil, err
	}
	return s, s.checkSignature(text)
}

// belongsHere refuses the list of another image's releases: their machines refuse it, too.
func belongsHere(m *manifest.Manifest, s Server) error {
	if here := manifest.ImageName(s.Place()); m.Image != "" && m.Image != here {
		return fmt.Errorf("%s lists the releases of %s (IMAGE), and lies in the place of %s: put back the one that belongs there", manifest.FileName, m.Image, here)
	}
	return nil
}

// checkEmpty refuses a directory whose manifest is gone, and was signed.
func (s *site) checkEmpty() error {
	_, err := os.Lstat(filepath.Join(s.dir, manifest.SignatureName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%s is gone, and its signature, %s, is there: put it back from a copy; or remove the signature and publish with --sign-manifest, since machines expect a signed one", filepath.Join(s.dir, manifest.FileName), manifest.SignatureName)
}

// readKey adds what the server's copy of the key says to what is known.
func (s *site) readKey() error {
	switch named := s.manifest.PubKey; {
	case named == "" && s.key == nil:
		return nil
	case named == "":
		return fmt.Errorf("the releases in %s are not signed, and their machines would refuse this one's key", s.dir)
	}
	text, err := files.Read(filepath.Join(s.dir, s.manifest.PubKey), pgp.MaxKey)
	if err != nil {
		return fmt.Errorf("read the server's key: %w", err)
	}
	shown, err := pgp.ParseKey(text)
	if err != nil {
		return fmt.Errorf("the server's key: %w", err)
	}
	if s.key == nil {
		s.key = shown
		return nil
	}
	if have, want := shown.Fingerprint(), s.key.Fingerprint(); have != want {
		return fmt.Errorf("the releases in %s are signed by %s, and their machines would refuse one by %s", s.dir, have, want)
	}
	s.key, err = s.key.Merge(shown)
	return err
}

// signAgain is what a person does about a manifest whose signature is wrong.
func (s *site) signAgain() string {
	return fmt.Sprintf("put both back from a copy; or, if %[1]s says what you want (channels, SEQUENCE and all), sign it yourself: gpg --local-user %[2]s --output %[3]s --detach-sign %[4]s",
		manifest.FileName, s.key.Fingerprint(), filepath.Join(s.dir, manifest.SignatureName), filepath.Join(s.dir, manifest.FileName))
}

// checkSignature checks that the manifest is as its distributor signed it.
func (s *site) checkSignature(text []byte) error {
	signature, err := files.Read(filepath.Join(s.dir, manifest.SignatureName), pgp.MaxSignature)
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case err != nil && !missing:
		return err
	case s.key == nil && !missing:
		return fmt.Errorf("%s is there, and the releases are not signed: remove it", manifest.SignatureName)
	case s.key == nil && s.manifest.Sequence != 0:
		return fmt.Errorf("%s has a SEQUENCE, so it was signed, and both PUBKEY and %s are gone: put them back from a copy; or take SEQUENCE out, if no machine takes signed releases from here", manifest.FileName, manifest.SignatureName)
	case s.key == nil || missing && s.manifest.Sequence == 0:
		return nil
	case missing:
		return fmt.Errorf("%s has a SEQUENCE, so it was signed, and %s is gone: %s", manifest.FileName, manifest.SignatureName, s.signAgain())
	}
	if err := s.key.VerifyMade(bytes.NewReader(text), signature, s.now); err != nil {
		return fmt.Errorf("%s is not as it was signed, and somebody may have changed it (%w): %s", manifest.FileName, err, s.signAgain())
	}
	s.signed = true
	return nil
}

// named returns the releases that the manifest's channels name, each once. What no
// machine can have taken is left out, and said.
func (s *site) named(ctx context.Context) (map[contract.Version]*published, error) {
	all := map[contract.Version]*published{}
	if s.manifest == nil {
		return all, nil
	}
	for _, c := range manifest.Channels() {
		v := s.manifest.Entry(c).Version
		if _, seen := all[v]; seen || v == 0 {
			continue
		}
		p, err := readPublished(ctx, Directory(s.dir), v, s.key, s.now)
		switch {
		case s.noneTakes(v, err):
			s.note("WARNING: release %s, which is in %s, is one that no machine takes: %v", v, c, err)
		case err != nil:
			return nil, fmt.Errorf("release %s, which is in %s: %w. Put it back from a copy, or take it out with 'halogen release withdraw' (if no machine has it, sign it as it is, by 'gpg --detach-sign'); --previous DIR names the build that this one follows, where it is gone", v, c, err)
		default:
			all[v] = p
		}
	}
	return all, nil
}

// noneTakes reports whether the error with which a release was read says that no machine
// can ever have taken it: its description has no signature, or what lies there never was
// a release's archive. Damage to a release that machines have looks like the latter. So
// what no channel names and nobody has signed is believed, and else only a signature over
// the archive as it lies there: then its distributor has made it so.
func (s *site) noneTakes(v contract.Version, err error) bool {
	if errors.Is(err, errUnsigned) {
		return true
	}
	if !errors.Is(err, archive.ErrForeign) {
		return false
	}
	signature, err := files.Read(filepath.Join(s.dir, manifest.ArchiveSignatureName(v)), pgp.MaxSignature)
	if errors.Is(err, fs.ErrNotExist) {
		return !s.names(v)
	}
	if err != nil || s.key == nil {
		return false
	}
	f, err := os.Open(filepath.Join(s.dir, manifest.ArchiveName(v)))
	if err != nil {
		return false
	}
	defer f.Close()
	return s.key.VerifyMade(f, signature, s.now) == nil
}

// names reports whether a channel names a release.
func (s *site) names(v contract.Version) bool {
	return s.manifest != nil && slices.ContainsFunc(manifest.Channels(), func(c manifest.Channel) bool { return s.manifest.Entry(c).Version == v })
}

// sign says whether the manifest is to be signed from now on, and refuses to sign
// for the first time what others may have put into it.
func (s *site) sign(wanted bool) (bool, error) {
	if s.signed || !wanted || s.key == nil {
		return s.signed, nil
	}
	if s.manifest != nil && len(s.manifest.Unknown) > 0 {
		return false, fmt.Errorf("%s was not signed so far, and has a variable that is not known, %s: anyone who can write to the server may have put it there. Take it out, or sign it yourself", manifest.FileName, s.manifest.Unknown[0].Name)
	}
	if s.manifest != nil && len(s.manifest.Steps)+len(s.manifest.Withdrawn) > 0 {
		return false, fmt.Errorf("%s was not signed so far, and has STEPS= or WITHDRAWN_...=, which would bind machines and what is published next: anyone who can write to the server may have put them there. Take the lines out; 'halogen release step' and 'withdraw' write them again", manifest.FileName)
	}
	return true, nil
}

// next is the manifest that is about to take the place of the one there.
const next = ".next-" + manifest.FileName

// firstSequence is the number of the first manifest that is signed: its date, to the
// second. Where SEQUENCE and signature were lost, machines have seen a number that
// nobody knows any more. It was counted from such a date on, or from 1, and a later
// date is greater than either: nobody publishes once a second for years.
func firstSequence(now time.Time) uint64 {
	n, err := strconv.ParseUint(now.UTC().Format("20060102150405"), 10, 64)
	if err != nil || n > manifest.MaxJump {
		return 1 // no clock says so
	}
	return n
}

// write puts the manifest in place, which is what machines follow. Two files cannot
// change at once: seen in between, the signature does not fit, and a machine asks
// again. Cut before the signature is in place, the manifest of before holds; cut
// after it, the next publisher finds the new manifest beside it and gives it its
// name (finishCut).
func (s *site) write(m *manifest.Manifest, signer *Signer, sign bool) error {
	if sign && signer == nil {
		return errors.New("the manifest is signed: name the key (--key or --gpg)")
	}
	switch {
	case sign && m.Sequence == 0:
		m.Sequence = firstSequence(s.now)
	case sign:
		if m.Sequence >= uint64(contract.MaxVersion) {
			return fmt.Errorf("SEQUENCE %d cannot grow any more", m.Sequence)
		}
		m.Sequence++
	}
	m.Image = manifest.ImageName(Directory(s.dir).Place())
	text, err := m.Encode()
	if err != nil {
		return err
	}
	var signature []byte
	if sign {
		if signature, err = signer.Sign(bytes.NewReader(text), s.now); err != nil {
			return fmt.Errorf("sign %s: %w", manifest.FileName, err)
		}
	}
	if err := writeFile(s.dir, next, text); err != nil {
		return err
	}
	if sign {
		if err := writeFile(s.dir, manifest.SignatureName, signature); err != nil {
			return err
		}
	}
	if err := place(s.dir, filepath.Join(s.dir, next), manifest.FileName); err != nil {
		return err
	}
	s.link(m)
	return nil
}

// finishCut ends what a publisher that was interrupted has begun: where the
// signature is that of the manifest which was about to come, that one comes now.
func (s *site) finishCut() error {
	path := filepath.Join(s.dir, next)
	text, err := files.Read(path, manifest.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	signature, err := files.Read(filepath.Join(s.dir, manifest.SignatureName), pgp.MaxSignature)
	if err == nil && s.fits(text, signature) {
		s.note("finishing what an interrupted publication has begun")
		return place(s.dir, path, manifest.FileName)
	}
	return os.Remove(path)
}

// fits reports whether a manifest is what the server's key has signed.
func (s *site) fits(text, signature []byte) bool {
	m, err := manifest.Parse(text)
	if err != nil || m.PubKey == "" {
		return false
	}
	key := s.key
	if shown, err := files.Read(filepath.Join(s.dir, m.PubKey), pgp.MaxKey); err == nil {
		// The server's copy comes before the manifest, and may know of a subkey that
		// the caller's does not.
		known, err := pgp.ParseKey(shown)
		if err == nil && key != nil {
			known, err = key.Merge(known)
		}
		if err != nil {
			return false
		}
		key = known
	}
	return key != nil && key.VerifyMade(bytes.NewReader(text), signature, s.now) == nil
}

// link makes the links that lead people to the channels' releases. They are a help
// that a server may do without.
func (s *site) link(m *manifest.Manifest) {
	for _, c := range manifest.Channels() {
		if err := writeLink(s.dir, string(c), m.Entry(c).Version); err != nil {
			s.note("no link %s: %v. Machines do not need it", c, err)
		}
	}
}

// overtaken says which less tried channels name an older release than a more tried
// one.
func overtaken(m *manifest.Manifest, note func(string, ...any)) {
	for _, c := range manifest.Channels() {
		own := m.Entry(c).Version
		if newest, from, err := m.Resolve(c); err == nil && own != 0 && newest.Version > own {
			note("%s names %s, which is older than %s in %s: its machines take that one, but those of releases before this one do so only after 'halogen release promote %s --channel %s'", c, own, newest.Version, from, newest.Version, c)
		}
	}
}
