// Package offer judges what a server offers: whether it is genuine and whether
// this machine takes it.
//
// It refuses whatever the machine's pinned key did not sign, and everything
// older than what the machine has or has tried in vain. All of it works on
// bytes that others have fetched: nothing here reads a network, a disk or a
// clock, so that the part with privileges can judge again what the part without
// them has brought.
package offer

import (
	"bytes"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"path"
	"time"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
	"halogenos.internal/uroot-cmds/ota/settings"
)

// Self is what this machine is, and what it has seen.
type Self struct {
	// Running is the boot contract of the running system.
	Running *contract.Contract
	// Floor is the lowest epoch that the TPM still releases keys to.
	Floor uint64
	// Failed are the versions that are not tried again, and why.
	Failed map[contract.Version]string
	// Machine is an ID that stays the same, for the share of machines that a
	// release goes to first.
	Machine []byte
	Channel manifest.Channel
	// Impatient takes a release before it is this machine's turn.
	Impatient bool
	Signed    settings.Demand
	Seen      Seen
	// Known is the release key with what was learned of it since the running
	// image was made; empty is nothing.
	Known []byte
	// SlotSize and TreeSize are the bytes of the partitions that a release goes
	// to; 0 is unknown.
	SlotSize, TreeSize int64
	// Now is the clock. It may be off.
	Now time.Time
}

// Seen is what is remembered of signed manifests.
type Seen struct {
	Sequence uint64 `json:"sequence"` // the highest; 0: none had a number
	Signed   bool   `json:"signed"`
	// Image says that they told whose releases they list.
	Image bool `json:"image,omitempty"`
}

// now is the best that is known of the time: a clock without battery starts in
// 1970, and the running system cannot be younger than its release.
func (s *Self) now() time.Time {
	if date := s.Running.Date(); s.Now.Before(date) {
		return date
	}
	return s.Now
}

// Directory is where the image's releases lie on a server.
func (s *Self) Directory() string { return path.Join(s.Running.Arch, s.Running.ImageID) }

// key returns the pinned key, with what was learned of it; nil stands for an image
// that has none.
func (s *Self) key() (*pgp.Key, error) {
	if len(s.Running.ReleaseKey) == 0 {
		return nil, nil
	}
	k, err := pgp.ParseKey(s.Running.ReleaseKey)
	if err != nil {
		return nil, fmt.Errorf("pinned release key: %w", err)
	}
	if len(s.Known) == 0 {
		return k, nil
	}
	known, err := pgp.ParseKey(s.Known)
	if err == nil {
		k, err = k.Merge(known)
	}
	if err != nil {
		return nil, fmt.Errorf("what is known of the release key: %w", err)
	}
	return k, nil
}

// Learn returns the machine with what a copy of the release key says that it did
// not know: later expiry dates, new subkeys, revocations. Another primary key is
// refused, and of the pinned one's copy only what that key itself has signed counts.
func (s *Self) Learn(shown []byte) (*Self, error) {
	pinned, err := s.key()
	if err != nil || pinned == nil {
		return s, err
	}
	k, err := pgp.ParseKey(shown)
	if err != nil {
		return nil, fmt.Errorf("server's PUBKEY: %w", err)
	}
	if k.Fingerprint() != pinned.Fingerprint() {
		return nil, fmt.Errorf("server shows the release key %s, this machine has pinned %s: it is another distributor's, or somebody's who took the server over. Correct Server= in %s, or tell the distributor", k.Fingerprint(), pinned.Fingerprint(), settings.OwnerFile)
	}
	learned, err := pinned.Merge(k)
	if err != nil {
		return nil, fmt.Errorf("server's PUBKEY: %w", err)
	}
	wiser := *s
	if wiser.Known = learned.Bytes(); bytes.Equal(wiser.Known, s.Running.ReleaseKey) {
		wiser.Known = nil // the image says all of it
	}
	return &wiser, nil
}

