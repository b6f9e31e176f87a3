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
	"slices"
	"time"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
)

// VerifyOptions say what a server must show.
type VerifyOptions struct {
	// Key is the key that machines have pinned; nil stands for the one that
	// the server shows, which then is only consistent with itself.
	Key *pgp.Key
	Now time.Time
	// Note is told what is being checked and was found good.
	Note func(format string, args ...any)
}

// verifier checks one image's directory.
type verifier struct {
	VerifyOptions
	server   Server
	manifest *manifest.Manifest
	text     []byte     // of the manifest
	must     []*pgp.Key // each of which must accept the release that is being checked
	faults   []error
	// Of the release that was checked last.
	contract   *contract.Contract
	extensions []contract.Extension
}

// Verify checks all that a machine would, for every release that the manifest
// names, and returns everything that is wrong.
func Verify(ctx context.Context, server Server, o VerifyOptions) error {
	v := &verifier{VerifyOptions: o, server: server}
	if err := v.readManifest(ctx); err != nil {
		return err
	}
	pinned, err := v.readKey(ctx)
	if err != nil {
		return err
	}
	v.fault(v.checkManifestSignature(ctx, pinned))
	if e := v.manifest.Expires; v.expired() {
		v.fault(fmt.Errorf("%s expired on %s UTC: 'halogen release refresh' renews it", manifest.FileName, e.Format(time.DateTime)))
	} else if left := e.Sub(v.Now); !e.IsZero() && left < soon {
		v.Note("WARNING: %s expires on %s UTC: 'halogen release refresh' renews it", manifest.FileName, e.Format(time.DateTime))
	}
	if n := v.manifest.Sequence; n > manifest.MaxJump {
		v.fault(fmt.Errorf("%s has SEQUENCE %d: a machine that has seen none yet takes no more than %d. Sign it again with a lower number", manifest.FileName, n, uint64(manifest.MaxJump)))
	}
	v.fault(belongsHere(v.manifest, server))
	if v.manifest.Image == "" && v.manifest.Sequence != 0 {
		v.Note("WARNING: %s does not say whose releases it lists: 'halogen release refresh' adds IMAGE", manifest.FileName)
	}
	overtaken(v.manifest, v.Note)
	var seen []contract.Version
	for _, c := range manifest.Channels() {
		version := v.manifest.Entry(c).Version
		v.checkLink(c, version)
		if version == 0 || slices.Contains(seen, version) {
			continue
		}
		seen = append(seen, version)
		if err := v.checkOne(ctx, version, pinned); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("%w: upload it, or take the release out with 'halogen release withdraw'", err)
			}
			v.fault(fmt.Errorf("release %s, in %s: %w", version, c, err))
		} else {
			v.Note("release %s, in %s, is good", version, c)
			v.checkExtensions(ctx, version)
			v.checkPatches(ctx, version)
			from := source{v.server, v.Key, v.Now}
			noteDeltas(ctx, from, noteDelta(ctx, from, version, v.Note), version, v.Note)
		}
		if ctx.Err() != nil {
			break
		}
	}
	v.checkSteps(ctx, seen)
	return errors.Join(v.faults...)
}

// soon is how long before a manifest expires its distributor is told.
const soon = 14 * 24 * time.Hour

func (v *verifier) fault(err error) {
	if err != nil {
		v.faults = append(v.faults, err)
	}
}

func (v *verifier) readManifest(ctx context.Context) (err error) {
	v.text, v.manifest, err = readManifest(ctx, v.server)
	return err
}

// readKey reads the server's key and compares it with the one that is wanted. v.Key
// becomes what a machine knows once it has seen both; the key that was wanted is
// returned as it is, if there is one.
func (v *verifier) readKey(ctx context.Context) (pinned *pgp.Key, err error) {
	if v.manifest.PubKey == "" {
		if v.Key != nil {
			return nil, fmt.Errorf("the releases are not signed, want signatures by %s", v.Key.Fingerprint())
		}
		v.Note("WARNING: the releases are not signed")
		return nil, nil
	}
	text, err := v.server.Get(ctx, v.manifest.PubKey, pgp.MaxKey)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the server's key, which PUBKEY names: %w: put it there (gpg --export FINGERPRINT >%s)", err, v.manifest.PubKey)
	}
	if err != nil {
		return nil, err
	}
	shown, err := pgp.ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.manifest.PubKey, err)
	}
	if pinned = v.Key; pinned != nil {
		if pinned.Fingerprint() != shown.Fingerprint() {
			return nil, fmt.Errorf("%s is the key %s, want %s", v.manifest.PubKey, shown.Fingerprint(), pinned.Fingerprint())
		}
		if v.Key, err = pinned.Merge(shown); err != nil {
			return nil, err
		}
	} else {
		v.Key = shown
		v.Note("WARNING: believing the server's own key, %s: name the pinned one to check it too", shown.Fingerprint())
	}
	v.fault(v.Key.Check(v.Now))
	if text := v.Key.Warning(v.Now); text != "" {
		v.Note("WARNING: %s", text)
	}
	return pinned, nil
}

