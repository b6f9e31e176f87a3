package enroll

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/secureboot"
)

const (
	// Bounds for what is looked at on the ESP.
	maxDepth = 6
	maxFiles = 1024
)

// A Signer signs EFI images for this machine. The same image always comes to
// the same bytes.
type Signer interface {
	Sign(image []byte) ([]byte, error)
	// Verify returns nil when the image is soundly signed by this machine's key.
	Verify(image []byte) error
}

// DBSigner signs with the db key.
type DBSigner struct {
	Pair secureboot.Pair // stays the caller's
	// Time that signatures state; the same at every boot (the certificate's
	// NotBefore will do), or a signature would differ from boot to boot.
	Time time.Time
}

// Sign implements Signer.
func (s DBSigner) Sign(image []byte) ([]byte, error) {
	if s.Pair.Key == nil {
		return nil, errors.New("the db key was wiped")
	}
	return authenticode.Sign(image, s.Pair.Key, s.Pair.Certificate, s.Time)
}

// Verify implements Signer.
func (s DBSigner) Verify(image []byte) error {
	return authenticode.VerifyOwn(image, s.Pair.Certificate)
}

// An Outcome is what became of a file.
type Outcome uint8

// Outcomes.
const (
	Signed        Outcome = iota + 1 // just now
	AlreadySigned                    // by this machine's key
	NotEFI                           // no EFI image by its first bytes: nothing can start it
	NotOurs                          // nothing vouches for it: it is not for this machine to sign
)

// String returns the outcome for the console.
func (o Outcome) String() string {
	switch o {
	case Signed:
		return "signed"
	case AlreadySigned:
		return "already signed"
	case NotEFI:
		return "not an EFI image, left alone"
	case NotOurs:
		return "not signed, left alone"
	}
	return "untouched"
}

func looksEFI(image []byte) bool { return bytes.HasPrefix(image, []byte("MZ")) }

func readsBack(d Dir, name string, want []byte) error {
	got, err := d.Read(name)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("read back: %d bytes with SHA-256 %x, wrote %d with %x", len(got), sha256.Sum256(got), len(want), sha256.Sum256(want))
	}
	return nil
}

// writeFresh writes a file under a name that nothing has or refers to yet, and
// returns when it is known to be on the disk. What was written of one that failed, as
// on a full ESP, goes again.
func writeFresh(d Dir, name string, data []byte) (err error) {
	defer func() {
		if err == nil {
			return
		}
		if rerr := d.Remove(name); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("remove what was written of it: %w", rerr))
		}
	}()
	if err := d.Create(name, data); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := d.SyncFile(name); err != nil {
		return fmt.Errorf("flush %s: %w", name, err)
	}
	if err := d.SyncDir(path.Dir(name)); err != nil {
		return fmt.Errorf("flush directory of %s: %w", name, err)
	}
	if err := readsBack(d, name, data); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// Replace puts data on the ESP under a fresh name and then takes away the files
// that it replaces. Cut before the new file is known to be on the disk: the old
// ones are all there, and the next run starts the new one again. Cut after it:
// both are there, and the next run goes on with the removal.
func Replace(d Dir, fresh string, data []byte, old ...string) error {
	if slices.ContainsFunc(old, func(o string) bool { return strings.EqualFold(o, fresh) }) {
		return fmt.Errorf("replace %s: the fresh name is that of a file to be replaced", fresh)
	}
	now, err := d.Read(fresh)
	switch {
	case err == nil && bytes.Equal(now, data):
		// Perhaps never flushed: a reading proves the cache alone.
		if err := errors.Join(d.SyncFile(fresh), d.SyncDir(path.Dir(fresh)), readsBack(d, fresh, data)); err != nil {
			return fmt.Errorf("flush %s: %w", fresh, err)
		}
	case errors.Is(err, fs.ErrNotExist):
		if err := writeFresh(d, fresh, data); err != nil {
			return err
		}
	default: // something half written, perhaps not even readable
		if err := d.Remove(fresh); err != nil {
			return fmt.Errorf("remove what is left of %s: %w", fresh, err)
		}
		if err := writeFresh(d, fresh, data); err != nil {
			return err
		}
	}
	for _, o := range old {
		if err := d.Remove(o); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s, which %s replaces: %w", o, fresh, err)
		}
		if err := d.SyncDir(path.Dir(o)); err != nil {
			return fmt.Errorf("flush removal of %s: %w", o, err)
		}
	}
	return nil
}

// An Allowed says why an image is not for this machine to sign; nil where it is.
// It gets the image as it was before an interrupted signing. The machine's db key
// signs nothing else: whatever it has signed starts, and can have the TPM release
// the machine secret.
type Allowed func(name string, image []byte) error

// A Result is what became of one file of the ESP.
type Result struct {
	Name    string
	Outcome Outcome
	Why     string // it was left alone
}

