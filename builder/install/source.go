package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/questions"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/uki"
	"halogenos.internal/boot/words"
	"halogenos.internal/builder/files"
)

// A Source is a release that was checked as far as it can be before its system
// image was read. The image is read once, front to back.
type Source struct {
	ESP      ESP
	Contract *contract.Contract
	Signed   bool
	// Beside: the release starts on a disk that it shares with other systems.
	Beside bool
	// Others: its first start asks whether other systems go on starting.
	Others bool
	// Choices are what somebody who installs it is asked about; nil where nothing is asked.
	Choices *questions.Choices
	unread  error // why they are nil although the UKI has some
	Image   io.Reader
	finish  func() error
	close   func() error
}

// Finish checks, after the last byte of the image, all that could not be
// checked before: its hash, and that nothing follows.
func (s *Source) Finish() error { return s.finish() }

// Close lets go of what the source comes from.
func (s *Source) Close() error { return s.close() }

// ErrUnsigned says that a release has no signature that could be checked.
var ErrUnsigned = errors.New("the release is not signed")

// FromDirectory reads what halogen build left in a directory. Such a release is not
// signed yet: the one who has the directory vouches for it.
func FromDirectory(dir string) (*Source, error) {
	text, err := files.Read(filepath.Join(dir, release.FileName), release.MaxSize)
	if err != nil {
		return nil, err
	}
	return fromDirectory(dir, text)
}

// FromSignedDirectory reads what an archive has left in a directory, and wants the
// signature that lies in both: of key, over release.json. It returns ErrUnsigned
// where there is none.
func FromSignedDirectory(dir string, key *pgp.Key, now time.Time) (*Source, error) {
	text, err := files.Read(filepath.Join(dir, release.FileName), release.MaxSize)
	if err != nil {
		return nil, err
	}
	signature, err := files.Read(filepath.Join(dir, archive.SignatureFile), archive.MaxSignature)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s has no %s, as a build is signed when it is packed; install the archive of 'halogen release', or its unpacked content, or give no key", ErrUnsigned, dir, archive.SignatureFile)
	}
	if err != nil {
		return nil, err
	}
	if err := authenticate(key, now)(text, signature); err != nil {
		return nil, err
	}
	s, err := fromDirectory(dir, text)
	if err != nil {
		return nil, err
	}
	if err := s.checkKey(key); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.Signed = true
	return s, nil
}

