package enroll

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

const (
	// sector is what a disk writes whole or not at all, in bytes.
	sector = 512
	// noteSuffix marks the note beside a file that is being signed in place.
	noteSuffix = ".signing"
	noteMagic  = "halogen-signing-1"
	maxNote    = 256
)

// ErrNotInPlace says that signing changes more of a file than its end and one
// sector, so that no order of writes keeps it whole at every instant.
var ErrNotInPlace = errors.New("the signature does not fit into the file in place")

// SignInPlace signs a file that must keep its name at every instant, such as
// the boot manager on the removable path. It is for Setup Mode alone, in which
// the firmware starts unsigned images too.
//
// No rename on vfat can do it: a new name may have length zero after a cut, and
// while a name is replaced the old clusters may be freed before the name points
// to the new ones. But a signature is an appendix, and a pointer to it in the
// headers. So, with a Sync or SyncDir after each step:
//
//  1. A note with the unsigned length and hash goes beside the file. Cut
//     before or in it: the file is untouched, and a note that does not match it
//     is worth nothing.
//  2. Room is reserved behind the end. Cut: the file has the same length and
//     the same content, its chain of clusters is longer than needed.
//  3. The appendix is written, into clusters that are the file's already. Cut: the
//     length is the old or the new one, and the appendix may be garbage. Nobody
//     looks at it, since the headers do not point there: the image starts,
//     unsigned. The note says where to cut it off next time.
//  4. The file is read back from the disk and compared.
//  5. The one sector with the pointer is overwritten. Cut: it is the old one,
//     and step 3 holds, or the new one, and the image is signed and whole.
//  6. It is read back and verified, and the note goes. Cut: a note beside a
//     signed file is removed the next time.
//
// On Linux 6.12's vfat, the writes between any two flushes of signing three
// files were replayed in every subset of their sectors (where there were more
// than seven, in many): the file was always whole, at the old or the new length.
func SignInPlace(d Dir, name string, s Signer) (Outcome, error) {
	image, err := d.Read(name)
	if err != nil {
		return 0, fmt.Errorf("sign %s: %w", name, err)
	}
	if !looksEFI(image) {
		return NotEFI, nil
	}
	if s.Verify(image) == nil {
		return AlreadySigned, removeNote(d, name)
	}
	plan, err := planInPlace(d, name, image, s)
	if err != nil {
		return 0, fmt.Errorf("sign %s: %w", name, err)
	}
	if err := plan.apply(d, name, s); err != nil {
		return 0, fmt.Errorf("sign %s: %w", name, err)
	}
	return Signed, removeNote(d, name)
}

// inPlace is how an image becomes a signed one.
type inPlace struct {
	original, signed []byte
	pointer          int64 // offset of the sector that differs
}

// planInPlace does everything that can fail without writing.
func planInPlace(d Dir, name string, image []byte, s Signer) (*inPlace, error) {
	original := Original(d.Read, name, image)
	p := &inPlace{original: original}
	var err error
	if p.signed, err = s.Sign(original); err != nil {
		return nil, err
	}
	if len(p.signed) < len(image) {
		// What an earlier attempt, with another key, appended is longer. Cutting a
		// file shorter is not safe on vfat either: it stays, and is signed too.
		p.original = image
		if p.signed, err = s.Sign(image); err != nil {
			return nil, err
		}
	}
	if err := s.Verify(p.signed); err != nil {
		return nil, fmt.Errorf("the signature just made does not verify: %w", err)
	}
	p.pointer, err = changedSector(p.original, p.signed)
	return p, err
}

// changedSector returns the offset of the only sector in which signed differs
// from the beginning that it shares with original.
func changedSector(original, signed []byte) (int64, error) {
	if len(signed) <= len(original) || len(signed) > MaxEFIFile {
		return 0, fmt.Errorf("%w: %d bytes become %d", ErrNotInPlace, len(original), len(signed))
	}
	found := int64(-1)
	for off := 0; off < len(original); off += sector {
		end := min(off+sector, len(original))
		if bytes.Equal(original[off:end], signed[off:end]) {
			continue
		}
		if found >= 0 {
			return 0, fmt.Errorf("%w: sectors %d and %d change", ErrNotInPlace, found/sector, off/sector)
		}
		if end-off < sector {
			return 0, fmt.Errorf("%w: the last %d bytes change", ErrNotInPlace, end-off)
		}
		found = int64(off)
	}
	if found < 0 {
		return 0, fmt.Errorf("%w: nothing points to it", ErrNotInPlace)
	}
	return found, nil
}

func (p *inPlace) apply(d Dir, name string, s Signer) error {
	if err := writeNote(d, name, p.original); err != nil {
		return err
	}
	f, err := d.Open(name)
	if err != nil {
		return err
	}
	if err := p.append(d, name, f); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := p.point(f); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := readsBack(d, name, p.signed); err != nil {
		return err
	}
	return s.Verify(p.signed)
}

// append is steps 2 to 4 of SignInPlace.
func (p *inPlace) append(d Dir, name string, f File) error {
	if err := f.Reserve(int64(len(p.signed))); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("flush reserved room: %w", err)
	}
	at := len(p.original)
	if _, err := f.WriteAt(p.signed[at:], int64(at)); err != nil {
		return fmt.Errorf("append %d bytes of signature: %w", len(p.signed)-at, err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("flush signature: %w", err)
	}
	return readsBack(d, name, slices.Concat(p.original, p.signed[at:]))
}

// point is step 5.
func (p *inPlace) point(f File) error {
	if _, err := f.WriteAt(p.signed[p.pointer:p.pointer+sector], p.pointer); err != nil {
		return fmt.Errorf("point to signature: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("flush pointer to signature: %w", err)
	}
	return nil
}

// note is what step 1 writes: the magic, the length and the hash of the file
// before it was touched.
func note(original []byte) []byte {
	sum := sha256.Sum256(original)
	return fmt.Appendf(nil, "%s %d %s\n", noteMagic, len(original), hex.EncodeToString(sum[:]))
}

// Original returns an image as it was before an interrupted signing; all of it,
// unless a note says otherwise and its hash agrees. read reads a file beside it.
func Original(read func(name string) ([]byte, error), name string, image []byte) []byte {
	text, err := read(name + noteSuffix)
	if err != nil || len(text) > maxNote {
		return image
	}
	words := strings.Fields(string(text))
	if len(words) != 3 {
		return image
	}
	n, err := strconv.Atoi(words[1])
	if err != nil || n <= 0 || n > len(image) || !bytes.Equal(text, note(image[:n])) {
		return image
	}
	return image[:n]
}

func writeNote(d Dir, name string, original []byte) error {
	text, file := note(original), name+noteSuffix
	if now, err := d.Read(file); err == nil && bytes.Equal(now, text) {
		return nil
	}
	if err := removeNote(d, name); err != nil {
		return err
	}
	return writeFresh(d, file, text)
}

func removeNote(d Dir, name string) error {
	file := name + noteSuffix
	err := d.Remove(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", file, err)
	}
	if err := d.SyncDir(path.Dir(file)); err != nil {
		return fmt.Errorf("flush removal of %s: %w", file, err)
	}
	return nil
}