// checkManifestSignature checks the manifest's signature, where there is one or
// should be.
func (v *verifier) checkManifestSignature(ctx context.Context, pinned *pgp.Key) error {
	signature, err := v.server.Get(ctx, manifest.SignatureName, pgp.MaxSignature)
	switch {
	case errors.Is(err, fs.ErrNotExist) && v.manifest.Sequence != 0:
		return fmt.Errorf("%s is missing: %s has a SEQUENCE, so it was signed, and machines that have seen that refuse it now: put it back from a copy, or sign again", manifest.SignatureName, manifest.FileName)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case v.Key == nil:
		return fmt.Errorf("%s is there, and no key to check it", manifest.SignatureName)
	}
	keys := []*pgp.Key{v.Key}
	if pinned != nil {
		must, _, err := asked([]*published{{contract: &contract.Contract{ReleaseKey: pinned.Bytes()}}}, v.Key, v.Now)
		if err != nil {
			return err
		}
		keys = append(keys, must...)
	}
	if err := v.lasts(manifest.SignatureName, signature); err != nil {
		return err
	}
	for _, k := range keys {
		if err := k.Verify(bytes.NewReader(v.text), signature, v.Now); err != nil {
			return fmt.Errorf("%s: %w (while somebody publishes, or where a cache has an old copy of %s or of its signature, it is so for a while)", manifest.SignatureName, err, manifest.FileName)
		}
	}
	return nil
}

// lasts refuses a signature that machines take today and not for ever. Whether they
// take it today, others say.
func (v *verifier) lasts(name string, signature []byte) error {
	if end, err := pgp.Expires(signature); err != nil || end.Before(v.Now) {
		return nil
	}
	if err := lasts(signature); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// checkLink checks the link that leads people to a channel's release. Machines do
// not need it, and a server may have none.
func (v *verifier) checkLink(c manifest.Channel, version contract.Version) {
	directory, ok := v.server.(Directory)
	if !ok {
		return // over HTTP a link is not told from what it leads to
	}
	path := filepath.Join(string(directory), string(c))
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return
	}
	target, err := os.Readlink(path)
	switch {
	case err != nil:
		v.Note("WARNING: %s is not a symbolic link but a copy, which nothing keeps up to date: remove it, or copy the server with its links (rsync -a does)", c)
	case version == 0:
		v.fault(fmt.Errorf("the link %s leads to %s, and %s names no release for it", c, target, manifest.FileName))
	case filepath.Clean(target) != version.String():
		v.fault(fmt.Errorf("the link %s leads to %s, %s names %s", c, target, manifest.FileName, version))
	}
}

// checkOne checks a release as the machines do that may take it: by the key that
// was named, as they have pinned it, and by the certificates of the release before
// it, where that is on the server.
func (v *verifier) checkOne(ctx context.Context, version contract.Version, pinned *pgp.Key) error {
	previous := v.previous(ctx, version)
	v.must = nil
	if v.Key == nil {
		return v.checkRelease(ctx, version, previous)
	}
	v.must = []*pgp.Key{v.Key}
	var before []*published
	if step := stepBefore(v.manifest, version); step != 0 {
		p, err := readPublished(ctx, v.server, step, v.Key, v.Now)
		if err != nil {
			return fmt.Errorf("the step before it, %s: %w", step, err)
		}
		before = append(before, p)
	} else if pinned != nil {
		before = append(before, &published{contract: &contract.Contract{ReleaseKey: pinned.Bytes()}})
	}
	if previous != nil {
		before = append(before, previous)
	}
	must, lost, err := asked(before, v.Key, v.Now)
	if err != nil {
		return err
	}
	v.must = append(v.must, must...)
	for range lost {
		v.Note("WARNING: no key of those that machines have pinned can sign any more: they must have learned of its renewal from the server")
	}
	return v.checkRelease(ctx, version, previous)
}

// previous returns the release before one, as far as it is on the server and can be
// read.
func (v *verifier) previous(ctx context.Context, version contract.Version) *published {
	all, err := v.server.Versions(ctx)
	var before contract.Version
	for _, other := range all {
		if other < version {
			before = max(before, other)
		}
	}
	if err != nil || before == 0 {
		return nil
	}
	p, err := readPublished(ctx, v.server, before, v.Key, v.Now)
	if err != nil {
		v.Note("release %s is not compared with the one before, %s, which cannot be read: %v", version, before, err)
		return nil
	}
	return p
}