// ErrUnsettled says that a manifest and its signature do not belong together.
// So it looks while a distributor publishes; it is worth asking again.
var ErrUnsettled = errors.New("manifest and its signature do not belong together: somebody is publishing, or a cache on the way has an old copy of one of them; run this again later")

// Manifest reads a manifest; signature is empty when the server has none.
func (s *Self) Manifest(text, signature []byte) (*manifest.Manifest, Seen, error) {
	seen := s.Seen
	key, err := s.key()
	if err != nil {
		return nil, seen, err
	}
	if err := s.checkSigned(text, signature, key); err != nil {
		return nil, seen, err
	}
	m, err := manifest.Parse(text)
	if err != nil {
		return nil, seen, err
	}
	// Before its number counts: another image's may be higher than any of this one's.
	if err := s.mine(m, len(signature) > 0 && key != nil); err != nil {
		return nil, seen, err
	}
	if len(signature) > 0 && key != nil {
		if m.Image != "" && !seen.Image {
			seen.Sequence = 0 // lists that did not say whose they are counted it: maybe another image's
		}
		if m.Sequence < seen.Sequence {
			return nil, seen, fmt.Errorf("manifest has SEQUENCE %d, and this machine has seen %d: somebody shows an old one. A cache or a mirror that is behind does so too: try again later, or name another server", m.Sequence, seen.Sequence)
		}
		if m.Sequence-seen.Sequence > manifest.MaxJump {
			return nil, seen, fmt.Errorf("manifest has SEQUENCE %d, and the last that this machine has seen was %d: so great a step would keep every later one out. Its distributor must publish again with a lower number", m.Sequence, seen.Sequence)
		}
		seen = Seen{Sequence: m.Sequence, Signed: true, Image: m.Image != ""}
	}
	if !m.Expires.IsZero() && !s.now().Before(m.Expires) {
		return nil, seen, fmt.Errorf("manifest.env expired on %s UTC, and it is %s UTC here: if this machine's clock is wrong, set it (date); or else tell the distributor, since somebody may be hiding a newer one", m.Expires.Format(time.DateTime), s.now().UTC().Format(time.DateTime))
	}
	if m.PubKey == "" && key != nil {
		return nil, seen, errors.New("manifest names no PUBKEY: the server's releases are not signed, and this machine takes only signed ones: correct Server= in " + settings.OwnerFile + ", or tell the distributor")
	}
	if m.PubKey != "" && key == nil {
		return nil, seen, errors.New("manifest names a PUBKEY: the server's releases are signed, and this image was built for unsigned ones (ReleaseKey=none). Install a signed image to change over")
	}
	return m, seen, nil
}

// checkSigned checks the signature of a manifest, and whether one may be missing. key is the
// pinned one, or nil.
func (s *Self) checkSigned(text, signature []byte, key *pgp.Key) error {
	switch {
	case len(signature) > 0 && key != nil:
		if signature[0] < 0x80 && !bytes.HasPrefix(signature, []byte("-----BEGIN ")) {
			return fmt.Errorf("%s is not an OpenPGP signature but starts with %.20q", manifest.SignatureName, signature)
		}
		if err := key.Verify(bytes.NewReader(text), signature, s.now()); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrUnsettled, manifest.SignatureName, err)
		}
	case s.Signed == settings.Always && key == nil:
		return errors.New("RequireSignedManifest is yes, and this image has no release key to check a signature with: set it to auto in " + settings.OwnerFile)
	case s.Signed == settings.Always:
		return fmt.Errorf("server has no %s, and RequireSignedManifest is yes: tell the distributor, or set it to auto in %s", manifest.SignatureName, settings.OwnerFile)
	case s.Signed == settings.Auto && key != nil && s.Seen.Signed:
		return fmt.Errorf("server has no %s any more: it may hide newer releases. If the distributor has given it up, set RequireSignedManifest=no in %s", manifest.SignatureName, settings.OwnerFile)
	}
	return nil
}

