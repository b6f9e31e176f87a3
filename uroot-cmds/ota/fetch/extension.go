package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"time"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/verity"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/server"
)

// An Extension is one of a release, as the release's UKI lists it.
type Extension struct {
	contract.Extension
	Of *contract.Contract `json:"of"` // the release's
}

// readHead reads the head of an archive, and refuses every one but this extension's: that
// of another release or image, of another extension, or of one with other content, even
// where the release key has signed it.
func (e *Extension) readHead(r io.Reader, self *offer.Self) (*archive.Head, error) {
	head, err := archive.ReadExtensionHead(r, self.Authenticate)
	if err == nil {
		err = head.Release.MatchesExtension(e.Of, &e.Extension)
	}
	if err != nil {
		return nil, err
	}
	return head, nil
}

// LookExtension is Look for a system extension of a release that the machine has. That the
// server has none is said by Found.Missing, and is no error.
func LookExtension(ctx context.Context, t server.Transport, self *offer.Self, e *Extension, archiveName string, wait time.Duration) (*Found, error) {
	if archiveName != "" {
		f := &Found{Archive: archiveName, of: e}
		return f, f.readHead(ctx, t, self)
	}
	directory, f, err := lookSettled(ctx, t, self, wait)
	if err != nil {
		return f, err
	}
	if self, err = f.Learned(self); err != nil {
		return nil, err
	}
	if err := self.Usable(); err != nil {
		return f, err
	}
	f.of, f.Archive = e, path.Join(directory, manifest.ExtensionArchiveName(e.Of.Version, e.Name))
	return f, f.readHead(ctx, t, self)
}

// JudgeExtension decides over what was found of an extension: from the bytes alone, as
// Judge does. The head is nil where the server has none.
func (f *Found) JudgeExtension(self *offer.Self, e *Extension) (*archive.Head, offer.Seen, error) {
	seen := self.Seen
	self, err := f.Learned(self)
	if err != nil {
		return nil, seen, err
	}
	if floor := max(self.Floor, self.Running.Epoch); e.Of.Epoch < floor {
		return nil, seen, fmt.Errorf("version %s has epoch %d, and this machine's floor is %d: it could not unlock this machine's data, and nothing is fetched for it", e.Of.Version, e.Of.Epoch, floor)
	}
	if len(f.Manifest) > 0 {
		_, now, err := self.Manifest(f.Manifest, f.Signature)
		if err != nil {
			return nil, seen, err
		}
		seen = now
	}
	if f.Missing {
		return nil, seen, nil
	}
	judged := *f
	judged.of = e
	head, err := judged.head(self)
	if err != nil {
		return nil, seen, fmt.Errorf("%s: %w", f.Archive, err)
	}
	return head, seen, nil
}

// large is the name of the file that goes to System.
func (j *Job) large() string {
	if j.Extension != nil {
		return release.ExtensionFile(j.Extension.Name)
	}
	return release.ImageFile
}

// bringExtension brings an extension's file, with its tree. Cut at any point, the file has a
// part of its blocks right, and the next call finds which. Whether the whole has the root
// hash that the UKI names, the caller looks.
func (j *Job) bringExtension(ctx context.Context) error {
	j.offered.asked = true // for patches, which are of system images
	if !j.Found.Ranges {
		return j.byStream(ctx)
	}
	err := j.fetchIndex(ctx)
	if err == nil {
		err = j.fill(ctx, j.large(), j.System, j.extensionSource(), true)
	}
	if errors.Is(err, server.ErrNoRanges) {
		return j.byStream(ctx)
	}
	return err
}

// extensionSource is what blocks can be copied from: the file of the same extension of
// another release, in which the image comes first and then the tree.
func (j *Job) extensionSource() *source {
	s := j.Source
	if s == nil || s.System == nil || s.Tree == nil || string(s.Salt) != string(j.head.Release.Salt) {
		return nil
	}
	return &source{r: s.System, have: j.haveFile}
}

// haveFile tells a plan of the source's blocks: those of its image by its tree, and those of
// the tree, of which most stay the same as well, by what they hold.
func (j *Job) haveFile(ctx context.Context, p *blockindex.Plan) error {
	s := j.Source
	if err := p.HaveTree(ctx, s.Tree, s.Blocks); err != nil {
		return err
	}
	size, err := verity.TreeSize(s.Blocks)
	if err != nil {
		return err
	}
	h, next := blockindex.NewHasher(s.Salt), int(s.Blocks)
	buffer := make([]byte, copyAtOnce*blockindex.BlockSize)
	for at := int64(0); at < size; at += int64(len(buffer)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b := buffer[:min(int64(len(buffer)), size-at)]
		if _, err := s.Tree.ReadAt(b, at); err != nil {
			return err
		}
		for _, sum := range h.All(b) {
			p.Have(next, sum)
			next++
		}
	}
	return nil
}