// checkRelease reads an archive once, front to back, and checks all of it on
// the way: the signature over the archive, the one inside, every file.
func (v *verifier) checkRelease(ctx context.Context, version contract.Version, previous *published) (err error) {
	v.contract, v.extensions = nil, nil
	return v.checkSigned(ctx, manifest.ArchiveName(version), func(packed io.Reader) error { return v.unpack(ctx, packed, version, previous) })
}

// checkSigned reads an archive once, and compares it with the signature beside it.
func (v *verifier) checkSigned(ctx context.Context, name string, unpack func(packed io.Reader) error) (err error) {
	signed := name + ".pgp"
	signature, err := v.server.Get(ctx, signed, pgp.MaxSignature)
	switch {
	case v.Key == nil && errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case v.Key == nil:
		return errors.New("is signed, and there is no key to check it")
	}
	if len(signature) > 0 {
		if err := v.lasts(signed, signature); err != nil {
			return err
		}
	}
	packed, err := v.server.Open(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, packed.Close()) }()
	if v.Key == nil {
		return unpack(packed)
	}
	whole, tee := io.Pipe()
	verified := make(chan error, 1)
	go func() {
		err := v.Key.Verify(whole, signature, v.Now)
		// A reason found early must not hold up the rest.
		_, copied := io.Copy(io.Discard, whole)
		verified <- errors.Join(err, copied)
	}()
	err = unpack(io.TeeReader(packed, tee))
	tee.CloseWithError(err) // nil: the end of the archive
	if failed := <-verified; err == nil && failed != nil {
		return fmt.Errorf("%s: %w", signed, failed)
	}
	return err
}

// unpack checks what is in an archive.
func (v *verifier) unpack(ctx context.Context, packed io.Reader, version contract.Version, previous *published) error {
	members := new(members)
	r, err := archive.Open(ctx, packed, authenticateWith(v.must, v.Now), archive.Options{Members: members.add})
	if err != nil {
		return err
	}
	defer r.Close()
	members.next = r.Head().Size
	d := r.Release()
	arch, imageID := v.server.Place()
	if err := belongs(d, arch, imageID, version); err != nil {
		return err
	}
	if text := revocationsText(d); text != "" {
		v.Note("release %s brings %s", version, text)
	}
	var c *contract.Contract
	files := indexed{salt: d.Salt}
	for {
		f, content, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files.checkMembers(members)
		}
		if err != nil {
			return err
		}
		switch f.Name {
		case release.ImageFile:
			err = unpackImage(ctx, c, files, content)
		case release.IndexFile:
			err = files.read(r.Head(), content)
		default:
			c, err = v.unpackEFI(d, f, content, c, &files)
			if err == nil && f.Name == release.UKIFile && previous != nil {
				if err = release.Follows(previous.contract, c); err != nil {
					err = fmt.Errorf("machines with release %s would refuse it: %w", previous.version, err)
				}
			}
		}
		if err != nil {
			return err
		}
	}
}

// unpackEFI checks an EFI file; the UKI gives the boot contract.
func (v *verifier) unpackEFI(d *release.Release, f release.File, content io.Reader, c *contract.Contract, files *indexed) (*contract.Contract, error) {
	image, err := io.ReadAll(content) // as long as the signed description says
	if err != nil {
		return nil, err
	}
	files.contents = append(files.contents, image)
	if err := checkEFI(f, image); err != nil || f.Name != release.UKIFile {
		return c, err
	}
	if c, err = checkUKI(d, image); err != nil {
		return nil, err
	}
	if v.extensions, err = extensionsOf(image); err != nil {
		return nil, err
	}
	v.contract = c
	return c, v.checkPinned(c)
}

// checkPinned refuses a release after which machines would want another key.
func (v *verifier) checkPinned(c *contract.Contract) error {
	if v.Key == nil && len(c.ReleaseKey) == 0 {
		return nil
	}
	if v.Key == nil || len(c.ReleaseKey) == 0 {
		return errors.New("only one of the server and the boot contract has a release key")
	}
	pinned, err := pgp.ParseKey(c.ReleaseKey)
	if err != nil {
		return fmt.Errorf("the boot contract's release key: %w", err)
	}
	if pinned.Fingerprint() != v.Key.Fingerprint() {
		return fmt.Errorf("the boot contract has pinned the key %s, want %s", pinned.Fingerprint(), v.Key.Fingerprint())
	}
	return nil
}

// unpackImage checks the root hash and the blocks of the system image.
func unpackImage(ctx context.Context, c *contract.Contract, files indexed, content io.Reader) error {
	return spooled(content, func(f *os.File) error {
		if err := checkImage(ctx, c, f); err != nil {
			return err
		}
		return files.check(release.ImageFile, f)
	})
}

// spooled keeps content in a file until it is checked: the blocks under a tree are read by
// several goroutines.
func spooled(content io.Reader, check func(f *os.File) error) (err error) {
	f, err := os.CreateTemp("", "halogen-verify-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	return check(f)
}
