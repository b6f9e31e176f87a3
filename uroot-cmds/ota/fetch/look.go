package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"time"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/notes"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/server"
)

// Found is what a server offers, as it was read. Anyone who has it can judge it
// again.
type Found struct {
	Manifest  []byte `json:"manifest,omitempty"` // empty: there is only an archive
	Signature []byte `json:"signature,omitempty"`
	Key       []byte `json:"key,omitempty"` // that the manifest names
	// Archive is the name of the offered release's archive; empty when there is
	// nothing to take.
	Archive string `json:"archive,omitempty"`
	Head    []byte `json:"head,omitempty"` // the archive's start, with its head in it
	Ranges  bool   `json:"ranges,omitempty"`
	// Notes say what the release brings; empty where there are none.
	Notes          []byte `json:"notes,omitempty"`
	NotesSignature []byte `json:"notes_signature,omitempty"`

	// Missing: the server has no archive of the system extension that was asked for.
	Missing bool `json:"missing,omitempty"`

	step contract.Version // the archive's, where it is one on the way to what is offered; or 0
	of   *Extension       // that the archive has to be of; nil where it is a release's
}

// head reads the archive's head, for the machine that Self says it is.
func (f *Found) head(self *offer.Self) (*archive.Head, error) {
	return f.readFrom(bytes.NewReader(f.Head), self)
}

func (f *Found) readFrom(r io.Reader, self *offer.Self) (*archive.Head, error) {
	if f.of != nil {
		return f.of.readHead(r, self)
	}
	return archive.ReadHead(r, self.Authenticate)
}

// Learned returns the machine with what it learns of the release key.
func (f *Found) Learned(self *offer.Self) (*offer.Self, error) {
	if len(f.Key) == 0 {
		return self, nil
	}
	return self.Learn(f.Key)
}

// Judge decides over what was found: from the bytes alone, so that nothing has
// to be believed of the one who found it. The release is nil where the manifest
// alone decides.
func (f *Found) Judge(self *offer.Self) (offer.Decision, *archive.Head, offer.Seen, error) {
	offered, seen := manifest.Offer{Channel: self.Channel}, self.Seen
	self, err := f.Learned(self)
	if err != nil {
		return offer.Decision{}, nil, seen, err
	}
	if len(f.Manifest) > 0 {
		m, now, err := self.Manifest(f.Manifest, f.Signature)
		if err != nil {
			return offer.Decision{}, nil, seen, err
		}
		seen = now
		var d offer.Decision
		if offered, d, err = self.Choose(m); err != nil {
			return offer.Decision{}, nil, seen, err
		}
		if d.Verdict != offer.Take || len(f.Head) == 0 {
			return d, nil, seen, nil
		}
	}
	head, err := f.head(self)
	if err != nil {
		return offer.Decision{}, nil, seen, fmt.Errorf("%s: %w", f.Archive, err)
	}
	if len(f.Manifest) == 0 {
		offered.Version = head.Release.Version
	}
	return self.ByRelease(head.Release, offered.Entry, offered.Channel), head, seen, nil
}

// settling is how often and how long a manifest that does not fit its signature
// is waited for: somebody may be publishing.
const settling = 4

// Look asks a server what it offers. archiveName is that of an archive without a
// manifest; empty is the usual case. wait is how long to wait before a manifest
// is read again that does not fit its signature. Of what is refused the release key may
// be returned with the error: there may be something to learn from it.
func Look(ctx context.Context, t server.Transport, self *offer.Self, archiveName string, wait time.Duration) (*Found, error) {
	if archiveName != "" {
		f := &Found{Archive: archiveName}
		return f, f.readHead(ctx, t, self)
	}
	directory, f, err := lookSettled(ctx, t, self, wait)
	if err != nil {
		return f, err
	}
	d, _, _, err := f.Judge(self)
	if err != nil || d.Verdict != offer.Take {
		return f, err
	}
	if self, err = f.Learned(self); err != nil {
		return nil, err
	}
	if err := self.Usable(); err != nil {
		return f, err
	}
	f.Archive = path.Join(directory, manifest.ArchiveName(d.Version))
	f.step = f.asStep(self.Channel, d.Version)
	if err := f.readHead(ctx, t, self); err != nil {
		return f, err
	}
	return f, f.readNotes(ctx, t, directory, d.Version)
}