// fromDirectory reads the files of a directory that text describes.
func fromDirectory(dir string, text []byte) (*Source, error) {
	r, err := release.Parse(text)
	if err != nil {
		return nil, err
	}
	s := &Source{ESP: ESP{Release: r}}
	for _, f := range r.Files {
		if len(f.Authenticode) == 0 {
			continue
		}
		content, err := files.Read(filepath.Join(dir, f.Name), f.Size)
		if err != nil {
			return nil, err
		}
		if err := s.take(f, content); err != nil {
			return nil, err
		}
	}
	f, err := os.Open(filepath.Join(dir, release.ImageFile))
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	s.Image, s.close = io.TeeReader(f, sum), f.Close
	s.finish = func() error {
		want, _ := r.File(release.ImageFile)
		if !bytes.Equal(sum.Sum(nil), want.SHA256) {
			return words.Errorf(words.InNotDescribed, release.ImageFile, release.FileName)
		}
		return nil
	}
	if err := s.complete(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

// FromArchive reads a release archive front to back. key is the key that must
// have signed it; nil takes an archive without a signature, of an image that
// has pinned none. Closing the source does not close packed.
func FromArchive(ctx context.Context, packed io.Reader, key *pgp.Key, now time.Time) (*Source, error) {
	r, err := archive.Open(ctx, packed, authenticate(key, now), archive.Options{})
	if err != nil {
		return nil, err
	}
	s := &Source{ESP: ESP{Release: r.Release()}, Signed: key != nil, close: r.Close}
	if err := s.readArchive(r); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if err := s.checkKey(key); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	s.finish = func() error {
		// The content's end is where its hash is compared.
		if n, err := s.Image.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			return words.Errorf(words.InReadImage, cmpErr(err))
		}
		if _, _, err := r.Next(); !errors.Is(err, io.EOF) {
			return fmt.Errorf("read archive: %w", cmpErr(err))
		}
		return nil
	}
	return s, nil
}

// cmpErr is an error also where something was read that should not be there.
func cmpErr(err error) error {
	if err == nil {
		return errors.New("it is longer than release.json says")
	}
	return err
}

// authenticate checks the signature over release.json.
func authenticate(key *pgp.Key, now time.Time) archive.Authenticate {
	return func(description, signature []byte) error {
		switch {
		case key == nil && len(signature) > 0:
			return errors.New("the release is signed: name the key that its distributor publishes")
		case key == nil:
			return nil
		case len(signature) == 0:
			return ErrUnsigned
		}
		if err := key.Verify(bytes.NewReader(description), signature, now); err != nil {
			return words.Errorf(words.InOnThePath, archive.SignatureFile, err)
		}
		return nil
	}
}

// readArchive reads up to the system image.
func (s *Source) readArchive(r *archive.Reader) error {
	for {
		f, content, err := r.Next()
		if err != nil {
			return err
		}
		if f.Name == release.ImageFile {
			s.Image = content
			return s.complete()
		}
		if len(f.Authenticode) == 0 {
			if _, err := io.Copy(io.Discard, content); err != nil {
				return err
			}
			continue
		}
		whole, err := io.ReadAll(content) // as long as the signed description says
		if err != nil {
			return err
		}
		if err := s.take(f, whole); err != nil {
			return err
		}
	}
}

// take checks an EFI file and keeps it.
func (s *Source) take(f release.File, content []byte) error {
	if sum := sha256.Sum256(content); !bytes.Equal(sum[:], f.SHA256) {
		return words.Errorf(words.InNotDescribed, f.Name, release.FileName)
	}
	if digest, err := authenticode.Digest(content); err != nil || !bytes.Equal(digest[:], f.Authenticode) {
		return fmt.Errorf("%s has another Authenticode hash than %s says (%w)", f.Name, release.FileName, err)
	}
	if f.Name == release.BootManagerFile {
		s.ESP.BootManager = content
		return nil
	}
	img, err := uki.Parse(content)
	if err != nil {
		return words.Errorf(words.InOnThePath, f.Name, err)
	}
	initrd, ok := img.Section(".initrd")
	if !ok {
		return fmt.Errorf("%s has no initramfs", f.Name)
	}
	if s.Contract, err = contract.FromInitrd(initrd); err != nil {
		return words.Errorf(words.InOnThePath, f.Name, err)
	}
	able := contract.AbilitiesFromInitrd(initrd)
	s.ESP.UKI, s.ESP.Size, s.Beside, s.Others = content, able.ESP(), able.Beside, able.Others
	s.takeChoices(contract.ChoicesFromInitrd(initrd, questions.MaxSize))
	return s.ESP.Release.Matches(s.Contract)
}

func (s *Source) complete() error {
	if s.ESP.UKI == nil || s.ESP.BootManager == nil || s.Contract == nil {
		return fmt.Errorf("the release lacks %s or %s", release.UKIFile, release.BootManagerFile)
	}
	return nil
}

// checkKey refuses a release after whose installation the machine would want
// updates by another key.
func (s *Source) checkKey(key *pgp.Key) error {
	pinned := s.Contract.ReleaseKey
	switch {
	case key == nil && len(pinned) == 0:
		return nil
	case key == nil:
		return fmt.Errorf("%w, and its UKI wants signed ones", ErrUnsigned)
	case len(pinned) == 0:
		return errors.New("the release is signed, and its UKI would take unsigned updates")
	}
	theirs, err := pgp.ParseKey(pinned)
	if err != nil {
		return fmt.Errorf("the UKI's release key: %w", err)
	}
	if theirs.Fingerprint() != key.Fingerprint() {
		return fmt.Errorf("the UKI has pinned the key %s, and the one given is %s", theirs.Fingerprint(), key.Fingerprint())
	}
	return nil
}
