// Package esp changes what a machine can start: the UKIs on its ESP, and the
// counters in their names.
//
// It refuses to write what does not fit, to put a file in the place of another,
// and to touch a file that does not follow our rules for names.
package esp

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
)

// partSuffix ends the name of a file that is being written. The boot manager
// looks at names that end in .efi alone.
const partSuffix = ".part"

// slack is the room that stays free on the ESP, in bytes: for the directories to
// grow, and for the few small files that a boot may have to write.
const slack = 2 << 20

// A File is a UKI on the ESP.
type File struct {
	Name bls.Name
	Size int64 // in bytes
}

// Path is a UKI's, from the root of the ESP.
func Path(n bls.Name) string { return path.Join(bls.Directory, n.String()) }

// List returns the UKIs whose names follow our rules, in the order in which the
// boot manager prefers them. An ESP without the directory has none.
func List(dir hw.ESPDir) ([]File, error) {
	entries, err := dir.List(bls.Directory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list UKIs: %w", err)
	}
	var out []File
	for _, e := range entries {
		if n, err := bls.Parse(e.Name); err == nil && !e.Directory {
			out = append(out, File{n, e.Size})
		}
	}
	slices.SortFunc(out, func(a, b File) int { return bls.Compare(a.Name, b.Name) })
	return out, nil
}

// Bless takes the counters out of a UKI's name: it has proven itself. A UKI that
// is blessed already stays as it is.
//
// Cut before the rename, the UKI is on trial still, and is blessed again; cut
// after it, it is blessed.
func Bless(dir hw.ESPDir, n bls.Name) error { return rename(dir, n, n.Blessed()) }

// Condemn takes a UKI's tries away, so that the boot manager prefers any other
// one. Where there is a file of that name, it is said to have been tried more
// often.
//
// Cut before the rename, the UKI has the tries it had: the one who condemned it will
// see the same again. Cut after it, it has none.
func Condemn(dir hw.ESPDir, n bls.Name) error {
	if n.Bad() {
		return nil
	}
	have, err := List(dir)
	if err != nil {
		return err
	}
	bad := n.Condemned()
	for slices.ContainsFunc(have, func(f File) bool { return f.Name == bad }) {
		bad.Done++
	}
	return rename(dir, n, bad)
}

// Retry gives a UKI without tries its tries again, and returns its new name.
func Retry(dir hw.ESPDir, n bls.Name, tries int) (bls.Name, error) {
	if !n.Bad() {
		return n, fmt.Errorf("give %s its tries again: it is not without", n)
	}
	fresh := n.Blessed()
	fresh.Counted, fresh.Left = true, tries
	return fresh, rename(dir, n, fresh)
}

// rename is the one thing that cannot be done under a fresh name: the counter is
// the name. hw.ESPDir says what a cut leaves.
func rename(dir hw.ESPDir, from, to bls.Name) error {
	if from == to {
		return nil
	}
	return dir.Rename(Path(from), Path(to))
}

// ErrNoRoom is returned when the ESP has too little room for a file. Nothing was
// written then.
var ErrNoRoom = errors.New("the ESP is too full")

// Put writes a UKI, and returns when it is known to be on the disk as it is.
//
// It is written under a name that the boot manager does not look at, since half a
// UKI under its own name would be started, and cost tries, or stop the machine.
// Cut before the rename, that file is left behind, and the next Put or Mend takes
// it away; cut after it, the UKI is there whole. Whatever fails, what was on the
// ESP before stays, and what was written goes.
func Put(dir hw.ESPDir, n bls.Name, data []byte) error {
	have, err := List(dir)
	if err != nil {
		return err
	}
	for _, f := range have {
		if f.Name.ImageID == n.ImageID && f.Name.Version == n.Version {
			return fmt.Errorf("write %s: the ESP has %s", n, f.Name)
		}
	}
	if err := dir.MakeDirectory(bls.Directory); err != nil {
		return err
	}
	return put(dir, Path(n), data, false)
}

// CheckRoom returns ErrNoRoom where Put would for a UKI of so many bytes, to
// know before anything else is changed.
func CheckRoom(dir hw.ESPDir, size int64) error {
	free, err := dir.FreeBytes()
	if err != nil {
		return err
	}
	if need := size + slack; free < need {
		return fmt.Errorf("%w: it needs %d bytes, %d are free", ErrNoRoom, need, free)
	}
	return nil
}

// put writes a file that is not there; or, with replace, one that is damaged. A
// damaged one goes when the new one is known to be on the disk: cut between the
// two the machine is without both, and could not start the damaged one either.
func put(dir hw.ESPDir, name string, data []byte, replace bool) (err error) {
	part := name + partSuffix
	if err := discard(dir, part); err != nil {
		return err
	}
	if err := CheckRoom(dir, int64(len(data))); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, discard(dir, part))
		}
	}()
	if err := dir.Create(part, data); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := errors.Join(dir.SyncFile(part), dir.SyncDir(path.Dir(part))); err != nil {
		return fmt.Errorf("flush %s: %w", name, err)
	}
	back, err := dir.Read(part)
	if err != nil {
		return fmt.Errorf("read %s back: %w", name, err)
	}
	if got, want := sha256.Sum256(back), sha256.Sum256(data); got != want {
		return fmt.Errorf("read %s back: %d bytes with SHA-256 %x, wrote %d with %x", name, len(back), got, len(data), want)
	}
	if replace {
		if err := discard(dir, name); err != nil {
			return err
		}
	}
	return dir.Rename(part, name)
}

// discard takes a file away, if it is there.
func discard(dir hw.ESPDir, name string) error {
	err := dir.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return dir.SyncDir(path.Dir(name))
}

// Remove takes a UKI away.
func Remove(dir hw.ESPDir, n bls.Name) error { return discard(dir, Path(n)) }

// directories are those in which files of ours are written.
var directories = []string{bls.Directory, path.Dir(layout.RemovableManager), path.Dir(layout.Manager), path.Dir(layout.LoaderConf)}

// Stray reports whether a file is one of those that a cut leaves behind, by its
// path.
func Stray(name string) bool {
	return slices.Contains(directories, path.Dir(name)) && strings.HasSuffix(name, partSuffix)
}

var _ hw.ESPDir = enroll.MountedDir{}