// lookSettled is lookManifest, which waits for a manifest that fits its signature.
func lookSettled(ctx context.Context, t server.Transport, self *offer.Self, wait time.Duration) (directory string, f *Found, err error) {
	directory, f, err = lookManifest(ctx, t, self)
	for try := 1; errors.Is(err, offer.ErrUnsettled) && try < settling; try++ {
		select {
		case <-ctx.Done():
			return "", nil, context.Cause(ctx)
		case <-time.After(wait):
		}
		directory, f, err = lookManifest(ctx, t, self)
	}
	return directory, f, err
}

// readNotes reads what there is to say about the release. No update waits for it.
func (f *Found) readNotes(ctx context.Context, t server.Transport, directory string, v contract.Version) error {
	t = server.Optional(t)
	text, err := t.Get(ctx, path.Join(directory, notes.FileName(v)), notes.MaxSize)
	if err != nil {
		return context.Cause(ctx)
	}
	signature, err := t.Get(ctx, path.Join(directory, notes.SignatureName(v)), pgp.MaxSignature)
	if err != nil && !errors.Is(err, server.ErrNotFound) {
		return context.Cause(ctx)
	}
	f.Notes, f.NotesSignature = text, signature
	return nil
}

// ErrNoNotes says that nothing is said of a release.
var ErrNoNotes = errors.New("it has no notes")

// Said is what is said of the releases after the running one, up to v: signed by the
// release key, like all else, and of this machine's image.
func (f *Found) Said(self *offer.Self, v contract.Version) ([]notes.Release, error) {
	if len(f.Notes) == 0 {
		return nil, ErrNoNotes
	}
	self, err := f.Learned(self)
	if err != nil {
		return nil, err
	}
	if err := self.Authenticate(f.Notes, f.NotesSignature); err != nil {
		return nil, err
	}
	n, err := notes.Parse(f.Notes)
	if err != nil {
		return nil, err
	}
	if n.ImageID != self.Running.ImageID || n.Releases[0].Version != v {
		return nil, fmt.Errorf("they are of release %s of %s", n.Releases[0].Version, n.ImageID)
	}
	return n.Since(self.Running.Version, v), nil
}

// lookManifest reads the manifest and its signature. A directory may be the whole
// server's or the image's alone.
func lookManifest(ctx context.Context, t server.Transport, self *offer.Self) (directory string, f *Found, err error) {
	f = new(Found)
	for _, directory = range []string{self.Directory(), ""} {
		f.Manifest, err = t.Get(ctx, path.Join(directory, manifest.FileName), manifest.MaxSize)
		if !errors.Is(err, server.ErrNotFound) {
			break
		}
	}
	if errors.Is(err, server.ErrNotFound) {
		return "", nil, fmt.Errorf("%s has no %s for %s: %w: correct Server= in ota.conf, or name the place that has it with --from", t, manifest.FileName, self.Directory(), err)
	}
	if err != nil {
		return "", nil, err
	}
	f.Signature, err = t.Get(ctx, path.Join(directory, manifest.SignatureName), pgp.MaxSignature)
	if err != nil && !errors.Is(err, server.ErrNotFound) {
		return "", nil, err
	}
	// The key comes first: who has renewed it has signed the manifest with it too.
	m, err := manifest.Parse(f.Manifest)
	if err != nil {
		return "", nil, err
	}
	if m.PubKey != "" && len(self.Running.ReleaseKey) > 0 {
		if f.Key, err = t.Get(ctx, path.Join(directory, m.PubKey), pgp.MaxKey); err != nil {
			return "", nil, fmt.Errorf("the release key that the manifest names: %w", err)
		}
		if self, err = self.Learn(f.Key); err != nil {
			return "", nil, err
		}
	}
	_, _, err = self.Manifest(f.Manifest, f.Signature)
	return directory, f, err
}