// String describes the result for the console.
func (r Result) String() string {
	if r.Why != "" {
		return fmt.Sprintf("%s: %s: %s", r.Name, r.Outcome, r.Why)
	}
	return fmt.Sprintf("%s: %s", r.Name, r.Outcome)
}

// SignAll signs those EFI files of the ESP in place that are allowed. Any other
// is left alone, and stops nothing, whatever is in it. The removable path comes
// last: should anything be wrong with signing on this machine, it shows before
// the file that the machine cannot do without is touched.
func SignAll(d Dir, state State, s Signer, allowed Allowed) ([]Result, error) {
	if state.SecureBoot == On {
		return nil, errors.New("sign the EFI files in place: the firmware enforces Secure Boot, so a half signed file would not start")
	}
	names, err := EFIFiles(d)
	if err != nil {
		return nil, err
	}
	var results []Result
	for _, name := range names {
		r, err := signOne(d, name, s, allowed)
		if err != nil {
			return results, err
		}
		results = append(results, r)
	}
	return results, nil
}

func signOne(d Dir, name string, s Signer, allowed Allowed) (Result, error) {
	r := Result{Name: name}
	image, err := d.Read(name)
	if err != nil {
		if strings.EqualFold(name, layout.RemovableManager) {
			return r, fmt.Errorf("sign %s: %w", name, err)
		}
		// Firmware cannot start what cannot be read.
		r.Outcome, r.Why = NotOurs, err.Error()
		return r, nil
	}
	if looksEFI(image) && s.Verify(image) != nil {
		if err := allowed(name, Original(d.Read, name, image)); err != nil {
			r.Outcome, r.Why = NotOurs, err.Error()
			return r, nil
		}
	}
	r.Outcome, err = SignInPlace(d, name, s)
	return r, err
}

// CheckSigned returns nil when what the machine starts from is there and signed
// by this machine's key: the boot manager on the removable path, every other EFI
// file that is allowed, and at least one UKI among these. What is not this
// machine's own is not judged. dbx is what the firmware's is going to hold: a boot
// manager from a backup, or of an older release, can be in it.
func CheckSigned(d Dir, s Signer, allowed Allowed, dbx secureboot.Database) error {
	names, err := EFIFiles(d)
	if err != nil {
		return err
	}
	manager, uki := false, false
	for _, name := range names {
		removable := strings.EqualFold(name, layout.RemovableManager)
		image, err := d.Read(name)
		if err != nil {
			if removable {
				return fmt.Errorf("check signature of %s: %w", name, err)
			}
			continue
		}
		err = s.Verify(image)
		if err == nil && revoked(image, dbx) {
			if removable {
				return fmt.Errorf("the firmware refuses %s: this machine has replaced that boot manager, and its hash is in dbx. Put the boot manager of a newer release there (`esp-rebuild` at the recovery console does, where the root partition keeps a copy), or clear dbx as well in the firmware's setup (its factory keys)", name)
			}
			continue
		}
		if err != nil && looksEFI(image) && (removable || allowed(name, image) == nil) {
			return fmt.Errorf("check signature of %s: %w", name, err)
		}
		manager = manager || removable && err == nil
		uki = uki || err == nil && strings.EqualFold(path.Dir(name), bls.Directory)
	}
	if !manager {
		return fmt.Errorf("there is no boot manager at %s", layout.RemovableManager)
	}
	if !uki {
		return fmt.Errorf("there is no UKI in %s that this machine's key has signed", bls.Directory)
	}
	return nil
}

// revoked reports whether dbx has an image's hash.
func revoked(image []byte, dbx secureboot.Database) bool {
	digest, err := authenticode.Digest(image)
	return err == nil && slices.ContainsFunc(dbx, func(e secureboot.Entry) bool {
		return e.Type == secureboot.TypeSHA256 && bytes.Equal(e.Data, digest[:])
	})
}

// EFIFiles lists the files of the ESP whose names end in .efi, in an order that
// does not change, the removable path last.
func EFIFiles(d Dir) ([]string, error) {
	names, err := walk(d, "", 0)
	if err != nil {
		return nil, fmt.Errorf("list the EFI system partition: %w", err)
	}
	slices.SortFunc(names, func(a, b string) int {
		last := func(s string) int {
			if strings.EqualFold(s, layout.RemovableManager) {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(last(a), last(b)), strings.Compare(a, b))
	})
	return names, nil
}

func walk(d Dir, directory string, depth int) ([]string, error) {
	if depth > maxDepth {
		return nil, nil // nothing of ours is there
	}
	entries, err := d.List(directory)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		name := path.Join(directory, e.Name)
		switch {
		case e.Directory && e.Name != "." && e.Name != "..":
			below, err := walk(d, name, depth+1)
			if err != nil {
				return nil, err
			}
			names = append(names, below...)
		case !e.Directory && strings.EqualFold(path.Ext(e.Name), ".efi"):
			names = append(names, name)
		}
		if len(names) > maxFiles {
			return nil, fmt.Errorf("more than %d EFI files", maxFiles)
		}
	}
	return names, nil
}