// mine refuses the list of another image's releases, which the same key may have signed.
func (s *Self) mine(m *manifest.Manifest, signed bool) error {
	switch {
	case m.Image == "" && signed && s.Seen.Image:
		return fmt.Errorf("%s does not say whose releases it lists, as it did before (IMAGE=%s): it may be an old one, or another image's. Tell the distributor", manifest.FileName, s.Directory())
	case m.Image != "" && m.Image != s.Directory():
		return fmt.Errorf("%s lists the releases of %s, and this machine has %s: somebody has put it in the wrong place. Tell the distributor, or correct Server= in %s", manifest.FileName, m.Image, s.Directory(), settings.OwnerFile)
	}
	return nil
}

// Usable reports why nothing that the release key signs could be taken now.
func (s *Self) Usable() error {
	key, err := s.key()
	if err != nil || key == nil {
		return err
	}
	if err := key.Check(s.now()); err != nil {
		return fmt.Errorf("release key: %w: its distributor must renew it and put it on the server; if it is not so, this machine's clock is wrong", err)
	}
	return nil
}

// Authenticate checks the signature of a release.json, before anything of it
// is parsed.
func (s *Self) Authenticate(description, signature []byte) error {
	key, err := s.key()
	switch {
	case err != nil:
		return err
	case key == nil && len(signature) > 0:
		return fmt.Errorf("%s is there, and this image has no key to check it: install a signed image to change over", archive.SignatureFile)
	case key == nil:
		return nil
	case len(signature) == 0:
		return fmt.Errorf("%s is not signed, and this machine takes only signed releases: tell the distributor", release.FileName)
	}
	if err := key.Verify(bytes.NewReader(description), signature, s.now()); err != nil {
		if ended := s.Usable(); ended != nil {
			err = ended
		}
		return fmt.Errorf("%s: %w: this machine stays as it is until its distributor signs another release", archive.SignatureFile, err)
	}
	return nil
}

// maxInitrdHead is how much of an initramfs can hold its boot contract and its list of
// extensions: these, and the heads of the archives around them.
const maxInitrdHead = contract.MaxSize + 256<<10

// initrdHead is the start of a UKI's initramfs.
func initrdHead(image io.ReaderAt) ([]byte, error) {
	file, err := pe.NewFile(image)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", release.UKIFile, err)
	}
	initrd := file.Section(".initrd")
	if initrd == nil {
		return nil, fmt.Errorf("%s has no initramfs", release.UKIFile)
	}
	head := make([]byte, min(int64(initrd.Size), maxInitrdHead))
	if _, err := io.ReadFull(initrd.Open(), head); err != nil {
		return nil, fmt.Errorf("%s: read the initramfs: %w", release.UKIFile, err)
	}
	return head, nil
}

// Extensions reads which extensions a release has from its UKI, and the release's boot
// contract. It checks no signature.
func Extensions(image io.ReaderAt) (*contract.Contract, []contract.Extension, error) {
	head, err := initrdHead(image)
	if err != nil {
		return nil, nil, err
	}
	c, err := contract.FromInitrd(head)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", release.UKIFile, err)
	}
	list, err := contract.ExtensionsFromInitrd(head)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", release.UKIFile, err)
	}
	return c, list, nil
}

// UKI refuses a UKI, which was found to be the release's, whose boot contract
// is another one's or cannot follow the running system's, which the boot would
// refuse after all was fetched. Its bytes must have been compared with their signed
// hash before.
func (s *Self) UKI(r *release.Release, image io.ReaderAt) error {
	c, _, err := Extensions(image)
	if err != nil {
		return err
	}
	if err := r.Matches(c); err != nil {
		return err
	}
	if err := release.Follows(s.Running, c); err != nil {
		return fmt.Errorf("%s: the release cannot follow the system that runs: %w. Machines stay as they are until another one comes; installing it changes over", release.UKIFile, err)
	}
	return nil
}