// readHead reads the start of the archive until its head is whole and found to
// be genuine.
func (f *Found) readHead(ctx context.Context, t server.Transport, self *offer.Self) error {
	var err error
	f.Ranges = true
	var head bytes.Buffer
	size := int64(16 << 10)
	for err = io.ErrUnexpectedEOF; errors.Is(err, io.ErrUnexpectedEOF) && head.Len() < archive.MaxHead; size = min(2*size, 1<<20) {
		_, _, failed := t.Range(ctx, f.Archive, &head, int64(head.Len()), size)
		if errors.Is(failed, server.ErrNoRanges) {
			f.Ranges = false
			return f.streamHead(ctx, t, self)
		}
		if failed != nil && !errors.Is(failed, io.EOF) {
			return f.missing(failed)
		}
		f.Head = head.Bytes()
		if _, err = f.head(self); err != nil && failed != nil {
			break // the archive ends here
		}
	}
	return f.checkHead(self, err)
}

// streamHead reads the head from a server that sends only whole files.
func (f *Found) streamHead(ctx context.Context, t server.Transport, self *offer.Self) error {
	body, _, err := t.Open(ctx, f.Archive)
	if err != nil {
		return f.missing(err)
	}
	defer body.Close()
	var read bytes.Buffer
	_, err = f.readFrom(io.TeeReader(io.LimitReader(body, archive.MaxHead), &read), self)
	f.Head = read.Bytes()
	return f.checkHead(self, err)
}

// asStep returns the version of a release that no channel offers any more, and that is
// wanted as a step on the way: nobody is about to publish that; or 0.
func (f *Found) asStep(channel manifest.Channel, v contract.Version) contract.Version {
	m, err := manifest.Parse(f.Manifest)
	if err != nil || !slices.Contains(m.Steps, v) {
		return 0
	}
	offers, err := m.Offers(channel)
	if err != nil || slices.ContainsFunc(offers, func(o manifest.Offer) bool { return o.Version == v }) {
		return 0
	}
	return v
}

// missing explains why an archive that a manifest names cannot be read.
func (f *Found) missing(err error) error {
	if errors.Is(err, server.ErrNotFound) && f.of != nil {
		f.Missing = true
		return nil
	}
	if errors.Is(err, server.ErrNotFound) && f.step != 0 {
		return fmt.Errorf("the server does not have version %s (%s), which this machine needs before anything newer (STEPS in %s): tell its distributor, who puts the archive back (`halogen release --verify` names what is missing), or takes version %s out of STEPS. "+
			"Anyone who still has the archive takes it with `ota fetch --from`, by its address or its path (%w)", f.step, f.Archive, manifest.FileName, f.step, err)
	}
	if errors.Is(err, server.ErrNotFound) {
		return fmt.Errorf("the server offers %s and does not have it: it may be publishing; run this again later (%w)", f.Archive, err)
	}
	return explain(err)
}

// checkHead refuses an archive whose description lies in another one's place.
func (f *Found) checkHead(self *offer.Self, err error) error {
	if err == nil {
		_, err = f.head(self)
	}
	if manifest.IsPage(f.Head) {
		return fmt.Errorf("%s: the server answers with a web page: %w", f.Archive, manifest.ErrPage)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s is not whole: it may be half uploaded; run this again later (%w)", f.Archive, err)
	}
	if errors.Is(err, release.ErrFormat) {
		return fmt.Errorf("%s: %w: this system is of a time before that, and the manifest names no release in between (STEPS). Take one that the server still has: ota fetch --from ADDRESS/%s/N/N.tar.gz", f.Archive, err, self.Directory())
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.Archive, err)
	}
	return nil
}
